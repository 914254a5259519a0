//! The ConfigMap in every namespace with which its pods trust the API server.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::ObjectMeta;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Plan},
    namespace::is_ending,
    object,
};

pub(crate) const CONFIG_MAP: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

pub(crate) struct RootCertificates {
    pub(crate) ca_pem: String,
}

#[derive(Debug)]
pub(crate) struct View {
    namespace: Arc<Namespace>,
    config_map: Option<Arc<ConfigMap>>,
    ca_pem: String,
}

impl Controller for RootCertificates {
    type Parent = Namespace;
    type View = View;

    const NAME: &'static str = "root-ca-cert-publisher";
    const READS: &'static [&'static str] = &["Namespace", "ConfigMap"];

    fn store(cache: &Cache) -> &Store<Namespace> {
        &cache.namespaces
    }

    fn wakes(&self, _cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Namespace(delta) => vec![delta.key()],
            Change::ConfigMap(delta) => vec![Key::new("", delta.key().namespace)],
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, namespace: Arc<Namespace>) -> Result<View, Error> {
        let config_map = input.cache.root_certificates.get(&Key::new(object::name(&namespace.metadata), CONFIG_MAP));
        Ok(View { namespace, config_map, ca_pem: self.ca_pem.clone() })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        if is_ending(&view.namespace) {
            return Plan::default();
        }
        let data = Some(BTreeMap::from([(FILE.to_owned(), view.ca_pem.clone())]));
        match &view.config_map {
            None => {
                let (key, text) = DESCRIPTION;
                let metadata = ObjectMeta {
                    name: Some(CONFIG_MAP.to_owned()),
                    namespace: view.namespace.metadata.name.clone(),
                    annotations: Some([(key.to_owned(), text.to_owned())].into()),
                    ..ObjectMeta::default()
                };
                Plan::of(vec![Action::create(ConfigMap { metadata, data, ..ConfigMap::default() })])
            }
            Some(seen) if seen.data != data => Plan::of(vec![Action::update(ConfigMap { data, ..(**seen).clone() })]),
            Some(_) => Plan::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::testing::describe;

    #[test]
    fn every_namespace_has_the_certificates_of_now() {
        let show = |held: Option<&str>| {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some("a".into());
            let config_map = held.map(|pem| {
                let mut map = ConfigMap { data: Some([(FILE.into(), pem.into())].into()), ..ConfigMap::default() };
                map.metadata.name = Some(CONFIG_MAP.into());
                map.metadata.namespace = Some("a".into());
                Arc::new(map)
            });
            let view = View { namespace: Arc::new(namespace), config_map, ca_pem: "new".into() };
            describe(&RootCertificates::plan(&view, Timestamp::UNIX_EPOCH), |action| {
                action.object::<ConfigMap>().unwrap().data.as_ref().unwrap()[FILE].clone()
            })
        };
        assert_eq!(show(None), "create ConfigMap a/kube-root-ca.crt new\n");
        assert_eq!(show(Some("old")), "update ConfigMap a/kube-root-ca.crt new\n");
        assert_eq!(show(Some("new")), "");
    }
}
