//! What is wrong with an expression by the types of what it reads. What is of no known type may be anything, so that
//! only what cannot be right for any value is told.

use crate::{
    Program, eval, functions,
    parse::{Comprehension, Expr, Fold, Operator},
};

/// How many problems of one expression are told.
const PROBLEMS_MAX: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Anything.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Timestamp,
    Duration,
    List(Box<Type>),
    /// From texts.
    Map(Box<Type>),
    Optional(Box<Type>),
    /// What has fields of its own, by its name.
    Object(String),
}

impl Type {
    /// Whether it has more than so many types within each other.
    pub fn is_deeper_than(&self, most: usize) -> bool {
        match self {
            Type::List(inner) | Type::Map(inner) | Type::Optional(inner) => most == 0 || inner.is_deeper_than(most - 1),
            _ => false,
        }
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Type::Dyn => formatter.write_str("dyn"),
            Type::Null => formatter.write_str("null"),
            Type::Bool => formatter.write_str("bool"),
            Type::Int => formatter.write_str("int"),
            Type::Uint => formatter.write_str("uint"),
            Type::Double => formatter.write_str("double"),
            Type::Text => formatter.write_str("string"),
            Type::Bytes => formatter.write_str("bytes"),
            Type::Timestamp => formatter.write_str("timestamp"),
            Type::Duration => formatter.write_str("duration"),
            Type::List(inner) => write!(formatter, "list({inner})"),
            Type::Map(inner) => write!(formatter, "map(string, {inner})"),
            Type::Optional(inner) => write!(formatter, "optional_type({inner})"),
            Type::Object(name) => formatter.write_str(name),
        }
    }
}

impl Type {
    pub fn list(of: Type) -> Type {
        Type::List(Box::new(of))
    }

    pub fn map(of: Type) -> Type {
        Type::Map(Box::new(of))
    }

    fn is_number(&self) -> bool {
        matches!(self, Type::Int | Type::Uint | Type::Double)
    }

    fn is_dyn(&self) -> bool {
        *self == Type::Dyn
    }

    /// Whether a value of one type can be one of the other.
    fn fits(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Dyn, _) | (_, Type::Dyn) | (Type::Null, _) | (_, Type::Null) => true,
            (Type::List(one), Type::List(other))
            | (Type::Map(one), Type::Map(other))
            | (Type::Optional(one), Type::Optional(other)) => one.fits(other),
            (Type::Object(_), Type::Map(_)) | (Type::Map(_), Type::Object(_)) => true,
            (one, other) => one == other,
        }
    }

    fn joined(self, other: Type) -> Type {
        if self == other { self } else { Type::Dyn }
    }
}

/// The fields of the types that have names.
pub trait Fields {
    /// `None` where there is no such field.
    fn field(&self, of: &str, name: &str) -> Option<Type>;
}

impl Program {
    /// The type of the expression, or what is wrong with it, as cel-go words and shows it. `text` is what was compiled.
    pub fn check(&self, text: &str, variables: &[(&str, Type)], fields: &dyn Fields) -> Result<Type, String> {
        let bound = variables.iter().map(|(name, ty)| ((*name).to_owned(), ty.clone())).collect();
        let mut checker = Checker { bound, fields, problems: Vec::new() };
        let found = checker.ty(&self.expr);
        if checker.problems.is_empty() {
            return Ok(found);
        }
        checker.problems.sort_by_key(|(place, _)| *place);
        let shown: Vec<String> =
            checker.problems.iter().take(PROBLEMS_MAX).map(|(place, why)| pointed(text, *place, why)).collect();
        Err(shown.join("\n"))
    }
}

/// The problem with the line where it is, and an arrow below.
fn pointed(text: &str, place: usize, why: &str) -> String {
    let before = text.get(..place).unwrap_or(text);
    let line = before.matches('\n').count();
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
    let source = text.lines().nth(line).unwrap_or_default();
    format!("ERROR: <input>:{}:{}: {why}\n | {source}\n | {}^", line + 1, column + 1, ".".repeat(column))
}

struct Checker<'f> {
    bound: Vec<(String, Type)>,
    fields: &'f dyn Fields,
    problems: Vec<(usize, String)>,
}

