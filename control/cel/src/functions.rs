//! The functions of CEL and of Kubernetes' libraries, except those of text and of networks.

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};
use tandem_api::{names, quantity::Quantity};

use crate::{
    Error, Value, compare,
    eval::{Budget, no_overload, overflow},
    network,
    parse::Operator,
    strings, versions,
};

const NAMESPACES: [&str; 7] = ["math", "sets", "optional", "ip", "strings", "format", "jsonpatch"];

const KNOWN: &[&str] = &[
    "size",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "bytes",
    "type",
    "dyn",
    "duration",
    "timestamp",
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
    "isSorted",
    "sum",
    "min",
    "max",
    "indexOf",
    "lastIndexOf",
    "flatten",
    "distinct",
    "slice",
    "sort",
    "reverse",
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "math.greatest",
    "math.least",
    "math.abs",
    "optional.of",
    "optional.none",
    "optional.ofNonZeroValue",
    "hasValue",
    "value",
    "orValue",
    "or",
    "quantity",
    "isQuantity",
    "isInteger",
    "asInteger",
    "asApproximateFloat",
    "sign",
    "add",
    "sub",
    "compareTo",
    "isGreaterThan",
    "isLessThan",
    "jsonpatch.escapeKey",
    "format.named",
];

/// The methods of the values that whoever asks has made: the authorizer of Kubernetes.
const OF_HOSTS: [&str; 15] = [
    "path",
    "serviceAccount",
    "group",
    "resource",
    "subresource",
    "namespace",
    "name",
    "fieldSelector",
    "labelSelector",
    "check",
    "allowed",
    "reason",
    "errored",
    "error",
    "requestResource",
];

pub(crate) fn is_namespace(name: &str) -> bool {
    NAMESPACES.contains(&name)
}

/// Formats that text can be held to.
const FORMATS: [&str; 13] = [
    "format.dns1123Label",
    "format.dns1123Subdomain",
    "format.dns1035Label",
    "format.dns1123LabelPrefix",
    "format.dns1123SubdomainPrefix",
    "format.dns1035LabelPrefix",
    "format.qualifiedName",
    "format.labelValue",
    "format.uri",
    "format.uuid",
    "format.byte",
    "format.date",
    "format.datetime",
];

pub(crate) fn is_known(name: &str) -> bool {
    name == "validate"
        || FORMATS.contains(&name)
        || OF_HOSTS.contains(&name)
        || versions::KNOWN.contains(&name)
        || KNOWN.contains(&name)
        || strings::KNOWN.contains(&name)
        || network::KNOWN.contains(&name)
}

pub(crate) fn type_named(name: &str) -> Option<&'static str> {
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"]
        .into_iter()
        .find(|known| *known == name)
}

pub(crate) fn count<'a>(number: usize) -> Value<'a> {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

/// As it stands in messages.
pub(crate) fn shown(value: &Value<'_>) -> String {
    text_of(value).unwrap_or_else(|| value.type_name().to_owned())
}

/// What `string()` makes of a value.
pub(crate) fn text_of(value: &Value<'_>) -> Option<String> {
    Some(match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Double(value) => value.to_string(),
        Value::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Value::Timestamp(time) => time.to_string(),
        Value::Duration(nanos) => format!("{}s", seconds(*nanos)),
        Value::Quantity(quantity) => quantity.to_string(),
        Value::Ip(address) => address.to_string(),
        Value::Cidr(range) => range.to_string(),
        Value::Semver(version) => version.to_string(),
        _ => value.as_text()?.to_owned(),
    })
}

#[allow(clippy::cast_precision_loss, reason = "the text of a duration has no more digits than a double")]
fn seconds(nanos: i64) -> f64 {
    nanos as f64 / 1e9
}

/// The nanoseconds of `1h30m` and its like.
pub(crate) fn duration(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];
    let (sign, mut rest) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    if rest == "0" {
        return Some(0);
    }
    let mut nanos = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit = &rest[end..];
        let length = unit.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(unit.len());
        nanos += number * UNITS.iter().find(|(name, _)| *name == &unit[..length])?.1;
        rest = &unit[length..];
    }
    whole(sign * nanos)
}

