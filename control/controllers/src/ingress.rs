//! Where the Ingresses that nodes serve are reached: the addresses of the ready nodes.
//!
//! <https://kubernetes.io/docs/concepts/services-networking/ingress/#ingress-class>

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::Node,
    networking::v1::{Ingress, IngressClass, IngressLoadBalancerIngress, IngressLoadBalancerStatus, IngressStatus},
};
use tandem_api::{INGRESS_CLASS_ANNOTATION, INGRESS_CONTROLLER};

use crate::{
    Cache, Change, Controller, Delta, Error, Input, Key, Store,
    action::{Action, Plan},
    object,
};

/// Addresses that one Ingress shows. Every node serves it; with more nodes these are enough to reach it.
const ADDRESSES_MAX: usize = 32;

pub(crate) struct Ingresses;

#[derive(Debug)]
pub(crate) struct View {
    ingress: Arc<Ingress>,
    class: Option<Arc<IngressClass>>,
    /// Of the ready nodes, in order.
    addresses: BTreeSet<IpAddr>,
}

impl Controller for Ingresses {
    type Parent = Ingress;
    type View = View;

    const NAME: &'static str = "ingress";
    const READS: &'static [&'static str] = &["Ingress", "IngressClass", "Node"];

    fn store(cache: &Cache) -> &Store<Ingress> {
        &cache.ingresses
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Ingress(delta) => vec![delta.key()],
            Change::IngressClass(_) => cache.ingresses.keys(),
            Change::Node(delta) if moved(delta) => cache.ingresses.keys(),
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, ingress: Arc<Ingress>) -> Result<View, Error> {
        let class = class_of(&ingress).and_then(|name| input.cache.ingress_classes.get(&Key::new("", name)));
        let addresses = input.cache.nodes.all().iter().filter_map(|node| address(node)).collect();
        Ok(View { ingress, class, addresses })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        plan(view)
    }
}

pub(crate) fn class_of(ingress: &Ingress) -> Option<&str> {
    let field = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    field.or_else(|| object::annotation(&ingress.metadata, INGRESS_CLASS_ANNOTATION))
}

/// Whether another address leads to the node now, or none any more.
pub(crate) fn moved(delta: &Delta<Node>) -> bool {
    let address = |node: &Option<Arc<Node>>| node.as_ref().and_then(|node| address(node));
    address(&delta.old) != address(&delta.new)
}

/// The address of a node that is ready: the one for outside, if it has one.
pub(crate) fn address(node: &Node) -> Option<IpAddr> {
    let status = node.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    if !conditions.any(|one| one.type_ == "Ready" && one.status == "True") || object::is_deleting(&node.metadata) {
        return None;
    }
    let of = |kind: &str| status.addresses.iter().flatten().find(|address| address.type_ == kind);
    of("ExternalIP").or_else(|| of("InternalIP"))?.address.parse().ok()
}

fn plan(view: &View) -> Plan {
    let ingress = &*view.ingress;
    let controller = view.class.as_ref().and_then(|class| class.spec.as_ref()?.controller.as_deref());
    if object::is_deleting(&ingress.metadata) || controller != Some(INGRESS_CONTROLLER) {
        return Plan::default();
    }
    let point = |address: &IpAddr| IngressLoadBalancerIngress {
        ip: Some(address.to_string()),
        ..IngressLoadBalancerIngress::default()
    };
    let points: Vec<_> = view.addresses.iter().take(ADDRESSES_MAX).map(point).collect();
    let before = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref());
    if before.unwrap_or_default() == points {
        return Plan::default();
    }
    let balancer = IngressLoadBalancerStatus { ingress: (!points.is_empty()).then_some(points) };
    let status = IngressStatus { load_balancer: Some(balancer) };
    Plan::of(vec![Action::set_status(Ingress { status: Some(status), ..ingress.clone() })])
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use k8s_openapi::api::{
        core::v1::{NodeAddress, NodeCondition, NodeStatus},
        networking::v1::{IngressClassSpec, IngressSpec},
    };

    use super::*;
    use crate::action::testing::describe;

    fn ingress(shown: &[&str]) -> Ingress {
        let point =
            |ip: &&str| IngressLoadBalancerIngress { ip: Some((*ip).into()), ..IngressLoadBalancerIngress::default() };
        let balancer = IngressLoadBalancerStatus { ingress: Some(shown.iter().map(point).collect()) };
        let mut ingress = Ingress {
            spec: Some(IngressSpec { ingress_class_name: Some("c".into()), ..IngressSpec::default() }),
            status: Some(IngressStatus { load_balancer: Some(balancer) }),
            ..Ingress::default()
        };
        ingress.metadata.name = Some("web".into());
        ingress
    }

    fn check(controller: &str, shown: &[&str], addresses: &[&str], expect: Expect) {
        let spec = IngressClassSpec { controller: Some(controller.into()), ..IngressClassSpec::default() };
        let class = IngressClass { spec: Some(spec), ..IngressClass::default() };
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let view = View { ingress: Arc::new(ingress(shown)), class: Some(Arc::new(class)), addresses };
        expect.assert_eq(&describe(&plan(&view), |action| {
            let status = action.object::<Ingress>().unwrap().status.clone().unwrap();
            let points = status.load_balancer.unwrap().ingress.unwrap_or_default();
            points.into_iter().filter_map(|point| point.ip).collect::<Vec<_>>().join(" ")
        }));
    }

    #[test]
    fn an_ingress_shows_the_addresses_of_the_ready_nodes() {
        check(
            INGRESS_CONTROLLER,
            &[],
            &["10.0.0.10", "10.0.0.9"],
            expect![[r"
            status Ingress web 10.0.0.9 10.0.0.10
        "]],
        );
        check(INGRESS_CONTROLLER, &["10.0.0.9", "10.0.0.10"], &["10.0.0.10", "10.0.0.9"], expect![""]);
        check(
            INGRESS_CONTROLLER,
            &["10.0.0.9"],
            &[],
            expect![[r"
            status Ingress web
        "]],
        );
    }

    #[test]
    fn an_ingress_of_another_controller_is_left_alone() {
        check("example.com/other", &["192.0.2.1"], &["10.0.0.9"], expect![""]);
    }

    #[test]
    fn only_a_ready_node_has_an_address() {
        let node = |ready: &str, kinds: &[(&str, &str)]| {
            let address =
                |(kind, address): &(&str, &str)| NodeAddress { type_: (*kind).into(), address: (*address).into() };
            let condition = NodeCondition { type_: "Ready".into(), status: ready.into(), ..NodeCondition::default() };
            let status = NodeStatus {
                conditions: Some(vec![condition]),
                addresses: Some(kinds.iter().map(address).collect()),
                ..NodeStatus::default()
            };
            address_of(&Node { status: Some(status), ..Node::default() })
        };
        let internal = ("InternalIP", "10.0.0.9");
        assert_eq!(node("True", &[internal]), Some("10.0.0.9".to_owned()));
        assert_eq!(node("True", &[internal, ("ExternalIP", "192.0.2.1")]), Some("192.0.2.1".to_owned()));
        assert_eq!(node("Unknown", &[internal]), None);
        assert_eq!(node("True", &[("Hostname", "a")]), None);
    }

    fn address_of(node: &Node) -> Option<String> {
        address(node).map(|address| address.to_string())
    }
}
