//! Runs one seed and prints its report as JSON: `simulate SEED [--bug NAME] [--tell]`.

mod shims;

use std::{io::Write, process::ExitCode, str::FromStr};

use tandem_simulation::{bugs::Bug, run, seeds};

struct Arguments {
    seed: u64,
    bug: Option<Bug>,
    tell: bool,
}

fn arguments() -> Result<Arguments, String> {
    let usage = || "usage: simulate SEED [--bug NAME] [--tell]".to_owned();
    let mut given = std::env::args().skip(1);
    let seed = given.next().and_then(|seed| seed.parse().ok()).ok_or_else(usage)?;
    let mut arguments = Arguments { seed, bug: None, tell: false };
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--bug" => arguments.bug = Some(Bug::from_str(&given.next().ok_or_else(usage)?)?),
            "--tell" => arguments.tell = true,
            _ => return Err(usage()),
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    shims::install();
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(why) => {
            drop(writeln!(std::io::stderr(), "{why}"));
            return ExitCode::from(2);
        }
    };
    let dir = seeds::scratch(std::process::id());
    let report = run::run(arguments.seed, arguments.bug, arguments.tell, &dir);
    // Nothing may have been put there.
    drop(std::fs::remove_dir_all(&dir));
    let text = serde_json::to_string(&report).unwrap_or_else(|error| error.to_string());
    if writeln!(std::io::stdout(), "{text}").is_err() {
        return ExitCode::FAILURE;
    }
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
