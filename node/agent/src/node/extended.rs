//! Resources that somebody says the node has, beside those that it counts itself: what is in `capacity` can be had.
//!
//! <https://kubernetes.io/docs/tasks/administer-cluster/extended-resource-node/>

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::NodeStatus, apimachinery::pkg::api::resource::Quantity};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Patch {
    status: Allocatable,
}

#[derive(Debug, Serialize)]
struct Allocatable {
    /// Nothing for those that were taken away.
    allocatable: BTreeMap<String, Option<Quantity>>,
}

fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

/// What has to be said so that pods can have what the node was given, and no more.
pub(super) fn patch(status: &NodeStatus) -> Option<Patch> {
    let none = BTreeMap::new();
    let (has, says) = (status.capacity.as_ref().unwrap_or(&none), status.allocatable.as_ref().unwrap_or(&none));
    let given = has.iter().filter(|(name, amount)| is_extended(name) && says.get(*name) != Some(*amount));
    let given = given.map(|(name, amount)| (name.clone(), Some(amount.clone())));
    let taken =
        says.keys().filter(|name| is_extended(name) && !has.contains_key(*name)).map(|name| (name.clone(), None));
    let allocatable: BTreeMap<String, Option<Quantity>> = given.chain(taken).collect();
    (!allocatable.is_empty()).then_some(Patch { status: Allocatable { allocatable } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_was_given_can_be_had() {
        let amounts = |text: &str| -> Option<BTreeMap<String, Quantity>> {
            let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
            Some(pairs.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).collect())
        };
        for (capacity, allocatable, wanted) in [
            ("cpu=4 memory=8Gi", "cpu=3 memory=7Gi", ""),
            ("cpu=4 example.com/gpu=2", "cpu=3", r#"{"example.com/gpu":"2"}"#),
            ("example.com/gpu=2", "example.com/gpu=2", ""),
            ("example.com/gpu=3", "example.com/gpu=2", r#"{"example.com/gpu":"3"}"#),
            ("", "cpu=3 example.com/gpu=2", r#"{"example.com/gpu":null}"#),
            ("a.kubernetes.io/x=1", "", ""),
        ] {
            let status =
                NodeStatus { capacity: amounts(capacity), allocatable: amounts(allocatable), ..NodeStatus::default() };
            let said = patch(&status).map(|patch| serde_json::to_string(&patch.status.allocatable).unwrap());
            assert_eq!(said.unwrap_or_default(), wanted, "{capacity} {allocatable}");
        }
    }
}
