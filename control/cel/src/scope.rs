//! Which names an expression reads that nothing binds.

use crate::{functions, parse::Expr};

/// The first name that is neither declared, nor bound by the expression itself, nor a type's.
pub(crate) fn undeclared<'e>(expr: &'e Expr, declared: &mut Vec<&'e str>) -> Option<&'e str> {
    match expr {
        Expr::Null
        | Expr::Bool(_)
        | Expr::Int(_)
        | Expr::Uint(_)
        | Expr::Double(_)
        | Expr::Text(_)
        | Expr::Bytes(_) => None,
        Expr::Name(name, _) => {
            let known = declared.contains(&name.as_str()) || functions::type_named(name).is_some();
            (!known).then_some(name)
        }
        Expr::Select { of, .. } | Expr::Not(of) | Expr::Negate(of) | Expr::Matches { of, .. } => {
            undeclared(of, declared)
        }
        Expr::Index { of, at, .. } => undeclared(of, declared).or_else(|| undeclared(at, declared)),
        Expr::List(items) => items.iter().find_map(|(item, _)| undeclared(item, declared)),
        Expr::Map(entries) => {
            entries.iter().find_map(|(key, value, _)| undeclared(key, declared).or_else(|| undeclared(value, declared)))
        }
        Expr::And(parts) | Expr::Or(parts) | Expr::Call { arguments: parts, .. } => {
            parts.iter().find_map(|part| undeclared(part, declared))
        }
        Expr::Choose(parts) => parts.iter().find_map(|part| undeclared(part, declared)),
        Expr::Binary(_, _, parts) => parts.iter().find_map(|part| undeclared(part, declared)),
        Expr::Comprehension(fold) => undeclared(&fold.range, declared).or_else(|| {
            let inner = fold.condition.iter().chain([&fold.body]);
            within(&fold.names, inner, declared)
        }),
        Expr::Struct { fields, .. } => fields.iter().find_map(|(_, value, _)| undeclared(value, declared)),
        Expr::Bind { name, value: of, body } | Expr::Optional { of, name, body, .. } => {
            undeclared(of, declared).or_else(|| within(std::slice::from_ref(name), [&**body], declared))
        }
    }
}

fn within<'e>(
    names: &'e [String],
    parts: impl IntoIterator<Item = &'e Expr>,
    declared: &mut Vec<&'e str>,
) -> Option<&'e str> {
    let before = declared.len();
    declared.extend(names.iter().map(String::as_str));
    let found = parts.into_iter().find_map(|part| undeclared(part, declared));
    declared.truncate(before);
    found
}
