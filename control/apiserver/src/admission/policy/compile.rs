//! Policies and bindings as they are evaluated.

use std::sync::Arc;

use serde_json::Value;
use tandem_api::{GroupVersion, Object, Reason};
use tandem_cel::{Patterns, Program};
use tandem_registry::expressions::PATTERNS_MAX_BYTES;

use super::super::matching::{self, Attributes, Place, Rule, Selectors};

#[derive(Debug)]
pub(super) struct Expression {
    pub(super) text: String,
    /// What was written is compiled before it is stored; what is no longer understood fails when it is needed.
    pub(super) program: Result<Program, String>,
}

/// What a policy or a binding is for.
#[derive(Debug)]
pub(super) struct Resources {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    equivalent: bool,
    selectors: Selectors,
}

impl Resources {
    fn read(resources: &Value) -> Result<Resources, String> {
        Ok(Resources {
            rules: Rule::read_all(resources, "resourceRules"),
            excluded: Rule::read_all(resources, "excludeResourceRules"),
            equivalent: text(resources, "matchPolicy") != "Exact",
            selectors: Selectors::read(resources).map_err(|error| error.message)?,
        })
    }

    /// The resource as which the rules match, if they do; no rules match everything.
    pub(super) fn matched<'a>(&self, asked: &Attributes<'a>, others: &[Place<'a>]) -> Option<Place<'a>> {
        let others = if self.equivalent { others } else { &[] };
        if matching::matched(&self.excluded, asked, others).is_some() {
            return None;
        }
        if self.rules.is_empty() { Some(asked.place) } else { matching::matched(&self.rules, asked, others) }
    }

    pub(super) fn selects(
        &self,
        asked: &Attributes<'_>,
        namespace: Option<&Object>,
        object: Option<&Object>,
        old: Option<&Object>,
    ) -> bool {
        self.selectors.select_namespace(asked, namespace) && self.selectors.select_object(object, old)
    }
}

#[derive(Debug)]
pub(super) struct Validation {
    pub(super) expression: Expression,
    pub(super) message: String,
    pub(super) message_expression: Option<Expression>,
    pub(super) reason: Reason,
}

#[derive(Debug)]
pub(super) enum Mutation {
    Apply(Expression),
    Patch(Expression),
}

#[derive(Debug)]
pub(super) struct ParamKind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
}

impl std::fmt::Display for ParamKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (slash, group) = if self.group.is_empty() { ("", "") } else { ("/", self.group.as_str()) };
        write!(formatter, "{group}{slash}{}, Kind={}", self.version, self.kind)
    }
}

/// A policy of either sort.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) resources: Resources,
    pub(super) params: Option<ParamKind>,
    pub(super) ignores_failure: bool,
    pub(super) conditions: Vec<Expression>,
    pub(super) variables: Vec<(String, Expression)>,
    pub(super) validations: Vec<Validation>,
    pub(super) annotations: Vec<Expression>,
    pub(super) mutations: Vec<Mutation>,
    /// Whether it wants to see what others change after it.
    pub(super) reinvoked: bool,
    pub(super) reads_authorizer: bool,
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

struct Compiler {
    patterns: Patterns,
    reads_authorizer: bool,
}

impl Compiler {
    fn expression(&mut self, text: &str) -> Expression {
        let program = Program::compile(text, &mut self.patterns).map_err(|why| why.to_string());
        self.reads_authorizer |= program.as_ref().is_ok_and(|program| program.reads("authorizer"));
        Expression { text: text.trim().to_owned(), program }
    }

    fn validation(&mut self, value: &Value) -> Validation {
        let made = text(value, "messageExpression");
        Validation {
            expression: self.expression(text(value, "expression")),
            message: text(value, "message").trim().to_owned(),
            message_expression: (!made.trim().is_empty()).then(|| self.expression(made)),
            reason: match text(value, "reason") {
                "Forbidden" => Reason::Forbidden,
                "Unauthorized" => Reason::Unauthorized,
                "RequestEntityTooLarge" => Reason::RequestEntityTooLarge,
                _ => Reason::Invalid,
            },
        }
    }

