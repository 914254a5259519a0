use std::{borrow::Cow, collections::HashMap, sync::Arc};

use crate::{
    columns,
    def::{KindName, ResourceDef, Scope, StorageName, Subresource},
    kinds,
    schema::Schema,
};

const TABLE: &str = include_str!("../data/resources.tsv");

/// An API group and the versions of it that are served, preferred first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Empty for the core group.
    pub name: String,
    pub versions: Vec<String>,
}

/// The rows of all served kinds.
#[derive(Debug)]
pub struct Registry {
    defs: Vec<Arc<ResourceDef>>,
    by_path: HashMap<(String, String, String), Arc<ResourceDef>>,
    by_kind: HashMap<(String, String, String), Arc<ResourceDef>>,
    schema: Arc<Schema>,
}

impl Registry {
    /// The stable kinds of Kubernetes.
    pub fn builtin() -> Registry {
        Registry::from_rows(rows().collect(), Schema::builtin())
    }

    /// The same rows, and after them those of kinds that are defined at run time. A kind or a resource that is built in
    /// is not defined again, in no version: objects of all versions are stored in one place.
    #[must_use]
    pub fn with_custom(&self, custom: Vec<Arc<ResourceDef>>) -> Registry {
        let mut defs: Vec<Arc<ResourceDef>> = self.defs.iter().filter(|def| def.custom.is_none()).cloned().collect();
        let free = |def: &&Arc<ResourceDef>| {
            let own = |own: &&Arc<ResourceDef>| own.custom.is_none() && own.group == def.group;
            let taken = |own: &Arc<ResourceDef>| own.plural == def.plural || own.kind == def.kind;
            !self.defs.iter().filter(own).any(taken)
        };
        let custom: Vec<Arc<ResourceDef>> = custom.iter().filter(free).cloned().collect();
        let schema = self.schema.with(&custom);
        defs.extend(custom);
        Registry::from_shared(defs, schema)
    }

    fn from_rows(rows: Vec<ResourceDef>, schema: Schema) -> Registry {
        Registry::from_shared(rows.into_iter().map(Arc::new).collect(), schema)
    }

    fn from_shared(defs: Vec<Arc<ResourceDef>>, schema: Schema) -> Registry {
        let key = |def: &ResourceDef, last: &str| (def.group.clone(), def.version.clone(), last.to_owned());
        let (mut by_path, mut by_kind) = (HashMap::new(), HashMap::new());
        for def in &defs {
            by_path.entry(key(def, &def.plural)).or_insert_with(|| def.clone());
            by_kind.entry(key(def, &def.kind)).or_insert_with(|| def.clone());
        }
        Registry { defs, by_path, by_kind, schema: Arc::new(schema) }
    }

    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    pub fn by_path(&self, group: &str, version: &str, plural: &str) -> Option<Arc<ResourceDef>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<ResourceDef>> {
        self.by_kind.get(&(group.to_owned(), version.to_owned(), kind.to_owned())).cloned()
    }

    /// All rows in the order of discovery: the core group first, then as in the table.
    pub fn all(&self) -> Vec<Arc<ResourceDef>> {
        self.defs.clone()
    }

    /// The groups in the order of discovery; within one, the newest version first.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for def in &self.defs {
            let at = groups.iter().position(|group| group.name == def.group).unwrap_or_else(|| {
                groups.push(Group { name: def.group.clone(), versions: Vec::new() });
                groups.len() - 1
            });
            if !groups[at].versions.contains(&def.version) {
                groups[at].versions.push(def.version.clone());
            }
        }
        for group in &mut groups {
            group.versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        }
        groups
    }
}

/// Which version clients should prefer: stable before beta before alpha, and the newest of these; others come last.
fn priority(version: &str) -> (u8, u32, u32, std::cmp::Reverse<String>) {
    let name = std::cmp::Reverse(version.to_owned());
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..end].parse::<u32>().ok()?;
        let stage = |word: &str| rest[end..].strip_prefix(word).and_then(|number| number.parse::<u32>().ok());
        match (&rest[end..], stage("beta"), stage("alpha")) {
            ("", _, _) => Some((3, major, 0)),
            (_, Some(beta), _) => Some((2, major, beta)),
            (_, _, Some(alpha)) => Some((1, major, alpha)),
            _ => None,
        }
    });
    let (stage, major, minor) = parsed.unwrap_or_default();
    (stage, major, minor, name)
}

