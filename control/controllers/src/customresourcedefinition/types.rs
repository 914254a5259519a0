//! The parts of a definition that are decided on. Schemas, which may be large, are left where they are: a write of the
//! status does not touch them.

use jiff::Timestamp;
use k8s_openapi::{ClusterResourceScope, apimachinery::pkg::apis::meta::v1::Time};
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::object;

pub(crate) const NAMES_ACCEPTED: &str = "NamesAccepted";
pub(crate) const ESTABLISHED: &str = "Established";
pub(crate) const TERMINATING: &str = "Terminating";

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct CustomResourceDefinition {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Spec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<Status>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Spec {
    pub(crate) group: String,
    pub(crate) names: Names,
    pub(crate) versions: Vec<Version>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Names {
    pub(crate) plural: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) singular: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) short_names: Vec<String>,
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) list_kind: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) categories: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Version {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) served: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) accepted_names: Names,
    pub(crate) stored_versions: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) type_: String,
    pub(crate) status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_transition_time: Option<Time>,
    #[serde(default)]
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) message: String,
}

impl Condition {
    pub(crate) fn new(type_: &str, status: &str, reason: &str, message: impl Into<String>) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            last_transition_time: None,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

pub(crate) fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The time of a condition is when its status changed last.
pub(crate) fn set(conditions: &mut Vec<Condition>, mut condition: Condition, now: Timestamp) {
    let old = conditions.iter().position(|old| old.type_ == condition.type_);
    let kept = old.map(|at| &conditions[at]).filter(|old| old.status == condition.status);
    let time = kept.and_then(|old| old.last_transition_time.clone());
    condition.last_transition_time = Some(time.unwrap_or_else(|| object::time(now)));
    match old {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

impl k8s_openapi::Resource for CustomResourceDefinition {
    const API_VERSION: &'static str = "apiextensions.k8s.io/v1";
    const GROUP: &'static str = "apiextensions.k8s.io";
    const KIND: &'static str = "CustomResourceDefinition";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "customresourcedefinitions";
    type Scope = ClusterResourceScope;
}

impl k8s_openapi::Metadata for CustomResourceDefinition {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
