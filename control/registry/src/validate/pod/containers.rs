use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{check_ids, volumes::check_local_path};
use crate::{
    json::{Fields, FieldsExt},
    quantity::Quantity,
    validate::{Problems, labels, port_name},
};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

pub(super) fn check_all(spec: &Fields, volumes: &BTreeSet<String>, path: &str, problems: &mut Problems) {
    if spec.list("containers").is_empty() {
        problems.required(format!("{path}.containers"), "");
    }
    let mut names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for list in ["initContainers", "containers"] {
        for (at, container) in spec.each(list).enumerate() {
            let path = format!("{path}.{list}[{at}]");
            check(container, volumes, &path, problems);
            check_restart(container, spec, &path, problems);
            let name = container.text("name");
            if !name.is_empty() && !names.insert(name.to_owned()) {
                problems.duplicate(format!("{path}.name"), name);
            }
            if list == "initContainers" {
                check_init(container, &path, problems);
            } else {
                check_host_ports(container, spec.flag("hostNetwork"), &path, &mut host_ports, problems);
            }
        }
    }
}

pub(super) fn check(container: &Fields, volumes: &BTreeSet<String>, path: &str, problems: &mut Problems) {
    match container.text("name") {
        "" => problems.required(format!("{path}.name"), ""),
        name => problems.check_label(name, &format!("{path}.name")),
    }
    match container.text("image") {
        "" => problems.required(format!("{path}.image"), ""),
        image if image.trim() != image => {
            problems.invalid(format!("{path}.image"), image, "must not have leading or trailing whitespace");
        }
        _ => {}
    }
    problems.check_enum(container, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"], true);
    let policies = ["FallbackToLogsOnError", "File"];
    problems.check_enum(container, "terminationMessagePolicy", path, &policies, true);
    check_ports(container, path, problems);
    check_env(container, path, problems);
    check_mounts(container, volumes, path, problems);
    if let Some(resources) = container.child("resources") {
        check_resources(resources, &format!("{path}.resources"), problems);
    }
    for name in PROBES {
        if let Some(probe) = container.child(name) {
            check_probe(probe, name, &format!("{path}.{name}"), problems);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = container.child("lifecycle").and_then(|lifecycle| lifecycle.child(hook)) {
            check_handler(handler, &format!("{path}.lifecycle.{hook}"), problems);
        }
    }
    if let Some(context) = container.child("securityContext") {
        let path = format!("{path}.securityContext");
        check_ids(context, &["runAsUser", "runAsGroup"], &path, problems);
        let escalation = context.get("allowPrivilegeEscalation").and_then(Value::as_bool);
        if context.flag("privileged") && escalation == Some(false) {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            problems.invalid(path, json!(context), why);
        }
    }
}

const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

/// The restart policy of one container, and its rules: which exit codes start it anew whatever the policy says.
fn check_restart(container: &Fields, spec: &Fields, path: &str, problems: &mut Problems) {
    problems.check_enum(container, "restartPolicy", path, &["Always", "Never", "OnFailure"], false);
    check_resize_policy(container, path, problems);
    for (at, policy) in container.each("resizePolicy").enumerate() {
        let own = container.text("restartPolicy");
        let restarts = if own.is_empty() { spec.text("restartPolicy") } else { own };
        if restarts == "Never" && policy.text("restartPolicy") == "RestartContainer" {
            let why = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            problems.invalid(format!("{path}.resizePolicy[{at}].restartPolicy"), "RestartContainer", why);
        }
    }
    let rules = container.list("restartPolicyRules");
    let path = format!("{path}.restartPolicyRules");
    if !rules.is_empty() && container.text("restartPolicy").is_empty() {
        problems.required(format!("{path}.restartPolicy"), "must specify restartPolicy when restart rules are used");
    }
    if rules.len() > RESTART_RULES_MAX {
        problems.too_many(path.clone(), rules.len(), RESTART_RULES_MAX);
    }
    for (at, rule) in container.each("restartPolicyRules").enumerate() {
        let path = format!("{path}[{at}]");
        problems.check_enum(rule, "action", &path, &["Restart"], true);
        let Some(codes) = rule.child("exitCodes") else {
            problems.required(format!("{path}.exitCodes"), "must be specified");
            continue;
        };
        problems.check_enum(codes, "operator", &format!("{path}.exitCodes"), &["In", "NotIn"], true);
        let path = format!("{path}.exitCodes.values");
        match codes.list("values").len() {
            0 => problems.invalid(path, json!([]), "must have at least one value"),
            count if count > EXIT_CODES_MAX => problems.too_many(path, count, EXIT_CODES_MAX),
            _ => {}
        }
    }
}

pub(super) fn check_resize_policy(container: &Fields, path: &str, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for (at, policy) in container.each("resizePolicy").enumerate() {
        let path = format!("{path}.resizePolicy[{at}]");
        problems.check_enum(policy, "resourceName", &path, &["cpu", "memory"], true);
        problems.check_enum(policy, "restartPolicy", &path, &["NotRequired", "RestartContainer"], true);
        if !seen.insert(policy.text("resourceName")) {
            problems.duplicate(path, policy.text("resourceName"));
        }
    }
}

fn check_init(container: &Fields, path: &str, problems: &mut Problems) {
    if container.text("restartPolicy") == "Always" {
        return;
    }
    for key in ["lifecycle"].into_iter().chain(PROBES) {
        if container.contains_key(key) {
            let why = "may not be set for init containers without restartPolicy=Always";
            problems.forbidden(format!("{path}.{key}"), why);
        }
    }
}

fn check_ports(container: &Fields, path: &str, problems: &mut Problems) {
    let mut names = BTreeSet::new();
    for (at, port) in container.each("ports").enumerate() {
        let path = format!("{path}.ports[{at}]");
        let name = port.text("name");
        if !name.is_empty() {
            let found = port_name(name);
            if found.is_empty() && !names.insert(name) {
                problems.duplicate(format!("{path}.name"), name);
            }
            found.into_iter().for_each(|why| problems.invalid(format!("{path}.name"), name, why));
        }
        match port.int("containerPort") {
            None | Some(0) => problems.required(format!("{path}.containerPort"), ""),
            Some(number) => problems.check_port(number, format!("{path}.containerPort")),
        }
        if let Some(number) = port.int("hostPort").filter(|number| *number != 0) {
            problems.check_port(number, format!("{path}.hostPort"));
        }
        problems.check_enum(port, "protocol", &path, &PROTOCOLS, true);
    }
}

fn check_host_ports(
    container: &Fields,
    host_network: bool,
    path: &str,
    taken: &mut BTreeSet<String>,
    problems: &mut Problems,
) {
    for (at, port) in container.each("ports").enumerate() {
        let path = format!("{path}.ports[{at}]");
        let number = port.int("hostPort").unwrap_or_default();
        if host_network && number != 0 && Some(number) != port.int("containerPort") {
            let container_port = port.int("containerPort").unwrap_or_default();
            problems.invalid(
                format!("{path}.containerPort"),
                container_port,
                "must match `hostPort` when `hostNetwork` is true",
            );
        }
        let place = format!("{}/{}/{number}", port.text("protocol"), port.text("hostIP"));
        if number != 0 && !taken.insert(place.clone()) {
            problems.duplicate(format!("{path}.hostPort"), place);
        }
    }
}

fn check_env(container: &Fields, path: &str, problems: &mut Problems) {
    for (at, variable) in container.each("env").enumerate() {
        let path = format!("{path}.env[{at}]");
        let name = variable.text("name");
        let printable = name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=');
        match name {
            "" => problems.required(format!("{path}.name"), ""),
            _ if !printable => problems.invalid(format!("{path}.name"), name, ENV_NAME),
            _ => {}
        }
        let Some(source) = variable.child("valueFrom") else { continue };
        let path = format!("{path}.valueFrom");
        if source.is_empty() {
            let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            problems.invalid(path, "", why);
            continue;
        }
        if !variable.text("value").is_empty() {
            problems.invalid(path.clone(), "", "may not be specified when `value` is not empty");
        }
        if source.len() > 1 {
            problems.invalid(path.clone(), "", "may not have more than one field specified at a time");
        }
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            let Some(reference) = source.child(kind) else { continue };
            for key in ["name", "key"] {
                if reference.text(key).is_empty() {
                    problems.required(format!("{path}.{kind}.{key}"), "");
                }
            }
        }
        if let Some(field) = source.child("fieldRef") {
            check_field_ref(field, &format!("{path}.fieldRef"), problems);
        }
    }
    for (at, source) in container.each("envFrom").enumerate() {
        let path = format!("{path}.envFrom[{at}]");
        let kinds: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|kind| source.contains_key(*kind)).collect();
        match kinds.as_slice() {
            [] => problems.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            [kind] => {
                if source.child(kind).is_some_and(|reference| reference.text("name").is_empty()) {
                    problems.required(format!("{path}.{kind}.name"), "");
                }
            }
            _ => problems.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}

fn check_field_ref(field: &Fields, path: &str, problems: &mut Problems) {
    const PATHS: [&str; 9] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let wanted = field.text("fieldPath");
    let subscript = ["metadata.labels['", "metadata.annotations['"].iter().any(|start| wanted.starts_with(start));
    match wanted {
        "" => problems.required(format!("{path}.fieldPath"), ""),
        _ if subscript && wanted.ends_with("']") => {}
        _ if !PATHS.contains(&wanted) => problems.unsupported(format!("{path}.fieldPath"), wanted, &PATHS),
        _ => {}
    }
}

fn check_mounts(container: &Fields, volumes: &BTreeSet<String>, path: &str, problems: &mut Problems) {
    let mut places = BTreeSet::new();
    for (at, mount) in container.each("volumeMounts").enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        match mount.text("name") {
            "" => problems.required(format!("{path}.name"), ""),
            name if !volumes.contains(name) => problems.not_found(format!("{path}.name"), name),
            _ => {}
        }
        match mount.text("mountPath") {
            "" => problems.required(format!("{path}.mountPath"), ""),
            place if !places.insert(place) => problems.invalid(format!("{path}.mountPath"), place, "must be unique"),
            _ => {}
        }
        for key in ["subPath", "subPathExpr"] {
            if !mount.text(key).is_empty() {
                check_local_path(mount.text(key), &format!("{path}.{key}"), problems);
            }
        }
        if !mount.text("subPath").is_empty() && !mount.text("subPathExpr").is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            problems.invalid(format!("{path}.subPathExpr"), mount.text("subPathExpr"), why);
        }
    }
}

