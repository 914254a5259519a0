//! Keeps a PersistentVolumeClaim that was deleted until no pod uses it any more.
//!
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection>

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Api, api::ListParams};
use tandem_client::volumes;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Plan, Target},
    object, pod,
    volume_reclaim::finalize,
};

/// Pods that one question to the API answers with.
const PAGE: u32 = 500;

pub(crate) struct ClaimProtection;

#[derive(Debug)]
pub(crate) struct View {
    claim: Arc<PersistentVolumeClaim>,
    in_use: bool,
}

impl Controller for ClaimProtection {
    type Parent = PersistentVolumeClaim;
    type View = View;

    const NAME: &'static str = "pvc-protection";
    const READS: &'static [&'static str] = &["PersistentVolumeClaim", "Pod"];

    fn store(cache: &Cache) -> &Store<PersistentVolumeClaim> {
        &cache.claims
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::PersistentVolumeClaim(delta) => vec![delta.key()],
            Change::Pod(delta) if delta.new.is_none() => {
                let namespace = delta.key().namespace;
                let claims = delta.versions().flat_map(|pod| volumes::claims_of(pod));
                let keys = claims.map(|claim| Key::new(namespace.clone(), claim));
                let deleting = |key: &Key| cache.claims.get(key).is_some_and(|one| object::is_deleting(&one.metadata));
                keys.filter(deleting).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, claim: Arc<PersistentVolumeClaim>) -> Result<View, Error> {
        if !object::is_deleting(&claim.metadata) || !is_protected(&claim) {
            return Ok(View { claim, in_use: true });
        }
        let (namespace, name) = (object::namespace(&claim.metadata), object::name(&claim.metadata));
        if input.cache.pods.in_namespace(namespace).iter().any(|pod| uses(pod, name)) {
            return Ok(View { claim, in_use: true });
        }
        // The cache may be behind: only the API's word counts before data may go.
        let api: Api<Pod> = Api::namespaced(input.client.clone(), namespace);
        let mut asked = ListParams::default().limit(PAGE);
        loop {
            let page = api.list(&asked).await?;
            if page.items.iter().any(|pod| uses(pod, name)) {
                return Ok(View { claim, in_use: true });
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => asked = asked.continue_token(&token),
                None => return Ok(View { claim, in_use: false }),
            }
        }
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        let meta = &view.claim.metadata;
        let mut wanted: Vec<&str> = meta.finalizers.iter().flatten().map(String::as_str).collect();
        match (object::is_deleting(meta), is_protected(&view.claim)) {
            (true, true) if !view.in_use => wanted.retain(|finalizer| *finalizer != volumes::CLAIM_PROTECTION),
            (false, false) => wanted.push(volumes::CLAIM_PROTECTION),
            _ => return Plan::default(),
        }
        Plan::of(vec![finalize(Target::of(&*view.claim), meta, wanted)])
    }
}

fn is_protected(claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == volumes::CLAIM_PROTECTION)
}

/// A pod that has no node yet does not count: a node starts none with a claim that is being deleted.
fn uses(pod: &Pod, claim: &str) -> bool {
    pod::node(pod).is_some() && volumes::claims_of(pod).any(|name| name == claim)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::action::testing::describe;

    fn check(deleting: bool, finalizers: &[&str], in_use: bool) -> String {
        let claim = json!({ "metadata": {
            "name": "c", "namespace": "ns", "uid": "u", "finalizers": finalizers,
            "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z"),
        }});
        let view = View { claim: Arc::new(serde_json::from_value(claim).unwrap()), in_use };
        describe(&ClaimProtection::plan(&view, Timestamp::UNIX_EPOCH), |_| String::new())
    }

    #[test]
    fn a_claim_goes_with_its_last_pod() {
        let all = ["other", volumes::CLAIM_PROTECTION];
        let freed = r#"patch PersistentVolumeClaim ns/c {"metadata":{"uid":"u","resourceVersion":null,"finalizers":["other"]}}"#;
        assert_eq!(check(true, &all, true), "");
        assert_eq!(check(true, &all, false).trim_end(), freed);
        assert_eq!(check(true, &["other"], false), "");
        assert_eq!(check(false, &all, true), "");
        assert!(check(false, &["other"], true).contains(r#"["other","kubernetes.io/pvc-protection"]"#));
    }

    #[test]
    fn only_pods_with_a_node_use_a_claim() {
        let pod = |node: Option<&str>| -> Pod {
            let volume = json!({ "name": "v", "persistentVolumeClaim": { "claimName": "c" } });
            serde_json::from_value(json!({ "spec": { "containers": [], "nodeName": node, "volumes": [volume] } }))
                .unwrap()
        };
        assert!(uses(&pod(Some("n1")), "c") && !uses(&pod(Some("n1")), "d") && !uses(&pod(None), "c"));
    }
}
