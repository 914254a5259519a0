//! What claims make of a user. Pure.

use serde_json::{Map, Value, json};
use tandem_api::Identity;
use tandem_cel::{Budget, Patterns, Program, Value as Cel};

use super::config::{Claim, Jwt};

/// Steps that all expressions of one token may take together.
const STEPS: u64 = 1_000_000;
const PATTERNS_MAX: usize = 64;
const GROUPS_MAX: usize = 1000;
/// Names and groups that begin with this are the cluster's own: no issuer gives them.
const RESERVED: &str = "system:";

enum Source {
    None,
    Claim { name: String, prefix: String },
    Expression(Program),
}

enum Rule {
    Value { claim: String, required: String },
    Expression { program: Program, message: String },
}

pub(super) struct Mapping {
    claim_rules: Vec<Rule>,
    username: Source,
    groups: Source,
    uid: Source,
    extra: Vec<(String, Program)>,
    user_rules: Vec<(Program, String)>,
}

fn message(given: &str, expression: &str) -> String {
    if given.is_empty() { format!("failed validation: {expression}") } else { given.to_owned() }
}

impl Mapping {
    pub(super) fn compile(jwt: &Jwt) -> Result<Mapping, String> {
        let mut patterns = Patterns::new(PATTERNS_MAX);
        let mut program = |text: &str| {
            Program::compile(text, &mut patterns)
                .map_err(|why| format!("the expression {text:?} cannot be used: {why}"))
        };
        let mut claim_rules = Vec::new();
        for rule in &jwt.claim_validation_rules {
            claim_rules.push(if rule.expression.is_empty() {
                Rule::Value { claim: rule.claim.clone(), required: rule.required_value.clone() }
            } else {
                let message = message(&rule.message, &rule.expression);
                Rule::Expression { program: program(&rule.expression)?, message }
            });
        }
        let mut source = |claim: &Claim| -> Result<Source, String> {
            Ok(match (claim.claim.as_str(), claim.expression.as_str()) {
                ("", "") => Source::None,
                ("", expression) => Source::Expression(program(expression)?),
                (name, _) => Source::Claim { name: name.to_owned(), prefix: claim.prefix.clone().unwrap_or_default() },
            })
        };
        let mappings = &jwt.claim_mappings;
        let (username, groups, uid) = (source(&mappings.username)?, source(&mappings.groups)?, source(&mappings.uid)?);
        let mut extra = Vec::new();
        for one in &mappings.extra {
            if !one.key.contains('/') || one.key != one.key.to_lowercase() {
                return Err(format!("claimMappings.extra: {:?} must be a lower case path with a domain", one.key));
            }
            extra.push((one.key.clone(), program(&one.value_expression)?));
        }
        let mut user_rules = Vec::new();
        for rule in &jwt.user_validation_rules {
            user_rules.push((program(&rule.expression)?, message(&rule.message, &rule.expression)));
        }
        Ok(Mapping { claim_rules, username, groups, uid, extra, user_rules })
    }

    pub(super) fn identity(&self, claims: &Value) -> Result<Identity, String> {
        let budget = Budget::new(STEPS);
        for rule in &self.claim_rules {
            match rule {
                Rule::Value { claim, required } if claims[claim.as_str()] == *required => {}
                Rule::Value { claim, .. } => return Err(format!("the claim {claim:?} is not the required value")),
                Rule::Expression { program, message } => holds(program, "claims", claims, &budget, message)?,
            }
        }
        let one = |source: &Source, what: &str| match source.texts(claims, &budget)?.as_slice() {
            [] => Ok(String::new()),
            [one] => Ok(one.clone()),
            _ => Err(format!("the {what} must be one text")),
        };
        let name = one(&self.username, "username")?;
        if name.is_empty() {
            return Err("it names no user".to_owned());
        }
        self.check_email(claims)?;
        let mut groups = self.groups.texts(claims, &budget)?;
        groups.retain(|group| !group.is_empty());
        groups.truncate(GROUPS_MAX);
        if let Some(reserved) = groups.iter().chain([&name]).find(|name| name.starts_with(RESERVED)) {
            return Err(format!(
                "{reserved:?} is not an issuer's to give: names with {RESERVED} are the cluster's own"
            ));
        }
        let names: Vec<&str> = groups.iter().map(String::as_str).collect();
        let mut identity = Identity::user(name, &names);
        identity.uid = one(&self.uid, "uid")?;
        for (key, program) in &self.extra {
            let mut values = evaluate(program, "claims", claims, &budget, |value| texts(&value))?;
            values.retain(|value| !value.is_empty());
            if !values.is_empty() {
                identity.extra.insert(key.clone(), values);
            }
        }
        let user = json!({
            "username": identity.name, "uid": identity.uid, "groups": identity.groups, "extra": identity.extra,
        });
        for (program, message) in &self.user_rules {
            holds(program, "user", &user, &budget, message)?;
        }
        Ok(identity)
    }

    /// An address that nobody has verified is not a name.
    fn check_email(&self, claims: &Value) -> Result<(), String> {
        let by_email = matches!(&self.username, Source::Claim { name, .. } if name == "email");
        match claims.get("email_verified") {
            Some(verified) if by_email && *verified != Value::Bool(true) => Err("the email is not verified".to_owned()),
            _ => Ok(()),
        }
    }
}

impl Source {
    fn texts(&self, claims: &Value, budget: &Budget) -> Result<Vec<String>, String> {
        match self {
            Source::None => Ok(Vec::new()),
            Source::Claim { name, prefix } => {
                let found = claims.as_object().and_then(|claims: &Map<String, Value>| claims.get(name));
                let found = found.map(|claim| texts(&Cel::from_json(claim))).transpose()?.unwrap_or_default();
                Ok(found.into_iter().filter(|text| !text.is_empty()).map(|text| format!("{prefix}{text}")).collect())
            }
            Source::Expression(program) => evaluate(program, "claims", claims, budget, |value| texts(&value)),
        }
    }
}

fn evaluate<T>(
    program: &Program,
    name: &str,
    of: &Value,
    budget: &Budget,
    read: impl FnOnce(Cel<'_>) -> Result<T, String>,
) -> Result<T, String> {
    let variables = [(name, Cel::from_json(of))];
    read(program.evaluate(&variables, budget).map_err(|why| why.to_string())?)
}

fn holds(program: &Program, name: &str, of: &Value, budget: &Budget, message: &str) -> Result<(), String> {
    let held = evaluate(program, name, of, budget, |value| Ok(value.as_bool() == Some(true)))?;
    if held { Ok(()) } else { Err(message.to_owned()) }
}

/// A text or a list of texts.
fn texts(value: &Cel<'_>) -> Result<Vec<String>, String> {
    let text =
        |value: &Cel<'_>| value.as_text().map(str::to_owned).ok_or("a claim is neither a text nor a list of texts");
    let list =
        |values: &mut dyn Iterator<Item = Cel<'_>>| values.map(|value| text(&value)).collect::<Result<Vec<_>, _>>();
    let found = match value {
        Cel::Null | Cel::Optional(None) => Ok(Vec::new()),
        Cel::List(items) => list(&mut items.iter().cloned()),
        Cel::JsonList(items) => list(&mut items.iter().map(Cel::from_json)),
        one => text(one).map(|text| vec![text]),
    };
    found.map_err(str::to_owned)
}
