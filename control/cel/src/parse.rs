use std::sync::Arc;

use crate::{
    Error, Pattern, Patterns, eval, functions,
    lexer::{self, Token},
};

/// How deep brackets may be nested.
const NESTING_MAX: usize = 48;
/// How deep the tree of an expression may be.
const DEPTH_MAX: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    Differs,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fold {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    /// `transformMap`: the keys stay.
    Values,
    /// `transformMapEntry`: each body is a map, and all are laid together.
    Entries,
}

/// `range.all(name, body)` and its like. With two names the first is the index or key.
#[derive(Debug)]
pub(crate) struct Comprehension {
    pub(crate) fold: Fold,
    pub(crate) range: Expr,
    pub(crate) names: Vec<String>,
    /// Of `map` with three arguments: which elements are taken at all.
    pub(crate) condition: Option<Expr>,
    pub(crate) body: Expr,
}

#[derive(Debug)]
pub(crate) enum Expr {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Name(String, usize),
    /// `of.field`, `of.?field`; with `test`, `has(of.field)`.
    Select {
        of: Box<Expr>,
        field: String,
        optional: bool,
        test: bool,
        place: usize,
    },
    Index {
        of: Box<Expr>,
        at: Box<Expr>,
        optional: bool,
        place: usize,
    },
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Choose(Box<[Expr; 3]>),
    Binary(Operator, usize, Box<[Expr; 2]>),
    Comprehension(Box<Comprehension>),
    /// `cel.bind(name, value, body)`
    Bind {
        name: String,
        value: Box<Expr>,
        body: Box<Expr>,
    },
    /// `of.optMap(name, body)`, and `optFlatMap`
    Optional {
        of: Box<Expr>,
        name: String,
        body: Box<Expr>,
        flat: bool,
    },
    /// A pattern that is known beforehand.
    Matches {
        of: Box<Expr>,
        pattern: Arc<Pattern>,
        place: usize,
    },
    /// The object of a method comes first.
    Call {
        name: String,
        method: bool,
        arguments: Vec<Expr>,
        place: usize,
    },
    /// `Object.spec{field: value}`
    Struct {
        name: String,
        fields: Vec<(String, Expr, bool)>,
        place: usize,
    },
}

/// An expression. What can be wrong with it by type knows where in the text it stands (`place`).
/// With it come the names that it reads.
pub(crate) fn parse(text: &str, patterns: &mut Patterns) -> Result<(Expr, Vec<String>), Error> {
    let (tokens, places) = lexer::tokens(text)?;
    let mut parser = Parser { tokens, places, at: 0, nesting: 0, patterns };
    let expr = parser.expr()?;
    if let Some(token) = parser.tokens.get(parser.at) {
        return Err(Error::Syntax(format!("extraneous input {token:?}")));
    }
    let names = walk(&expr)?;
    Ok((expr, names))
}

fn children(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Null
        | Expr::Bool(_)
        | Expr::Int(_)
        | Expr::Uint(_)
        | Expr::Double(_)
        | Expr::Text(_)
        | Expr::Bytes(_)
        | Expr::Name(..) => Vec::new(),
        Expr::Select { of, .. } | Expr::Not(of) | Expr::Negate(of) | Expr::Matches { of, .. } => vec![of],
        Expr::Index { of, at, .. } => vec![of, at],
        Expr::List(items) => items.iter().map(|(item, _)| item).collect(),
        Expr::Map(entries) => entries.iter().flat_map(|(key, value, _)| [key, value]).collect(),
        Expr::And(terms) | Expr::Or(terms) | Expr::Call { arguments: terms, .. } => terms.iter().collect(),
        Expr::Choose(parts) => parts.iter().collect(),
        Expr::Binary(_, _, parts) => parts.iter().collect(),
        Expr::Comprehension(inner) => {
            let mut parts = vec![&inner.range, &inner.body];
            parts.extend(&inner.condition);
            parts
        }
        Expr::Bind { value, body, .. } => vec![value, body],
        Expr::Optional { of, body, .. } => vec![of, body],
        Expr::Struct { fields, .. } => fields.iter().map(|(_, value, _)| value).collect(),
    }
}

/// The names that an expression reads. One that is too deep is refused.
fn walk(expr: &Expr) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    let mut rest = vec![(expr, 0)];
    while let Some((expr, depth)) = rest.pop() {
        if depth > DEPTH_MAX {
            return Err(Error::Syntax(format!("an expression may be nested at most {DEPTH_MAX} deep")));
        }
        if let Expr::Name(name, _) = expr
            && !names.contains(name)
        {
            names.push(name.clone());
        }
        rest.extend(children(expr).into_iter().map(|child| (child, depth + 1)));
    }
    Ok(names)
}

