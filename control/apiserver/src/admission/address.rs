use std::{collections::HashSet, net::Ipv4Addr};

use serde_json::{Value, json};
use tandem_api::{ApiError, Cause, Entropy, Key, Object, Settings};
use tandem_store::{Consistency, Expect, Op};

use crate::{core::Core, envelope, objects::store_error};

/// What only one Service may have is claimed by a key of its own, written in one command with the Service. So two
/// members of the control plane can never give the same address away.
const CLAIMS: &str = "tandem.allocations";
const ADDRESSES: &str = "clusterips";
const PORTS: &str = "nodeports";
const CLAIM_VERSION: &str = "tandem.dev/claim";
/// The low end of each range is left to those who ask for a certain address or port (KEP-3070, KEP-3668).
const STATIC_ADDRESSES: u32 = 256;
const STATIC_PORTS: u32 = 86;
const HEALTH_PORT: &[&str] = &["spec", "healthCheckNodePort"];

/// What a Service holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    addresses: HashSet<String>,
    ports: HashSet<String>,
}

impl Held {
    fn of(service: &Object) -> Held {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut addresses: HashSet<String> =
            service.array_at(&["spec", "clusterIPs"]).iter().filter_map(text).collect();
        addresses.extend(service.str_at(&["spec", "clusterIP"]).map(str::to_owned));
        addresses.retain(|address| !address.is_empty() && address != "None");
        let port = |port: &Value| port.get("nodePort").and_then(Value::as_i64).filter(|port| *port > 0);
        let mut ports: HashSet<String> =
            service.array_at(&["spec", "ports"]).iter().filter_map(port).map(|port| port.to_string()).collect();
        ports.extend(service.i64_at(HEALTH_PORT).filter(|port| *port > 0).map(|port| port.to_string()));
        Held { addresses, ports }
    }

    fn keys(&self) -> HashSet<Key> {
        let addresses = self.addresses.iter().map(|address| claim(ADDRESSES, address));
        addresses.chain(self.ports.iter().map(|port| claim(PORTS, port))).collect()
    }
}

fn claim(sort: &str, name: &str) -> Key {
    Key::object(CLAIMS, sort, None, name)
}

fn service_type(service: &Object) -> &str {
    service.str_at(&["spec", "type"]).unwrap_or("ClusterIP")
}

fn wants_ports(service: &Object) -> bool {
    let refused = service.at(&["spec", "allocateLoadBalancerNodePorts"]) == Some(&Value::Bool(false));
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => !refused,
        _ => false,
    }
}

/// Where a load balancer asks which nodes have endpoints, when only those serve.
fn wants_health_port(service: &Object) -> bool {
    service_type(service) == "LoadBalancer" && service.str_at(&["spec", "externalTrafficPolicy"]) == Some("Local")
}

/// What an update leaves out of the allocated values stays as it was; what the new type has no use for goes.
pub(super) fn keep(service: &mut Object, old: &Object) {
    if service_type(service) == "ExternalName" {
        for gone in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            service.remove(&["spec", gone]);
        }
    } else if service_type(old) != "ExternalName"
        && service.str_at(&["spec", "clusterIP"]).unwrap_or_default().is_empty()
    {
        for kept in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old.at(&["spec", kept]) {
                service.set(&["spec", kept], value.clone());
            }
        }
    }
    if !wants_health_port(service) {
        service.remove(HEALTH_PORT);
    } else if service.i64_at(HEALTH_PORT).unwrap_or_default() == 0
        && let Some(port) = old.at(HEALTH_PORT)
    {
        service.set(HEALTH_PORT, port.clone());
    }
    let number = |port: &Value| port.get("nodePort").and_then(Value::as_i64).unwrap_or_default();
    let named = |port: &Value| {
        (port.get("port").cloned(), port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned())
    };
    let before = old.array_at(&["spec", "ports"]).to_vec();
    let uses_ports = matches!(service_type(service), "NodePort" | "LoadBalancer");
    let Some(Value::Array(ports)) = service.at_mut(&["spec", "ports"]) else { return };
    for port in ports {
        let old_port = before.iter().find(|before| named(before) == named(port));
        let Some(old_number) = old_port.map(number).filter(|number| *number > 0) else { continue };
        if uses_ports && number(port) == 0 {
            port["nodePort"] = old_number.into();
        } else if !uses_ports && number(port) == old_number {
            port.as_object_mut().and_then(|port| port.shift_remove("nodePort"));
        }
    }
}

