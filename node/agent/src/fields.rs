//! What a container may learn about its pod: `fieldRef` and `resourceFieldRef`.

use std::{borrow::Cow, net::Ipv4Addr};

use k8s_openapi::{
    api::core::v1::{Container as Spec, ObjectFieldSelector, Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{pod, quantity};

/// The node's size, which stands in for limits that a container has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeSize {
    pub(crate) cpus: u64,
    pub(crate) memory_bytes: u64,
}

/// Addresses, which are known once the pod has a sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement<'a> {
    pub(crate) node_name: &'a str,
    pub(crate) node_address: Ipv4Addr,
    pub(crate) pod_address: Option<Ipv4Addr>,
    pub(crate) size: NodeSize,
}

/// `metadata.labels['key']` as `("metadata.labels", "key")`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (base, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let unquoted = ['\'', '"'].iter().find_map(|quote| key.strip_prefix(*quote)?.strip_suffix(*quote));
    unquoted.map(|key| (base, key))
}

/// One `key="value"` a line, sorted, the values quoted as Go quotes them.
fn listed(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The value of a field of the pod; an error where there is no such field.
pub(crate) fn field(pod: &Pod, selector: &ObjectFieldSelector, place: &Placement<'_>) -> Result<String, String> {
    let path = selector.field_path.as_str();
    let metadata = &pod.metadata;
    let address = || place.pod_address.map(|address| address.to_string()).unwrap_or_default();
    if let Some((base, key)) = subscript(path) {
        let map = match base {
            "metadata.labels" => metadata.labels.as_ref(),
            "metadata.annotations" => metadata.annotations.as_ref(),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod::name(pod).to_owned(),
        "metadata.namespace" => pod::namespace(pod).to_owned(),
        "metadata.uid" => pod::uid(pod).to_owned(),
        "metadata.labels" => listed(metadata.labels.as_ref()),
        "metadata.annotations" => listed(metadata.annotations.as_ref()),
        "spec.nodeName" => place.node_name.to_owned(),
        "spec.serviceAccountName" => {
            pod::spec(pod).and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" | "status.hostIPs" => place.node_address.to_string(),
        "status.podIP" | "status.podIPs" => address(),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// The value of `limits.cpu` and the like, in the divisor's units, rounded up.
pub(crate) fn resource(
    pod: &Pod,
    own: Option<&Spec>,
    selector: &ResourceFieldSelector,
    size: NodeSize,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let spec = match named {
        Some(name) => pod::container(pod, name).map(|(_, spec)| spec),
        None => own.map(Cow::Borrowed),
    };
    let spec = spec.ok_or_else(|| format!("container {} not found", named.unwrap_or("of the resource field")))?;
    let (list, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let resources = spec.resources.clone().unwrap_or_default();
    let chosen = match list {
        "limits" => resources.limits,
        "requests" => resources.requests,
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let given = chosen.as_ref().and_then(|quantities| quantities.get(name)).and_then(quantity::thousandths);
    let milli = match (given, list, name) {
        (Some(milli), _, _) => milli,
        (None, "limits", "cpu") => i64::try_from(size.cpus * 1000).unwrap_or(i64::MAX),
        (None, "limits", "memory") => i64::try_from(size.memory_bytes).unwrap_or(i64::MAX).saturating_mul(1000),
        (None, _, _) => 0,
    };
    let divisor = selector.divisor.clone().unwrap_or(Quantity("1".to_owned()));
    let divisor = quantity::thousandths(&divisor).filter(|divisor| *divisor > 0).unwrap_or(1000);
    Ok(((milli + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ResourceRequirements;

    use super::*;
    use crate::testing;

    fn place() -> Placement<'static> {
        let size = NodeSize { cpus: 2, memory_bytes: 1 << 30 };
        Placement {
            node_name: "n1",
            node_address: Ipv4Addr::new(192, 0, 2, 1),
            pod_address: Some(Ipv4Addr::new(10, 128, 0, 7)),
            size,
        }
    }

    #[test]
    fn fields() {
        let mut pod = testing::pod(&["a"]);
        pod.metadata.labels = Some([("b".into(), "2\"".into()), ("a".into(), "1".into())].into());
        let ask = |path: &str| {
            let selector = ObjectFieldSelector { field_path: path.to_owned(), api_version: None };
            field(&pod, &selector, &place())
        };
        for (path, wanted) in [
            ("metadata.name", "web"),
            ("metadata.labels", "a=\"1\"\nb=\"2\\\"\""),
            ("metadata.labels['a']", "1"),
            ("metadata.annotations['x']", ""),
            ("spec.nodeName", "n1"),
            ("status.hostIP", "192.0.2.1"),
            ("status.podIP", "10.128.0.7"),
        ] {
            assert_eq!(ask(path).as_deref(), Ok(wanted), "{path}");
        }
        assert_eq!(ask("status.phase"), Err("unsupported fieldPath: status.phase".to_owned()));
    }

    #[test]
    fn resources() {
        let pod = testing::with_spec(testing::pod(&["a"]), |spec| {
            let limits = [("memory".to_owned(), Quantity("64Mi".to_owned()))].into();
            spec.containers[0].resources =
                Some(ResourceRequirements { limits: Some(limits), ..ResourceRequirements::default() });
        });
        let ask = |resource_name: &str, divisor: Option<&str>| {
            let selector = ResourceFieldSelector {
                container_name: Some("a".to_owned()),
                divisor: divisor.map(|text| Quantity(text.to_owned())),
                resource: resource_name.to_owned(),
            };
            resource(&pod, None, &selector, place().size)
        };
        assert_eq!(ask("limits.memory", Some("1Mi")).as_deref(), Ok("64"));
        assert_eq!(ask("limits.cpu", None).as_deref(), Ok("2"));
        assert_eq!(ask("limits.cpu", Some("1m")).as_deref(), Ok("2000"));
        assert_eq!(ask("requests.cpu", None).as_deref(), Ok("0"));
        assert!(ask("limits", None).is_err());
    }
}
