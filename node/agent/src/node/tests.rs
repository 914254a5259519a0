use expect_test::{Expect, expect};

use super::*;
use crate::testing::{at, node::TestNode};

fn check(health: &Health, last: Option<&NodeStatus>, wanted: Expect) -> NodeStatus {
    let conditions = health.conditions(last, at(60));
    let line = |condition: &NodeCondition| {
        let since = condition.last_transition_time.as_ref().unwrap().0.duration_since(at(0)).as_secs();
        format!(
            "{} {} since {since} {}: {}\n",
            condition.type_,
            condition.status,
            condition.reason.as_deref().unwrap(),
            condition.message.as_deref().unwrap()
        )
    };
    wanted.assert_eq(&conditions.iter().map(line).collect::<String>());
    NodeStatus { conditions: Some(conditions), ..NodeStatus::default() }
}

fn well() -> Health {
    Health { pod_cidr: Some("10.128.0.0/18".parse().unwrap()), ..Health::default() }
}

#[test]
fn a_node_is_ready_when_its_runtimes_answer_and_it_has_addresses() {
    let status = check(
        &well(),
        None,
        expect![[r#"
        MemoryPressure False since 60 KubeletHasSufficientMemory: kubelet has sufficient memory available
        DiskPressure False since 60 KubeletHasNoDiskPressure: kubelet has no disk pressure
        PIDPressure False since 60 KubeletHasSufficientPID: kubelet has sufficient PID available
        Ready True since 60 KubeletReady: kubelet is posting ready status
    "#]],
    );
    let mut earlier = status;
    for condition in earlier.conditions.iter_mut().flatten() {
        condition.last_transition_time = Some(Time(at(5)));
    }
    let sick = Health {
        pressure: Pressure { memory: true, ..Pressure::default() },
        runtimes: vec![("containerd", "connection refused".to_owned())],
        pod_cidr: None,
    };
    check(
        &sick,
        Some(&earlier),
        expect![[r#"
        MemoryPressure True since 60 KubeletHasInsufficientMemory: kubelet has memory pressure
        DiskPressure False since 5 KubeletHasNoDiskPressure: kubelet has no disk pressure
        PIDPressure False since 5 KubeletHasSufficientPID: kubelet has sufficient PID available
        Ready False since 60 KubeletNotReady: runtime containerd does not answer: connection refused; the node has no pod CIDR yet
    "#]],
    );
}

#[tokio::test]
async fn a_node_registers_becomes_ready_and_holds_its_lease() {
    let node = TestNode::new().await;
    let context = Arc::new(node.context());
    let shutdown = CancellationToken::new();
    let (cidr, mut given) = watch::channel(None);
    let registration = Registration {
        labels: [("zone".to_owned(), "z1".to_owned())].into(),
        port: 10250,
        version: "v1.36.0".to_owned(),
        runtime_version: "fake://1".to_owned(),
    };
    let observer = tokio::spawn(context.observer.clone().run(shutdown.clone()));
    let agent = tokio::spawn(NodeAgent::new(context, registration.clone(), cidr).run(shutdown.clone()));
    node.until("the node", |node| node.api.node("n1").is_some()).await;
    let mut registered = node.api.node("n1").unwrap();
    assert_eq!(registered.metadata.labels.as_ref().unwrap()["kubernetes.io/hostname"], "n1");
    assert_eq!(registered.metadata.labels.as_ref().unwrap()["zone"], "z1");
    assert_eq!(registered.spec.clone().unwrap().taints, None);
    registered.spec.get_or_insert_default().pod_cidr = Some("10.128.64.0/18".to_owned());
    node.api.put_node(registered);
    given.wait_for(Option::is_some).await.unwrap();
    let ready = |node: &TestNode| {
        let conditions = node.api.node("n1").and_then(|node| node.status?.conditions).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    node.until("a ready node", ready).await;
    let renewed = |node: &TestNode| node.api.lease("n1").and_then(|lease| lease.spec?.renew_time);
    node.until("a lease", |node| renewed(node).is_some()).await;
    let first = renewed(&node);
    node.until("a renewed lease", |node| renewed(node) > first).await;
    shutdown.cancel();
    agent.await.unwrap();
    observer.await.unwrap();

    // A restarted agent whose runtimes have not answered yet says nothing against the node.
    let context = Arc::new(node.context());
    let registration = Registration { labels: BTreeMap::new(), ..registration };
    let conditions = |node: &TestNode| node.api.node("n1").and_then(|node| node.status?.conditions).unwrap();
    let before = conditions(&node);
    let shutdown = CancellationToken::new();
    let agent =
        tokio::spawn(NodeAgent::new(context.clone(), registration, watch::channel(None).0).run(shutdown.clone()));
    node.until("a renewed lease", |node| renewed(node) > first).await;
    assert_eq!(conditions(&node), before);
    let observer = tokio::spawn(context.observer.clone().run(shutdown.clone()));
    node.until("a new status", |node| conditions(node) != before).await;
    assert!(ready(&node));
    let since =
        |conditions: &[NodeCondition]| conditions.iter().map(|c| c.last_transition_time.clone()).collect::<Vec<_>>();
    assert_eq!(since(&conditions(&node)), since(&before));

    // Cut off for a while, it was thought dead, and nothing of it has changed.
    let mut silenced = node.api.node("n1").unwrap();
    for condition in silenced.status.as_mut().unwrap().conditions.as_mut().unwrap() {
        condition.status = "Unknown".to_owned();
    }
    node.api.put_node(silenced);
    node.until("it to be ready again", ready).await;
    shutdown.cancel();
    agent.await.unwrap();
    observer.await.unwrap();
}
