//! What objects use of a namespace's quotas: admission charges by these rules, and the controller counts by them.
//!
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>

mod pod;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::{Object, Quantity};

pub use pod::{missing, total};

/// Amounts of resources by name.
pub type Amounts = BTreeMap<String, Quantity>;

const ONE: Quantity = Quantity::from_i64(1);
const PODS: &str = "pods";
const SERVICES: &str = "services";
const CLAIMS: &str = "persistentvolumeclaims";
/// Resources of the core group whose objects are also counted by their bare names.
const BARE: [&str; 7] = [PODS, SERVICES, CLAIMS, "configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
const NODE_PORTS: &str = "services.nodeports";
const LOAD_BALANCERS: &str = "services.loadbalancers";
const STORAGE: &str = "requests.storage";
/// Between the name of a StorageClass and what is counted of its claims.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// The objects of one resource, as quotas count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted<'a> {
    /// Empty for the core group.
    pub group: &'a str,
    pub resource: &'a str,
}

impl<'a> Counted<'a> {
    /// The objects that a name among a quota's hard limits is about; `None` where it is about none.
    pub fn by(name: &'a str) -> Option<Counted<'a>> {
        if let Some(counted) = name.strip_prefix("count/") {
            let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
            return Some(Counted { group, resource });
        }
        let of_class = name.split_once(OF_CLASS).is_some_and(|(_, what)| matches!(what, CLAIMS | STORAGE));
        let resource = match name {
            NODE_PORTS | LOAD_BALANCERS => SERVICES,
            STORAGE => CLAIMS,
            _ if of_class => CLAIMS,
            _ if BARE.contains(&name) => name,
            _ if pod::is_resource(name) => PODS,
            _ => return None,
        };
        Some(Counted { group: "", resource })
    }

    fn is_core(self, resource: &str) -> bool {
        self.group.is_empty() && self.resource == resource
    }

    /// Whether nothing of an object counts but that it is there.
    pub fn is_plain(self) -> bool {
        ![PODS, SERVICES, CLAIMS].iter().any(|rich| self.is_core(rich))
    }

    /// Whether an object may use more after a change of its own.
    pub fn may_grow(self) -> bool {
        self.is_core(SERVICES) || self.is_core(CLAIMS)
    }

    /// Everything that the object uses, by the names that quotas have for it.
    pub fn usage(self, object: &Object, now: Timestamp) -> Amounts {
        let Counted { group, resource } = self;
        let count = if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") };
        let mut used = Amounts::from([(count, ONE)]);
        match (group, resource) {
            ("", PODS) => pod::usage(object, now, &mut used),
            ("", SERVICES) => service_usage(object, &mut used),
            ("", CLAIMS) => claim_usage(object, &mut used),
            ("", bare) if BARE.contains(&bare) => {
                used.insert(bare.to_owned(), ONE);
            }
            _ => {}
        }
        used
    }

    /// Whether the object is in all scopes of the quota. Only pods are in any.
    pub fn is_in_scope(self, quota: &Object, object: &Object) -> bool {
        scopes(quota).all(|scope| self.is_core(PODS) && pod::is_in(&scope, object))
    }
}

/// One scope of a quota, and which values it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope<'a> {
    name: &'a str,
    operator: &'a str,
    values: Vec<&'a str>,
}

fn scopes(quota: &Object) -> impl Iterator<Item = Scope<'_>> {
    let plain = quota.array_at(&["spec", "scopes"]).iter().filter_map(Value::as_str);
    let plain = plain.map(|name| Scope { name, operator: "Exists", values: Vec::new() });
    let selected = quota.array_at(&["spec", "scopeSelector", "matchExpressions"]).iter().map(|expression| Scope {
        name: text(expression, "scopeName"),
        operator: text(expression, "operator"),
        values: list(expression, "values").iter().filter_map(Value::as_str).collect(),
    });
    plain.chain(selected)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn service_usage(service: &Object, used: &mut Amounts) {
    let ports = service.array_at(&["spec", "ports"]);
    let numbered = |port: &&Value| port.get("nodePort").and_then(Value::as_i64).unwrap_or_default() != 0;
    let kind = service.str_at(&["spec", "type"]).unwrap_or_default();
    let allocates = service.at(&["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false));
    let node_ports = match kind {
        "NodePort" => ports.len(),
        "LoadBalancer" if allocates => ports.len(),
        "LoadBalancer" => ports.iter().filter(numbered).count(),
        _ => 0,
    };
    used.insert(SERVICES.to_owned(), ONE);
    used.insert(NODE_PORTS.to_owned(), Quantity::from_i64(i64::try_from(node_ports).unwrap_or(i64::MAX)));
    used.insert(LOAD_BALANCERS.to_owned(), Quantity::from_i64(i64::from(kind == "LoadBalancer")));
}

fn claim_usage(claim: &Object, used: &mut Amounts) {
    let annotated = claim.annotations().find(|(key, _)| *key == "volume.beta.kubernetes.io/storage-class");
    let class = annotated.map(|(_, class)| class).or_else(|| claim.str_at(&["spec", "storageClassName"]));
    let class = class.filter(|class| !class.is_empty());
    let asked = amount(claim.at(&["spec", "resources", "requests", "storage"]));
    // An expansion that was taken back counts until it is known to have failed.
    let allocated = amount(claim.at(&["status", "allocatedResources", "storage"]));
    let named = [(CLAIMS, Some(ONE)), (STORAGE, asked.max(allocated))];
    for (name, amount) in named.into_iter().filter_map(|(name, amount)| Some((name, amount?))) {
        used.insert(name.to_owned(), amount);
        if let Some(class) = class {
            used.insert(format!("{class}{OF_CLASS}{name}"), amount);
        }
    }
}

fn amount(value: Option<&Value>) -> Option<Quantity> {
    value.and_then(Value::as_str).and_then(|text| Quantity::parse(text).ok())
}

/// The amounts of a map of quantities.
pub fn amounts(value: Option<&Value>) -> Amounts {
    let pairs = value.and_then(Value::as_object).into_iter().flatten();
    pairs.filter_map(|(name, value)| Some((name.clone(), amount(Some(value))?))).collect()
}

/// Adds what there is more.
pub fn add(into: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = into.get(name).map_or(*amount, |before| before.plus(*amount));
        into.insert(name.clone(), sum);
    }
}

/// As JSON.
pub fn to_value(amounts: &Amounts) -> Value {
    amounts.iter().map(|(name, amount)| (name.clone(), Value::from(amount.to_string()))).collect()
}

/// `cpu=1,memory=1Gi`
pub fn show(amounts: &Amounts) -> String {
    let parts: Vec<String> = amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests;
