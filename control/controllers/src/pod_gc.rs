//! Pods that nobody will ever end: those of nodes that are gone, and those that were deleted before they had a node.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan},
    node_lifecycle::disrupted,
    object, pod,
};

pub(crate) struct PodCollector;

#[derive(Debug)]
pub(crate) struct View {
    pod: Arc<Pod>,
    node_is_gone: bool,
}

impl Controller for PodCollector {
    type Parent = Pod;
    type View = View;

    const NAME: &'static str = "pod-garbage-collector";
    const READS: &'static [&'static str] = &["Pod", "Node"];

    fn store(cache: &Cache) -> &Store<Pod> {
        &cache.pods
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Pod(delta) => {
                let lost = delta.new.as_ref().filter(|pod| match pod::node(pod) {
                    Some(node) => cache.nodes.get(&Key::new("", node)).is_none(),
                    None => object::is_deleting(&pod.metadata),
                });
                lost.map(|pod| Key::of(&pod.metadata)).into_iter().collect()
            }
            Change::Node(delta) if delta.new.is_none() => {
                let name = delta.key().name;
                let pods = cache.pods.all().into_iter().filter(|pod| pod::node(pod) == Some(&name));
                pods.map(|pod| Key::of(&pod.metadata)).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, pod: Arc<Pod>) -> Result<View, Error> {
        let Some(name) = pod::node(&pod) else { return Ok(View { pod, node_is_gone: false }) };
        if input.cache.nodes.get(&Key::new("", name)).is_some() {
            return Ok(View { pod, node_is_gone: false });
        }
        // The cache may be behind: only the API's word counts for an end by force.
        let node = Api::<Node>::all(input.client.clone()).get_opt(name).await?;
        Ok(View { pod, node_is_gone: node.is_none() })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        let pod = &*view.pod;
        let by_force = Action::Delete(Deletion { grace_seconds: Some(0), ..Deletion::of(pod) });
        if view.node_is_gone {
            let mut actions = Vec::new();
            if !pod::is_terminal(pod) {
                let message = "PodGC: node no longer exists".to_owned();
                let mut failed = disrupted(pod, "DeletionByPodGC", message, now);
                failed.status.get_or_insert_default().phase = Some("Failed".to_owned());
                actions.push(Action::set_status(failed));
            }
            actions.push(by_force);
            return Plan::of(actions);
        }
        if pod::node(pod).is_none() && object::is_deleting(&pod.metadata) {
            return Plan::of(vec![by_force]);
        }
        Plan::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{action::testing::describe, testing};

    fn check(text: &str, node_is_gone: bool) -> String {
        let view = View { pod: Arc::new(testing::pod(text)), node_is_gone };
        describe(&PodCollector::plan(&view, Timestamp::UNIX_EPOCH), |action| match action.object::<Pod>() {
            Some(pod) => pod::phase(pod).to_owned(),
            None => String::new(),
        })
    }

    #[test]
    fn pods_of_a_node_that_is_gone_fail_and_go() {
        assert_eq!(check("a:node=n1", true), "status Pod default/a Failed\ndelete Pod default/a\n");
        assert_eq!(check("a:node=n1:deleting", false), "", "its node will end it");
    }

    #[test]
    fn pods_deleted_before_they_had_a_node_go() {
        assert_eq!(check("a:deleting", false), "delete Pod default/a\n");
        assert_eq!(check("a", false), "");
    }
}
