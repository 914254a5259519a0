//! Which crate may depend on which: the architecture, read from `cargo metadata`.

use std::{collections::BTreeMap, process::Command};

use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// For each crate, the crates of ours that it may depend on. `tandem` (the binary) and the tests see everything.
const ALLOWED: &[(&str, &[&str])] = &[
    ("tandem-api", &[]),
    ("tandem-client", &["tandem-api"]),
    ("tandem-component", &["tandem-api"]),
    ("tandem-pki", &["tandem-api"]),
    ("tandem-store", &["tandem-api"]),
    ("tandem-cel", &["tandem-api"]),
    ("tandem-registry", &["tandem-api", "tandem-cel"]),
    ("tandem-simulation", &["tandem-api", "tandem-store"]),
    ("tandem-apiserver", &["tandem-api", "tandem-store", "tandem-registry", "tandem-pki", "tandem-component"]),
    ("tandem-controllers", &["tandem-api", "tandem-client"]),
    ("tandem-scheduler", &["tandem-api", "tandem-client"]),
    ("tandem-images", &["tandem-api", "tandem-client", "tandem-component"]),
    ("tandem-peers", &["tandem-api", "tandem-store", "tandem-pki"]),
    ("tandem-runtime", &["tandem-api"]),
    ("tandem-cri", &["tandem-api", "tandem-runtime"]),
    ("tandem-containerd", &["tandem-api", "tandem-runtime", "tandem-cri"]),
    ("tandem-wasm", &["tandem-api", "tandem-runtime", "tandem-cri", "tandem-component"]),
    ("tandem-agent", &["tandem-api", "tandem-client", "tandem-runtime", "tandem-component"]),
    ("tandem-net", &["tandem-api", "tandem-client", "tandem-runtime"]),
    ("tandem-ingress", &["tandem-api", "tandem-client"]),
];

/// Crates that must stay free of heavy or foreign parts: what must not be among their direct dependencies.
const BANNED: &[(&str, &[&str])] = &[
    ("tandem-api", &["kube", "k8s-openapi", "axum", "sqlx", "wasmtime", "hyper"]),
    ("tandem-store", &["kube", "k8s-openapi", "axum", "wasmtime"]),
    ("tandem-registry", &["kube", "axum", "sqlx", "wasmtime", "tokio"]),
    ("tandem-simulation", &["kube", "k8s-openapi", "axum", "sqlx", "wasmtime"]),
    ("tandem-apiserver", &["kube", "sqlx", "openraft", "wasmtime"]),
    ("tandem-peers", &["kube", "k8s-openapi", "wasmtime"]),
    ("tandem-component", &["wasmtime"]),
    ("tandem-agent", &["wasmtime"]),
];

fn packages() -> BTreeMap<String, Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo prints its metadata as JSON");
    let ours = metadata.packages.into_iter().filter(|package| package.source.is_none());
    ours.map(|package| (package.name.clone(), package)).collect()
}

fn is_shipped(dependency: &Dependency) -> bool {
    dependency.kind.as_deref() != Some("dev")
}

#[test]
fn dependencies_point_the_way_they_should() {
    let mut problems = Vec::new();
    for package in packages().values().filter(|package| !matches!(package.name.as_str(), "tandem" | "tandem-tests")) {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            problems.push(format!("{} is in no row of ALLOWED: say what it may depend on", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| is_shipped(dependency)) {
            if dependency.path.is_some() && !allowed.contains(&dependency.name.as_str()) {
                problems.push(format!("{} must not depend on {}", package.name, dependency.name));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn light_crates_stay_light() {
    let packages = packages();
    let mut problems = Vec::new();
    for (name, banned) in BANNED {
        let shipped = packages[*name].dependencies.iter().filter(|dependency| is_shipped(dependency));
        for dependency in shipped.filter(|dependency| banned.contains(&dependency.name.as_str())) {
            problems.push(format!("{name} must not depend on {}", dependency.name));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
