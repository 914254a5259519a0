use crate::Error;

/// How many tokens one expression may have.
pub(crate) const TOKENS_MAX: usize = 5_000;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Name(String),
    /// An operator or a bracket.
    Sign(&'static str),
}

const SIGNS: [&str; 26] = [
    "&&", "||", "==", "!=", "<=", ">=", "?.", "[?", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(",
    ")", "[", "]", "{", "}",
];

/// The tokens, and where in the text each begins.
pub(crate) fn tokens(text: &str) -> Result<(Vec<Token>, Vec<usize>), Error> {
    let (mut tokens, mut places) = (Vec::new(), Vec::new());
    let mut rest = text;
    loop {
        rest = skip(rest);
        if rest.is_empty() {
            return Ok((tokens, places));
        }
        if tokens.len() >= TOKENS_MAX {
            return Err(Error::Syntax(format!("an expression may have at most {TOKENS_MAX} tokens")));
        }
        places.push(text.len() - rest.len());
        let (token, after) = token(rest)?;
        tokens.push(token);
        rest = after;
    }
}

fn skip(mut text: &str) -> &str {
    loop {
        text = text.trim_start();
        match text.strip_prefix("//") {
            Some(comment) => text = comment.split_once('\n').map_or("", |(_, after)| after),
            None => return text,
        }
    }
}

fn token(text: &str) -> Result<(Token, &str), Error> {
    if let Some(found) = literal(text)? {
        return Ok(found);
    }
    let first = text.chars().next().unwrap_or_default();
    if first.is_ascii_digit() || (first == '.' && text[1..].starts_with(|next: char| next.is_ascii_digit())) {
        return number(text);
    }
    if first.is_ascii_alphabetic() || first == '_' {
        let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(text.len());
        return Ok((Token::Name(text[..end].to_owned()), &text[end..]));
    }
    if let Some((name, after)) = text.strip_prefix('`').and_then(|inner| inner.split_once('`')) {
        return Ok((Token::Name(name.to_owned()), after));
    }
    let sign = SIGNS.iter().find(|sign| text.starts_with(**sign));
    let sign = sign.ok_or_else(|| Error::Syntax(format!("token recognition error at: {first:?}")))?;
    Ok((Token::Sign(sign), &text[sign.len()..]))
}

/// Text or bytes: with an optional prefix, in single, double or triple quotes.
fn literal(text: &str) -> Result<Option<(Token, &str)>, Error> {
    let (mut raw, mut bytes, mut rest) = (false, false, text);
    for _ in 0..2 {
        if let Some(after) = rest.strip_prefix(['r', 'R']).filter(|_| !raw) {
            (raw, rest) = (true, after);
        } else if let Some(after) = rest.strip_prefix(['b', 'B']).filter(|_| !bytes) {
            (bytes, rest) = (true, after);
        }
    }
    let Some(quote) = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| rest.starts_with(*quote)) else {
        return Ok(None);
    };
    let inner = &rest[quote.len()..];
    let (mut content, mut letters) = (String::new(), inner.char_indices());
    while let Some((at, letter)) = letters.next() {
        if inner[at..].starts_with(quote) {
            let after = &inner[at + quote.len()..];
            let token = if bytes { Token::Bytes(content.into_bytes()) } else { Token::Text(content) };
            return Ok(Some((token, after)));
        }
        match letter {
            '\n' if quote.len() == 1 => break,
            '\\' if !raw => content.push(escaped(&mut letters)?),
            letter => content.push(letter),
        }
    }
    Err(Error::Syntax("a text has no end".to_owned()))
}

fn escaped(letters: &mut std::str::CharIndices<'_>) -> Result<char, Error> {
    let invalid = || Error::Syntax("a text has an escape sequence that is not known".to_owned());
    let (_, letter) = letters.next().ok_or_else(invalid)?;
    let mut coded = |first: Option<char>, more: usize, radix: u32| {
        let digits: String = first.into_iter().chain(letters.by_ref().take(more).map(|(_, digit)| digit)).collect();
        u32::from_str_radix(&digits, radix).ok().and_then(char::from_u32).ok_or_else(invalid)
    };
    match letter {
        'n' => Ok('\n'),
        't' => Ok('\t'),
        'r' => Ok('\r'),
        'a' => Ok('\x07'),
        'b' => Ok('\x08'),
        'f' => Ok('\x0c'),
        'v' => Ok('\x0b'),
        '\\' | '\'' | '"' | '`' | '?' => Ok(letter),
        'x' | 'X' => coded(None, 2, 16),
        'u' => coded(None, 4, 16),
        'U' => coded(None, 8, 16),
        '0'..='3' => coded(Some(letter), 2, 8),
        _ => Err(invalid()),
    }
}

fn number(text: &str) -> Result<(Token, &str), Error> {
    let invalid = |digits: &str| Error::Syntax(format!("{digits:?} is no number"));
    let unsigned = |rest: &str| rest.starts_with(['u', 'U']);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = hex.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(hex.len());
        let value = u64::from_str_radix(&hex[..end], 16).map_err(|_| invalid(text))?;
        return Ok(whole(value, &hex[end..], unsigned(&hex[end..])));
    }
    let digits = |text: &str| text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let mut end = digits(text);
    let mut fraction = false;
    if text[end..].starts_with('.') && text[end + 1..].starts_with(|next: char| next.is_ascii_digit()) {
        fraction = true;
        end += 1 + digits(&text[end + 1..]);
    }
    if let Some(after) = text[end..].strip_prefix(['e', 'E']) {
        let sign = usize::from(after.starts_with(['+', '-']));
        if after[sign..].starts_with(|next: char| next.is_ascii_digit()) {
            fraction = true;
            end += 1 + sign + digits(&after[sign..]);
        }
    }
    if fraction {
        let value = text[..end].parse().map_err(|_| invalid(&text[..end]))?;
        return Ok((Token::Double(value), &text[end..]));
    }
    let value: u64 = text[..end].parse().map_err(|_| invalid(&text[..end]))?;
    Ok(whole(value, &text[end..], unsigned(&text[end..])))
}

fn whole(value: u64, rest: &str, unsigned: bool) -> (Token, &str) {
    if unsigned {
        return (Token::Uint(value), &rest[1..]);
    }
    // 2^63 is only sound behind a minus, which the parser sees to.
    i64::try_from(value).map_or((Token::Uint(value), rest), |value| (Token::Int(value), rest))
}
