use tandem_api::{ApiError, Object};

use crate::ResourceDef;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    equal: bool,
}

/// A `fieldSelector`: terms that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<Term>);

impl FieldSelector {
    pub fn parse(text: &str) -> Result<FieldSelector, ApiError> {
        let mut terms = Vec::new();
        for part in split(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, equal, value)) = operator(part) else {
                return Err(ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            let value = unescape(value).map_err(ApiError::bad_request)?;
            terms.push(Term { field: field.to_owned(), value, equal });
        }
        Ok(FieldSelector(terms))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that the selector demands of a field, so that a list of one name can be a get.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    /// Whether the kind has all the fields that are asked for.
    pub fn check(&self, def: &ResourceDef) -> Result<(), ApiError> {
        let nothing = Object::default();
        for term in &self.0 {
            if def.field(&nothing, &term.field).is_some() {
                continue;
            }
            let message = if !def.has_own_fields() {
                let field = &term.field;
                format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
            } else {
                format!("field label not supported: {}", term.field)
            };
            return Err(ApiError::bad_request(message));
        }
        Ok(())
    }

    /// Whether an object of the kind is selected. A field that the kind doesn't have selects nothing.
    pub fn matches(&self, def: &ResourceDef, object: &Object) -> bool {
        self.0
            .iter()
            .all(|term| def.field(object, &term.field).is_some_and(|value| (value == term.value) == term.equal))
    }
}

/// Splits at commas that are not escaped.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut escaped) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\\' if !escaped => escaped = true,
            b',' if !escaped => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => escaped = false,
        }
    }
    parts.push(&text[from..]);
    parts
}

fn operator(term: &str) -> Option<(&str, bool, &str)> {
    let mut escaped = false;
    for (at, byte) in term.bytes().enumerate() {
        if escaped {
            escaped = false;
        } else if byte == b'\\' {
            escaped = true;
        } else if byte == b'!' || byte == b'=' {
            let (field, rest) = (&term[..at], &term[at..]);
            if let Some(value) = rest.strip_prefix("!=") {
                return Some((field, false, value));
            }
            if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
                return Some((field, true, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(value.len());
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                Some(other) => return Err(format!("invalid field selector: invalid escape sequence: \\{other}")),
                None => return Err(format!("invalid field selector: unterminated escape sequence: {value}")),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {letter}")),
            _ => plain.push(letter),
        }
    }
    Ok(plain)
}