/// Gives the Service what its type needs and checks what it asks for.
pub(super) async fn allocate(core: &Core, service: &mut Object, old: Option<&Object>) -> Result<Vec<Op>, ApiError> {
    let before = old.map(Held::of).unwrap_or_default();
    address(core, service, &before).await?;
    ports(core, service, &before).await?;
    let after = Held::of(service);
    let owner = json!({ "namespace": service.namespace(), "name": service.name() }).to_string();
    let (old_keys, new_keys) = (before.keys(), after.keys());
    let mut ops: Vec<Op> = Vec::new();
    for key in new_keys.difference(&old_keys) {
        let value = envelope::seal(CLAIM_VERSION, owner.as_bytes());
        ops.push(Op::Put { key: key.clone(), value, expect: Expect::Absent });
    }
    for key in old_keys.difference(&new_keys) {
        ops.push(Op::Delete { key: key.clone(), expect: Expect::Any });
    }
    Ok(ops)
}

pub(super) fn release(service: &Object) -> Vec<Op> {
    let keys = Held::of(service).keys();
    keys.into_iter().map(|key| Op::Delete { key, expect: Expect::Any }).collect()
}

fn invalid(service: &Object, field: String, message: String) -> ApiError {
    let cause = Cause { reason: "FieldValueInvalid".to_owned(), message, field };
    ApiError::invalid("", "Service", service.name(), vec![cause])
}

async fn address(core: &Core, service: &mut Object, before: &Held) -> Result<(), ApiError> {
    if service_type(service) == "ExternalName" {
        return Ok(());
    }
    for (field, value) in [("ipFamilies", json!(["IPv4"])), ("ipFamilyPolicy", json!("SingleStack"))] {
        if service.at(&["spec", field]).is_none() {
            service.set(&["spec", field], value);
        }
    }
    let given = service.str_at(&["spec", "clusterIP"]).unwrap_or_default().to_owned();
    let given = if given.is_empty() {
        service.array_at(&["spec", "clusterIPs"]).first().and_then(Value::as_str).unwrap_or_default().to_owned()
    } else {
        given
    };
    let chosen = match given.as_str() {
        "" => {
            let taken = names(core, ADDRESSES).await?;
            free_address(&core.settings, core.entropy.as_ref(), &taken)
                .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))?
                .to_string()
        }
        "None" => given,
        asked => {
            if !before.addresses.contains(asked) {
                check_address(core, service, asked).await?;
            }
            given
        }
    };
    service.set(&["spec", "clusterIP"], chosen.as_str());
    service.set(&["spec", "clusterIPs"], vec![Value::from(chosen)]);
    Ok(())
}

async fn check_address(core: &Core, service: &Object, asked: &str) -> Result<(), ApiError> {
    let refuse = |why: String| {
        let field = "spec.clusterIPs".to_owned();
        invalid(service, field, format!("Invalid value: [\"{asked}\"]: failed to allocate IP {asked}: {why}"))
    };
    let range = core.settings.service_cidr;
    let inside =
        asked.parse::<Ipv4Addr>().is_ok_and(|address| range.contains(&address) && usable(&core.settings, address));
    if !inside {
        return Err(refuse(format!(
            "the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"
        )));
    }
    if is_taken(core, ADDRESSES, asked).await? {
        return Err(refuse("provided IP is already allocated".to_owned()));
    }
    Ok(())
}

fn usable(settings: &Settings, address: Ipv4Addr) -> bool {
    address != settings.service_cidr.network() && address != settings.service_cidr.broadcast()
}

/// A free address of the upper part of the range, or of the lower where the upper is full.
fn free_address(settings: &Settings, entropy: &dyn Entropy, taken: &HashSet<String>) -> Option<Ipv4Addr> {
    let first = u32::from(settings.service_cidr.network());
    let size = u32::from(settings.service_cidr.broadcast()) - first;
    let free = |offset: &u32| {
        let address = Ipv4Addr::from(first + offset);
        let reserved = address == settings.kubernetes_service() || address == settings.dns_address;
        usable(settings, address) && !reserved && !taken.contains(&address.to_string())
    };
    let low = STATIC_ADDRESSES.min(size / 2);
    let offset = rotated(low, size, entropy).find(free).or_else(|| (1..low).find(free))?;
    Some(Ipv4Addr::from(first + offset))
}

/// The numbers from `low` up to `high`, from a random one on.
fn rotated(low: u32, high: u32, entropy: &dyn Entropy) -> impl Iterator<Item = u32> {
    let mut bytes = [0; 4];
    entropy.fill(&mut bytes);
    let span = (high - low).max(1);
    let start = u32::from_be_bytes(bytes) % span;
    (0..span).map(move |step| low + (start + step) % span)
}