/// A double as an integer, where it is within the range of one.
#[allow(clippy::cast_possible_truncation, reason = "the range is checked")]
fn whole(number: f64) -> Option<i64> {
    (number.abs() < 9.2e18).then_some(number as i64)
}

pub(crate) fn call<'a>(name: &str, method: bool, values: &[Value<'a>], budget: &Budget) -> Result<Value<'a>, Error> {
    if let Some(answer) = strings::call(name, method, values, budget) {
        return answer;
    }
    if let Some((Value::Host(host), arguments)) = values.split_first() {
        let texts: Option<Vec<&str>> = arguments.iter().map(Value::as_text).collect();
        budget.spend(if name == "check" { HOST_QUESTION_STEPS } else { HOST_STEPS })?;
        let answer = texts.and_then(|texts| host.call(name, &texts));
        return answer.ok_or_else(|| no_overload(name, &values.iter().collect::<Vec<_>>()));
    }
    if let Some(answer) = versions::call(name, values) {
        return answer;
    }
    if let Some(answer) = network::call(name, values) {
        return answer;
    }
    let answer = match values {
        [] if name == "optional.none" => Some(Value::Optional(None)),
        [] => FORMATS.into_iter().find(|format| *format == name).map(Value::Format),
        [only] => match lists(name, only, budget)? {
            Some(value) => Some(value),
            None => one(name, only),
        },
        [first, second] => match two(name, first, second, budget)? {
            Some(value) => Some(value),
            None => several(name, values, budget)?,
        },
        _ => several(name, values, budget)?,
    };
    answer.ok_or_else(|| no_overload(name, &values.iter().collect::<Vec<_>>()))
}

fn one<'a>(name: &str, value: &Value<'a>) -> Option<Value<'a>> {
    Some(match (name, value) {
        ("size", value) => count(value.size()?),
        ("string", value) => Value::text(text_of(value)?),
        ("dyn", value) => value.clone(),
        ("type", value) => Value::Type(value.type_name()),
        ("int", Value::Double(number)) => Value::Int(whole(*number)?),
        ("int", Value::Timestamp(time)) => Value::Int(time.as_second()),
        ("int", value) => Value::Int(value.as_int().or_else(|| value.as_text()?.parse().ok())?),
        ("uint", value) => {
            let text = value.as_text().and_then(|text| text.parse().ok());
            Value::Uint(text.or_else(|| u64::try_from(value.as_int()?).ok())?)
        }
        ("double", value) => Value::Double(value.as_double().or_else(|| value.as_text()?.parse().ok())?),
        ("bool", value) => Value::Bool(match value.as_text() {
            Some("true" | "True" | "TRUE" | "t" | "1") => true,
            Some("false" | "False" | "FALSE" | "f" | "0") => false,
            Some(_) => return None,
            None => value.as_bool()?,
        }),
        ("bytes", value) => Value::Bytes(value.as_text()?.as_bytes().into()),
        ("duration", Value::Duration(nanos)) => Value::Duration(*nanos),
        ("duration", value) => Value::Duration(duration(value.as_text()?)?),
        ("timestamp", Value::Timestamp(time)) => Value::Timestamp(*time),
        ("timestamp", Value::Int(seconds)) => Value::Timestamp(Timestamp::from_second(*seconds).ok()?),
        ("timestamp", value) => Value::Timestamp(value.as_text()?.parse().ok()?),
        ("math.abs", Value::Int(number)) => Value::Int(number.checked_abs()?),
        ("math.abs", Value::Double(number)) => Value::Double(number.abs()),
        ("math.greatest" | "math.least", value) if value.items().is_none() => value.clone(),
        ("jsonpatch.escapeKey", value) => Value::text(value.as_text()?.replace('~', "~0").replace('/', "~1")),
        ("format.named", value) => {
            let name = format!("format.{}", value.as_text()?);
            let format = FORMATS.into_iter().find(|format| *format == name);
            Value::Optional(format.map(|format| Value::Format(format).into()))
        }
        ("optional.of", value) => Value::Optional(Some(value.clone().into())),
        ("optional.ofNonZeroValue", value) => Value::Optional((!is_zero(value)).then(|| value.clone().into())),
        ("hasValue", Value::Optional(inner)) => Value::Bool(inner.is_some()),
        ("value", Value::Optional(Some(inner))) => inner.as_ref().clone(),
        ("quantity", value) => Value::Quantity(Quantity::parse(value.as_text()?).ok()?),
        ("isQuantity", value) => Value::Bool(Quantity::parse(value.as_text()?).is_ok()),
        ("isInteger", Value::Quantity(quantity)) => Value::Bool(quantity.is_whole()),
        ("asInteger", Value::Quantity(quantity)) if quantity.is_whole() => Value::Int(quantity.value()),
        ("asApproximateFloat", Value::Quantity(quantity)) => Value::Double(quantity.to_decimal().parse().ok()?),
        ("sign", Value::Quantity(quantity)) => Value::Int(if quantity.is_zero() {
            0
        } else if quantity.is_negative() {
            -1
        } else {
            1
        }),
        (_, Value::Duration(nanos)) => Value::Int(match name {
            "getHours" => nanos / 3_600_000_000_000,
            "getMinutes" => nanos / 60_000_000_000,
            "getSeconds" => nanos / 1_000_000_000,
            "getMilliseconds" => nanos / 1_000_000,
            _ => return None,
        }),
        (name, value) if name.starts_with("get") => calendar(name, value)?,
        _ => return None,
    })
}

