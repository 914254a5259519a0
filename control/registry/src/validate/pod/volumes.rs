use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    json::{Fields, FieldsExt},
    validate::Problems,
};

/// Checks the volumes and gives back their names.
pub(super) fn check(spec: &Fields, path: &str, problems: &mut Problems) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, volume) in spec.each("volumes").enumerate() {
        let path = format!("{path}[{at}]");
        let name = volume.text("name");
        if name.is_empty() {
            problems.required(format!("{path}.name"), "");
        } else {
            problems.check_label(name, &format!("{path}.name"));
            if !names.insert(name.to_owned()) {
                problems.duplicate(format!("{path}.name"), name);
            }
        }
        let sources: Vec<&String> = volume.keys().filter(|key| *key != "name").collect();
        match sources.as_slice() {
            [] => problems.required(path, "must specify a volume type"),
            [source] => check_source(volume, source, &path, problems),
            [_, others @ ..] => {
                for source in others {
                    problems.forbidden(format!("{path}.{source}"), "may not specify more than 1 volume type");
                }
            }
        }
    }
    names
}

fn check_source(volume: &Fields, kind: &str, path: &str, problems: &mut Problems) {
    let (Some(source), path) = (volume.child(kind), format!("{path}.{kind}")) else { return };
    let needed: &[&str] = match kind {
        "secret" => &["secretName"],
        "configMap" => &["name"],
        "persistentVolumeClaim" => &["claimName"],
        "hostPath" => &["path"],
        "nfs" => &["server", "path"],
        "csi" => &["driver"],
        _ => &[],
    };
    for key in needed {
        if source.text(key).is_empty() {
            problems.required(format!("{path}.{key}"), "");
        }
    }
    check_mode(source, "defaultMode", &path, problems);
    check_items(source, &path, kind == "downwardAPI", problems);
    match kind {
        "hostPath" => {
            if source.text("path").split('/').any(|part| part == "..") {
                problems.invalid(format!("{path}.path"), source.text("path"), "must not contain '..'");
            }
            let kinds =
                ["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
            problems.check_enum(source, "type", &path, &kinds, false);
        }
        "projected" => check_projections(source, &path, problems),
        "emptyDir" => {
            let limit = source.text("sizeLimit");
            if !limit.is_empty() {
                problems.check_quantity(limit, format!("{path}.sizeLimit"));
            }
        }
        _ => {}
    }
}

fn check_mode(fields: &Fields, key: &str, path: &str, problems: &mut Problems) {
    if let Some(mode) = fields.int(key).filter(|mode| !(0..=0o777).contains(mode)) {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        problems.invalid(format!("{path}.{key}"), mode, why);
    }
}

fn check_items(source: &Fields, path: &str, downward: bool, problems: &mut Problems) {
    for (at, item) in source.each("items").enumerate() {
        let path = format!("{path}.items[{at}]");
        if downward {
            if item.contains_key("fieldRef") == item.contains_key("resourceFieldRef") {
                problems.required(path.clone(), "one of fieldRef and resourceFieldRef is required");
            }
        } else if item.text("key").is_empty() {
            problems.required(format!("{path}.key"), "");
        }
        match item.text("path") {
            "" => problems.required(format!("{path}.path"), ""),
            target => check_local_path(target, &format!("{path}.path"), problems),
        }
        check_mode(item, "mode", &path, problems);
    }
}

/// A path inside a volume.
pub(super) fn check_local_path(target: &str, path: &str, problems: &mut Problems) {
    if target.starts_with('/') {
        problems.invalid(path, target, "must be a relative path");
    }
    if target.split('/').any(|part| part == "..") {
        problems.invalid(path, target, "must not contain '..'");
    }
}

fn check_projections(projected: &Fields, path: &str, problems: &mut Problems) {
    for (at, source) in projected.each("sources").enumerate() {
        let path = format!("{path}.sources[{at}]");
        for (kind, parts) in source {
            let Value::Object(parts) = parts else { continue };
            let path = format!("{path}.{kind}");
            check_items(parts, &path, kind == "downwardAPI", problems);
            if matches!(kind.as_str(), "secret" | "configMap") && parts.text("name").is_empty() {
                problems.required(format!("{path}.name"), "");
            }
            if kind == "serviceAccountToken" {
                if parts.text("path").is_empty() {
                    problems.required(format!("{path}.path"), "");
                }
                if let Some(seconds) = parts.int("expirationSeconds").filter(|seconds| *seconds < 600) {
                    let why = "may not specify a duration less than 10 minutes";
                    problems.invalid(format!("{path}.expirationSeconds"), seconds, why);
                }
            }
        }
    }
}
