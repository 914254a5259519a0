//! What a plan consists of. Plans hold typed objects; only the executor turns them into requests.

use std::{any::Any, fmt::Debug, time::Duration};

use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::ObjectReference};
use kube::api::{ApiResource, PropagationPolicy};
use serde::Serialize;
use tandem_client::events::Note;

use crate::{
    cache::{Cached, Key},
    sign::Usage,
};

/// The writes that bring the cluster one step closer to what is wanted, in order.
///
/// A plan writes an object at most once: later writes to it come from the plan that follows, made from what came back.
#[derive(Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Plan again after this time, though nothing may have changed but the time.
    pub requeue: Option<Duration>,
}

impl Plan {
    pub fn of(actions: Vec<Action>) -> Plan {
        Plan { actions, requeue: None }
    }

    /// Asks to be planned again at the earlier of this time and any that was asked for before.
    pub fn requeue_after(&mut self, delay: Duration) {
        self.requeue = Some(self.requeue.map_or(delay, |earlier| earlier.min(delay)));
    }
}

/// One write. After a failure the rest of a plan is skipped, except for its status.
#[derive(Debug)]
pub enum Action {
    Create {
        object: Box<dyn Manifest>,
        report: Option<Report>,
    },
    /// Replaces an object; fails with a conflict when somebody else was faster.
    Update(Box<dyn Manifest>),
    SetStatus(Box<dyn Manifest>),
    /// Replaces through another subresource.
    Put {
        subresource: &'static str,
        object: Box<dyn Manifest>,
    },
    /// A JSON merge patch.
    Patch {
        target: Target,
        body: Box<dyn Body>,
    },
    Delete(Deletion),
    /// Has the request's certificate made and puts it into its status.
    Sign {
        request: Box<CertificateSigningRequest>,
        usage: Usage,
    },
    Event(Note),
}

impl Action {
    pub fn create(object: impl Manifest + 'static) -> Action {
        Action::Create { object: Box::new(object), report: None }
    }

    pub fn update(object: impl Manifest + 'static) -> Action {
        Action::Update(Box::new(object))
    }

    pub fn set_status(object: impl Manifest + 'static) -> Action {
        Action::SetStatus(Box::new(object))
    }

    pub fn patch(target: Target, body: impl Body + 'static) -> Action {
        Action::Patch { target, body: Box::new(body) }
    }
}

/// Tells the object that an action was done for how it went, as an Event.
#[derive(Clone, Debug)]
pub struct Report {
    pub regarding: ObjectReference,
    /// What is made or deleted, in the message: "Created pod: web-x".
    pub noun: &'static str,
}

/// The deletion of exactly the object that was seen, never of a successor with its name.
#[derive(Clone, Debug)]
pub struct Deletion {
    pub target: Target,
    pub uid: String,
    pub resource_version: Option<String>,
    pub grace_seconds: Option<u32>,
    pub propagation: Option<PropagationPolicy>,
    pub report: Option<Report>,
}

impl Deletion {
    pub fn of<K: Cached>(object: &K) -> Deletion {
        let uid = object.metadata().uid.clone().unwrap_or_default();
        Deletion::new(Target::of(object), uid)
    }

    pub fn new(target: Target, uid: String) -> Deletion {
        Deletion { target, uid, resource_version: None, grace_seconds: None, propagation: None, report: None }
    }
}

/// Where a write goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub kind: String,
    /// The path of the collection that the object is in.
    pub path: String,
    pub key: Key,
}

impl Target {
    pub fn of<K: Cached>(object: &K) -> Target {
        let key = Key::of(object.metadata());
        let namespace = object.metadata().namespace.as_deref();
        Target { kind: K::KIND.to_owned(), path: K::url_path(&(), namespace), key }
    }

    /// The target of an object of which only the metadata is known.
    pub fn dynamic(resource: &ApiResource, key: Key) -> Target {
        let namespace = (!key.namespace.is_empty()).then_some(key.namespace.as_str());
        let path = <kube::api::DynamicObject as kube::Resource>::url_path(resource, namespace);
        Target { kind: resource.kind.clone(), path, key }
    }
}

/// Something that can be sent.
pub trait Body: Debug + Send + Sync {
    fn body(&self) -> serde_json::Result<String>;
}

impl<T: Serialize + Debug + Send + Sync> Body for T {
    fn body(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// An object of any kind.
pub trait Manifest: Body {
    fn target(&self) -> Target;
    fn as_any(&self) -> &dyn Any;
}

impl<K: Cached + Serialize> Manifest for K {
    fn target(&self) -> Target {
        Target::of(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Plans as lines of text, for table tests.

    use std::fmt::Write;

    use super::*;

    impl Action {
        /// The object of a kind that the action writes.
        pub(crate) fn object<K: 'static>(&self) -> Option<&K> {
            match self {
                Action::Create { object, .. }
                | Action::Update(object)
                | Action::SetStatus(object)
                | Action::Put { object, .. } => object.as_any().downcast_ref(),
                _ => None,
            }
        }
    }

    pub(crate) fn describe(plan: &Plan, detail: impl Fn(&Action) -> String) -> String {
        let mut lines = String::new();
        for action in &plan.actions {
            let line = match action {
                Action::Create { object, .. } => format!("create {}", show(&object.target())),
                Action::Update(object) => format!("update {}", show(&object.target())),
                Action::SetStatus(object) => format!("status {}", show(&object.target())),
                Action::Put { subresource, object } => format!("{subresource} {}", show(&object.target())),
                Action::Patch { target, body } => format!("patch {} {}", show(target), body.body().unwrap()),
                Action::Delete(deletion) => format!("delete {}", show(&deletion.target)),
                Action::Sign { usage, .. } => format!("sign {usage:?}"),
                Action::Event(note) => format!("event {:?} {}: {}", note.severity, note.reason, note.message),
            };
            let detail = detail(action);
            let gap = if detail.is_empty() { "" } else { " " };
            writeln!(lines, "{line}{gap}{detail}").unwrap();
        }
        if let Some(requeue) = plan.requeue {
            writeln!(lines, "again in {requeue:?}").unwrap();
        }
        lines
    }

    fn show(target: &Target) -> String {
        format!("{} {}", target.kind, target.key)
    }
}
