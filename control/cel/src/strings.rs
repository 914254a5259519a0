//! The functions of text. What they build is paid for before it is built.

use crate::{
    Error, Pattern, Value,
    eval::{Budget, no_overload},
    functions, parse,
};

pub(crate) const KNOWN: &[&str] = &[
    "matches",
    "startsWith",
    "endsWith",
    "contains",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "lowerAscii",
    "upperAscii",
    "replace",
    "split",
    "substring",
    "trim",
    "join",
    "reverse",
    "format",
    "find",
    "findAll",
    "strings.quote",
];
/// What a pattern that is made by an expression costs to compile, beside its length.
const PATTERN_COST: u64 = 2_000;
/// How many bytes of what it is compiled to cost a step.
const PATTERN_BYTES_OF_STEP: u64 = 64;

/// `None` where the function is not one of text, or not for these values.
pub(crate) fn call<'a>(
    name: &str,
    _method: bool,
    values: &[Value<'a>],
    budget: &Budget,
) -> Option<Result<Value<'a>, Error>> {
    if !KNOWN.contains(&name) {
        return None;
    }
    if name == "join" {
        return Some(join(values, budget));
    }
    let text = values.first()?.as_text()?;
    if name == "format" {
        return Some(format(text, values.get(1), budget));
    }
    let rest = values.get(1..)?;
    Some(
        of_text(name, text, rest, budget)
            .and_then(|value| value.ok_or_else(|| no_overload(name, &values.iter().collect::<Vec<_>>()))),
    )
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn of_text<'a>(name: &str, text: &str, rest: &[Value<'a>], budget: &Budget) -> Result<Option<Value<'a>>, Error> {
    budget.spend(length(text) / 4 + 1)?;
    let argument = rest.first().and_then(Value::as_text);
    let (number, end) = (rest.first().and_then(Value::as_int), rest.get(1).and_then(Value::as_int));
    Ok(match (name, argument, rest.len()) {
        ("startsWith", Some(start), 1) => Some(Value::Bool(text.starts_with(start))),
        ("endsWith", Some(end), 1) => Some(Value::Bool(text.ends_with(end))),
        ("contains", Some(part), 1) => Some(Value::Bool(text.contains(part))),
        ("lowerAscii", _, 0) => Some(Value::text(text.to_ascii_lowercase())),
        ("upperAscii", _, 0) => Some(Value::text(text.to_ascii_uppercase())),
        ("trim", _, 0) => Some(Value::text(text.trim())),
        ("reverse", _, 0) => Some(Value::text(text.chars().rev().collect::<String>())),
        ("strings.quote", _, 0) => Some(Value::text(format!("{text:?}"))),
        ("charAt", _, 1) => {
            let at = number.and_then(|number| usize::try_from(number).ok());
            let letter = at.and_then(|at| text.chars().nth(at).or((at == text.chars().count()).then_some('\0')));
            letter.map(|letter| Value::text(if letter == '\0' { String::new() } else { letter.to_string() }))
        }
        ("indexOf", Some(part), 1) => Some(position(text, text.find(part))),
        ("indexOf", Some(part), 2) => {
            let from = offset(text, end);
            from.map(|from| position(text, text[from..].find(part).map(|at| from + at)))
        }
        ("lastIndexOf", Some(part), 1) => Some(position(text, text.rfind(part))),
        ("substring", _, 1 | 2) => {
            let from = offset(text, number);
            let to = if rest.len() == 2 { offset(text, end) } else { Some(text.len()) };
            from.zip(to).and_then(|(from, to)| text.get(from..to)).map(Value::text)
        }
        ("replace", Some(old), 2 | 3) => replace(text, old, rest, budget)?,
        ("split", Some(separator), 1) => Some(split(text, separator, usize::MAX, budget)?),
        ("split", Some(separator), 2) => {
            let most = end.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
            most.map(|most| split(text, separator, most, budget)).transpose()?
        }
        ("matches" | "find" | "findAll", Some(pattern), _) => Some(search(name, text, pattern, end, budget)?),
        _ => None,
    })
}

/// Positions count letters.
fn position<'a>(text: &str, at: Option<usize>) -> Value<'a> {
    at.map_or(Value::Int(-1), |at| functions::count(text[..at].chars().count()))
}

fn offset(text: &str, letters: Option<i64>) -> Option<usize> {
    let letters = usize::try_from(letters?).ok()?;
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(letters)
}

fn replace<'a>(text: &str, old: &str, rest: &[Value<'a>], budget: &Budget) -> Result<Option<Value<'a>>, Error> {
    let Some(new) = rest.get(1).and_then(Value::as_text) else { return Ok(None) };
    let most = rest.get(2).map_or(Some(-1), Value::as_int);
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    let times = u64::try_from(found.min(most)).unwrap_or(u64::MAX);
    budget.spend(times.saturating_mul(length(new)) / 4)?;
    Ok(Some(Value::text(text.replacen(old, new, most))))
}