/// Resources that a node has by itself and that containers may ask for.
fn is_native(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// The name of a resource that a container may ask for.
pub(in crate::validate) fn check_resource_name(name: &str, path: &str, problems: &mut Problems) {
    let found = labels::qualified_name(name);
    if found.is_empty() && !name.contains('/') && !is_native(name) {
        problems.invalid(path, name, "must be a standard resource type or fully qualified");
        problems.invalid(path, name, "must be a standard resource for containers");
    }
    found.into_iter().for_each(|why| problems.invalid(path, name, why));
}

pub(super) fn check_resources(resources: &Fields, path: &str, problems: &mut Problems) {
    for kind in ["limits", "requests"] {
        for (name, text) in resources.pairs(kind) {
            let path = format!("{path}.{kind}[{name}]");
            check_resource_name(name, &path, problems);
            let quantity = problems.check_quantity(text, path.clone());
            if name.contains('/') && quantity.is_some_and(|quantity| !quantity.is_whole()) {
                problems.invalid(path, text, "must be an integer");
            }
        }
    }
    let none = Fields::new();
    let limits = resources.child("limits").unwrap_or(&none);
    for (name, text) in resources.pairs("requests") {
        let path = format!("{path}.requests");
        let overcommit = matches!(name, "cpu" | "memory" | "ephemeral-storage");
        let limit = limits.get(name).and_then(Value::as_str);
        let (Ok(request), Some(limit)) = (Quantity::parse(text), limit) else { continue };
        let Ok(most) = Quantity::parse(limit) else { continue };
        if request > most {
            problems.invalid(path, text, format!("must be less than or equal to {name} limit of {limit}"));
        } else if !overcommit && request != most {
            problems.invalid(path, text, format!("must be equal to {name} limit of {limit}"));
        }
    }
}

fn check_probe(probe: &Fields, name: &str, path: &str, problems: &mut Problems) {
    check_handler(probe, path, problems);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        problems.check_non_negative(probe, key, path);
    }
    let successes = probe.int("successThreshold").unwrap_or(1);
    if name != "readinessProbe" && successes != 1 {
        problems.invalid(format!("{path}.successThreshold"), successes, "must be 1");
    }
    if let Some(seconds) = probe.int("terminationGracePeriodSeconds") {
        let path = format!("{path}.terminationGracePeriodSeconds");
        if name == "readinessProbe" {
            problems.invalid(path, seconds, "must not be set for readinessProbes");
        } else if seconds <= 0 {
            problems.invalid(path, seconds, "must be greater than 0");
        }
    }
}