fn calendar<'a>(name: &str, value: &Value<'a>) -> Option<Value<'a>> {
    let time = match value {
        Value::Timestamp(time) => *time,
        other => other.as_text()?.parse().ok()?,
    };
    let zoned = time.to_zoned(jiff::tz::TimeZone::UTC);
    Some(Value::Int(match name {
        "getFullYear" => i64::from(zoned.year()),
        "getMonth" => i64::from(zoned.month()) - 1,
        "getDate" => i64::from(zoned.day()),
        "getDayOfMonth" => i64::from(zoned.day()) - 1,
        "getDayOfWeek" => i64::from(zoned.weekday().to_sunday_zero_offset()),
        "getDayOfYear" => i64::from(zoned.day_of_year()) - 1,
        "getHours" => i64::from(zoned.hour()),
        "getMinutes" => i64::from(zoned.minute()),
        "getSeconds" => i64::from(zoned.second()),
        "getMilliseconds" => i64::from(zoned.millisecond()),
        _ => return None,
    }))
}

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) | Value::Duration(0) => true,
        Value::Double(number) => *number == 0.0,
        other => other.size() == Some(0),
    }
}

fn extreme<'a>(values: &[Value<'a>], wanted: Ordering, budget: &Budget) -> Result<Option<Value<'a>>, Error> {
    let Some((first, rest)) = values.split_first() else { return Ok(None) };
    let mut best = first;
    for value in rest {
        match compare::order(value, best, budget)? {
            Some(order) if order == wanted => best = value,
            Some(_) => {}
            None => return Ok(None),
        }
    }
    Ok(Some(best.clone()))
}

