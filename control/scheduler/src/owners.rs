//! Whose a pod is: the selectors of its Services and of its controller, for pods that do not say how to be spread.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, StatefulSet},
        core::v1::{ReplicationController, Service},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::{Expression, Selector};

use crate::{kept::Kept, snapshot::PodInfo};

#[derive(Debug, Default)]
pub(crate) struct Owners {
    pub(crate) services: Kept<Service>,
    pub(crate) controllers: Kept<ReplicationController>,
    pub(crate) replica_sets: Kept<ReplicaSet>,
    pub(crate) stateful_sets: Kept<StatefulSet>,
}

impl Owners {
    pub(crate) fn is_listed(&self) -> bool {
        let sets = self.replica_sets.is_listed() && self.stateful_sets.is_listed();
        self.services.is_listed() && self.controllers.is_listed() && sets
    }

    pub(crate) fn unlist(&mut self) {
        self.services.unlist();
        self.controllers.unlist();
        self.replica_sets.unlist();
        self.stateful_sets.unlist();
    }

    /// What all pods like this one have in common; `None` for a pod that stands alone.
    pub(crate) fn selector(&self, pod: &PodInfo) -> Option<Selector> {
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        let services = self.services.in_namespace(&pod.namespace);
        for selector in services.filter_map(|service| service.spec.as_ref()?.selector.as_ref()) {
            let has = |(key, value): (&String, &String)| pod.labels.get(key) == Some(value);
            if !selector.is_empty() && selector.iter().all(has) {
                labels.extend(selector.clone());
            }
        }
        let mut more: Vec<Expression> = Vec::new();
        if let Some((kind, name)) = &pod.owner {
            let namespace = pod.namespace.as_str();
            let selector: Option<LabelSelector> = match kind.as_str() {
                "ReplicaSet" => {
                    let own = self.replica_sets.get(namespace, name);
                    own.and_then(|own| Some(own.spec.as_ref()?.selector.clone()))
                }
                "StatefulSet" => {
                    let own = self.stateful_sets.get(namespace, name);
                    own.and_then(|own| Some(own.spec.as_ref()?.selector.clone()))
                }
                _ => None,
            };
            more.extend(selector.and_then(|selector| Selector::try_from(selector).ok()).into_iter().flatten());
            if kind == "ReplicationController" {
                let own = self.controllers.get(namespace, name).and_then(|own| own.spec.as_ref()?.selector.clone());
                labels.extend(own.unwrap_or_default());
            }
        }
        let equal = labels.into_iter().map(|(key, value)| Expression::Equal(key, value));
        let all: Selector = equal.chain(more).collect();
        (!all.selects_all()).then_some(all)
    }
}
