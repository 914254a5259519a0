use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec, PodStatus};

use super::*;

fn pod(phase: &str, host_network: bool, address: &str) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some("web".into());
    pod.metadata.resource_version = Some("7".into());
    let ports = vec![ContainerPort { name: Some("http".into()), container_port: 80, ..ContainerPort::default() }];
    let container = Container { ports: Some(ports), ..Container::default() };
    pod.spec = Some(PodSpec { host_network: Some(host_network), containers: vec![container], ..PodSpec::default() });
    pod.status = Some(PodStatus {
        phase: Some(phase.into()),
        pod_ip: Some(address.to_owned()).filter(|address| !address.is_empty()),
        ..PodStatus::default()
    });
    pod
}

#[test]
fn pods_matter_while_they_have_an_address_of_their_own() {
    assert!(facts::pod(pod("Running", false, "10.128.0.2")).is_some());
    assert!(facts::pod(pod("Pending", false, "10.128.0.2")).is_some());
    for other in [pod("Running", true, "192.0.2.1"), pod("Succeeded", false, "10.128.0.2"), pod("Pending", false, "")] {
        assert!(facts::pod(other).is_none());
    }
}

#[test]
fn only_what_matters_wakes() {
    let mut followed = Followed {
        events: futures::stream::empty().boxed(),
        fact: facts::pod,
        known: BTreeMap::new(),
        next: None,
        is_complete: false,
    };
    use watcher::Event;
    assert!(!followed.take(Event::Init));
    assert!(!followed.take(Event::InitApply(pod("Running", false, "10.128.0.2"))));
    assert!(followed.known.is_empty(), "half a list is none");
    assert!(followed.take(Event::InitDone), "a first list matters even where it is empty");
    let mut same = pod("Running", false, "10.128.0.2");
    same.metadata.resource_version = Some("8".into());
    assert!(!followed.take(Event::Apply(same)));
    assert!(followed.take(Event::Apply(pod("Succeeded", false, "10.128.0.2"))), "its address is free");
    assert!(!followed.take(Event::Delete(pod("Succeeded", false, "10.128.0.2"))));
    assert!(followed.take(Event::Apply(pod("Running", false, "10.128.0.3"))));
    // A list after a break says who is gone.
    assert!(!followed.take(Event::Init));
    assert!(followed.take(Event::InitDone));
    assert!(followed.known.is_empty());
}