/// `None` where values have no order, as a number that is none.
fn is_sorted(items: &[Value<'_>], budget: &Budget) -> Result<Option<bool>, Error> {
    let mut sorted = true;
    for (one, other) in items.iter().zip(items.iter().skip(1)) {
        match compare::order(one, other, budget)? {
            Some(order) => sorted &= order.is_le(),
            None => return Ok(None),
        }
    }
    Ok(Some(sorted))
}

/// Whether each can be compared with each, and always with the same answer.
fn is_ordered(items: &[Value<'_>]) -> bool {
    let Some(first) = items.first() else { return true };
    let is_number = |value: &Value<'_>| value.as_double().is_some_and(|number| !number.is_nan());
    let alike = |value: &Value<'_>| {
        if is_number(first) { is_number(value) } else { value.type_name() == first.type_name() }
    };
    compare::ordering(first, first).is_some() && items.iter().all(alike)
}

/// How many rounds a sort of few values takes beyond the logarithm of their count.
const ROUNDS: u64 = 4;

/// `None` where the values have no order among them.
fn sorted<'a>(mut items: Vec<Value<'a>>, budget: &Budget) -> Result<Option<Vec<Value<'a>>>, Error> {
    if !is_ordered(&items) {
        return Ok(None);
    }
    // A merge reads each value about once in each of its rounds.
    let rounds = ROUNDS + u64::from(items.len().checked_ilog2().unwrap_or_default());
    budget.spend(items.iter().map(Value::weight).fold(0, u64::saturating_add).saturating_mul(rounds))?;
    // Integers beside doubles are compared as such: else three of them could go round in a circle.
    let doubles = items.iter().any(|value| matches!(value, Value::Double(_)));
    items.sort_by(|one, other| {
        let order =
            if doubles { one.as_double().partial_cmp(&other.as_double()) } else { compare::ordering(one, other) };
        order.unwrap_or(Ordering::Equal)
    });
    Ok(Some(items))
}

/// Functions of one list.
fn lists<'a>(name: &str, list: &Value<'a>, budget: &Budget) -> Result<Option<Value<'a>>, Error> {
    let Some(mut items) = list.items() else { return Ok(None) };
    budget.spend(list.weight())?;
    Ok(match name {
        "isSorted" => is_sorted(&items, budget)?.map(Value::Bool),
        "sum" => {
            let Some((first, rest)) = items.split_first() else { return Ok(Some(Value::Int(0))) };
            let sum = rest.iter().try_fold(first.clone(), |sum, value| arithmetic(Operator::Add, &sum, value))?;
            Some(sum)
        }
        "min" | "math.least" => extreme(&items, Ordering::Less, budget)?,
        "max" | "math.greatest" => extreme(&items, Ordering::Greater, budget)?,
        "reverse" => {
            items.reverse();
            Some(Value::list(items))
        }
        "sort" => sorted(items, budget)?.map(Value::list),
        "flatten" => {
            let mut flat = Vec::new();
            for item in items {
                budget.spend(item.weight())?;
                match item.items() {
                    Some(inner) => flat.extend(inner),
                    None => flat.push(item),
                }
            }
            Some(Value::list(flat))
        }
        "distinct" => {
            let mut distinct: Vec<Value<'a>> = Vec::new();
            for item in items {
                if !has(&distinct, &item, budget)? {
                    distinct.push(item);
                }
            }
            Some(Value::list(distinct))
        }
        _ => None,
    })
}