impl Checker<'_> {
    fn problem(&mut self, place: usize, why: String) -> Type {
        self.problems.push((place, why));
        Type::Dyn
    }

    fn no_overload(&mut self, place: usize, what: &str, types: &[&Type]) -> Type {
        let types: Vec<String> = types.iter().map(ToString::to_string).collect();
        self.problem(place, format!("found no matching overload for '{what}' applied to '({})'", types.join(", ")))
    }

    fn within(&mut self, bound: Vec<(String, Type)>, body: &Expr) -> Type {
        let before = self.bound.len();
        self.bound.extend(bound);
        let found = self.ty(body);
        self.bound.truncate(before);
        found
    }

    /// The one type of many expressions, if it is one.
    fn common<'e>(&mut self, exprs: impl Iterator<Item = &'e Expr>) -> Type {
        let types: Vec<Type> = exprs.map(|expr| self.ty(expr)).collect();
        types.into_iter().reduce(Type::joined).unwrap_or(Type::Dyn)
    }

    fn ty(&mut self, expr: &Expr) -> Type {
        match expr {
            Expr::Null => Type::Null,
            Expr::Bool(_) => Type::Bool,
            Expr::Int(_) => Type::Int,
            Expr::Uint(_) => Type::Uint,
            Expr::Double(_) => Type::Double,
            Expr::Text(_) => Type::Text,
            Expr::Bytes(_) => Type::Bytes,
            Expr::Name(name, place) => self.name(name, *place),
            Expr::And(terms) => self.logic(terms, "_&&_"),
            Expr::Or(terms) => self.logic(terms, "_||_"),
            Expr::Comprehension(inner) => self.comprehension(inner),
            Expr::Struct { name, fields, place } => self.structure(name, fields, *place),
            Expr::Not(_) | Expr::Negate(_) | Expr::Choose(_) | Expr::Binary(..) => self.operation(expr),
            _ => self.composed(expr),
        }
    }

    /// Operators and conditions.
    fn operation(&mut self, expr: &Expr) -> Type {
        match expr {
            Expr::Not(inner) => {
                let inner = self.ty(inner);
                if inner.fits(&Type::Bool) { Type::Bool } else { self.no_overload(0, "!_", &[&inner]) }
            }
            Expr::Negate(inner) => {
                let inner = self.ty(inner);
                let fits = inner.is_dyn() || matches!(inner, Type::Int | Type::Double);
                if fits { inner } else { self.no_overload(0, "-_", &[&inner]) }
            }
            Expr::Choose(parts) => {
                let [condition, yes, no] = &**parts;
                let (condition, yes, no) = (self.ty(condition), self.ty(yes), self.ty(no));
                if condition.fits(&Type::Bool) {
                    yes.joined(no)
                } else {
                    self.no_overload(0, "_?_:_", &[&condition, &yes, &no])
                }
            }
            Expr::Binary(operator, place, parts) => {
                let [left, right] = &**parts;
                let (left, right) = (self.ty(left), self.ty(right));
                self.binary(*operator, *place, &left, &right)
            }
            _ => Type::Dyn,
        }
    }

    fn composed(&mut self, expr: &Expr) -> Type {
        match expr {
            Expr::Select { of, field, optional, test, place } => {
                let of = self.ty(of);
                let found = self.select(&of, field, *place);
                match (test, optional) {
                    (true, _) => Type::Bool,
                    (false, true) => Type::Optional(Box::new(found)),
                    (false, false) => found,
                }
            }
            Expr::Index { of, at, optional, place } => {
                let (of, at) = (self.ty(of), self.ty(at));
                let found = self.index(&of, &at, *place);
                if *optional { Type::Optional(Box::new(found)) } else { found }
            }
            Expr::List(items) => Type::list(self.common(items.iter().map(|(item, _)| item))),
            Expr::Map(entries) => {
                entries.iter().for_each(|(key, _, _)| drop(self.ty(key)));
                Type::map(self.common(entries.iter().map(|(_, value, _)| value)))
            }
            Expr::Bind { name, value, body } => {
                let value = self.ty(value);
                self.within(vec![(name.clone(), value)], body)
            }
            Expr::Optional { of, name, body, flat } => {
                let of = match self.ty(of) {
                    Type::Optional(inner) => *inner,
                    _ => Type::Dyn,
                };
                let found = self.within(vec![(name.clone(), of)], body);
                if *flat { found } else { Type::Optional(Box::new(found)) }
            }
            Expr::Matches { of, place, .. } => {
                let of = self.ty(of);
                self.call("matches", true, &[of, Type::Text], *place)
            }
            Expr::Call { name, method, arguments, place } => {
                let types: Vec<Type> = arguments.iter().map(|argument| self.ty(argument)).collect();
                self.call(name, *method, &types, *place)
            }
            _ => Type::Dyn,
        }
    }

    fn name(&mut self, name: &str, place: usize) -> Type {
        if let Some((_, ty)) = self.bound.iter().rev().find(|(mine, _)| mine == name) {
            return ty.clone();
        }
        if functions::type_named(name).is_some() {
            return Type::Dyn;
        }
        self.problem(place, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn select(&mut self, of: &Type, field: &str, place: usize) -> Type {
        match of {
            Type::Dyn => Type::Dyn,
            Type::Map(value) => (**value).clone(),
            Type::Optional(inner) => self.select(inner, field, place),
            Type::Object(name) => {
                let found = self.fields.field(name, field).or_else(|| {
                    let plain = eval::unescaped(field);
                    if plain == field { None } else { self.fields.field(name, &plain) }
                });
                found.unwrap_or_else(|| self.problem(place, format!("undefined field '{field}'")))
            }
            other => self.problem(place, format!("type '{other}' does not support field selection")),
        }
    }

    fn index(&mut self, of: &Type, at: &Type, place: usize) -> Type {
        match of {
            Type::List(item) if at.is_dyn() || at.is_number() => (**item).clone(),
            Type::Map(value) if at.fits(&Type::Text) => (**value).clone(),
            Type::Optional(inner) => self.index(inner, at, place),
            Type::Dyn | Type::Object(_) => Type::Dyn,
            other => self.no_overload(place, "_[_]", &[other, at]),
        }
    }

    fn logic(&mut self, terms: &[Expr], what: &str) -> Type {
        let types: Vec<Type> = terms.iter().map(|term| self.ty(term)).collect();
        if types.iter().all(|ty| ty.fits(&Type::Bool)) {
            return Type::Bool;
        }
        self.no_overload(0, what, &types.iter().collect::<Vec<_>>())
    }

    fn binary(&mut self, operator: Operator, place: usize, left: &Type, right: &Type) -> Type {
        use Operator::{
            Add, Differs, Divide, Equal, Greater, GreaterOrEqual, In, Less, LessOrEqual, Multiply, Remainder, Subtract,
        };
        let numbers = left.is_number() && right.is_number();
        let any = left.is_dyn() || right.is_dyn();
        let (what, found) = match operator {
            Equal | Differs => {
                let what = if operator == Equal { "_==_" } else { "_!=_" };
                (what, (numbers || left.fits(right)).then_some(Type::Bool))
            }
            Less | LessOrEqual | Greater | GreaterOrEqual => {
                let what = match operator {
                    Less => "_<_",
                    LessOrEqual => "_<=_",
                    Greater => "_>_",
                    _ => "_>=_",
                };
                let ordered = !matches!(left, Type::List(_) | Type::Map(_) | Type::Null | Type::Object(_));
                (what, (any || numbers || (ordered && left == right)).then_some(Type::Bool))
            }
            In => {
                let fits = match right {
                    Type::List(item) => left.fits(item) || (left.is_number() && item.is_number()),
                    Type::Map(_) => left.fits(&Type::Text),
                    Type::Dyn | Type::Object(_) => true,
                    _ => false,
                };
                ("@in", fits.then_some(Type::Bool))
            }
            Add | Subtract | Multiply | Divide | Remainder => {
                let what = match operator {
                    Add => "_+_",
                    Subtract => "_-_",
                    Multiply => "_*_",
                    Divide => "_/_",
                    _ => "_%_",
                };
                let found = if any { Some(Type::Dyn) } else { arithmetic(operator, left, right) };
                (what, found)
            }
        };
        match found {
            Some(found) => found,
            None => self.no_overload(place, what, &[left, right]),
        }
    }

    fn comprehension(&mut self, inner: &Comprehension) -> Type {
        let range = self.ty(&inner.range);
        let (first, second) = match &range {
            Type::List(item) => (Type::Int, (**item).clone()),
            Type::Map(value) => (Type::Text, (**value).clone()),
            _ => (Type::Dyn, Type::Dyn),
        };
        let is_list = matches!(range, Type::List(_));
        let bound: Vec<(String, Type)> = match inner.names.as_slice() {
            [one] => vec![(one.clone(), if is_list { second.clone() } else { first })],
            [one, other, ..] => vec![(one.clone(), first), (other.clone(), second.clone())],
            [] => Vec::new(),
        };
        if let Some(condition) = &inner.condition {
            self.within(bound.clone(), condition);
        }
        let body = self.within(bound, &inner.body);
        match inner.fold {
            Fold::All | Fold::Exists | Fold::ExistsOne => Type::Bool,
            Fold::Map => Type::list(body),
            Fold::Filter if is_list => Type::list(second),
            Fold::Filter => Type::list(Type::Dyn),
            Fold::Values => Type::map(body),
            Fold::Entries => Type::Dyn,
        }
    }

    fn call(&mut self, name: &str, method: bool, types: &[Type], place: usize) -> Type {
        let of = types.first();
        let wrong = of.is_some_and(|of| match name {
            "startsWith" | "endsWith" | "matches" | "lowerAscii" | "upperAscii" | "trim" | "charAt" | "substring"
            | "replace" | "split" | "find" | "findAll" | "contains" => !of.is_dyn() && *of != Type::Text,
            "size" => matches!(of, Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Null),
            _ => false,
        });
        if let (true, Some(of)) = (wrong, of) {
            let shown = |types: &[Type]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let applied = if method { format!("{of}.({})", shown(&types[1..])) } else { format!("({})", shown(types)) };
            return self.problem(place, format!("found no matching overload for '{name}' applied to '{applied}'"));
        }
        match name {
            "startsWith" | "endsWith" | "matches" | "contains" | "isSorted" | "sets.contains" | "sets.equivalent"
            | "sets.intersects" | "hasValue" | "isQuantity" | "isInteger" | "isGreaterThan" | "isLessThan" | "isIP"
            | "isCIDR" | "isURL" | "isSemver" | "containsIP" | "containsCIDR" | "allowed" | "errored" | "bool" => {
                Type::Bool
            }
            "size" | "int" | "indexOf" | "lastIndexOf" | "compareTo" | "family" | "prefixLength" | "major"
            | "minor" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string"
            | "lowerAscii"
            | "upperAscii"
            | "trim"
            | "charAt"
            | "substring"
            | "replace"
            | "find"
            | "join"
            | "strings.quote"
            | "format"
            | "getScheme"
            | "getHost"
            | "getHostname"
            | "getPort"
            | "getEscapedPath"
            | "jsonpatch.escapeKey" => Type::Text,
            "split" | "findAll" => Type::list(Type::Text),
            "timestamp" => Type::Timestamp,
            "duration" => Type::Duration,
            "optional.none" => Type::Optional(Box::new(Type::Dyn)),
            "optional.of" | "optional.ofNonZeroValue" => Type::Optional(Box::new(of.cloned().unwrap_or(Type::Dyn))),
            "value" | "orValue" => match of {
                Some(Type::Optional(inner)) => (**inner).clone(),
                _ => Type::Dyn,
            },
            _ => Type::Dyn,
        }
    }

    /// `Object.spec{…}` and `JSONPatch{…}`: what stands in a field must be of the type of its path.
    fn structure(&mut self, name: &str, fields: &[(String, Expr, bool)], place: usize) -> Type {
        for (field, value, optional) in fields {
            let mut found = self.ty(value);
            if let (true, Type::Optional(inner)) = (optional, &found) {
                found = (**inner).clone();
            }
            if name == "JSONPatch" {
                if !["op", "path", "from", "value"].contains(&field.as_str()) {
                    self.problem(place, format!("undefined field '{field}'"));
                }
                continue;
            }
            let within = match &found {
                Type::List(item) | Type::Map(item) => (**item).clone(),
                other => other.clone(),
            };
            let wanted = format!("{name}.{field}");
            if let Type::Object(given) = within
                && (given == "Object" || given.starts_with("Object."))
                && given != wanted
            {
                let why = format!("expected type of field '{field}' is '{wanted}' but provided type is '{given}'");
                self.problem(place, why);
            }
        }
        Type::Object(name.to_owned())
    }
}

fn arithmetic(operator: Operator, left: &Type, right: &Type) -> Option<Type> {
    let same = left == right;
    match (operator, left, right) {
        (Operator::Remainder, Type::Int | Type::Uint, _) if same => Some(left.clone()),
        (Operator::Remainder, _, _) => None,
        (_, Type::Int | Type::Uint | Type::Double, _) if same => Some(left.clone()),
        (Operator::Add, Type::Text | Type::Bytes | Type::Duration, _) if same => Some(left.clone()),
        (Operator::Add, Type::List(_), Type::List(_)) => Some(left.clone().joined(right.clone())),
        (Operator::Add, Type::Timestamp, Type::Duration) | (Operator::Add, Type::Duration, Type::Timestamp) => {
            Some(Type::Timestamp)
        }
        (Operator::Subtract, Type::Timestamp, Type::Duration) => Some(Type::Timestamp),
        (Operator::Subtract, Type::Timestamp, Type::Timestamp)
        | (Operator::Subtract, Type::Duration, Type::Duration) => Some(Type::Duration),
        _ => None,
    }
}
