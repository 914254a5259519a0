use std::cell::{Cell, RefCell};

use crate::{
    Error, Program, Value, compare, functions,
    parse::{Comprehension, Expr, Fold, Operator},
};

/// What evaluations may cost together, in steps.
#[derive(Debug)]
pub struct Budget(Cell<u64>);

impl Budget {
    pub fn new(steps: u64) -> Budget {
        Budget(Cell::new(steps))
    }

    pub fn left(&self) -> u64 {
        self.0.get()
    }

    pub(crate) fn spend(&self, steps: u64) -> Result<(), Error> {
        match self.0.get().checked_sub(steps) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => {
                self.0.set(0);
                Err(Error::Cost)
            }
        }
    }
}

/// How deep the evaluation of an expression and of the lazy variables that it reads may go.
const VARIABLE_DEPTH_MAX: usize = 100;
const DEPTH_MAX: usize = 260;
/// The name under which an expression reads lazy variables.
const LAZY: &str = "variables";

/// What expressions read: values, and variables that are evaluated when they are first read.
#[derive(Debug, Default)]
pub struct Scope<'a> {
    values: Vec<(&'a str, Value<'a>)>,
    lazy: Vec<Lazy<'a>>,
}

#[derive(Debug)]
struct Lazy<'a> {
    name: &'a str,
    program: &'a Program,
    value: RefCell<Option<Result<Value<'a>, Error>>>,
}

impl<'a> Scope<'a> {
    pub fn set(&mut self, name: &'a str, value: Value<'a>) {
        self.values.push((name, value));
    }

    /// Gives `variables.NAME` a meaning. It may read those that were given before it.
    pub fn define(&mut self, name: &'a str, program: &'a Program) {
        self.lazy.push(Lazy { name, program, value: RefCell::default() });
    }

    /// The value of an expression. What it costs is taken from the budget.
    pub fn evaluate(&self, program: &'a Program, budget: &Budget) -> Result<Value<'a>, Error> {
        Evaluation::new(budget, self, self.lazy.len(), 0).eval(&program.expr)
    }
}

pub(crate) struct Evaluation<'a, 'b> {
    pub(crate) budget: &'b Budget,
    scope: &'b Scope<'a>,
    /// How many of the lazy variables can be seen.
    visible: usize,
    depth: usize,
    /// What the expression itself binds.
    variables: Vec<(&'a str, Value<'a>)>,
}

impl<'a, 'b> Evaluation<'a, 'b> {
    pub(crate) fn new(budget: &'b Budget, scope: &'b Scope<'a>, visible: usize, depth: usize) -> Evaluation<'a, 'b> {
        Evaluation { budget, scope, visible, depth, variables: Vec::new() }
    }

    fn variable(&self, name: &str) -> Result<Value<'a>, Error> {
        let found = self.variables.iter().rev().chain(&self.scope.values).find(|(mine, _)| *mine == name);
        match found {
            Some((_, value)) => Ok(value.clone()),
            None => functions::type_named(name)
                .map(Value::Type)
                .ok_or_else(|| Error::of(format!("undeclared reference to '{name}'"))),
        }
    }

