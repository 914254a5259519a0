//! What the expressions of a policy come to: a pure function of the policy and of what it may read.

use std::rc::Rc;

use tandem_api::{Object, Reason};
use tandem_cel::{Budget, Error, Scope, Value};

use super::{
    compile::{Expression, Policy, Validation},
    invocation::Input,
};

/// Kubernetes' limits for one expression, for all of one policy, and for its conditions, in steps.
const EXPRESSION_STEPS: u64 = 1_000_000;
const POLICY_STEPS: u64 = 10_000_000;
const CONDITION_STEPS: u64 = 2_500_000;
/// What all policies together may cost one request.
const REQUEST_STEPS: u64 = 50_000_000;
/// Longer messages are not shown.
const MESSAGE_MAX_BYTES: usize = 5 * 1024;
const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// What the policies of one request may still cost.
#[derive(Debug)]
pub(super) struct Steps(u64);

impl Steps {
    pub(super) fn new() -> Steps {
        Steps(REQUEST_STEPS)
    }
}

/// What one policy may still cost.
pub(super) struct Purse<'s> {
    steps: &'s mut Steps,
    left: u64,
}

impl<'s> Purse<'s> {
    pub(super) fn new(steps: &'s mut Steps, most: u64) -> Purse<'s> {
        let left = most.min(steps.0);
        Purse { steps, left }
    }

    pub(super) fn for_policy(steps: &'s mut Steps) -> Purse<'s> {
        Purse::new(steps, POLICY_STEPS)
    }

    /// The value of an expression, or why it has none, in words.
    pub(super) fn evaluate<'a, T>(
        &mut self,
        scope: &Scope<'a>,
        expression: &'a Expression,
        read: impl FnOnce(Value<'a>, &Budget) -> Result<T, Error>,
    ) -> Result<T, String> {
        let program = expression.program.as_ref().map_err(|why| format!("compilation error: {why}"))?;
        let most = EXPRESSION_STEPS.min(self.left);
        let budget = Budget::new(most);
        let found = scope.evaluate(program, &budget).and_then(|value| read(value, &budget));
        let spent = most - budget.left();
        self.left -= spent;
        self.steps.0 = self.steps.0.saturating_sub(spent);
        found.map_err(|error| match error {
            Error::Cost if self.left == 0 => OUT_OF_BUDGET.to_owned(),
            Error::Cost => format!(
                "expression '{}' resulted in error: operation cancelled: actual cost limit exceeded",
                expression.text
            ),
            error => format!("expression '{}' resulted in error: {error}", expression.text),
        })
    }
}

/// What expressions read. Conditions come before variables, and messages know no authorizer.
pub(super) fn scope<'a>(policy: &'a Policy, input: &Input<'a>, variables: bool, authorizer: bool) -> Scope<'a> {
    let object = |object: Option<&'a Object>| object.map_or(Value::Null, |object| Value::JsonMap(&object.0));
    let mut scope = Scope::default();
    scope.set("object", object(input.object));
    scope.set("oldObject", object(input.old));
    scope.set("request", Value::from_json(input.request));
    scope.set("namespaceObject", object(input.namespace));
    if policy.params.is_some() {
        scope.set("params", object(input.params));
    }
    if let (true, Some(authorizer)) = (authorizer, &input.authorizer) {
        scope.set("authorizer", Value::Host(Rc::new(authorizer.clone())));
    }
    for (name, expression) in policy.variables.iter().filter(|_| variables) {
        if let Ok(program) = &expression.program {
            scope.define(name, program);
        }
    }
    scope
}

/// Whether the policy wants to be asked. One condition that does not hold outweighs those that fail.
pub(super) fn conditions(policy: &Policy, input: &Input<'_>, steps: &mut Steps) -> Result<bool, String> {
    if policy.conditions.is_empty() {
        return Ok(true);
    }
    let (scope, mut purse) = (scope(policy, input, false, true), Purse::new(steps, CONDITION_STEPS));
    let mut failures = Vec::new();
    for condition in &policy.conditions {
        match purse.evaluate(&scope, condition, |value, _| Ok(value.as_bool())) {
            Ok(Some(true)) => {}
            Ok(Some(false)) => return Ok(false),
            Ok(None) => failures.push(format!("expression '{}' did not evaluate to a bool", condition.text)),
            Err(why) => failures.push(why),
        }
    }
    match failures.as_slice() {
        [] => Ok(true),
        [only] => Err(only.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

/// Why a policy does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Denial {
    pub(super) message: String,
    pub(super) reason: Reason,
    /// Whatever the binding says.
    pub(super) always: bool,
}

impl Denial {
    fn of(message: String) -> Denial {
        Denial { message, reason: Reason::Invalid, always: false }
    }

    pub(super) fn always(message: String) -> Denial {
        Denial { always: true, ..Denial::of(message) }
    }
}

/// All that a policy has against a request.
pub(super) fn validate(policy: &Policy, input: &Input<'_>, steps: &mut Steps) -> Vec<Denial> {
    match conditions(policy, input, steps) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(why) => return failed(policy, Denial::of(why)),
    }
    let (scope, messages) = (scope(policy, input, true, true), self::scope(policy, input, true, false));
    let mut purse = Purse::for_policy(steps);
    let mut denials = Vec::new();
    for validation in &policy.validations {
        match purse.evaluate(&scope, &validation.expression, |value, _| Ok(value.as_bool())) {
            Ok(Some(true)) => {}
            Ok(_) => denials.push(Denial {
                message: message(&mut purse, &messages, validation),
                reason: validation.reason,
                always: false,
            }),
            Err(why) => denials.extend(failed(policy, Denial::of(why))),
        }
    }
    for annotation in &policy.annotations {
        let read = |value: Value<'_>, _: &Budget| match (&value, value.as_text()) {
            (Value::Null, _) | (_, Some(_)) => Ok(()),
            _ => Err(Error::Evaluation("return type must be either string or null".to_owned())),
        };
        if let Err(why) = purse.evaluate(&scope, annotation, read) {
            denials.extend(failed(policy, Denial::always(why)));
        }
    }
    denials
}

/// A failure, unless the policy wants it ignored.
fn failed(policy: &Policy, denial: Denial) -> Vec<Denial> {
    if policy.ignores_failure {
        tracing::debug!(policy = policy.name, why = denial.message, "a failure of a policy is ignored");
        return Vec::new();
    }
    vec![denial]
}

/// What the policy says: made for this request, written down, or the rule itself.
fn message<'a>(purse: &mut Purse<'_>, scope: &Scope<'a>, validation: &'a Validation) -> String {
    let made = validation.message_expression.as_ref().and_then(|expression| {
        let text = |value: Value<'a>, _: &Budget| Ok(value.as_text().map(|text| text.trim().to_owned()));
        let made = purse.evaluate(scope, expression, text).ok().flatten()?;
        Some(made).filter(|made| !made.is_empty() && made.len() <= MESSAGE_MAX_BYTES && !made.contains('\n'))
    });
    let written = Some(validation.message.clone()).filter(|message| !message.is_empty());
    made.or(written).unwrap_or_else(|| format!("failed expression: {}", validation.expression.text))
}
