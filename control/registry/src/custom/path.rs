//! The JSONPath that columns, scales and selectable fields are written in: fields, indices, wildcards, one comparison.

use serde_json::Value;

/// How many steps a path may have.
const STEPS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Elements whose value at a path compares so with a literal.
    Filter {
        path: Vec<String>,
        equal: bool,
        value: Value,
    },
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JsonPath(Vec<Step>);

impl JsonPath {
    /// `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`, `.metadata.labels['a\.b/c']`.
    pub(crate) fn parse(text: &str) -> Result<JsonPath, String> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).unwrap_or(text);
        let text = text.strip_prefix('$').unwrap_or(text);
        let (mut steps, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            if steps.len() >= STEPS_MAX {
                return Err(format!("a path may have at most {STEPS_MAX} steps"));
            }
            rest = if let Some(after) = rest.strip_prefix('[') {
                let (inner, after) = bracket(after)?;
                steps.push(subscript(inner)?);
                after
            } else {
                let after = rest.strip_prefix('.').unwrap_or(rest);
                if after.starts_with('.') {
                    return Err("recursive descent is not supported".to_owned());
                }
                if after.starts_with('[') || (after.is_empty() && steps.is_empty()) {
                    rest = after;
                    continue;
                }
                let (name, after) = name(after);
                if name.is_empty() {
                    return Err(format!("a field name is missing in {text:?}"));
                }
                steps.push(if name == "*" { Step::All } else { Step::Field(name) });
                after
            };
        }
        Ok(JsonPath(steps))
    }

    /// The fields of a path of nothing but fields.
    pub(crate) fn fields(&self) -> Option<Vec<&str>> {
        let field = |step: &'_ Step| matches!(step, Step::Field(_));
        if !self.0.iter().all(field) {
            return None;
        }
        Some(
            self.0
                .iter()
                .filter_map(|step| if let Step::Field(name) = step { Some(name.as_str()) } else { None })
                .collect(),
        )
    }

    /// The first value that the path leads to.
    pub(crate) fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        find(&self.0, value)
    }
}

fn find<'v>(steps: &[Step], value: &'v Value) -> Option<&'v Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => find(rest, map.get(name)?),
        (Step::Index(index), Value::Array(list)) => {
            let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
            let at = if *index < 0 { length.saturating_add(*index) } else { *index };
            find(rest, list.get(usize::try_from(at).ok()?)?)
        }
        (Step::All, Value::Array(list)) => list.iter().find_map(|value| find(rest, value)),
        (Step::All, Value::Object(map)) => map.values().find_map(|value| find(rest, value)),
        (Step::Filter { path, equal, value: wanted }, Value::Array(list)) => {
            let holds = |element: &&Value| {
                let found = path.iter().try_fold(*element, |value, key| value.get(key));
                found.is_some_and(|found| (found == wanted) == *equal)
            };
            list.iter().filter(holds).find_map(|value| find(rest, value))
        }
        _ => None,
    }
}

/// A field name up to the next step; a backslash takes the meaning from what follows.
fn name(text: &str) -> (String, &str) {
    let (mut name, mut escaped) = (String::new(), false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => {
                name.push(letter);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' => return (name, &text[at..]),
            letter => name.push(letter),
        }
    }
    (name, "")
}

/// What stands between brackets, quotes considered, and what comes after.
fn bracket(text: &str) -> Result<(&str, &str), String> {
    let mut quote = None;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, ']') => return Ok((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    Err("unterminated array".to_owned())
}

fn unquoted(text: &str) -> Option<&str> {
    let quotes = ['\'', '"'];
    quotes.iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
}

fn subscript(text: &str) -> Result<Step, String> {
    let text = text.trim();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = unquoted(text) {
        return Ok(Step::Field(name.replace('\\', "")));
    }
    if let Some(inner) = text.strip_prefix("?(").and_then(|inner| inner.strip_suffix(')')) {
        return filter(inner);
    }
    text.parse().map(Step::Index).map_err(|_| format!("{text:?} is not supported between brackets"))
}

fn filter(text: &str) -> Result<Step, String> {
    let unsupported = || format!("the filter {text:?} is not supported");
    let (left, right, equal) = match (text.split_once("=="), text.split_once("!=")) {
        (Some((left, right)), _) => (left, right, true),
        (None, Some((left, right))) => (left, right, false),
        (None, None) => return Err(unsupported()),
    };
    let path = left.trim().strip_prefix('@').ok_or_else(unsupported)?;
    let path = JsonPath::parse(path)?;
    let path = path.fields().ok_or_else(unsupported)?.into_iter().map(str::to_owned).collect();
    let right = right.trim();
    let value = match unquoted(right) {
        Some(text) => Value::from(text),
        None => serde_json::from_str(right).map_err(|_| unsupported())?,
    };
    Ok(Step::Filter { path, equal, value })
}