    fn lazy(&self, name: &str) -> Result<Value<'a>, Error> {
        let at = self.scope.lazy[..self.visible].iter().rposition(|lazy| lazy.name == name);
        let at = at.ok_or_else(|| Error::of(format!("no such key: {name}")))?;
        let lazy = &self.scope.lazy[at];
        if let Some(known) = &*lazy.value.borrow() {
            return known.clone();
        }
        let value = Evaluation::new(self.budget, self.scope, at, self.depth).eval(&lazy.program.expr);
        // One variable's value goes into the next one's.
        let value = match value {
            Ok(value) if value.is_deeper_than(VARIABLE_DEPTH_MAX) => Err(Error::of("a variable is nested too deeply")),
            value => value,
        };
        *lazy.value.borrow_mut() = Some(value.clone());
        value
    }

    /// With variables that are gone afterwards.
    fn within(&mut self, bound: Vec<(&'a str, Value<'a>)>, body: &'a Expr) -> Result<Value<'a>, Error> {
        let before = self.variables.len();
        self.variables.extend(bound);
        let value = self.eval(body);
        self.variables.truncate(before);
        value
    }

    pub(crate) fn eval(&mut self, expr: &'a Expr) -> Result<Value<'a>, Error> {
        self.budget.spend(1)?;
        if self.depth >= DEPTH_MAX {
            return Err(Error::of(format!(
                "expressions and the variables in them may be nested at most {DEPTH_MAX} deep"
            )));
        }
        self.depth += 1;
        let value = self.value(expr);
        self.depth -= 1;
        value
    }

    fn value(&mut self, expr: &'a Expr) -> Result<Value<'a>, Error> {
        match expr {
            Expr::Null => Ok(Value::Null),
            Expr::Bool(value) => Ok(Value::Bool(*value)),
            Expr::Int(value) => Ok(Value::Int(*value)),
            Expr::Uint(value) => Ok(Value::Uint(*value)),
            Expr::Double(value) => Ok(Value::Double(*value)),
            Expr::Text(text) => Ok(Value::JsonText(text)),
            Expr::Bytes(bytes) => Ok(Value::Bytes(bytes.as_slice().into())),
            Expr::Name(name, _) => self.variable(name),
            Expr::Select { of, field, optional, test, .. } => self.select(of, field, *optional, *test),
            Expr::Index { of, at, optional, .. } => self.index(of, at, *optional),
            Expr::List(items) => self.list(items),
            Expr::Map(entries) => self.map(entries),
            Expr::And(terms) => self.logic(terms, false),
            Expr::Or(terms) => self.logic(terms, true),
            Expr::Not(inner) => Ok(Value::Bool(!self.truth(inner)?)),
            Expr::Negate(inner) => match self.eval(inner)? {
                Value::Int(value) => value.checked_neg().map(Value::Int).ok_or_else(overflow),
                Value::Double(value) => Ok(Value::Double(-value)),
                other => Err(no_overload("-_", &[&other])),
            },
            Expr::Choose(parts) => {
                let [condition, yes, no] = &**parts;
                let chosen = if self.truth(condition)? { yes } else { no };
                self.eval(chosen)
            }
            Expr::Binary(operator, _, parts) => {
                let [left, right] = &**parts;
                let (left, right) = (self.eval(left)?, self.eval(right)?);
                self.binary(*operator, left, right)
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Bind { name, value, body } => {
                let value = self.eval(value)?;
                self.within(vec![(name, value)], body)
            }
            Expr::Optional { of, name, body, flat } => self.optional(of, name, body, *flat),
            Expr::Matches { of, pattern, .. } => {
                let of = self.eval(of)?;
                let text = of.as_text().ok_or_else(|| no_overload("matches", &[&of]))?;
                self.budget.spend(pattern.cost(text))?;
                Ok(Value::Bool(pattern.is_match(text)))
            }
            Expr::Struct { fields, .. } => {
                let mut map = Vec::new();
                for (name, value, optional) in fields {
                    let value = self.eval(value)?;
                    put(&mut map, Value::JsonText(name), value, *optional);
                }
                Ok(Value::Map(map.into()))
            }
            Expr::Call { name, method, arguments, .. } => {
                let mut values = Vec::with_capacity(arguments.len());
                for argument in arguments {
                    values.push(self.eval(argument)?);
                }
                self.budget.spend(values.iter().map(Value::weight).fold(0, u64::saturating_add))?;
                functions::call(name, *method, &values, self.budget)
            }
        }
    }

    fn truth(&mut self, expr: &'a Expr) -> Result<bool, Error> {
        let value = self.eval(expr)?;
        value.as_bool().ok_or_else(|| no_overload("bool", &[&value]))
    }

    /// `||` and `&&`: a term that decides outweighs one that fails.
    fn logic(&mut self, terms: &'a [Expr], decides: bool) -> Result<Value<'a>, Error> {
        let mut failure = None;
        for term in terms {
            match self.truth(term) {
                Ok(value) if value == decides => return Ok(Value::Bool(decides)),
                Ok(_) => {}
                Err(Error::Cost) => return Err(Error::Cost),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn select(&mut self, of: &'a Expr, field: &'a str, optional: bool, test: bool) -> Result<Value<'a>, Error> {
        if !self.scope.lazy.is_empty() && matches!(of, Expr::Name(name, _) if name == LAZY) {
            let found = if test { Ok(Value::Bool(true)) } else { self.lazy(field) };
            return found.map(|value| if optional { Value::Optional(Some(value.into())) } else { value });
        }
        let of = self.eval(of)?;
        let (inner, was_optional) = match of {
            Value::Optional(None) if test => return Ok(Value::Bool(false)),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (inner.as_ref().clone(), true),
            other => (other, false),
        };
        let found = match &inner {
            Value::JsonMap(_) | Value::Map(_) => match compare::lookup(&inner, &Value::JsonText(field), self.budget)? {
                None if field.contains("__") => compare::lookup(&inner, &Value::text(unescaped(field)), self.budget)?,
                found => found,
            },
            Value::Host(host) => host.field(field),
            Value::Null if test || optional => None,
            other => return Err(Error::of(format!("type '{}' does not support field selection", other.type_name()))),
        };
        if test {
            return Ok(Value::Bool(found.is_some()));
        }
        if optional || was_optional {
            return Ok(Value::Optional(found.map(Into::into)));
        }
        found.ok_or_else(|| Error::of(format!("no such key: {field}")))
    }

    fn index(&mut self, of: &'a Expr, at: &'a Expr, optional: bool) -> Result<Value<'a>, Error> {
        let (of, at) = (self.eval(of)?, self.eval(at)?);
        let (inner, was_optional) = match of {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (inner.as_ref().clone(), true),
            other => (other, false),
        };
        let (found, missing) = match &inner {
            Value::List(items) => (position(&at).and_then(|at| items.get(at).cloned()), "index out of bounds"),
            Value::JsonList(items) => {
                (position(&at).and_then(|at| items.get(at)).map(Value::from_json), "index out of bounds")
            }
            Value::Map(_) | Value::JsonMap(_) => (compare::lookup(&inner, &at, self.budget)?, "no such key"),
            other => return Err(no_overload("_[_]", &[other, &at])),
        };
        if optional || was_optional {
            return Ok(Value::Optional(found.map(Into::into)));
        }
        found.ok_or_else(|| Error::of(format!("{missing}: {}", functions::shown(&at))))
    }

    fn list(&mut self, items: &'a [(Expr, bool)]) -> Result<Value<'a>, Error> {
        let mut list = Vec::new();
        for (item, optional) in items {
            match (self.eval(item)?, optional) {
                (Value::Optional(None), true) => {}
                (Value::Optional(Some(value)), true) => list.push(value.as_ref().clone()),
                (value, _) => list.push(value),
            }
        }
        Ok(Value::list(list))
    }

    fn map(&mut self, entries: &'a [(Expr, Expr, bool)]) -> Result<Value<'a>, Error> {
        let mut map = Vec::new();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            let value = self.eval(value)?;
            put(&mut map, key, value, *optional);
        }
        Ok(Value::Map(map.into()))
    }

    fn optional(&mut self, of: &'a Expr, name: &'a str, body: &'a Expr, flat: bool) -> Result<Value<'a>, Error> {
        match self.eval(of)? {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(value)) => {
                let mapped = self.within(vec![(name, value.as_ref().clone())], body)?;
                Ok(if flat { mapped } else { Value::Optional(Some(mapped.into())) })
            }
            other => Err(no_overload("optMap", &[&other])),
        }
    }

    fn comprehension(&mut self, inner: &'a Comprehension) -> Result<Value<'a>, Error> {
        let range = self.eval(&inner.range)?;
        self.budget.spend(range.weight())?;
        let pairs: Vec<(Value<'a>, Value<'a>)> = match (range.items(), range.entries()) {
            (Some(items), _) => items.into_iter().enumerate().map(|(at, item)| (functions::count(at), item)).collect(),
            (None, Some(entries)) => entries,
            (None, None) => return Err(no_overload("comprehension", &[&range])),
        };
        let is_map = matches!(range, Value::Map(_) | Value::JsonMap(_));
        let (mut taken, mut entries, mut count, mut failure) = (Vec::new(), Vec::new(), 0_usize, None);
        for (key, value) in pairs {
            // One name stands for the elements of a list, or for the keys of a map.
            let element = if is_map { key.clone() } else { value.clone() };
            let place = key.clone();
            let bound = match inner.names.as_slice() {
                [first, second] => vec![(first.as_str(), key), (second.as_str(), value)],
                [only, ..] => vec![(only.as_str(), element.clone())],
                [] => Vec::new(),
            };
            if let Some(condition) = &inner.condition {
                let chosen = self.within(bound.clone(), condition)?;
                if chosen.as_bool() != Some(true) {
                    continue;
                }
            }
            let found = self.within(bound, &inner.body);
            if inner.fold == Fold::Map {
                taken.push(found?);
                continue;
            }
            if inner.fold == Fold::Values {
                entries.push((place, found?));
                continue;
            }
            if inner.fold == Fold::Entries {
                let made = found?;
                self.budget.spend(made.weight())?;
                entries.extend(made.entries().ok_or_else(|| no_overload("transformMapEntry", &[&made]))?);
                continue;
            }
            let found = found.and_then(|value| value.as_bool().ok_or_else(|| no_overload("bool", &[&value])));
            match (inner.fold, found) {
                (Fold::All, Ok(false)) => return Ok(Value::Bool(false)),
                (Fold::Exists, Ok(true)) => return Ok(Value::Bool(true)),
                (Fold::All | Fold::Exists, Ok(_)) => {}
                (Fold::All | Fold::Exists, Err(error)) if error != Error::Cost => failure = failure.or(Some(error)),
                (Fold::ExistsOne, Ok(value)) => count += usize::from(value),
                (Fold::Filter, Ok(true)) => taken.push(element),
                (_, Ok(_)) => {}
                (_, Err(error)) => return Err(error),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(match inner.fold {
            Fold::All => Value::Bool(true),
            Fold::Exists => Value::Bool(false),
            Fold::ExistsOne => Value::Bool(count == 1),
            Fold::Map | Fold::Filter => Value::list(taken),
            Fold::Values | Fold::Entries => Value::Map(entries.into()),
        })
    }

    fn binary(&mut self, operator: Operator, left: Value<'a>, right: Value<'a>) -> Result<Value<'a>, Error> {
        use std::cmp::Ordering;
        let ordered = |holds: fn(Ordering) -> bool| {
            let not_a_number =
                [&left, &right].iter().any(|value| matches!(value, Value::Double(number) if number.is_nan()));
            match compare::order(&left, &right, self.budget)? {
                Some(order) => Ok(Value::Bool(holds(order))),
                None if not_a_number => Ok(Value::Bool(false)),
                None => Err(no_overload("comparison", &[&left, &right])),
            }
        };
        self.budget.spend(left.weight().min(right.weight()))?;
        match operator {
            Operator::Equal => compare::equal(&left, &right, self.budget).map(Value::Bool),
            Operator::Differs => compare::equal(&left, &right, self.budget).map(|equal| Value::Bool(!equal)),
            Operator::Less => ordered(Ordering::is_lt),
            Operator::LessOrEqual => ordered(Ordering::is_le),
            Operator::Greater => ordered(Ordering::is_gt),
            Operator::GreaterOrEqual => ordered(Ordering::is_ge),
            Operator::In => self.contains(&left, &right),
            _ => self.arithmetic(operator, left, right),
        }
    }

    fn contains(&self, element: &Value<'a>, of: &Value<'a>) -> Result<Value<'a>, Error> {
        if let Some(items) = of.items() {
            self.budget.spend(of.weight())?;
            for item in &items {
                if compare::equal(item, element, self.budget)? {
                    return Ok(Value::Bool(true));
                }
            }
            return Ok(Value::Bool(false));
        }
        match of {
            Value::Map(_) | Value::JsonMap(_) => Ok(Value::Bool(compare::lookup(of, element, self.budget)?.is_some())),
            other => Err(no_overload("@in", &[element, other])),
        }
    }

    fn arithmetic(&self, operator: Operator, left: Value<'a>, right: Value<'a>) -> Result<Value<'a>, Error> {
        self.budget.spend(left.weight().saturating_add(right.weight()))?;
        if operator == Operator::Add {
            if let (Some(one), Some(other)) = (left.as_text(), right.as_text()) {
                return Ok(Value::text(format!("{one}{other}")));
            }
            if let (Some(mut items), Some(more)) = (left.items(), right.items()) {
                items.extend(more);
                return Ok(Value::list(items));
            }
        }
        functions::arithmetic(operator, &left, &right)
    }
}

/// An entry of a map that is written down; one that is optional only where it has a value.
fn put<'a>(map: &mut Vec<(Value<'a>, Value<'a>)>, key: Value<'a>, value: Value<'a>, optional: bool) {
    match (value, optional) {
        (Value::Optional(None), true) => {}
        (Value::Optional(Some(value)), true) => map.push((key, value.as_ref().clone())),
        (value, _) => map.push((key, value)),
    }
}

fn position(at: &Value<'_>) -> Option<usize> {
    match at {
        Value::Double(number) if number.fract() == 0.0 && *number >= 0.0 && *number < 1e15 => {
            format!("{number:.0}").parse().ok()
        }
        other => usize::try_from(other.as_int()?).ok(),
    }
}

pub(crate) fn overflow() -> Error {
    Error::of("integer overflow")
}

pub(crate) fn no_overload(what: &str, values: &[&Value<'_>]) -> Error {
    let types: Vec<&str> = values.iter().map(|value| value.type_name()).collect();
    Error::of(format!("no such overload: {what}({})", types.join(", ")))
}

/// Names that are no identifiers of CEL are written so in rules.
pub(crate) fn unescaped(name: &str) -> String {
    const RESERVED: [&str; 24] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
        "type",
        "map",
        "list",
    ];
    let inner = name.strip_prefix("__").and_then(|inner| inner.strip_suffix("__"));
    if let Some(inner) = inner.filter(|inner| RESERVED.contains(inner)) {
        return inner.to_owned();
    }
    // The underscores last: they would else make new escapes.
    let plain = name.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/");
    plain.replace("__underscores__", "__")
}