fn check_handler(handler: &Fields, path: &str, problems: &mut Problems) {
    let kinds: Vec<&str> = HANDLERS.into_iter().filter(|kind| handler.contains_key(*kind)).collect();
    if kinds.is_empty() {
        problems.required(path, "must specify a handler type");
    }
    for kind in kinds.iter().skip(1) {
        problems.forbidden(format!("{path}.{kind}"), "may not specify more than 1 handler type");
    }
    let Some((kind, action)) = kinds.first().and_then(|kind| Some((*kind, handler.child(kind)?))) else { return };
    let path = format!("{path}.{kind}");
    match kind {
        "exec" if action.list("command").is_empty() => problems.required(format!("{path}.command"), ""),
        "httpGet" => {
            if action.text("path").is_empty() {
                problems.required(format!("{path}.path"), "");
            }
            problems.check_port_or_name(action.get("port"), format!("{path}.port"));
            problems.check_enum(action, "scheme", &path, &["HTTP", "HTTPS"], false);
            for (at, header) in action.each("httpHeaders").enumerate() {
                if header.text("name").is_empty() {
                    problems.required(format!("{path}.httpHeaders[{at}].name"), "");
                }
            }
        }
        "tcpSocket" | "grpc" => problems.check_port_or_name(action.get("port"), format!("{path}.port")),
        _ => {}
    }
}
