//! What is read from, or written into, the metadata and conditions of any object.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    Metadata, Resource,
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};
use kube::core::{Selector, SelectorExt};
use tandem_api::Revision;

/// The number in `resourceVersion`; 0 when there is none.
pub(crate) fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(Revision::parse).map_or(0, |revision| revision.0)
}

pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The reference with which `owner` controls what it makes.
pub(crate) fn controller_reference<K: Resource + Metadata<Ty = ObjectMeta>>(owner: &K) -> OwnerReference {
    let meta = owner.metadata();
    OwnerReference {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        name: name(meta).to_owned(),
        uid: uid(meta).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

pub(crate) fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0)
}

pub(crate) fn time(at: Timestamp) -> Time {
    // The wire has whole seconds; the same here, so that what was written compares equal to what comes back.
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// How long until `at`; zero when it has passed.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// Never wraps: beyond what a timestamp can hold it is the last one.
pub(crate) fn after(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// A selector ready to match. An unparsable one matches nothing, as the API server refuses it anyway.
pub(crate) fn selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}

pub(crate) fn matches(selector: Option<&Selector>, meta: &ObjectMeta) -> bool {
    let none = std::collections::BTreeMap::new();
    selector.is_some_and(|selector| selector.matches(meta.labels.as_ref().unwrap_or(&none)))
}

/// The selector by which a workload finds its pods: one that is empty would select all, and selects none.
pub(crate) fn own_selector(labels: &LabelSelector) -> Option<Selector> {
    if is_empty(labels) { None } else { selector(labels) }
}

pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(|labels| labels.is_empty())
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Oldest first; the name decides between those made in one second.
pub(crate) fn by_age<K: Metadata<Ty = ObjectMeta>>(objects: &mut [Arc<K>]) {
    objects.sort_by(|one, other| {
        let key = |object: &Arc<K>| (created(object.metadata()), object.metadata().name.clone());
        key(one).cmp(&key(other))
    });
}

/// `25%` of a number, rounded up or down; plain numbers are themselves.
pub(crate) fn share(value: Option<&IntOrString>, of: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or(0);
            let product = percent * i64::from(of);
            let share = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}