/// Stable versions have no `alpha` or `beta` in them.
fn is_stable(version: &str) -> bool {
    version
        .strip_prefix('v')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Where a group and a version of it stand among others, by Kubernetes' `groupPriorityMinimum` and `versionPriority`:
/// what is preferred has the higher number.
pub fn priorities(group: &str, version: &str) -> (i32, i32) {
    let of_group = match group {
        "" => return (18_000, 1),
        "apps" => 17_800,
        "events.k8s.io" => 17_750,
        "authentication.k8s.io" => 17_700,
        "authorization.k8s.io" => 17_600,
        "autoscaling" => 17_500,
        "batch" => 17_400,
        "certificates.k8s.io" => 17_300,
        "networking.k8s.io" => 17_200,
        "policy" => 17_100,
        "rbac.authorization.k8s.io" => 17_000,
        "storage.k8s.io" => 16_800,
        "apiextensions.k8s.io" | "admissionregistration.k8s.io" => 16_700,
        "scheduling.k8s.io" => 16_600,
        "coordination.k8s.io" => 16_500,
        "node.k8s.io" => 16_300,
        "discovery.k8s.io" => 16_200,
        "flowcontrol.apiserver.k8s.io" => 16_100,
        "resource.k8s.io" => 15_900,
        // As kinds that are defined at run time.
        _ => return (1000, 100),
    };
    (of_group, if (group, version) == ("autoscaling", "v2") { 30 } else { 15 })
}

/// Whether the objects of a group are this server's alone. What `metrics.k8s.io` shows is measured, not kept, and may
/// come from another server.
pub(crate) fn is_own(group: &str) -> bool {
    let name = if group.is_empty() { "core" } else { group };
    own(name).next().is_some() && !is_replaceable(group)
}

/// Groups that another server may serve in place of this one, where somebody registers it.
pub fn is_replaceable(group: &str) -> bool {
    group == "metrics.k8s.io"
}

/// Groups that have never had a stable version, and that clients rely on all the same.
const ALWAYS_BETA: [&str; 1] = ["metrics.k8s.io"];

fn rows() -> impl Iterator<Item = ResourceDef> {
    let is_served = |def: &ResourceDef| is_stable(&def.version) || ALWAYS_BETA.contains(&def.group.as_str());
    TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(row).filter(is_served)
}

/// The plurals and kinds of a group in the table, whether they are served or not.
fn own(group: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(move |line| {
        let mut cells = line.split('\t');
        let found = cells.next()? == group;
        let (plural, kind) = (cells.nth(1)?, cells.next()?);
        found.then_some((plural, kind))
    })
}

/// Whether a resource is built in, in whatever version.
pub(crate) fn is_builtin(group: &str, plural: &str) -> bool {
    own(group).any(|(own, _)| own == plural)
}

/// Whether a kind, or that of lists of it, is built in, in whatever version.
pub(crate) fn is_builtin_kind(group: &str, kind: &str) -> bool {
    own(group).any(|(_, own)| own == kind || kind.strip_suffix("List") == Some(own))
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn row(line: &'static str) -> Option<ResourceDef> {
    let mut cells = line.split('\t');
    let (group, version, plural, kind) = (cells.next()?, cells.next()?, cells.next()?, cells.next()?);
    let scope = if cells.next()? == "Namespaced" { Scope::Namespaced } else { Scope::Cluster };
    let verbs = list(cells.next()?);
    let names = list(cells.next().unwrap_or_default());
    let prefix = group.split('.').next().unwrap_or(group);
    let group = if group == "core" { "" } else { group };
    let (short_names, categories) = words(group, plural);
    let (storage, conversion) = storage(group, version, plural, kind);
    let subresources = names.iter().map(|name| subresource(name, group, version, kind)).collect();
    Some(ResourceDef {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        list_kind: format!("{kind}List"),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        short_names: list(short_names),
        categories: list(categories),
        scope,
        verbs,
        subresources,
        storage_version: storage.version.clone(),
        storage,
        type_name: format!("{prefix}.{version}.{kind}"),
        columns: Cow::Borrowed(columns::columns(group, kind)),
        hooks: kinds::hooks(group, kind),
        conversion,
        custom: None,
    })
}

fn storage(group: &str, version: &str, plural: &str, kind: &str) -> (StorageName, Option<crate::Conversion>) {
    let name = |group: &str, version: &str| StorageName {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        kind: kind.to_owned(),
    };
    match (group, version, kind) {
        ("events.k8s.io", "v1", "Event") => (name("", "v1"), Some(kinds::EVENTS_AS_CORE)),
        ("autoscaling", "v1", "HorizontalPodAutoscaler") => {
            (name("autoscaling", "v2"), Some(kinds::AUTOSCALER_V1_AS_V2))
        }
        _ => (name(group, version), None),
    }
}

fn subresource(name: &str, group: &str, version: &str, kind: &str) -> Subresource {
    let stream = ["create", "delete", "get", "patch", "update"].as_slice();
    let connect = ["create", "get"].as_slice();
    let write = ["get", "patch", "update"].as_slice();
    let ((group, version, kind), verbs) = match name {
        "scale" => (("autoscaling", "v1", "Scale"), write),
        "binding" => (("", "v1", "Binding"), ["create"].as_slice()),
        "eviction" => (("policy", "v1", "Eviction"), ["create"].as_slice()),
        "token" => (("authentication.k8s.io", "v1", "TokenRequest"), ["create"].as_slice()),
        "attach" => (("", "v1", "PodAttachOptions"), connect),
        "exec" => (("", "v1", "PodExecOptions"), connect),
        "portforward" => (("", "v1", "PodPortForwardOptions"), connect),
        "log" => (("", "v1", "Pod"), ["get"].as_slice()),
        "proxy" => match kind {
            "Node" => (("", "v1", "NodeProxyOptions"), stream),
            "Service" => (("", "v1", "ServiceProxyOptions"), stream),
            _ => (("", "v1", "PodProxyOptions"), stream),
        },
        "finalize" => ((group, version, kind), ["update"].as_slice()),
        _ => ((group, version, kind), write),
    };
    Subresource {
        name: name.to_owned(),
        kind: KindName { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() },
        verbs: verbs.iter().map(ToString::to_string).collect(),
    }
}

/// Short names and categories.
fn words(group: &str, plural: &str) -> (&'static str, &'static str) {
    match (group, plural) {
        ("", "componentstatuses") => ("cs", ""),
        ("", "configmaps") => ("cm", ""),
        ("", "endpoints") => ("ep", ""),
        ("" | "events.k8s.io", "events") => ("ev", ""),
        ("", "limitranges") => ("limits", ""),
        ("", "namespaces") => ("ns", ""),
        ("", "nodes") => ("no", ""),
        ("", "persistentvolumeclaims") => ("pvc", ""),
        ("", "persistentvolumes") => ("pv", ""),
        ("", "pods") => ("po", "all"),
        ("", "replicationcontrollers") => ("rc", "all"),
        ("", "resourcequotas") => ("quota", ""),
        ("", "serviceaccounts") => ("sa", ""),
        ("", "services") => ("svc", "all"),
        ("admissionregistration.k8s.io", _) => ("", "api-extensions"),
        ("apiextensions.k8s.io", _) => ("crd,crds", "api-extensions"),
        ("apiregistration.k8s.io", _) => ("", "api-extensions"),
        ("apps", "daemonsets") => ("ds", "all"),
        ("apps", "deployments") => ("deploy", "all"),
        ("apps", "replicasets") => ("rs", "all"),
        ("apps", "statefulsets") => ("sts", "all"),
        ("autoscaling", _) => ("hpa", "all"),
        ("batch", "cronjobs") => ("cj", "all"),
        ("batch", "jobs") => ("", "all"),
        ("certificates.k8s.io", "certificatesigningrequests") => ("csr", ""),
        ("networking.k8s.io", "ingresses") => ("ing", ""),
        ("networking.k8s.io", "ipaddresses") => ("ip", ""),
        ("networking.k8s.io", "networkpolicies") => ("netpol", ""),
        ("policy", "poddisruptionbudgets") => ("pdb", ""),
        ("scheduling.k8s.io", "priorityclasses") => ("pc", ""),
        ("storage.k8s.io", "storageclasses") => ("sc", ""),
        ("storage.k8s.io", "volumeattributesclasses") => ("vac", ""),
        _ => ("", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_stable_resources_are_there() {
        let registry = Registry::builtin();
        let (own, kubernetes): (Vec<_>, Vec<_>) = registry.all().into_iter().partition(|def| def.group == "tandem.dev");
        assert_eq!((kubernetes.len(), own.len()), (70, 1));
        assert_eq!(registry.groups()[0], Group { name: String::new(), versions: vec!["v1".to_owned()] });
        let autoscaling = registry.groups().into_iter().find(|group| group.name == "autoscaling").unwrap();
        assert_eq!(autoscaling.versions, ["v2", "v1"]);
    }

    #[test]
    fn every_row_has_a_type_with_metadata_rules() {
        let registry = Registry::builtin();
        for def in registry.all() {
            let found = registry.schema().ty(&def.type_name);
            assert!(found.is_some_and(|found| found.has_type_meta), "{}", def.type_name);
            assert!(registry.by_path(&def.group, &def.version, &def.plural).is_some());
            assert!(registry.by_kind(&def.group, &def.version, &def.kind).is_some());
            for sub in &def.subresources {
                let KindName { group, version, kind } = &sub.kind;
                assert!(registry.schema().kind_type(group, version, kind).is_some(), "{kind} of {}", sub.name);
            }
        }
    }

    #[test]
    fn every_hook_bears_an_empty_object() {
        let registry = Registry::builtin();
        for def in registry.all() {
            let mut object = tandem_api::Object::default();
            def.default(&mut object);
            let once = object.clone();
            def.default(&mut object);
            assert_eq!(once, object, "defaults of {} are not idempotent", def.kind);
            def.prepare_create(&mut object);
            let old = object.clone();
            def.prepare_update(&mut object, &old);
            def.prepare_status(&mut object, &old);
            def.validate_create(&object);
            def.validate_update(&object, &old);
            let cells = (def.hooks.cells)(&object, jiff::Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), def.columns.len(), "{}", def.kind);
            (def.hooks.fields)(&object);
            if let Some(conversion) = def.conversion {
                (conversion.to_storage)(&mut object);
                (conversion.from_storage)(&mut object);
            }
        }
    }
}
