//! What pods can say about their components beyond the fields that they have for all containers.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use crate::{engine::INSTANCES_OF_ONE, serve::Limits};

/// On a pod: instances of each of its HTTP components at once.
const MAX_INSTANCES: &str = "component.tandem.dev/max-instances";
/// On a pod: requests that wait for an instance.
const MAX_QUEUE: &str = "component.tandem.dev/max-queue";
/// On a pod: seconds that a request waits for an instance.
const QUEUE_SECONDS: &str = "component.tandem.dev/queue-seconds";
/// On a pod: seconds until a component must have begun to answer.
const REQUEST_SECONDS: &str = "component.tandem.dev/request-seconds";

const DEFAULT_PORT: u16 = 8080;

pub(super) fn limits(annotations: &BTreeMap<String, String>) -> Result<Limits, String> {
    let mut limits = Limits::default();
    if let Some(instances) = number(annotations, MAX_INSTANCES)? {
        if instances > u64::from(INSTANCES_OF_ONE) {
            return Err(format!("annotation {MAX_INSTANCES}: {instances} is more than the {INSTANCES_OF_ONE} allowed"));
        }
        limits.instances = usize::try_from(instances).unwrap_or(usize::MAX).max(1);
    }
    if let Some(queue) = number(annotations, MAX_QUEUE)? {
        limits.queue = usize::try_from(queue).unwrap_or(usize::MAX);
    }
    if let Some(seconds) = number(annotations, QUEUE_SECONDS)? {
        limits.queue_time = Duration::from_secs(seconds);
    }
    if let Some(seconds) = number(annotations, REQUEST_SECONDS)? {
        limits.answer_time = Duration::from_secs(seconds.max(1));
    }
    Ok(limits)
}

fn number(annotations: &BTreeMap<String, String>, key: &str) -> Result<Option<u64>, String> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("annotation {key}: {text:?} is not a number"))
}

/// The part of a declared port that matters here.
#[derive(Deserialize)]
struct Port {
    port: u16,
    #[serde(default)]
    udp: bool,
}

/// The first TCP port that the container declares.
pub(super) fn port(annotations: &BTreeMap<String, String>) -> Result<u16, String> {
    let Some(text) = annotations.get(tandem_cri::annotations::PORTS) else { return Ok(DEFAULT_PORT) };
    let ports: Vec<Port> = serde_json::from_str(text).map_err(|error| format!("the ports cannot be read: {error}"))?;
    Ok(ports.iter().find(|port| !port.udp).map_or(DEFAULT_PORT, |port| port.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(key: &str, value: &str) -> BTreeMap<String, String> {
        [(key.to_owned(), value.to_owned())].into()
    }

    #[test]
    fn ports() {
        let key = tandem_cri::annotations::PORTS;
        assert_eq!(port(&BTreeMap::new()), Ok(8080));
        let two = r#"[{"name":"dns","port":53,"udp":true},{"name":"http","port":80,"udp":false}]"#;
        assert_eq!(port(&map(key, two)), Ok(80));
        assert!(port(&map(key, "80")).is_err());
    }

    #[test]
    fn limits_of_a_pod() {
        assert_eq!(limits(&BTreeMap::new()), Ok(Limits::default()));
        assert_eq!(limits(&map(MAX_INSTANCES, "3")).unwrap().instances, 3);
        assert_eq!(limits(&map(MAX_INSTANCES, "500")).unwrap().instances, 500);
        assert_eq!(
            limits(&map(MAX_INSTANCES, "501")),
            Err("annotation component.tandem.dev/max-instances: 501 is more than the 500 allowed".to_owned())
        );
        assert_eq!(limits(&map(MAX_QUEUE, "0")).unwrap().queue, 0);
        assert_eq!(
            limits(&map(MAX_QUEUE, "many")),
            Err("annotation component.tandem.dev/max-queue: \"many\" is not a number".to_owned())
        );
    }
}