struct Parser<'p> {
    tokens: Vec<Token>,
    places: Vec<usize>,
    at: usize,
    nesting: usize,
    patterns: &'p mut Patterns,
}

impl Parser<'_> {
    /// Where the token before the next one begins.
    fn before(&self) -> usize {
        self.places.get(self.at.saturating_sub(1)).copied().unwrap_or_default()
    }

    fn takes(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(mine)) if *mine == sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), Error> {
        if self.takes(sign) {
            return Ok(());
        }
        let found = self.tokens.get(self.at).map_or("the end".to_owned(), |token| format!("{token:?}"));
        Err(Error::Syntax(format!("expected {sign:?} before {found}")))
    }

    fn name(&mut self) -> Result<String, Error> {
        match self.tokens.get(self.at) {
            Some(Token::Name(name)) => {
                self.at += 1;
                Ok(name.clone())
            }
            _ => Err(Error::Syntax("a name is missing".to_owned())),
        }
    }

    fn expr(&mut self) -> Result<Expr, Error> {
        self.nesting += 1;
        if self.nesting > NESTING_MAX {
            return Err(Error::Syntax(format!("brackets may be nested at most {NESTING_MAX} deep")));
        }
        let condition = self.or()?;
        let expr = if self.takes("?") {
            let yes = self.or()?;
            self.expect(":")?;
            Expr::Choose(Box::new([condition, yes, self.expr()?]))
        } else {
            condition
        };
        self.nesting -= 1;
        Ok(expr)
    }

    fn or(&mut self) -> Result<Expr, Error> {
        let mut terms = vec![self.and()?];
        while self.takes("||") {
            terms.push(self.and()?);
        }
        Ok(one_or(terms, Expr::Or))
    }

    fn and(&mut self) -> Result<Expr, Error> {
        let mut terms = vec![self.relation()?];
        while self.takes("&&") {
            terms.push(self.relation()?);
        }
        Ok(one_or(terms, Expr::And))
    }

    fn relation(&mut self) -> Result<Expr, Error> {
        let mut left = self.sum()?;
        loop {
            let operator = match self.tokens.get(self.at) {
                Some(Token::Sign("==")) => Operator::Equal,
                Some(Token::Sign("!=")) => Operator::Differs,
                Some(Token::Sign("<")) => Operator::Less,
                Some(Token::Sign("<=")) => Operator::LessOrEqual,
                Some(Token::Sign(">")) => Operator::Greater,
                Some(Token::Sign(">=")) => Operator::GreaterOrEqual,
                Some(Token::Name(name)) if name == "in" => Operator::In,
                _ => return Ok(left),
            };
            self.at += 1;
            let place = self.before();
            left = Expr::Binary(operator, place, Box::new([left, self.sum()?]));
        }
    }

    fn sum(&mut self) -> Result<Expr, Error> {
        let mut left = self.product()?;
        loop {
            let operator = match self.tokens.get(self.at) {
                Some(Token::Sign("+")) => Operator::Add,
                Some(Token::Sign("-")) => Operator::Subtract,
                _ => return Ok(left),
            };
            self.at += 1;
            let place = self.before();
            left = Expr::Binary(operator, place, Box::new([left, self.product()?]));
        }
    }

    fn product(&mut self) -> Result<Expr, Error> {
        let mut left = self.unary()?;
        loop {
            let operator = match self.tokens.get(self.at) {
                Some(Token::Sign("*")) => Operator::Multiply,
                Some(Token::Sign("/")) => Operator::Divide,
                Some(Token::Sign("%")) => Operator::Remainder,
                _ => return Ok(left),
            };
            self.at += 1;
            let place = self.before();
            left = Expr::Binary(operator, place, Box::new([left, self.unary()?]));
        }
    }

    fn unary(&mut self) -> Result<Expr, Error> {
        let (mut nots, mut minuses) = (0_usize, 0_usize);
        while self.takes("!") {
            nots += 1;
        }
        while nots == 0 && self.takes("-") {
            minuses += 1;
        }
        if minuses % 2 == 1
            && let Some(Token::Uint(value)) = self.tokens.get(self.at)
            && *value == 1 << 63
        {
            self.at += 1;
            return Ok(Expr::Int(i64::MIN));
        }
        let mut expr = self.member()?;
        // Two of a kind cancel each other out.
        for _ in 0..if nots > 0 { 2 - nots % 2 } else { 0 } {
            expr = Expr::Not(Box::new(expr));
        }
        for _ in 0..if minuses > 0 { 2 - minuses % 2 } else { 0 } {
            expr = Expr::Negate(Box::new(expr));
        }
        Ok(expr)
    }

    fn member(&mut self) -> Result<Expr, Error> {
        let mut expr = self.primary()?;
        loop {
            if self.takes(".") {
                let place = self.before();
                let optional = self.takes("?");
                let name = self.name()?;
                expr = if !optional && self.takes("(") {
                    self.method(expr, name)?
                } else {
                    Expr::Select { of: Box::new(expr), field: name, optional, test: false, place }
                };
            } else if self.takes("[?") {
                let place = self.before();
                expr = Expr::Index { of: Box::new(expr), at: Box::new(self.expr()?), optional: true, place };
                self.expect("]")?;
            } else if self.takes("[") {
                let place = self.before();
                let optional = self.takes("?");
                expr = Expr::Index { of: Box::new(expr), at: Box::new(self.expr()?), optional, place };
                self.expect("]")?;
            } else if let Some(name) = self.next_is("{").then(|| type_name(&expr)).flatten() {
                self.at += 1;
                expr = self.structure(name)?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn next_is(&self, sign: &str) -> bool {
        matches!(self.tokens.get(self.at), Some(Token::Sign(mine)) if *mine == sign)
    }

    /// `{field: value}` behind the name of a type.
    fn structure(&mut self, name: String) -> Result<Expr, Error> {
        let place = self.before();
        if name != "JSONPatch" && name != "Object" && !name.starts_with("Object.") {
            return Err(Error::Syntax(format!("undeclared reference to '{name}' (in container '')")));
        }
        let mut fields = Vec::new();
        while !self.takes("}") {
            let optional = self.takes("?");
            let field = self.name()?;
            self.expect(":")?;
            fields.push((eval::unescaped(&field), self.expr()?, optional));
            if !self.takes(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr::Struct { name, fields, place })
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, Error> {
        let mut arguments = Vec::new();
        while !self.takes(")") {
            arguments.push(self.expr()?);
            if !self.takes(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(arguments)
    }

    fn method(&mut self, of: Expr, name: String) -> Result<Expr, Error> {
        let place = self.before();
        let mut arguments = self.arguments()?;
        let fold = match name.as_str() {
            "all" => Some(Fold::All),
            "exists" => Some(Fold::Exists),
            "exists_one" | "existsOne" => Some(Fold::ExistsOne),
            "map" => Some(Fold::Map),
            "filter" => Some(Fold::Filter),
            "transformMap" => Some(Fold::Values),
            "transformMapEntry" => Some(Fold::Entries),
            _ => None,
        };
        if let Some(fold) = fold {
            return comprehension(fold, of, arguments, matches!(fold, Fold::Values | Fold::Entries));
        }
        if name == "transformList" {
            return comprehension(Fold::Map, of, arguments, true);
        }
        if matches!(&of, Expr::Name(namespace, _) if namespace == "cel") && name == "bind" {
            let [value, body] = bound(&mut arguments)?;
            let name = variable(arguments.pop())?;
            return Ok(Expr::Bind { name, value: Box::new(value), body: Box::new(body) });
        }
        if name == "optMap" || name == "optFlatMap" {
            let body = arguments.pop().ok_or_else(|| Error::Syntax(format!("{name} needs two arguments")))?;
            let flat = name == "optFlatMap";
            return Ok(Expr::Optional {
                of: Box::new(of),
                name: variable(arguments.pop())?,
                body: Box::new(body),
                flat,
            });
        }
        if name == "matches"
            && let [Expr::Text(text)] = arguments.as_slice()
        {
            let pattern = self.patterns.compile(text).map_err(|why| unusable(text, &why))?;
            return Ok(Expr::Matches { of: Box::new(of), pattern, place });
        }
        // `math.greatest`, `sets.contains` and the like: the object is a namespace.
        if let Expr::Name(namespace, _) = &of
            && functions::is_namespace(namespace)
            && functions::is_known(&format!("{namespace}.{name}"))
        {
            return call(format!("{namespace}.{name}"), false, arguments, place);
        }
        arguments.insert(0, of);
        call(name, true, arguments, place)
    }

    fn function(&mut self, name: String) -> Result<Expr, Error> {
        let place = self.before();
        let mut arguments = self.arguments()?;
        if name == "has" {
            return match (arguments.pop(), arguments.is_empty()) {
                (Some(Expr::Select { of, field, optional, place, .. }), true) => {
                    Ok(Expr::Select { of, field, optional, test: true, place })
                }
                _ => Err(Error::Syntax("invalid argument to has() macro".to_owned())),
            };
        }
        call(name, false, arguments, place)
    }

    fn primary(&mut self) -> Result<Expr, Error> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        Ok(match token {
            Some(Token::Int(value)) => Expr::Int(value),
            Some(Token::Uint(value)) => Expr::Uint(value),
            Some(Token::Double(value)) => Expr::Double(value),
            Some(Token::Text(text)) => Expr::Text(text),
            Some(Token::Bytes(bytes)) => Expr::Bytes(bytes),
            Some(Token::Name(name)) => match name.as_str() {
                "true" => Expr::Bool(true),
                "false" => Expr::Bool(false),
                "null" => Expr::Null,
                _ if self.takes("(") => return self.function(name),
                _ => Expr::Name(name, self.before()),
            },
            Some(Token::Sign("(")) => {
                let inner = self.expr()?;
                self.expect(")")?;
                inner
            }
            Some(Token::Sign("[")) => self.list(false)?,
            Some(Token::Sign("[?")) => self.list(true)?,
            Some(Token::Sign("{")) => self.map()?,
            Some(Token::Sign(".")) if matches!(self.tokens.get(self.at), Some(Token::Name(_))) => {
                return self.primary();
            }
            Some(token) => return Err(Error::Syntax(format!("mismatched input {token:?}"))),
            None => return Err(Error::Syntax("mismatched input '<EOF>'".to_owned())),
        })
    }

    fn list(&mut self, first_optional: bool) -> Result<Expr, Error> {
        let (mut items, mut optional) = (Vec::new(), first_optional);
        while optional || !self.takes("]") {
            optional |= self.takes("?");
            items.push((self.expr()?, std::mem::take(&mut optional)));
            if !self.takes(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(Expr::List(items))
    }

    fn map(&mut self) -> Result<Expr, Error> {
        let mut entries = Vec::new();
        while !self.takes("}") {
            let optional = self.takes("?");
            let key = self.expr()?;
            self.expect(":")?;
            entries.push((key, self.expr()?, optional));
            if !self.takes(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr::Map(entries))
    }
}

fn one_or(mut terms: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    match (terms.len(), terms.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            terms.extend(last);
            many(terms)
        }
    }
}

pub(crate) fn unusable(pattern: &str, why: &str) -> Error {
    Error::Syntax(format!("the pattern {pattern:?} cannot be used: {why}"))
}

fn variable(expr: Option<Expr>) -> Result<String, Error> {
    match expr {
        Some(Expr::Name(name, _)) => Ok(name),
        _ => Err(Error::Syntax("argument must be a simple name".to_owned())),
    }
}

/// The last two arguments.
fn bound(arguments: &mut Vec<Expr>) -> Result<[Expr; 2], Error> {
    match (arguments.pop(), arguments.pop()) {
        (Some(body), Some(value)) => Ok([value, body]),
        _ => Err(Error::Syntax("cel.bind needs three arguments".to_owned())),
    }
}

/// With `pairs` there are two names, and perhaps a condition.
fn comprehension(fold: Fold, range: Expr, mut arguments: Vec<Expr>, pairs: bool) -> Result<Expr, Error> {
    let wrong = || Error::Syntax("a macro has the wrong number of arguments".to_owned());
    let body = arguments.pop().ok_or_else(wrong)?;
    let (mut names, mut condition) = (Vec::new(), None);
    let most = if pairs { 2 } else { 1 };
    if arguments.len() == most + 1 && (pairs || fold == Fold::Map) {
        condition = arguments.pop();
    }
    if arguments.is_empty() || arguments.len() > 2 || (pairs && arguments.len() != 2) {
        return Err(wrong());
    }
    for argument in arguments {
        names.push(variable(Some(argument))?);
    }
    Ok(Expr::Comprehension(Box::new(Comprehension { fold, range, names, condition, body })))
}

/// `Object.spec` of the expression that looks like it.
fn type_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Name(name, _) => Some(name.clone()),
        Expr::Select { of, field, optional: false, test: false, .. } => Some(format!("{}.{field}", type_name(of)?)),
        _ => None,
    }
}

fn call(name: String, method: bool, arguments: Vec<Expr>, place: usize) -> Result<Expr, Error> {
    if !functions::is_known(&name) {
        return Err(Error::Syntax(format!("undeclared reference to '{name}'")));
    }
    Ok(Expr::Call { name, method, arguments, place })
}
