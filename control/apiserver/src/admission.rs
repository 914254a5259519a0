//! What happens to an object between its author and the store, in Kubernetes' order. A step may look other objects up
//! and may change the object; the kinds that a step is for are named in the step.

mod address;
mod certificate;
mod escalation;
mod external_ips;
mod ingress;
mod limit_range;
mod matching;
mod namespace;
mod node;
mod pod;
mod policy;
mod priority;
mod quota;
mod runtime_class;
mod service_account;
mod storage;
pub(crate) mod webhook;

use tandem_api::{ApiError, Identity, Object, Reason};
use tandem_registry::ResourceDef;
use tandem_store::Op;

use crate::{call::Warnings, core::Core, options::WriteOptions, write::Deletion};
pub(crate) use policy::Follower as Policies;
pub(crate) use quota::Turns;

/// How often webhooks are asked about one request: again once, where that is needed.
const ROUNDS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    /// A stream to or from what the object stands for.
    Connect,
}

impl Operation {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }

    /// The kind of the options that go along.
    pub(crate) const fn options(self) -> &'static str {
        match self {
            Operation::Create | Operation::Connect => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
        }
    }
}

/// What is asked, by whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) operation: Operation,
    pub(crate) identity: &'a Identity,
    pub(crate) trace: &'a str,
    pub(crate) def: &'a ResourceDef,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) options: &'a WriteOptions,
    /// How it is deleted.
    pub(crate) deletion: Option<&'a Deletion>,
    /// Where warnings go; `None` where the server itself writes, which nobody else is asked about.
    pub(crate) warnings: Option<&'a Warnings>,
}

impl Request<'_> {
    fn is(&self, group: &str, resource: &str) -> bool {
        self.def.group == group && self.def.plural == resource
    }

    /// Whether what is sent is of the row's own kind. What is sent to other subresources (a Scale, a Binding) is
    /// admitted as what it is, by [`ask`], and not a second time as what it does to the object.
    fn is_own(&self) -> bool {
        self.def.subresource(self.subresource).is_none_or(|sub| {
            sub.kind.kind == self.def.kind && sub.kind.group == self.def.group && sub.kind.version == self.def.version
        })
    }

    /// The namespace that the request is in; that of a namespace is itself.
    fn place(&self) -> Option<&str> {
        let is_namespace = self.is("", "namespaces") && self.operation != Operation::Create;
        if is_namespace { Some(self.name) } else { self.namespace }
    }

    /// Whether others than the server are asked about it.
    fn is_admitted_by_others(&self) -> bool {
        self.warnings.is_some() && self.is_own()
    }

    /// Whether the object itself is created, rather than changed or reached through a subresource.
    fn creates(&self, group: &str, resource: &str) -> bool {
        self.operation == Operation::Create && self.subresource.is_empty() && self.is(group, resource)
    }

    /// Whether a pod gets other resources.
    fn resizes(&self) -> bool {
        self.operation == Operation::Update && self.subresource == "resize" && self.is("", "pods")
    }

    /// A refusal in the words of Kubernetes' admission plugins: `pods "x" is forbidden: WHY`.
    fn forbidden(&self, name: &str, why: impl std::fmt::Display) -> ApiError {
        forbidden(self.def, name, why)
    }
}

fn forbidden(def: &ResourceDef, name: &str, why: impl std::fmt::Display) -> ApiError {
    let qualified = if def.group.is_empty() { def.plural.clone() } else { format!("{}.{}", def.plural, def.group) };
    let message = if name.is_empty() {
        format!("{qualified} is forbidden: {why}")
    } else {
        format!("{qualified} {name:?} is forbidden: {why}")
    };
    ApiError::new(Reason::Forbidden, message).about(&def.group, &def.plural, name)
}

/// What is written together with an object: the claims on addresses and ports that it makes or gives up, and what the
/// quotas of its namespace are charged.
#[derive(Debug, Default)]
pub(crate) struct Effects<'c> {
    pub(crate) ops: Vec<Op>,
    /// Held until the write has ended.
    _turn: Option<quota::Turn<'c>>,
}

/// All that may change an object before it is prepared and validated: the server's own steps, then what users add
/// (policies, then webhooks), then what they make necessary again.
pub(crate) async fn admit(
    core: &Core,
    request: &Request<'_>,
    object: &mut Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    builtin(core, request, object, old).await?;
    if !request.is_admitted_by_others() {
        return Ok(());
    }
    let (mut round, mut turn) = (policy::Round::default(), webhook::Turn::default());
    for _ in 0..ROUNDS {
        request.def.default(object);
        let by_policies = policy::mutate(core, request, object, old, &mut round).await?;
        let by_webhooks = webhook::mutate(core, request, Some(object), old, &mut turn).await?;
        if !by_policies && !by_webhooks {
            break;
        }
        builtin(core, request, object, old).await?;
        round.again(object);
        turn.second(object);
    }
    Ok(())
}

