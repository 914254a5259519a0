//! What every source file keeps to.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const FILE_LINES_MAX: usize = 1000;
const FUNCTION_LINES_MAX: usize = 70;
/// Functions over the limit that are one table or one list: at most this share, in percent.
const LONG_FUNCTIONS_PERCENT_MAX: usize = 1;

struct Source {
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above its tests").to_owned()
}

fn collect(directory: &Path, sources: &mut Vec<Source>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).expect("a source folder").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, sources);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("source files are UTF-8");
            let path = path.strip_prefix(root()).expect("below the root").display().to_string();
            sources.push(Source { path, text });
        }
    }
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in ["control", "node", "sdk", "tests"] {
        collect(&root().join(folder), &mut sources);
    }
    assert!(sources.len() > 50, "the product's sources are found");
    sources
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || ["/tests/", "/tests.rs", "_test.rs", "/examples/", "/benches/"]
                .iter()
                .any(|part| self.path.contains(part))
    }

    /// The text without the inline test module at its end.
    fn product(&self) -> &str {
        let end = self.text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        &self.text[..end]
    }
}

fn check(problems: Vec<String>) {
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn files_stay_readable() {
    let long = sources().into_iter().filter_map(|source| {
        let lines = source.text.lines().count();
        (lines > FILE_LINES_MAX)
            .then(|| format!("{}: {lines} lines; what is the second thing that it does?", source.path))
    });
    check(long.collect());
}

/// The functions of a source, with how many lines each has. Relies on rustfmt's indentation.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let words: Vec<&str> = trimmed.split_whitespace().take(5).collect();
        let Some(at) = words.iter().position(|word| *word == "fn") else { continue };
        let qualifiers = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe"];
        if !words[..at].iter().all(|word| qualifiers.contains(word)) {
            continue;
        }
        let indent = &line[..line.len() - trimmed.len()];
        let close = format!("{indent}}}");
        let end = lines[start..].iter().position(|line| *line == close);
        let opens = lines[start..].iter().position(|line| line.trim_end().ends_with('{'));
        if let (Some(end), Some(opens)) = (end, opens)
            && opens < end
        {
            let name = trimmed.split("fn ").nth(1).unwrap_or_default().split(['(', '<']).next().unwrap_or_default();
            found.push((name.to_owned(), end - opens));
        }
    }
    found
}

#[test]
fn functions_stay_readable() {
    let (mut all, mut long) = (0, Vec::new());
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (name, lines) in functions(source.product()) {
            all += 1;
            if lines > FUNCTION_LINES_MAX {
                long.push(format!("{}: {name} has {lines} lines", source.path));
            }
        }
    }
    assert!(all > 500, "functions are found");
    assert!(long.len() * 100 <= all * LONG_FUNCTIONS_PERCENT_MAX, "too many long functions:\n{}", long.join("\n"));
}

#[test]
fn dynamic_json_stays_where_schemas_are() {
    let homes = ["sdk/api/", "control/cel/", "control/registry/", "control/apiserver/"];
    let found = sources().into_iter().filter(|source| !source.is_test()).filter(|source| {
        let product = source.product();
        let dynamic = product.contains("serde_json::Value") || product.contains("json!(");
        dynamic && !homes.iter().any(|home| source.path.starts_with(home))
    });
    check(found.map(|source| format!("{}: uses serde_json::Value; use a type", source.path)).collect());
}

#[test]
fn generic_paths_name_no_kind() {
    let kinds = ["Pod", "Service", "Node", "Deployment", "Secret", "Namespace", "ConfigMap"];
    let mut problems = Vec::new();
    for source in sources() {
        let generic = source.path.contains("apiserver/src/verbs") || source.path.contains("apiserver/src/patch");
        if generic && !source.is_test() {
            for kind in kinds.iter().filter(|kind| source.product().contains(&format!("\"{kind}\""))) {
                problems.push(format!("{}: names the kind {kind}", source.path));
            }
        }
    }
    check(problems);
}

#[test]
fn the_agent_knows_no_runtime() {
    let agent = sources().into_iter().filter(|source| source.path.starts_with("node/agent/src") && !source.is_test());
    let leaks = agent
        .filter(|source| source.product().contains("tandem_containerd") || source.product().contains("tandem_wasm"));
    check(leaks.map(|source| format!("{}: names a runtime", source.path)).collect());
}

#[test]
fn no_file_is_dead() {
    let sources = sources();
    let lines = sources.iter().flat_map(|source| source.text.lines());
    let declared: BTreeSet<&str> = lines
        .filter_map(|line| {
            let line = line.trim().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            line.strip_prefix("mod ")?.strip_suffix(';')
        })
        .collect();
    let mut problems = Vec::new();
    for source in &sources {
        let path = Path::new(&source.path);
        let (Some(stem), Some(folder)) = (path.file_stem().and_then(|stem| stem.to_str()), path.parent()) else {
            continue;
        };
        let root_file = matches!(stem, "lib" | "main" | "build") || source.path.contains("/examples/");
        let top_test = folder.ends_with("tests")
            && folder
                .parent()
                .is_some_and(|parent| parent.join("src").exists() || root().join(parent).join("Cargo.toml").exists());
        if root_file || top_test {
            continue;
        }
        let name =
            if stem == "mod" { folder.file_name().and_then(|name| name.to_str()).unwrap_or_default() } else { stem };
        if !declared.contains(name) {
            problems.push(format!("{}: no module declares it", source.path));
        }
    }
    check(problems);
}

/// Tests that let time pass, and why each may.
const WAITS: &[(&str, &str)] = &[
    ("control/store/tests/support/mod.rs", "the latency of an injected disk"),
    ("node/wasm/tests/host/bench.rs", "between two looks at a predicate with a deadline"),
    ("node/wasm/tests/host/commands.rs", "a CPU limit is measured over time"),
    ("node/wasm/tests/host/serving.rs", "between two requests of a loop that ends with a notice"),
    ("tests/bench/failover.rs", "a load runs for a time around the kill"),
    ("tests/bench/footprint.rs", "an idle cluster is measured over time"),
    ("tests/bench/scale.rs", "a client that is told when to come again"),
    ("tests/matrix/client.rs", "a client of a load that was refused pauses"),
    ("tests/matrix/herd.rs", "a client that is told when to come again"),
    ("tests/simulation/src/world.rs", "simulated time"),
    ("tests/src/lib.rs", "between two looks at a predicate with a deadline"),
];

#[test]
fn tests_wait_for_what_they_need() {
    let mut problems = Vec::new();
    let may_wait =
        |source: &Source| source.path.contains("/examples/") || WAITS.iter().any(|(path, _)| *path == source.path);
    for source in sources().into_iter().filter(|source| !may_wait(source)) {
        let tests = if source.is_test() { source.text.as_str() } else { &source.text[source.product().len()..] };
        for line in tests.lines().filter(|line| line.contains("sleep(") && !line.contains("contains(")) {
            problems.push(format!("{}: {} (wait on a predicate with a deadline)", source.path, line.trim()));
        }
        if tests.lines().any(|line| line.trim_start().starts_with("#[ignore")) {
            problems.push(format!("{}: an ignored test", source.path));
        }
    }
    check(problems);
}
