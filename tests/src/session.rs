//! Terminal sessions with golden output.
//!
//! ```text
//! # until 20s          the next command is repeated until its output matches
//! $ kubectl get pods
//! NAME      READY[..]   `[..]` stands for anything within a line
//! ...                   any number of lines
//! ? 1                   the exit code, where it is not 0
//! ```
//!
//! Standard error is shown after standard output, as a terminal would.

use std::{fs, path::Path, time::Duration};

use crate::{machine::Machine, until};

#[derive(Debug, Default)]
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
    code: i32,
    until: Option<Duration>,
}

/// Runs the commands of a script on a machine; panics at the first whose output differs.
pub fn run(machine: &Machine, script: &Path, environment: &[(&str, &str)]) {
    let text = fs::read_to_string(script).expect("the script is there");
    for step in parse(&text) {
        let at = format!("{}:{}: {}", script.display(), step.line, step.command);
        let once = || check(machine, &step, environment);
        match step.until {
            Some(limit) => until(&at, limit, once),
            None => once().unwrap_or_else(|difference| panic!("{at}\n{difference}")),
        }
    }
}

fn parse(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut wait = None;
    for (index, line) in text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            let step = Step { line: index + 1, command: command.to_owned(), until: wait.take(), ..Step::default() };
            steps.push(step);
        } else if let Some(limit) = line.strip_prefix("# until ") {
            let seconds = limit.trim_end_matches('s').parse().expect("a number of seconds");
            wait = Some(Duration::from_secs(seconds));
        } else if let Some(step) = steps.last_mut().filter(|_| !line.starts_with('#')) {
            match (line.strip_prefix("> "), line.strip_prefix("? ")) {
                (Some(more), _) => step.command = format!("{}\n{more}", step.command),
                (_, Some(code)) => step.code = code.parse().expect("an exit code"),
                _ => step.expected.push(line.to_owned()),
            }
        }
    }
    for step in &mut steps {
        while step.expected.last().is_some_and(String::is_empty) {
            step.expected.pop();
        }
    }
    steps
}

fn check(machine: &Machine, step: &Step, environment: &[(&str, &str)]) -> Result<(), String> {
    let mut command = machine.command("bash");
    command.args(["-c", &step.command]).envs(environment.iter().copied());
    let output = command.output().map_err(|error| error.to_string())?;
    let shown = [output.stdout, output.stderr].concat();
    let shown = String::from_utf8_lossy(&shown);
    let actual: Vec<&str> = shown.lines().map(str::trim_end).collect();
    let code = output.status.code().unwrap_or(-1);
    if code == step.code && matches(&step.expected, &actual) {
        return Ok(());
    }
    Err(format!("expected (exit code {}):\n{}\ngot (exit code {code}):\n{shown}", step.code, step.expected.join("\n")))
}

fn matches(expected: &[String], actual: &[&str]) -> bool {
    match expected.split_first() {
        None => actual.is_empty(),
        Some((first, rest)) if first == "..." => (0..=actual.len()).any(|skip| matches(rest, &actual[skip..])),
        Some((first, rest)) => {
            actual.split_first().is_some_and(|(line, more)| line_matches(first, line) && matches(rest, more))
        }
    }
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.trim_end().split("[..]");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_they_should() {
        assert!(line_matches("pod/web-[..] created", "pod/web-x1 created"));
        assert!(!line_matches("pod/web-[..] created", "pod/web-x1 deleted"));
        assert!(line_matches("plain", "plain"));
        assert!(!line_matches("plain", "plainer"));
        let lines = |text: &str| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>();
        assert!(matches(&lines("a\n...\nd"), &["a", "b", "c", "d"]));
        assert!(!matches(&lines("a\n...\ne"), &["a", "b", "c", "d"]));
    }

    #[test]
    fn scripts_are_parsed() {
        let steps = parse("# a comment\n$ one\n> two\nout\n? 3\n\n# until 5s\n$ next\n");
        assert_eq!(steps.len(), 2);
        assert_eq!((steps[0].command.as_str(), steps[0].code), ("one\ntwo", 3));
        assert_eq!(steps[0].expected, ["out"]);
        assert_eq!(steps[1].until, Some(Duration::from_secs(5)));
    }
}
