use std::{fs, time::Instant};

/// Prints one line for each figure: what, how much, the goal, and whether it is met.
pub(crate) struct Report {
    began: Instant,
}

/// Which way is better.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    None,
}

impl Report {
    #[allow(clippy::disallowed_methods, reason = "a benchmark measures with the machine's clock")]
    pub(crate) fn begin() -> Report {
        Report { began: Instant::now() }
    }

    pub(crate) fn machine(&self) {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
        let memory = read("/proc/meminfo").lines().next().unwrap_or_default().to_owned();
        let load = read("/proc/loadavg");
        println!(
            "machine: {cores} cores{model}; {memory}; Linux {}; load {}",
            read("/proc/sys/kernel/osrelease").trim(),
            load.trim()
        );
        println!("{:<62} {:>12} {:<6} {:>14}", "figure", "measured", "unit", "goal");
    }

    pub(crate) fn figure(&mut self, what: &str, value: f64, unit: &str, goal: Goal) {
        let (text, met) = match goal {
            Goal::AtMost(limit) => (format!("≤ {limit}"), value <= limit),
            Goal::AtLeast(limit) => (format!("≥ {limit}"), value >= limit),
            Goal::None => (String::new(), true),
        };
        let mark = if met { "" } else { "  SHORT OF GOAL" };
        println!("{what:<62} {value:>12.3} {unit:<6} {text:>14}{mark}");
    }

    pub(crate) fn note(&self, text: &str) {
        println!("  {text}");
    }

    pub(crate) fn end(self) {
        println!("took {:.0} s", self.began.elapsed().as_secs_f64());
    }
}

/// The middle of several measurements.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
