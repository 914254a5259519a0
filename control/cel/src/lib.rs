//! The Common Expression Language (CEL) over JSON, as Kubernetes writes validation rules in it.
//!
//! ```text
//!  text ─ lexer ─> tokens ─ parse ─> Expr ─ eval (values borrow the JSON; a budget counts every step) ─> Value
//!                                             └ functions: the standard ones and Kubernetes' libraries
//! ```
//! Expressions and the objects that they are asked of come from users. So everything has a bound: the tokens and the
//! depth of an expression, the size of its patterns, and the steps of an evaluation, in which whatever is built or read
//! counts by its size. Nothing panics, loops or recurses without one of these.
//!
//! Names of functions that are not known are refused when an expression is compiled. Whether its operands can be of one
//! another's types is asked by [`Program::check`], as far as types are known; all else shows when it is evaluated.

mod check;
mod compare;
mod eval;
mod functions;
mod lexer;
mod network;
mod parse;
mod patterns;
mod scope;
mod strings;
mod value;
mod versions;

#[cfg(test)]
mod tests;

pub use check::{Fields, Type};
pub use eval::{Budget, Scope};
pub use patterns::{Pattern, Patterns};
pub use value::{Host, Value};

use parse::Expr;

/// Why an expression cannot be used, or has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("Syntax error: {0}")]
    Syntax(String),
    #[error("{0}")]
    Evaluation(String),
    /// The budget of steps is used up.
    #[error("call cost exceeds limit")]
    Cost,
}

impl Error {
    pub(crate) fn of(message: impl Into<String>) -> Error {
        Error::Evaluation(message.into())
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    expr: Expr,
    names: Vec<String>,
}

impl Program {
    /// The patterns that the expression names count among those given.
    pub fn compile(text: &str, patterns: &mut Patterns) -> Result<Program, Error> {
        let (expr, names) = parse::parse(text, patterns)?;
        Ok(Program { expr, names })
    }

    /// Whether the expression reads a variable.
    pub fn reads(&self, variable: &str) -> bool {
        self.names.iter().any(|name| name == variable)
    }

    /// The first name that the expression reads and that is not one of those declared.
    pub fn undeclared<'p>(&'p self, declared: &[&'p str]) -> Option<&'p str> {
        scope::undeclared(&self.expr, &mut declared.to_vec())
    }

    /// The value of the expression. What it costs is taken from the budget.
    pub fn evaluate<'a>(&'a self, variables: &[(&'a str, Value<'a>)], budget: &Budget) -> Result<Value<'a>, Error> {
        let mut scope = Scope::default();
        for (name, value) in variables {
            scope.set(name, value.clone());
        }
        scope.evaluate(self, budget)
    }
}
