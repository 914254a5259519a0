//! Admission policies: rules that users write in CEL, and that requests are held to or changed by.
//!
//! ```text
//!  policies, bindings ─ index (follows the store) ─ matching ─> invocations ─ params ─> evaluate ─┬ patch (mutating)
//!                                                                                                 └ decisions (validating)
//! ```
//! Everything that is looked up is looked up before anything is evaluated; evaluation is a pure function with a budget.
//! Annotations for an audit log are evaluated, since they can fail, and then dropped: there is no such log.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>

mod authorizer;
mod compile;
mod evaluate;
mod index;
mod invocation;
mod patch;

use std::collections::BTreeSet;

use tandem_api::{ApiError, Cause, Object, Reason};
use tandem_registry::{ResourceDef, expressions};

use super::{Operation, Request};
use crate::{
    authz::{self, Attributes, Decision},
    conversion,
    core::Core,
};
pub(crate) use index::Follower;

use compile::Action;
use evaluate::{Denial, Steps};
use invocation::Invocation;

const GROUP: &str = "admissionregistration.k8s.io";

/// Whoever could not change policies because of a policy could never get rid of it.
fn is_exempt(request: &Request<'_>) -> bool {
    request.def.group == GROUP
}

/// What was invoked for one request, so that policies can be invoked again after others have changed the object.
#[derive(Debug, Default)]
pub(crate) struct Round {
    again: bool,
    /// Those that want to see what others have changed since.
    previous: BTreeSet<String>,
    due: BTreeSet<String>,
    last: Option<Object>,
}

impl Round {
    /// Begins the second and last round, in which only those act that asked for it and that something changed for.
    pub(crate) fn again(&mut self, object: &Object) {
        self.again = true;
        if self.last.as_ref() != Some(object) {
            self.due.append(&mut self.previous);
        }
    }
}

/// Changes the object as the policies that match want it. Answers whether anything is different now.
pub(crate) async fn mutate(
    core: &Core,
    request: &Request<'_>,
    object: &mut Object,
    old: Option<&Object>,
    round: &mut Round,
) -> Result<bool, ApiError> {
    if is_exempt(request) || request.operation == Operation::Delete {
        return Ok(false);
    }
    let index = core.policies.index(core).await?;
    if index.mutating.is_empty() {
        return Ok(false);
    }
    let (invocations, around) = invocation::find(core, request, &index.mutating, Some(&*object), old).await?;
    let (before, schema) = (object.clone(), core.schema());
    let (mut steps, mut problems) = (Steps::new(), Vec::new());
    for invocation in &invocations {
        let params = match &invocation.params {
            Ok(params) => params,
            Err(why) => {
                problems.extend(problem(invocation, format!("failed to configure binding: {why}")));
                continue;
            }
        };
        for param in params {
            let key = invocation.key(param.as_ref());
            if round.again && !round.due.contains(&key) {
                continue;
            }
            if is_another_version(request.def, &invocation.def) {
                let why = "objects of a custom kind are changed in the version only in which they are sent".to_owned();
                problems.extend(problem(invocation, why));
                continue;
            }
            let seen = |object: &Object| patch::convert(request.def, &invocation.def, object);
            let (new, before) = (seen(&*object), old.map(seen));
            let input = around.input(invocation, Some(&new), before.as_ref(), param.as_ref());
            let changed = match evaluate::conditions(&invocation.policy, &input, &mut steps) {
                Ok(false) => continue,
                Ok(true) => Ok(patch::all(&schema, request, invocation, &input, object, &mut steps)),
                Err(why) => Err(why),
            };
            match changed {
                Err(why) => problems.extend(problem(invocation, why)),
                Ok((new, failures)) => {
                    problems.extend(failures.into_iter().filter_map(|why| problem(invocation, why)));
                    if new != *object {
                        *object = new;
                        round.due.append(&mut round.previous);
                    }
                }
            }
            if invocation.policy.reinvoked {
                round.previous.insert(key);
            }
        }
    }
    round.last = Some(object.clone());
    if problems.is_empty() { Ok(*object != before) } else { Err(refused(request, &problems)) }
}

fn is_another_version(own: &ResourceDef, matched: &ResourceDef) -> bool {
    own.custom.is_some() && own.api_version() != matched.api_version()
}

/// The object as the row that a policy is for has it.
async fn shown(
    core: &Core,
    request: &Request<'_>,
    matched: &ResourceDef,
    object: Option<&Object>,
) -> Result<Option<Object>, ApiError> {
    let Some(object) = object else { return Ok(None) };
    if is_another_version(request.def, matched) {
        return conversion::between(core, request.def, matched, object.clone()).await.map(Some);
    }
    Ok(Some(patch::convert(request.def, matched, object)))
}