async fn ports(core: &Core, service: &mut Object, before: &Held) -> Result<(), ApiError> {
    let asked: Vec<(usize, i64)> = service
        .array_at(&["spec", "ports"])
        .iter()
        .enumerate()
        .map(|(at, port)| (at, port.get("nodePort").and_then(Value::as_i64).unwrap_or_default()))
        .collect();
    for (at, number) in asked.iter().filter(|(_, number)| *number != 0) {
        if !before.ports.contains(&number.to_string()) {
            check_port(core, service, format!("spec.ports[{at}].nodePort"), *number).await?;
        }
    }
    let health = service.i64_at(HEALTH_PORT).filter(|port| *port > 0);
    if let Some(port) = health
        && !before.ports.contains(&port.to_string())
    {
        check_port(core, service, HEALTH_PORT.join("."), port).await?;
    }
    let needs_health = health.is_none() && wants_health_port(service);
    let needs_ports = wants_ports(service) && asked.iter().any(|(_, number)| *number == 0);
    if !needs_health && !needs_ports {
        return Ok(());
    }
    let mut taken = names(core, PORTS).await?;
    taken.extend(asked.iter().map(|(_, number)| number.to_string()));
    taken.extend(health.map(|port| port.to_string()));
    let mut free = || {
        let port = free_port(&core.settings, core.entropy.as_ref(), &taken)
            .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))?;
        taken.insert(port.to_string());
        Ok::<u32, ApiError>(port)
    };
    if needs_health {
        let port = free()?;
        service.set(HEALTH_PORT, port);
    }
    for (at, _) in asked.iter().filter(|(_, number)| needs_ports && *number == 0) {
        let port = free()?;
        if let Some(slot) = service.at_mut(&["spec", "ports"]).and_then(|ports| ports.get_mut(at)) {
            slot["nodePort"] = port.into();
        }
    }
    Ok(())
}

async fn check_port(core: &Core, service: &Object, field: String, number: i64) -> Result<(), ApiError> {
    let refuse = |why: String| invalid(service, field.clone(), format!("Invalid value: {number}: {why}"));
    let (first, last) = core.settings.node_ports;
    if number < i64::from(first) || number > i64::from(last) {
        let range = format!("The range of valid ports is {first}-{last}");
        return Err(refuse(format!("provided port is not in the valid range. {range}")));
    }
    if is_taken(core, PORTS, &number.to_string()).await? {
        return Err(refuse("provided port is already allocated".to_owned()));
    }
    Ok(())
}

fn free_port(settings: &Settings, entropy: &dyn Entropy, taken: &HashSet<String>) -> Option<u32> {
    let (first, last) = (u32::from(settings.node_ports.0), u32::from(settings.node_ports.1));
    let low = (first + STATIC_PORTS).min(last);
    let free = |port: &u32| !taken.contains(&port.to_string());
    rotated(low, last + 1, entropy).find(free).or_else(|| (first..low).find(free))
}

async fn is_taken(core: &Core, sort: &str, name: &str) -> Result<bool, ApiError> {
    let found = core.objects.storage().get(&claim(sort, name), Consistency::Linearizable).await;
    Ok(found.map_err(store_error)?.is_some())
}

async fn names(core: &Core, sort: &str) -> Result<HashSet<String>, ApiError> {
    let prefix = Key::prefix(CLAIMS, sort, None);
    let page = core.objects.page(&prefix, Consistency::Linearizable, None, 0).await?;
    let name = |key: &Key| key.as_str().strip_prefix(prefix.as_str()).map(str::to_owned);
    Ok(page.items.iter().filter_map(|stored| name(&stored.key)).collect())
}

#[cfg(test)]
mod tests {
    use tandem_api::SeededEntropy;

    use super::*;

    #[test]
    fn addresses_come_from_the_upper_part_until_it_is_full() {
        let settings = Settings { service_cidr: "10.96.0.0/28".parse().unwrap(), ..Settings::default() };
        let entropy = SeededEntropy::new(1);
        let mut taken = HashSet::new();
        let mut order = Vec::new();
        while let Some(address) = free_address(&settings, &entropy, &taken) {
            taken.insert(address.to_string());
            order.push(address.octets()[3]);
        }
        let (upper, lower) = order.split_at(7);
        assert!(upper.iter().all(|last| (7..15).contains(last)), "{order:?}");
        // Not the network, not the kubernetes Service (1), not DNS (10).
        assert_eq!(lower, [2, 3, 4, 5, 6]);
    }

    #[test]
    fn updates_keep_what_they_leave_out() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ports": [{"port": 80, "nodePort": 30100}]}});
        let old = Object::from_value(old).unwrap();
        let mut new = Object::from_value(json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}})).unwrap();
        keep(&mut new, &old);
        assert_eq!(new.str_at(&["spec", "clusterIP"]), Some("10.96.1.1"));
        assert_eq!(new.array_at(&["spec", "ports"])[0]["nodePort"], 30100);
        let mut plain =
            Object::from_value(json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30100}]}}))
                .unwrap();
        keep(&mut plain, &old);
        assert_eq!(plain.array_at(&["spec", "ports"])[0].get("nodePort"), None);
        let mut external = old.clone();
        external.set(&["spec", "type"], "ExternalName");
        keep(&mut external, &old);
        assert_eq!(external.str_at(&["spec", "clusterIP"]), None);
    }
}
