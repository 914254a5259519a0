//! Equality and order. Values of a comparison stand side by side in the budget: each pair costs a step.

use std::cmp::Ordering;

use jiff::Timestamp;

use crate::{Error, Value, eval::Budget};

/// How deep values are compared: JSON is nested no deeper.
const DEPTH_MAX: usize = 150;

pub(crate) fn equal(one: &Value<'_>, other: &Value<'_>, budget: &Budget) -> Result<bool, Error> {
    equal_within(one, other, budget, DEPTH_MAX)
}

fn equal_within(one: &Value<'_>, other: &Value<'_>, budget: &Budget, depth: usize) -> Result<bool, Error> {
    budget.spend(one.weight().min(other.weight()))?;
    if depth == 0 {
        return Err(Error::Cost);
    }
    if let (Some(left), Some(right)) = (one.as_text(), other.as_text()) {
        return Ok(left == right);
    }
    Ok(match (one, other) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Bytes(left), Value::Bytes(right)) => left == right,
        (Value::Type(left), Value::Type(right)) => left == right,
        (Value::Optional(None), Value::Optional(None)) => true,
        (Value::Optional(Some(left)), Value::Optional(Some(right))) => equal_within(left, right, budget, depth - 1)?,
        // What is not of one size is not copied to find that out.
        _ if one.size().is_some() && one.size() != other.size() => false,
        _ => match (one.items(), other.items(), one.entries(), other.entries()) {
            (Some(left), Some(right), _, _) => left.len() == right.len() && all_equal(&left, &right, budget, depth)?,
            (_, _, Some(left), Some(right)) => {
                left.len() == right.len() && {
                    for (key, value) in &left {
                        let found = lookup(other, key, budget)?;
                        match found {
                            Some(found) if equal_within(value, &found, budget, depth - 1)? => {}
                            _ => return Ok(false),
                        }
                    }
                    true
                }
            }
            _ => order(one, other, budget)? == Some(Ordering::Equal),
        },
    })
}

fn all_equal(left: &[Value<'_>], right: &[Value<'_>], budget: &Budget, depth: usize) -> Result<bool, Error> {
    for (left, right) in left.iter().zip(right) {
        if !equal_within(left, right, budget, depth - 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The value of a key of a map.
pub(crate) fn lookup<'a>(map: &Value<'a>, key: &Value<'_>, budget: &Budget) -> Result<Option<Value<'a>>, Error> {
    match map {
        Value::JsonMap(map) => Ok(key.as_text().and_then(|key| map.get(key)).map(Value::from_json)),
        Value::Map(entries) => {
            for (mine, value) in entries.iter() {
                if equal(mine, key, budget)? {
                    return Ok(Some(value.clone()));
                }
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn time(value: &Value<'_>) -> Option<Timestamp> {
    match value {
        Value::Timestamp(time) => Some(*time),
        _ => value.as_text()?.parse().ok(),
    }
}

/// The order of two values; `None` where they have none. A time in JSON is text: beside a time it counts as one.
/// It costs what the shorter of them does.
pub(crate) fn order(one: &Value<'_>, other: &Value<'_>, budget: &Budget) -> Result<Option<Ordering>, Error> {
    budget.spend(one.weight().min(other.weight()))?;
    Ok(ordering(one, other))
}

pub(crate) fn ordering(one: &Value<'_>, other: &Value<'_>) -> Option<Ordering> {
    match (one, other) {
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::Bytes(left), Value::Bytes(right)) => Some(left.cmp(right)),
        (Value::Duration(left), Value::Duration(right)) => Some(left.cmp(right)),
        (Value::Quantity(left), Value::Quantity(right)) => Some(left.cmp(right)),
        (Value::Ip(left), Value::Ip(right)) => Some(left.cmp(right)),
        (Value::Cidr(left), Value::Cidr(right)) => Some(left.cmp(right)),
        (Value::Semver(left), Value::Semver(right)) => Some(left.cmp_precedence(right)),
        (Value::Timestamp(_), _) | (_, Value::Timestamp(_)) => Some(time(one)?.cmp(&time(other)?)),
        (Value::Duration(left), other) => Some(left.cmp(&crate::functions::duration(other.as_text()?)?)),
        (one, Value::Duration(right)) => Some(crate::functions::duration(one.as_text()?)?.cmp(right)),
        (Value::Int(left), Value::Int(right)) => Some(left.cmp(right)),
        (Value::Uint(left), Value::Uint(right)) => Some(left.cmp(right)),
        (Value::Int(left), Value::Uint(right)) => {
            Some(u64::try_from(*left).map_or(Ordering::Less, |left| left.cmp(right)))
        }
        (Value::Uint(left), Value::Int(right)) => {
            Some(u64::try_from(*right).map_or(Ordering::Greater, |right| left.cmp(&right)))
        }
        _ => match (one.as_text(), other.as_text()) {
            (Some(left), Some(right)) => Some(left.cmp(right)),
            _ => one.as_double()?.partial_cmp(&other.as_double()?),
        },
    }
}
