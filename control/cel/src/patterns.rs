use std::{collections::HashMap, sync::Arc};

use regex::{Regex, RegexBuilder};

/// What one compiled pattern may take, in bytes: the smallest size that it fits is what it counts for.
const SIZES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, PATTERN_MAX_BYTES];
/// What one compiled pattern may take at most, in bytes.
const PATTERN_MAX_BYTES: usize = 256 << 10;
/// How much larger a pattern with groups may become: it may be compiled a second time, into a table.
const GROUPS: usize = 4;
/// What a search may keep for the next one, in sizes of the pattern.
const CACHE: usize = 4;
/// For how many bytes of a size a text costs a step more.
const SIZE_OF_STEP: usize = 4 << 10;

/// A compiled pattern, and how it was written.
#[derive(Debug)]
pub struct Pattern {
    text: String,
    regex: Regex,
    size: usize,
}

impl Pattern {
    /// Refuses in words what is no pattern, or too large.
    pub(crate) fn compile(text: &str) -> Result<Pattern, String> {
        let mut why = String::new();
        for size in SIZES {
            match RegexBuilder::new(text).size_limit(size).dfa_size_limit(size * CACHE).build() {
                Ok(regex) => return Ok(Pattern { text: text.to_owned(), regex, size }),
                Err(regex::Error::CompiledTooBig(_)) => {
                    why = format!("Compiled regex exceeds size limit of {size} bytes.");
                }
                Err(error) => return Err(last_line(&error.to_string())),
            }
        }
        Err(why)
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// What a search in a text costs, in steps: a pattern can have to look at each letter in all its states.
    pub fn cost(&self, text: &str) -> u64 {
        let steps = (text.len() / 16 + 1).saturating_mul(self.size / SIZE_OF_STEP);
        u64::try_from(steps).unwrap_or(u64::MAX)
    }

    pub(crate) fn regex(&self) -> &Regex {
        &self.regex
    }

    /// What it takes at most.
    pub(crate) fn bytes(&self) -> usize {
        if self.text.contains('(') { self.size * GROUPS } else { self.size }
    }
}

/// What is wrong, without the picture of where.
fn last_line(why: &str) -> String {
    let last = why.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// Patterns that together have a bound. One that is written twice is compiled once.
#[derive(Debug)]
pub struct Patterns {
    most: usize,
    left: usize,
    known: HashMap<String, Arc<Pattern>>,
}

impl Patterns {
    /// With what all of them may take, in bytes.
    pub fn new(most: usize) -> Patterns {
        Patterns { most, left: most, known: HashMap::new() }
    }

    /// Refuses in words what is no pattern, or too large.
    pub fn compile(&mut self, text: &str) -> Result<Arc<Pattern>, String> {
        if let Some(known) = self.known.get(text) {
            return Ok(known.clone());
        }
        let full = || format!("the patterns may take at most {} bytes together", self.most);
        if self.left == 0 {
            return Err(full());
        }
        let pattern = Arc::new(Pattern::compile(text)?);
        let Some(left) = self.left.checked_sub(pattern.bytes()) else {
            let why = full();
            self.left = 0;
            return Err(why);
        };
        self.left = left;
        self.known.insert(text.to_owned(), pattern.clone());
        Ok(pattern)
    }
}