/// A policy shows its parameters in what it says: who writes one, or a binding, has to be allowed to read them.
pub(super) async fn may_read_params(
    core: &Core,
    request: &Request<'_>,
    object: &Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    let is_binding = request.def.plural.ends_with("admissionpolicybindings");
    let is_subject = request.def.group == GROUP && request.def.plural.contains("admissionpolic");
    let (own, refers) = (["spec", if is_binding { "paramRef" } else { "paramKind" }], ["spec", "policyName"]);
    let unchanged = old.is_some_and(|old| old.at(&own) == object.at(&own) && old.at(&refers) == object.at(&refers));
    let Some(param) = object.at(&own).filter(|_| is_subject && request.subresource.is_empty() && !unchanged) else {
        return Ok(());
    };
    let text = |of: &serde_json::Value, key: &str| of.get(key).and_then(|text| text.as_str()).map(str::to_owned);
    let mut asked =
        Attributes { verb: "get".to_owned(), group: "*".to_owned(), resource: "*".to_owned(), ..Attributes::default() };
    let kind = if is_binding {
        asked.name = text(param, "name").filter(|name| !name.is_empty());
        asked.namespace = text(param, "namespace").filter(|namespace| !namespace.is_empty());
        let plural = request.def.plural.trim_end_matches("bindings").replace("policy", "policies");
        let policies = core.row(GROUP, "v1", &plural)?;
        let name = object.str_at(&refers).unwrap_or_default();
        core.objects.find(&policies, None, name).await?.and_then(|policy| policy.at(&["spec", "paramKind"]).cloned())
    } else {
        Some(param.clone())
    };
    if let Some(kind) = kind {
        let (version, kind) = (text(&kind, "apiVersion").unwrap_or_default(), text(&kind, "kind").unwrap_or_default());
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        if let Some(def) = core.registry().by_kind(group, version, &kind) {
            (asked.group, asked.resource) = (def.group.clone(), def.plural.clone());
        }
    }
    match authz::decide(core, request.identity, &asked).await? {
        Decision::Allowed => Ok(()),
        Decision::Denied(_) => Err(request.forbidden(
            object.name(),
            format!(
                "user {:?} does not have \"get\" permission on the objects that are its parameters",
                request.identity.name
            ),
        )),
    }
}

/// What a failure is told as; nothing where the policy wants failures ignored.
fn problem(invocation: &Invocation, why: String) -> Option<String> {
    let (policy, binding) = (&invocation.policy, &invocation.binding);
    if policy.ignores_failure {
        tracing::debug!(policy = policy.name, binding = binding.name, why, "a failure of a policy is ignored");
        return None;
    }
    Some(format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name))
}

fn refused(request: &Request<'_>, problems: &[String]) -> ApiError {
    let message = problems.first().cloned().unwrap_or_default();
    let mut error = ApiError::new(Reason::Invalid, message);
    error = error.about(&request.def.group, &request.def.plural, request.name);
    error.details.causes = problems.iter().map(|message| cause(message.clone())).collect();
    error
}

fn cause(message: String) -> Cause {
    Cause { message, ..Cause::default() }
}

/// Holds the request to the policies that match: the first that denies it, by a binding that denies, is the answer.
pub(crate) async fn validate(
    core: &Core,
    request: &Request<'_>,
    object: Option<&Object>,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    if is_exempt(request) {
        return Ok(());
    }
    let index = core.policies.index(core).await?;
    if index.validating.is_empty() {
        return Ok(());
    }
    let (invocations, around) = invocation::find(core, request, &index.validating, object, old).await?;
    let mut steps = Steps::new();
    let mut denied = None;
    for invocation in &invocations {
        let object = shown(core, request, &invocation.def, object).await?;
        let old = shown(core, request, &invocation.def, old).await?;
        let denials = match &invocation.params {
            Ok(params) => params
                .iter()
                .flat_map(|param| {
                    let input = around.input(invocation, object.as_ref(), old.as_ref(), param.as_ref());
                    evaluate::validate(&invocation.policy, &input, &mut steps)
                })
                .collect(),
            Err(_) if invocation.policy.ignores_failure => Vec::new(),
            Err(why) => vec![Denial::always(format!("failed to configure binding: {why}"))],
        };
        for denial in denials {
            let (policy, binding) = (&invocation.policy.name, &invocation.binding);
            let has = |action: Action| binding.actions.contains(&action);
            if let Some(warnings) = request.warnings
                && has(Action::Warn)
                && !denial.always
            {
                warnings.add(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{}': {}",
                    binding.name, denial.message
                ));
            }
            if has(Action::Audit) {
                tracing::debug!(policy, binding = binding.name, message = denial.message, "a policy does not hold");
            }
            if (has(Action::Deny) || denial.always) && denied.is_none() {
                let message = format!(
                    "ValidatingAdmissionPolicy '{policy}' with binding '{}' denied request: {}",
                    binding.name, denial.message
                );
                denied = Some((message, denial.reason));
            }
        }
    }
    denied.map_or(Ok(()), |(message, reason)| Err(denial(request, object, message, reason)))
}

/// `pods "x" is forbidden: …`, with the reason that the policy gives.
fn denial(request: &Request<'_>, object: Option<&Object>, message: String, reason: Reason) -> ApiError {
    let object_name =
        object.map(|object| if object.name().is_empty() { object.generate_name() } else { object.name() });
    let names = [request.name, object_name.unwrap_or_default(), "Unknown"];
    let name = names.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    let mut error = request.forbidden(name, &message);
    error.reason = reason;
    error.details.causes = vec![cause(message)];
    error
}

/// What a policy's expressions do that no object of its kinds bears is written into its status as it is stored.
pub(crate) fn check_types(core: &Core, policy: &mut Object) {
    let checked = expressions::type_checking(&core.registry(), policy);
    policy.set(&["status", "observedGeneration"], policy.generation());
    policy.set(&["status", "typeChecking"], checked);
}
