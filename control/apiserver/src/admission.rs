//! What happens to an object between its author and the store, in Kubernetes' order. A step may look other objects up
//! and may change the object; the kinds that a step is for are named in the step.

mod address;
mod certificate;
mod escalation;
mod ingress;
mod limit_range;
mod namespace;
mod node;
mod pod;
mod priority;
mod quota;
mod runtime_class;
mod service_account;
mod storage;

use tandem_api::{ApiError, Identity, Object, Reason};
use tandem_registry::ResourceDef;
use tandem_store::Op;

use crate::core::Core;
pub(crate) use quota::Turns;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
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
}

impl Request<'_> {
    fn is(&self, group: &str, resource: &str) -> bool {
        self.def.group == group && self.def.plural == resource
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

/// The steps before an object is prepared and validated.
pub(crate) async fn mutate(
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
        pod::tolerations(object);
        pod::trace(request, object);
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
    if let Some(old) = old
        && request.is("", "services")
        && request.subresource.is_empty()
    {
        address::keep(object, old);
    }
    escalation::prevent(core, request, object, old).await?;
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
pub(crate) fn delete(request: &Request<'_>) -> Result<(), ApiError> {
    if request.is("", "namespaces") {
        return namespace::may_go(request);
    }
    Ok(())
}