fn has(items: &[Value<'_>], wanted: &Value<'_>, budget: &Budget) -> Result<bool, Error> {
    for item in items {
        if compare::equal(item, wanted, budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_all(items: &[Value<'_>], wanted: &[Value<'_>], budget: &Budget) -> Result<bool, Error> {
    for one in wanted {
        if !has(items, one, budget)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn two<'a>(name: &str, first: &Value<'a>, second: &Value<'a>, budget: &Budget) -> Result<Option<Value<'a>>, Error> {
    if let (Some(left), Some(right)) = (first.items(), second.items()) {
        return Ok(match name {
            "sets.contains" => Some(Value::Bool(has_all(&left, &right, budget)?)),
            "sets.equivalent" => Some(Value::Bool(has_all(&left, &right, budget)? && has_all(&right, &left, budget)?)),
            "sets.intersects" => {
                for one in &right {
                    if has(&left, one, budget)? {
                        return Ok(Some(Value::Bool(true)));
                    }
                }
                Some(Value::Bool(false))
            }
            _ => None,
        });
    }
    if let (Some(items), "indexOf" | "lastIndexOf") = (first.items(), name) {
        let mut found = None;
        for (at, item) in items.iter().enumerate() {
            if compare::equal(item, second, budget)? && (found.is_none() || name == "lastIndexOf") {
                found = Some(at);
            }
        }
        return Ok(Some(found.map_or(Value::Int(-1), count)));
    }
    Ok(match (name, first, second) {
        ("orValue", Value::Optional(Some(inner)), _) => Some(inner.as_ref().clone()),
        ("orValue", Value::Optional(None), other) => Some(other.clone()),
        ("or", Value::Optional(Some(_)), _) => Some(first.clone()),
        ("or", Value::Optional(None), other) => Some(other.clone()),
        ("validate", Value::Format(format), text) => text.as_text().map(|text| complaints(format, text)),
        (_, Value::Quantity(quantity), other) => of_quantity(name, *quantity, other),
        _ => None,
    })
}

/// What a method of a host costs: the authorizer looks through all roles for an answer.
const HOST_STEPS: u64 = 100;
const HOST_QUESTION_STEPS: u64 = 20_000;

/// A prefix may end in `-`: a suffix follows.
fn masked(prefix: &str) -> String {
    prefix.strip_suffix('-').map_or_else(|| prefix.to_owned(), |before| format!("{before}a"))
}

const QUALIFIED: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL: &str = "a valid label must be an empty string or consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// A name of at most 63 letters, as labels have it.
fn is_part(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inner = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
    text.len() <= 63 && inner && edge(bytes.first()) && edge(bytes.last())
}

fn is_qualified(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => names::dns1123_subdomain(prefix).is_empty() && is_part(name),
        None => is_part(text),
    }
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    let digits = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    digits && (parts == [8, 4, 4, 4, 12] || parts == [32])
}

fn is_base64(text: &str) -> bool {
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).is_ok()
}

/// What is wrong with a text of a format; an empty optional where nothing is.
fn complaints<'a>(format: &str, text: &str) -> Value<'a> {
    let unless = |sound: bool, why: &str| if sound { Vec::new() } else { vec![why.to_owned()] };
    let found = match format {
        "format.dns1123Label" => names::dns1123_label(text),
        "format.dns1123Subdomain" => names::dns1123_subdomain(text),
        "format.dns1035Label" => names::dns1035_label(text),
        "format.dns1123LabelPrefix" => names::dns1123_label(&masked(text)),
        "format.dns1123SubdomainPrefix" => names::dns1123_subdomain(&masked(text)),
        "format.dns1035LabelPrefix" => names::dns1035_label(&masked(text)),
        "format.qualifiedName" => unless(is_qualified(text), QUALIFIED),
        "format.labelValue" => unless(text.is_empty() || is_part(text), LABEL),
        "format.uuid" => unless(is_uuid(text), "does not match the UUID format"),
        "format.byte" => unless(is_base64(text), "invalid base64"),
        "format.uri" => unless(network::is_url(text), "invalid URI"),
        "format.date" => unless(text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10, "invalid date"),
        _ => unless(text.parse::<Timestamp>().is_ok(), "invalid datetime"),
    };
    if found.is_empty() {
        return Value::Optional(None);
    }
    Value::Optional(Some(Value::list(found.into_iter().map(Value::text).collect()).into()))
}

fn of_quantity<'a>(name: &str, quantity: Quantity, other: &Value<'a>) -> Option<Value<'a>> {
    let other = match other {
        Value::Quantity(other) => *other,
        Value::Int(number) => Quantity::parse(&number.to_string()).ok()?,
        _ => return None,
    };
    Some(match name {
        "compareTo" => Value::Int(quantity.cmp(&other) as i64),
        "isGreaterThan" => Value::Bool(quantity > other),
        "isLessThan" => Value::Bool(quantity < other),
        "add" => Value::Quantity(quantity.plus(other)),
        "sub" => Value::Quantity(quantity.minus(other)),
        _ => return None,
    })
}

fn several<'a>(name: &str, values: &[Value<'a>], budget: &Budget) -> Result<Option<Value<'a>>, Error> {
    match (name, values) {
        ("math.greatest", values) => extreme(values, Ordering::Greater, budget),
        ("math.least", values) => extreme(values, Ordering::Less, budget),
        ("slice", [list, from, to]) => Ok(slice(list, from, to)),
        _ => Ok(None),
    }
}