    fn mutation(&mut self, value: &Value) -> Option<Mutation> {
        let of = |key: &str| value.get(key).map(|inner| text(inner, "expression").to_owned());
        match text(value, "patchType") {
            "ApplyConfiguration" => Some(Mutation::Apply(self.expression(&of("applyConfiguration")?))),
            "JSONPatch" => Some(Mutation::Patch(self.expression(&of("jsonPatch")?))),
            _ => None,
        }
    }
}

impl Policy {
    pub(super) fn read(object: &Object) -> Result<Policy, String> {
        let empty = Value::Null;
        let spec = object.at(&["spec"]).unwrap_or(&empty);
        let mut compiler = Compiler { patterns: Patterns::new(PATTERNS_MAX_BYTES), reads_authorizer: false };
        let mut each = |key: &str, member: &str| -> Vec<Expression> {
            list(spec, key).iter().map(|one| compiler.expression(text(one, member))).collect()
        };
        let (conditions, annotations) =
            (each("matchConditions", "expression"), each("auditAnnotations", "valueExpression"));
        let names = list(spec, "variables").iter().map(|one| text(one, "name").to_owned());
        let variables = names.zip(each("variables", "expression")).collect();
        let params = spec.get("paramKind").filter(|kind| kind.is_object()).map(|kind| {
            let version = text(kind, "apiVersion");
            let GroupVersion { group, version } =
                GroupVersion::parse(version).ok_or_else(|| format!("invalid paramKind apiVersion {version:?}"))?;
            Ok::<_, String>(ParamKind { group, version, kind: text(kind, "kind").to_owned() })
        });
        Ok(Policy {
            name: object.name().to_owned(),
            resources: Resources::read(spec.get("matchConstraints").unwrap_or(&empty))?,
            params: params.transpose()?,
            ignores_failure: text(spec, "failurePolicy") == "Ignore",
            conditions,
            variables,
            annotations,
            validations: list(spec, "validations").iter().map(|one| compiler.validation(one)).collect(),
            mutations: list(spec, "mutations").iter().filter_map(|one| compiler.mutation(one)).collect(),
            reinvoked: text(spec, "reinvocationPolicy") == "IfNeeded",
            reads_authorizer: compiler.reads_authorizer,
        })
    }
}

/// What is done about a request that a policy does not hold for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Deny,
    Warn,
    Audit,
}

/// Which objects a policy is given as its parameters.
#[derive(Debug)]
pub(super) struct ParamRef {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) selector: Option<tandem_registry::selectors::LabelSelector>,
    pub(super) denies_without: bool,
}

#[derive(Debug)]
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) policy: String,
    pub(super) param: Option<ParamRef>,
    pub(super) resources: Option<Resources>,
    pub(super) actions: Vec<Action>,
}

impl Binding {
    pub(super) fn read(object: &Object) -> Result<Binding, String> {
        let empty = Value::Null;
        let spec = object.at(&["spec"]).unwrap_or(&empty);
        let param = spec.get("paramRef").filter(|param| param.is_object()).map(|param| {
            let selector = tandem_registry::selectors::LabelSelector::from_value(param.get("selector"));
            Ok::<_, String>(ParamRef {
                name: text(param, "name").to_owned(),
                namespace: text(param, "namespace").to_owned(),
                selector: selector.map_err(|error| error.message)?,
                denies_without: text(param, "parameterNotFoundAction") != "Allow",
            })
        });
        let resources = spec.get("matchResources").filter(|resources| resources.is_object());
        let action = |action: &Value| match action.as_str() {
            Some("Deny") => Some(Action::Deny),
            Some("Warn") => Some(Action::Warn),
            Some("Audit") => Some(Action::Audit),
            _ => None,
        };
        Ok(Binding {
            name: object.name().to_owned(),
            policy: text(spec, "policyName").to_owned(),
            param: param.transpose()?,
            resources: resources.map(Resources::read).transpose()?,
            actions: list(spec, "validationActions").iter().filter_map(action).collect(),
        })
    }
}

/// A policy with what binds it.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub(super) policy: Arc<Policy>,
    pub(super) bindings: Vec<Arc<Binding>>,
}
