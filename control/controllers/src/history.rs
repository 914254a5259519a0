//! The history of a pod template, kept in ControllerRevisions, for the controllers that can go back in it.
//!
//! What is stored is the patch that `kubectl rollout undo` sends, so its form is Kubernetes' own:
//! <https://kubernetes.io/docs/tasks/manage-daemon/rollback-daemon-set/#understanding-daemonset-revisions>.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use serde::{Deserialize, Serialize};

use crate::{
    Delta, Key,
    action::{Action, Deletion},
    cache::Cached,
    hash::template_hash,
    object,
    ownership::controller_key,
};

/// On a pod: the revision that it was made from.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";
const REPLACE: &str = "replace";

#[derive(Serialize)]
struct Patch<'a> {
    spec: PatchSpec<'a>,
}

#[derive(Serialize)]
struct PatchSpec<'a> {
    template: Replaced<'a>,
}

#[derive(Serialize)]
struct Replaced<'a> {
    #[serde(rename = "$patch")]
    patch: &'static str,
    #[serde(flatten)]
    template: &'a PodTemplateSpec,
}

#[derive(Deserialize)]
struct Stored {
    spec: StoredSpec,
}

#[derive(Deserialize)]
struct StoredSpec {
    template: PodTemplateSpec,
}

fn encode(template: &PodTemplateSpec) -> Option<RawExtension> {
    let patch = Patch { spec: PatchSpec { template: Replaced { patch: REPLACE, template } } };
    serde_json::from_str(&serde_json::to_string(&patch).ok()?).ok()
}

/// The template that a revision stands for.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let text = serde_json::to_string(revision.data.as_ref()?).ok()?;
    serde_json::from_str::<Stored>(&text).ok().map(|stored| stored.spec.template)
}

/// The parent that a change of a revision matters to.
pub(crate) fn woken<K: Cached>(delta: &Delta<ControllerRevision>) -> Vec<Key> {
    delta.versions().filter_map(|revision| controller_key::<K, _>(&**revision)).take(1).collect()
}

/// The revisions of a parent, the oldest first, and the one that its template is now.
#[derive(Debug)]
pub(crate) struct History<'a> {
    pub(crate) revisions: Vec<&'a Arc<ControllerRevision>>,
    /// The last among them; none while it has to be made.
    pub(crate) current: Option<&'a Arc<ControllerRevision>>,
}

/// What has to be written before there is a current revision.
#[derive(Debug)]
pub(crate) enum Gap {
    Write(Box<Action>),
    /// The name of the new revision is taken by another: the collision count has to go up.
    Taken,
}

/// What a parent says of its revisions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a, P> {
    pub(crate) parent: &'a P,
    pub(crate) template: &'a PodTemplateSpec,
    pub(crate) collisions: i32,
    /// The label that a revision's hash stands in.
    pub(crate) hash_label: &'static str,
}

impl<P: Cached> Line<'_, P> {
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", object::name(self.parent.metadata()), self.hash())
    }

    fn hash(&self) -> String {
        template_hash(self.template, self.collisions)
    }

    fn revision(&self, number: i64) -> ControllerRevision {
        let meta = self.template.metadata.clone().unwrap_or_default();
        let mut labels: BTreeMap<String, String> = meta.labels.unwrap_or_default();
        labels.insert(self.hash_label.to_owned(), self.hash());
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(self.name()),
                namespace: self.parent.metadata().namespace.clone(),
                labels: Some(labels),
                annotations: self.parent.metadata().annotations.clone(),
                owner_references: Some(vec![object::controller_reference(self.parent)]),
                ..ObjectMeta::default()
            },
            data: encode(self.template),
            revision: number,
        }
    }
}

impl<'a> History<'a> {
    pub(crate) fn of(revisions: &'a [Arc<ControllerRevision>], now: &PodTemplateSpec) -> History<'a> {
        let mut revisions: Vec<&Arc<ControllerRevision>> = revisions.iter().collect();
        revisions.sort_by_key(|one| (one.revision, object::created(&one.metadata), one.metadata.name.clone()));
        let current = revisions.iter().rev().find(|one| template(one).as_ref() == Some(now)).copied();
        History { revisions, current }
    }

    /// The write that makes the template's revision the last one, if it is not.
    pub(crate) fn gap<P: Cached>(&self, line: &Line<'_, P>, taken: bool) -> Option<Gap> {
        let last = self.revisions.last().map_or(0, |last| last.revision);
        match self.current {
            Some(current) if current.revision == last => None,
            // Rolled back to: it becomes the newest again.
            Some(current) => {
                let draft = ControllerRevision { revision: last + 1, ..ControllerRevision::clone(current) };
                Some(Gap::Write(Box::new(Action::update(draft))))
            }
            None if taken => Some(Gap::Taken),
            None => Some(Gap::Write(Box::new(Action::create(line.revision(last + 1))))),
        }
    }

    /// The revisions beyond the limit that no pod was made from.
    pub(crate) fn surplus(&self, limit: Option<i32>, in_use: impl Fn(&ControllerRevision) -> bool) -> Vec<Action> {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { return Vec::new() };
        let current = self.current.map(|current| object::uid(&current.metadata));
        let old: Vec<_> = self
            .revisions
            .iter()
            .filter(|one| {
                Some(object::uid(&one.metadata)) != current && !in_use(one) && !object::is_deleting(&one.metadata)
            })
            .collect();
        let surplus = old.len().saturating_sub(limit);
        old.into_iter().take(surplus).map(|one| Action::Delete(Deletion::of(&***one))).collect()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    use super::*;

    #[test]
    fn a_revision_is_a_patch_that_replaces_the_template() {
        let container = Container { name: "web".into(), image: Some("nginx:1.25".into()), ..Container::default() };
        let spec = PodSpec { containers: vec![container], ..PodSpec::default() };
        let now = PodTemplateSpec { spec: Some(spec), ..PodTemplateSpec::default() };
        let data = encode(&now);
        expect![[
            r#"{"spec":{"template":{"$patch":"replace","spec":{"containers":[{"image":"nginx:1.25","name":"web"}]}}}}"#
        ]]
        .assert_eq(&serde_json::to_string(&data).unwrap());
        let revision = ControllerRevision { data, ..ControllerRevision::default() };
        assert_eq!(template(&revision), Some(now));
    }
}