/// What users hold a valid object to.
pub(crate) async fn validate(
    core: &Core,
    request: &Request<'_>,
    object: &Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    if request.is_admitted_by_others() {
        judge(core, request, Some(object), old).await?;
    }
    Ok(())
}

async fn judge(
    core: &Core,
    request: &Request<'_>,
    object: Option<&Object>,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    policy::validate(core, request, object, old).await?;
    webhook::validate(core, request, object, old).await
}

/// Admits what is sent to a subresource, and stored nowhere: a Scale, a Binding, the options of a connection.
pub(crate) async fn ask(
    core: &Core,
    request: &Request<'_>,
    object: &mut Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    // No policy changes it: their patches are of the row's own kind.
    let mut turn = webhook::Turn::default();
    for _ in 0..ROUNDS {
        if !webhook::mutate(core, request, Some(object), old, &mut turn).await? {
            break;
        }
        turn.second(object);
    }
    judge(core, request, Some(object), old).await
}

/// Admits a connection by its options, which nobody may change.
pub(crate) async fn connect(core: &Core, request: &Request<'_>, options: &Object) -> Result<(), ApiError> {
    let mut shown = options.clone();
    webhook::mutate(core, request, Some(&mut shown), None, &mut webhook::Turn::default()).await?;
    if shown != *options {
        return Err(ApiError::internal("a webhook attempted to modify the options of a connection"));
    }
    judge(core, request, Some(options), None).await
}

/// The server's own steps before an object is prepared and validated.
async fn builtin(
    core: &Core,
    request: &Request<'_>,
    object: &mut Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    if request.operation == Operation::Create {
        namespace::exists(core, request, object).await?;
    }
    if request.creates("", "pods") {
        service_account::assign(core, request, object).await?;
        pod::wasm_class(core, object).await;
        runtime_class::apply(core, request, object).await?;
        priority::resolve(core, request, object).await?;
        pod::trace(request, object);
    }
    if request.is("", "pods") && request.subresource.is_empty() {
        pod::tolerations(object);
    }
    if request.creates("networking.k8s.io", "ingresses") {
        ingress::default_class(core, object).await?;
    }
    storage::begin(core, request, object).await?;
    if let Some(old) = old
        && request.is("", "persistentvolumeclaims")
    {
        storage::resize(core, request, object, old).await?;
    }
    limit_range::apply(core, request, object).await?;
    if request.creates("certificates.k8s.io", "certificatesigningrequests") {
        certificate::stamp(request, object)?;
    }
    if let Some(old) = old
        && request.is("certificates.k8s.io", "certificatesigningrequests")
    {
        certificate::decide(core, request, object, old).await?;
    }
    if request.creates("", "nodes") {
        node::taint(object);
    }
    if request.is("", "services") && request.subresource.is_empty() && request.operation != Operation::Delete {
        external_ips::refuse(core, request, object, old)?;
        if let Some(old) = old {
            address::keep(object, old);
        }
    }
    escalation::prevent(core, request, object, old).await?;
    policy::may_read_params(core, request, object, old).await?;
    node::restrict(request, object, old)
}

/// The step after validation: takes what only one object may have.
pub(crate) async fn allocate<'c>(
    core: &'c Core,
    request: &Request<'_>,
    object: &mut Object,
    old: Option<&Object>,
) -> Result<Effects<'c>, ApiError> {
    let mut ops = Vec::new();
    if request.is("", "services") && request.subresource.is_empty() {
        ops = address::allocate(core, object, old).await?;
    }
    if request.is("admissionregistration.k8s.io", "validatingadmissionpolicies") && request.subresource.is_empty() {
        policy::check_types(core, object);
    }
    let charge = quota::charge(core, request, object, old).await?;
    ops.extend(charge.ops);
    Ok(Effects { ops, _turn: charge.turn })
}

/// Gives back what the object had taken.
pub(crate) fn release(def: &ResourceDef, object: &Object) -> Effects<'static> {
    let held = def.group.is_empty() && def.plural == "services";
    Effects { ops: if held { address::release(object) } else { Vec::new() }, _turn: None }
}

/// Whether an object may be deleted at all.
pub(crate) async fn delete(core: &Core, request: &Request<'_>, live: &Object) -> Result<(), ApiError> {
    if request.is("", "namespaces") {
        namespace::may_go(request)?;
    }
    if request.is_admitted_by_others() {
        webhook::mutate(core, request, None, Some(live), &mut webhook::Turn::default()).await?;
        judge(core, request, None, Some(live)).await?;
    }
    Ok(())
}
