//! The pod addresses of each node: a part of the cluster's range that no other node has.

use std::sync::Arc;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde::Serialize;
use tandem_api::Settings;
use tandem_client::events::{self, Note, Severity};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Plan, Target},
    object,
};

pub(crate) struct NodeRanges {
    pub(crate) settings: Settings,
}

#[derive(Debug)]
pub(crate) struct View {
    node: Arc<Node>,
    /// The ranges of all nodes.
    taken: Vec<Ipv4Net>,
    range: Ipv4Net,
    mask: u8,
}

impl Controller for NodeRanges {
    type Parent = Node;
    type View = View;

    const NAME: &'static str = "node-ipam";
    const READS: &'static [&'static str] = &["Node"];
    /// Two nodes at a time could be given the same range.
    const WORKERS: usize = 1;

    fn store(cache: &Cache) -> &Store<Node> {
        &cache.nodes
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Node(delta) => match &delta.new {
                Some(_) => vec![delta.key()],
                // Its range is free: nodes may wait for one.
                None => cache.nodes.keys(),
            },
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, node: Arc<Node>) -> Result<View, Error> {
        let taken = if range_of(&node).is_some() {
            Vec::new()
        } else {
            input.cache.nodes.all().iter().filter_map(|node| range_of(node)).collect()
        };
        Ok(View { node, taken, range: self.settings.pod_cidr, mask: self.settings.node_mask })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        if range_of(&view.node).is_some() || object::is_deleting(&view.node.metadata) {
            return Plan::default();
        }
        let Some(free) = free(view) else {
            let message = format!("No part of the pod CIDR {} is free for the node", view.range);
            let note = Note::new(events::reference(&*view.node), Severity::Warning, "CIDRNotAvailable", message);
            return Plan::of(vec![Action::Event(note)]);
        };
        let metadata = GivenMeta { resource_version: view.node.metadata.resource_version.clone() };
        let spec = GivenSpec { pod_cidr: free.to_string(), pod_cidrs: [free.to_string()] };
        Plan::of(vec![Action::patch(Target::of(&*view.node), Given { metadata, spec })])
    }
}

#[derive(Debug, Serialize)]
struct Given {
    metadata: GivenMeta,
    spec: GivenSpec,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GivenMeta {
    resource_version: Option<String>,
}

#[derive(Debug, Serialize)]
struct GivenSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: [String; 1],
}

fn range_of(node: &Node) -> Option<Ipv4Net> {
    let spec = node.spec.as_ref()?;
    let first = spec.pod_cidrs.iter().flatten().next();
    spec.pod_cidr.as_ref().or(first)?.parse().ok()
}

fn free(view: &View) -> Option<Ipv4Net> {
    let overlaps = |part: &Ipv4Net| view.taken.iter().any(|taken| taken.contains(part) || part.contains(taken));
    view.range.subnets(view.mask).ok()?.find(|part| !overlaps(part))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use k8s_openapi::api::core::v1::NodeSpec;

    use super::*;
    use crate::action::testing::describe;

    fn check(own: Option<&str>, taken: &[&str], expect: Expect) {
        let mut node = Node {
            spec: own.map(|own| NodeSpec { pod_cidr: Some(own.into()), ..NodeSpec::default() }),
            ..Node::default()
        };
        node.metadata.name = Some("n1".into());
        node.metadata.resource_version = Some("7".into());
        let taken = taken.iter().map(|range| range.parse().unwrap()).collect();
        let view = View { node: Arc::new(node), taken, range: "10.0.0.0/14".parse().unwrap(), mask: 16 };
        expect.assert_eq(&describe(&NodeRanges::plan(&view, Timestamp::UNIX_EPOCH), |_| String::new()));
    }

    #[test]
    fn the_first_free_part_is_given() {
        check(
            None,
            &["10.0.0.0/16", "10.1.128.0/18"],
            expect![[r#"
            patch Node n1 {"metadata":{"resourceVersion":"7"},"spec":{"podCIDR":"10.2.0.0/16","podCIDRs":["10.2.0.0/16"]}}
        "#]],
        );
    }

    #[test]
    fn a_node_keeps_its_part() {
        check(Some("10.3.0.0/16"), &[], expect![""]);
    }

    #[test]
    fn a_full_range_is_said() {
        check(
            None,
            &["10.0.0.0/8"],
            expect![[r#"
            event Warning CIDRNotAvailable: No part of the pod CIDR 10.0.0.0/14 is free for the node
        "#]],
        );
    }
}
