//! `x-kubernetes-validations`: rules in CEL, checked where they stand in the schema.

use serde_json::Value;
use tandem_api::Cause;
use tandem_cel::{Budget, Error, Value as Operand};

use super::{
    structure::{Node, Rule},
    values::{cause, join},
};
use crate::schema::ListType;

/// What one rule may cost at one place, and all rules of an object together, in steps.
const RULE_STEPS: u64 = 1_000_000;
const OBJECT_STEPS: u64 = 5_000_000;
const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";
/// How much is told of one object.
const CAUSES_MAX: usize = 100;

pub(crate) fn validate(node: &Node, value: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut walk = Walk { causes: Vec::new(), left: OBJECT_STEPS };
    walk.value(node, value, old, "");
    if walk.left == 0 && walk.causes.is_empty() {
        walk.causes.push(cause("FieldValueInvalid", "<nil>", format!("Invalid value: {OUT_OF_BUDGET}")));
    }
    walk.causes
}

struct Walk {
    causes: Vec<Cause>,
    left: u64,
}

impl Walk {
    fn value(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: &str) {
        if !node.has_rules || (value.is_null() && node.nullable) {
            return;
        }
        for rule in &node.rules {
            if self.left == 0 || self.causes.len() >= CAUSES_MAX {
                return;
            }
            self.rule(rule, value, old, path);
        }
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    if let Some(member) = node.member(name) {
                        let old = old.and_then(|old| old.get(name));
                        self.value(member, value, old, &join(path, name));
                    }
                }
            }
            Value::Array(list) => {
                let Some(items) = &node.items else { return };
                for (at, value) in list.iter().enumerate() {
                    let old = old.and_then(|old| self.counterpart(node, value, old));
                    self.value(items, value, old, &format!("{path}[{at}]"));
                }
            }
            _ => {}
        }
    }

    fn rule(&mut self, rule: &Rule, value: &Value, old: Option<&Value>, path: &str) {
        let is_transition = rule.program.reads("oldSelf");
        if is_transition && old.is_none() && !rule.optional_old {
            return;
        }
        let mut variables = vec![("self", Operand::from_json(value))];
        if rule.optional_old {
            variables.push(("oldSelf", Operand::optional(old)));
        } else if let Some(old) = old {
            variables.push(("oldSelf", Operand::from_json(old)));
        }
        let steps = RULE_STEPS.min(self.left);
        let budget = Budget::new(steps);
        let holds = rule.program.evaluate(&variables, &budget).map(|value| value.as_bool());
        let at = format!("{path}{}", rule.field_path);
        let at = at.strip_prefix('.').unwrap_or(&at);
        let shown = if at.is_empty() { "<nil>" } else { at };
        match holds {
            Ok(Some(true)) => {}
            Ok(_) => {
                let message = self.message(rule, &variables, &budget);
                let quoted = match value {
                    Value::Object(_) | Value::Array(_) => String::new(),
                    scalar => format!("{scalar}: "),
                };
                let what = match rule.reason {
                    "FieldValueForbidden" => "Forbidden: ".to_owned(),
                    "FieldValueRequired" => "Required value: ".to_owned(),
                    "FieldValueDuplicate" => format!("Duplicate value: {quoted}"),
                    _ => format!("Invalid value: {quoted}"),
                };
                self.causes.push(cause(rule.reason, shown, format!("{what}{message}")));
            }
            Err(Error::Cost) => {
                let why = format!("Invalid value: {OUT_OF_BUDGET}: {}", rule.text);
                self.causes.push(cause("FieldValueInvalid", shown, why));
                self.left = 0;
                return;
            }
            Err(error) => {
                let why = format!("Invalid value: {error} evaluating rule: {}", rule.text);
                self.causes.push(cause("FieldValueInvalid", shown, why));
            }
        }
        self.left = self.left.saturating_sub(steps - budget.left());
    }

    fn message<'v>(&self, rule: &'v Rule, variables: &[(&'v str, Operand<'v>)], budget: &Budget) -> String {
        let made = rule.message_expression.as_ref().and_then(|program| {
            let text = program.evaluate(variables, budget).ok()?.as_text()?.to_owned();
            Some(text).filter(|text| !text.trim().is_empty() && !text.contains('\n'))
        });
        made.or_else(|| rule.message.clone()).unwrap_or_else(|| format!("failed rule: {}", rule.text))
    }

    /// The element of the old list that a new one comes from: only those of keyed lists can be told.
    fn counterpart<'v>(&mut self, node: &Node, value: &Value, old: &'v Value) -> Option<&'v Value> {
        if node.list_type != ListType::Map {
            return None;
        }
        let old = old.as_array()?;
        self.left = self.left.saturating_sub(u64::try_from(old.len()).unwrap_or(u64::MAX));
        if self.left == 0 {
            return None;
        }
        let same = |one: &Value| {
            node.list_keys.iter().all(|key| {
                let of = |value: &'_ Value| value.get(&**key).or_else(|| node.key_default(key)).cloned();
                of(one) == of(value)
            })
        };
        old.iter().find(|one| same(one))
    }
}