fn slice<'a>(list: &Value<'a>, from: &Value<'a>, to: &Value<'a>) -> Option<Value<'a>> {
    let (items, from, to) = (list.items()?, usize::try_from(from.as_int()?).ok()?, usize::try_from(to.as_int()?).ok()?);
    Some(Value::list(items.get(from..to)?.to_vec()))
}

/// Of numbers, times and durations. JSON does not tell whole doubles from integers, so the two mix.
pub(crate) fn arithmetic<'a>(operator: Operator, left: &Value<'a>, right: &Value<'a>) -> Result<Value<'a>, Error> {
    let unsupported = || no_overload(&format!("{operator:?}"), &[left, right]);
    if let (Value::Uint(one), Value::Uint(other)) = (left, right) {
        return unsigned(operator, *one, *other).map(Value::Uint);
    }
    if let (Some(one), Some(other)) = (left.as_int(), right.as_int()) {
        return integers(operator, one, other).map(Value::Int);
    }
    if let (Some(one), Some(other)) = (left.as_double(), right.as_double()) {
        return Ok(Value::Double(match operator {
            Operator::Add => one + other,
            Operator::Subtract => one - other,
            Operator::Multiply => one * other,
            Operator::Divide => one / other,
            _ => return Err(unsupported()),
        }));
    }
    let moved = |time: Timestamp, nanos: i64| {
        time.checked_add(SignedDuration::from_nanos(nanos)).map(Value::Timestamp).map_err(|_| overflow())
    };
    match (operator, left, right) {
        (Operator::Add, Value::Timestamp(time), Value::Duration(nanos))
        | (Operator::Add, Value::Duration(nanos), Value::Timestamp(time)) => moved(*time, *nanos),
        (Operator::Subtract, Value::Timestamp(time), Value::Duration(nanos)) => {
            moved(*time, nanos.checked_neg().ok_or_else(overflow)?)
        }
        (Operator::Subtract, Value::Timestamp(one), Value::Timestamp(other)) => {
            let nanos = one.as_nanosecond().checked_sub(other.as_nanosecond()).and_then(|nanos| nanos.try_into().ok());
            nanos.map(Value::Duration).ok_or_else(overflow)
        }
        (Operator::Add, Value::Duration(one), Value::Duration(other)) => {
            one.checked_add(*other).map(Value::Duration).ok_or_else(overflow)
        }
        (Operator::Subtract, Value::Duration(one), Value::Duration(other)) => {
            one.checked_sub(*other).map(Value::Duration).ok_or_else(overflow)
        }
        _ => Err(unsupported()),
    }
}

fn integers(operator: Operator, one: i64, other: i64) -> Result<i64, Error> {
    if other == 0 && matches!(operator, Operator::Divide | Operator::Remainder) {
        return Err(Error::of("division by zero"));
    }
    let value = match operator {
        Operator::Add => one.checked_add(other),
        Operator::Subtract => one.checked_sub(other),
        Operator::Multiply => one.checked_mul(other),
        Operator::Divide => one.checked_div(other),
        Operator::Remainder => one.checked_rem(other),
        _ => None,
    };
    value.ok_or_else(overflow)
}

fn unsigned(operator: Operator, one: u64, other: u64) -> Result<u64, Error> {
    if other == 0 && matches!(operator, Operator::Divide | Operator::Remainder) {
        return Err(Error::of("division by zero"));
    }
    let value = match operator {
        Operator::Add => one.checked_add(other),
        Operator::Subtract => one.checked_sub(other),
        Operator::Multiply => one.checked_mul(other),
        Operator::Divide => one.checked_div(other),
        Operator::Remainder => one.checked_rem(other),
        _ => None,
    };
    value.ok_or_else(overflow)
}