/// What one piece of a text costs beside its letters.
const PIECE_COST: u64 = 4;

fn split<'a>(text: &str, separator: &str, most: usize, budget: &Budget) -> Result<Value<'a>, Error> {
    if most == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let pieces = if separator.is_empty() { text.chars().count() } else { text.matches(separator).count() + 1 };
    budget.spend(u64::try_from(pieces.min(most)).unwrap_or(u64::MAX).saturating_mul(PIECE_COST))?;
    if separator.is_empty() {
        return Ok(Value::list(text.chars().take(most).map(|letter| Value::text(letter.to_string())).collect()));
    }
    Ok(Value::list(text.splitn(most, separator).map(Value::text).collect()))
}

fn search<'a>(name: &str, text: &str, pattern: &str, most: Option<i64>, budget: &Budget) -> Result<Value<'a>, Error> {
    budget.spend(PATTERN_COST.saturating_add(length(pattern).saturating_mul(20)))?;
    let compiled = Pattern::compile(pattern).map_err(|why| parse::unusable(pattern, &why))?;
    let bytes = u64::try_from(compiled.bytes()).unwrap_or(u64::MAX);
    budget.spend((bytes / PATTERN_BYTES_OF_STEP).saturating_add(compiled.cost(text)))?;
    let regex = compiled.regex();
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    // Finding all may begin anew at each letter.
    let found = || regex.find_iter(text).take(most);
    Ok(match name {
        "matches" => Value::Bool(regex.is_match(text)),
        "find" => Value::text(regex.find(text).map_or("", |found| found.as_str())),
        _ => {
            budget.spend(length(text).saturating_mul(length(text)) / 1_000)?;
            Value::list(found().map(|found| Value::text(found.as_str())).collect())
        }
    })
}

fn join<'a>(values: &[Value<'a>], budget: &Budget) -> Result<Value<'a>, Error> {
    let unsupported = || no_overload("join", &values.iter().collect::<Vec<_>>());
    let items = values.first().and_then(Value::items).ok_or_else(unsupported)?;
    let separator = match values.get(1) {
        None => "",
        Some(separator) => separator.as_text().ok_or_else(unsupported)?,
    };
    let mut joined = String::new();
    for (at, item) in items.iter().enumerate() {
        budget.spend(item.weight().saturating_add(length(separator) / 8))?;
        if at > 0 {
            joined.push_str(separator);
        }
        joined.push_str(item.as_text().ok_or_else(unsupported)?);
    }
    Ok(Value::text(joined))
}

/// `'%s has %d'.format([name, count])`
fn format<'a>(text: &str, arguments: Option<&Value<'a>>, budget: &Budget) -> Result<Value<'a>, Error> {
    let arguments = arguments.and_then(Value::items).ok_or_else(|| Error::of("format needs a list"))?;
    let (mut shown, mut letters, mut next) = (String::new(), text.chars(), arguments.iter());
    while let Some(letter) = letters.next() {
        if letter != '%' {
            shown.push(letter);
            continue;
        }
        let mut verb = letters.next();
        while verb.is_some_and(|letter| letter.is_ascii_digit() || letter == '.') {
            verb = letters.next();
        }
        match verb {
            Some('%') => shown.push('%'),
            Some('s' | 'd' | 'f' | 'e' | 'b' | 'x' | 'X' | 'o') => {
                let value = next.next().ok_or_else(|| Error::of("format has too few arguments"))?;
                budget.spend(value.weight())?;
                shown.push_str(&printed(value, budget, 8)?);
            }
            _ => return Err(Error::of("format has a clause that is not known")),
        }
    }
    Ok(Value::text(shown))
}

fn printed(value: &Value<'_>, budget: &Budget, depth: usize) -> Result<String, Error> {
    budget.spend(value.weight())?;
    if depth == 0 {
        return Ok("...".to_owned());
    }
    if let Some(items) = value.items() {
        let items: Vec<String> = items.iter().map(|item| printed(item, budget, depth - 1)).collect::<Result<_, _>>()?;
        return Ok(format!("[{}]", items.join(", ")));
    }
    if let Some(entries) = value.entries() {
        let mut pairs = Vec::new();
        for (key, value) in &entries {
            pairs.push(format!("{}: {}", printed(key, budget, depth - 1)?, printed(value, budget, depth - 1)?));
        }
        return Ok(format!("{{{}}}", pairs.join(", ")));
    }
    Ok(if matches!(value, Value::Null) { "null".to_owned() } else { functions::shown(value) })
}
