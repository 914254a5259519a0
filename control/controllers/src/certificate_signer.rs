//! Certificates of nodes: approved when a node asks for its own, and signed. Nothing else is.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec},
    core::v1::Node,
};
use tandem_api::groups;

use crate::{
    Asked, Cache, Change, Controller, Error, Input, Key, Signer, Store, Usage,
    action::{Action, Deletion, Plan},
    object,
};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
const NODE_PREFIX: &str = "system:node:";
/// Requests are kept for this long after they were made: signed ones are of no more use, others were forgotten.
const KEPT_SIGNED: Duration = Duration::from_secs(3600);
const KEPT_PENDING: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct CertificateSigner {
    pub(crate) signer: Arc<dyn Signer>,
}

#[derive(Debug)]
pub(crate) struct View {
    request: Arc<CertificateSigningRequest>,
    /// What it asks for; `None` if that cannot be read.
    asked: Option<Asked>,
    /// The node that it is for, when it is known already.
    node: Option<Arc<Node>>,
}

impl Controller for CertificateSigner {
    type Parent = CertificateSigningRequest;
    type View = View;

    const NAME: &'static str = "certificate-signer";
    const READS: &'static [&'static str] = &["CertificateSigningRequest", "Node"];

    fn store(cache: &Cache) -> &Store<CertificateSigningRequest> {
        &cache.signing_requests
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::CertificateSigningRequest(delta) => vec![delta.key()],
            // Its addresses may be what a request waits for.
            Change::Node(delta) => {
                let user = format!("{NODE_PREFIX}{}", delta.key().name);
                let all = cache.signing_requests.all().into_iter();
                let waiting = all.filter(|request| request.spec.username.as_ref() == Some(&user) && !is_done(request));
                waiting.map(|request| Key::of(&request.metadata)).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, request: Arc<CertificateSigningRequest>) -> Result<View, Error> {
        let pem = String::from_utf8_lossy(&request.spec.request.0);
        let asked = self.signer.read(&pem).ok();
        let name = asked.as_ref().and_then(|asked| asked.common_name.strip_prefix(NODE_PREFIX));
        let node = name.and_then(|name| input.cache.nodes.get(&Key::new("", name)));
        Ok(View { asked, node, request })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

fn has_condition(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == kind && condition.status != "False")
}

fn is_signed(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().is_some_and(|status| status.certificate.is_some())
}

fn is_done(request: &CertificateSigningRequest) -> bool {
    is_signed(request) || has_condition(request, "Denied") || has_condition(request, "Failed")
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let request = &*view.request;
    let kept = if is_done(request) { KEPT_SIGNED } else { KEPT_PENDING };
    let end = object::after(object::created(&request.metadata), i64::try_from(kept.as_secs()).unwrap_or(i64::MAX));
    let rest = object::until(end, now);
    if rest.is_zero() {
        return Plan::of(vec![Action::Delete(Deletion::of(request))]);
    }
    let mut plan = Plan { actions: Vec::new(), requeue: Some(rest) };
    let Some(asked) = view.asked.as_ref().filter(|_| !is_done(request)) else { return plan };
    let Some(usage) = usage(&request.spec, asked) else { return plan };
    if has_condition(request, "Approved") {
        plan.actions.push(Action::Sign { request: Box::new(request.clone()), usage });
    } else if is_entitled(&request.spec, asked, usage, view.node.as_deref()) {
        plan.actions.push(Action::Put { subresource: "approval", object: Box::new(approved(request, usage, now)) });
    }
    plan
}

/// What the certificate would be for, if the request has the form that its signer demands.
fn usage(spec: &CertificateSigningRequestSpec, asked: &Asked) -> Option<Usage> {
    let is_node = asked.organizations == [groups::NODES];
    let names_node = asked.common_name.strip_prefix(NODE_PREFIX).is_some_and(|name| !name.is_empty());
    let has_names = !asked.dns_names.is_empty() || !asked.addresses.is_empty();
    let only = |needed: &str| {
        let usages = spec.usages.as_deref().unwrap_or_default();
        let known = |usage: &String| [needed, "digital signature", "key encipherment"].contains(&usage.as_str());
        usages.iter().any(|usage| usage == needed) && usages.iter().all(known)
    };
    if !is_node || !names_node {
        return None;
    }
    match spec.signer_name.as_str() {
        CLIENT if !has_names && only("client auth") => Some(Usage::Client),
        SERVING if has_names && only("server auth") => Some(Usage::Server),
        _ => None,
    }
}

/// Whether the asker may have it: a machine that joins, or the node itself with names of its own.
fn is_entitled(spec: &CertificateSigningRequestSpec, asked: &Asked, usage: Usage, node: Option<&Node>) -> bool {
    let in_group = |group: &str| spec.groups.iter().flatten().any(|own| own == group);
    let is_itself = in_group(groups::NODES) && spec.username.as_ref() == Some(&asked.common_name);
    match usage {
        Usage::Client => is_itself || in_group(groups::BOOTSTRAPPERS),
        Usage::Server => is_itself && has_own_names(asked, node),
    }
}

fn has_own_names(asked: &Asked, node: Option<&Node>) -> bool {
    let status = node.and_then(|node| node.status.as_ref());
    let addresses = || status.iter().flat_map(|status| status.addresses.iter().flatten());
    let own_name = |name: &String| {
        asked.common_name.strip_prefix(NODE_PREFIX) == Some(name)
            || addresses().any(|own| !own.type_.ends_with("IP") && own.address == *name)
    };
    let own_address =
        |address: &IpAddr| addresses().any(|own| own.type_.ends_with("IP") && own.address.parse() == Ok(*address));
    asked.dns_names.iter().all(own_name) && asked.addresses.iter().all(own_address)
}

fn approved(request: &CertificateSigningRequest, usage: Usage, now: Timestamp) -> CertificateSigningRequest {
    let mut request = request.clone();
    let what = match usage {
        Usage::Client => "client",
        Usage::Server => "serving",
    };
    let condition = CertificateSigningRequestCondition {
        type_: "Approved".to_owned(),
        status: "True".to_owned(),
        reason: Some("AutoApproved".to_owned()),
        message: Some(format!("Auto approving kubelet {what} certificate of the node itself.")),
        last_update_time: Some(object::time(now)),
        last_transition_time: Some(object::time(now)),
    };
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
    request
}

#[cfg(test)]
mod tests;
