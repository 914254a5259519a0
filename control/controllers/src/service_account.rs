//! The ServiceAccount `default` of every namespace.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::ObjectMeta;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Plan},
    namespace::is_ending,
    object,
};

const DEFAULT: &str = "default";

pub(crate) struct DefaultAccounts;

#[derive(Debug)]
pub(crate) struct View {
    namespace: Arc<Namespace>,
    exists: bool,
}

impl Controller for DefaultAccounts {
    type Parent = Namespace;
    type View = View;

    const NAME: &'static str = "service-account";
    const READS: &'static [&'static str] = &["Namespace", "ServiceAccount"];

    fn store(cache: &Cache) -> &Store<Namespace> {
        &cache.namespaces
    }

    fn wakes(&self, _cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Namespace(delta) => vec![delta.key()],
            Change::ServiceAccount(delta) => vec![Key::new("", delta.key().namespace)],
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, namespace: Arc<Namespace>) -> Result<View, Error> {
        let key = Key::new(object::name(&namespace.metadata), DEFAULT);
        Ok(View { exists: input.cache.service_accounts.get(&key).is_some(), namespace })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        if view.exists || is_ending(&view.namespace) {
            return Plan::default();
        }
        let metadata = ObjectMeta {
            name: Some(DEFAULT.to_owned()),
            namespace: view.namespace.metadata.name.clone(),
            ..ObjectMeta::default()
        };
        Plan::of(vec![Action::create(ServiceAccount { metadata, ..ServiceAccount::default() })])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::testing::describe;

    #[test]
    fn every_namespace_that_stays_has_one() {
        let show = |exists, phase: &str| {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some("a".into());
            namespace.status.get_or_insert_default().phase = Some(phase.into());
            let view = View { namespace: Arc::new(namespace), exists };
            describe(&DefaultAccounts::plan(&view, Timestamp::UNIX_EPOCH), |_| String::new())
        };
        assert_eq!(show(false, "Active"), "create ServiceAccount a/default\n");
        assert_eq!(show(true, "Active"), "");
        assert_eq!(show(false, "Terminating"), "");
    }
}
