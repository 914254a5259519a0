use expect_test::{Expect, expect};
use k8s_openapi::{
    api::{
        apps::v1::{DeploymentStrategy, ReplicaSetStatus, RollingUpdateDeployment},
        core::v1::{Container, PodSpec, PodStatus, PodTemplateSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::*;
use crate::action::testing::describe;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn template(image: &str) -> PodTemplateSpec {
    let container = Container { name: "web".into(), image: Some(image.into()), ..Container::default() };
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some([("app".into(), "web".into())].into()), ..ObjectMeta::default() }),
        spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
    }
}

fn share(text: &str) -> Option<IntOrString> {
    Some(text.parse().map_or_else(|_| IntOrString::String(text.into()), IntOrString::Int))
}

fn deployment(replicas: i32, image: &str, surge: &str, unavailable: &str) -> Deployment {
    let rolling_update = RollingUpdateDeployment { max_surge: share(surge), max_unavailable: share(unavailable) };
    Deployment {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("default".into()),
            uid: Some("deployment".into()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some([("app".into(), "web".into())].into()),
                ..LabelSelector::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(rolling_update),
            }),
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(10),
            template: template(image),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// A cluster in which ReplicaSets and pods do at once, or not at all, what a plan asks for.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    pods: Vec<Pod>,
    second: i64,
}

impl World {
    fn new(deployment: Deployment) -> World {
        World { deployment, sets: Vec::new(), pods: Vec::new(), second: 1000 }
    }

    fn view(&self) -> View {
        let mut sets: Vec<Arc<ReplicaSet>> = self.sets.iter().cloned().map(Arc::new).collect();
        object::by_age(&mut sets);
        let candidate = template::set_name(&self.deployment);
        let taken = sets.iter().any(|set| set.metadata.name.as_ref() == Some(&candidate));
        let pods = self.pods.iter().cloned().map(Arc::new).collect();
        View { deployment: Arc::new(self.deployment.clone()), sets, orphans: Vec::new(), pods, candidate, taken }
    }

    fn plan(&self) -> Plan {
        plan(&self.view(), at(self.second))
    }

    fn apply(&mut self, plan: &Plan) {
        for action in &plan.actions {
            match action {
                Action::Create { object, .. } => {
                    let mut set = object.as_any().downcast_ref::<ReplicaSet>().unwrap().clone();
                    set.metadata.uid = set.metadata.name.clone();
                    set.metadata.creation_timestamp = Some(object::time(at(self.second)));
                    self.sets.push(set);
                }
                Action::Update(object) => {
                    let set = object.as_any().downcast_ref::<ReplicaSet>().unwrap();
                    let there = self.sets.iter_mut().find(|there| there.metadata.name == set.metadata.name).unwrap();
                    *there = set.clone();
                }
                Action::SetStatus(object) => {
                    self.deployment = object.as_any().downcast_ref::<Deployment>().unwrap().clone();
                }
                Action::Patch { .. } => {
                    let newest = self.sets.iter().map(template::revision).max().unwrap();
                    let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                    annotations.insert(REVISION.into(), newest.to_string());
                }
                Action::Delete(deletion) => {
                    self.sets.retain(|set| set.metadata.name.as_deref() != Some(&deletion.target.key.name));
                }
                _ => {}
            }
        }
        self.second += 1;
    }

    /// ReplicaSets bring themselves to their sizes; pods of an image in `broken` never get ready.
    fn settle(&mut self, broken: &[&str]) {
        for set in &mut self.sets {
            let spec = set.spec.as_ref().unwrap();
            let container = &spec.template.as_ref().unwrap().spec.as_ref().unwrap().containers[0];
            let works = !broken.contains(&container.image.as_deref().unwrap());
            let replicas = spec.replicas.unwrap();
            let ready = Some(if works { replicas } else { 0 }).filter(|ready| *ready > 0);
            set.status = Some(ReplicaSetStatus {
                replicas,
                ready_replicas: ready,
                available_replicas: ready,
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            });
        }
    }

    /// Plans and performs until nothing is left to do, and shows the events of the way.
    fn run(&mut self, broken: &[&str]) -> String {
        let mut lines = String::new();
        for _ in 0..100 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                return lines + &self.show();
            }
            for action in &plan.actions {
                if let Action::Event(note) = action {
                    lines += &format!("{}\n", self.readable(&note.message));
                }
            }
            self.apply(&plan);
            self.check_bounds(broken);
            self.settle(broken);
        }
        panic!("does not converge: {lines}");
    }

    fn check_bounds(&self, broken: &[&str]) {
        let view = self.view();
        let rollout = Rollout::of(&view.deployment, &view.sets);
        let spec = spec(&self.deployment);
        if is_recreate(&spec) || !broken.is_empty() {
            return;
        }
        let serving: i32 = view
            .sets
            .iter()
            .map(|set| {
                let available = set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
                available.min(rollout::replicas(set))
            })
            .sum();
        let was_up = self.deployment.status.as_ref().is_some_and(|status| {
            status.conditions.iter().flatten().any(|one| one.type_ == "Available" && one.status == "True")
        });
        assert!(!was_up || serving >= rollout.min_available().min(rollout.total()), "{serving} serve");
    }

    /// Names of ReplicaSets as the images that they run.
    fn readable(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for set in &self.sets {
            let spec = set.spec.as_ref().unwrap().template.as_ref().unwrap().spec.as_ref().unwrap();
            text = text.replace(set.metadata.name.as_deref().unwrap(), spec.containers[0].image.as_deref().unwrap());
        }
        let candidate = template::set_name(&self.deployment);
        text.replace(&candidate, "new")
    }

    fn show(&self) -> String {
        let mut lines = String::new();
        for set in &self.sets {
            let note = |key| object::annotation(&set.metadata, key).unwrap_or("-").to_owned();
            lines += &self.readable(&format!(
                "{}: {} replicas, revision {}, history {}\n",
                object::name(&set.metadata),
                rollout::replicas(set),
                note(REVISION),
                note("deployment.kubernetes.io/revision-history"),
            ));
        }
        let status = self.deployment.status.clone().unwrap_or_default();
        let revision = object::annotation(&self.deployment.metadata, REVISION).unwrap_or("-");
        lines += &format!(
            "revision {revision}, {} updated of {}, {} available;",
            status.updated_replicas.unwrap_or(0),
            status.replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0)
        );
        for one in status.conditions.iter().flatten() {
            lines += &format!(" {}={}/{}", one.type_, one.status, one.reason.as_deref().unwrap());
        }
        lines + "\n"
    }

    fn set_image(&mut self, image: &str) {
        self.deployment.spec.as_mut().unwrap().template = template(image);
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|generation| generation + 1);
    }
}

fn running(replicas: i32, surge: &str, unavailable: &str) -> World {
    let mut world = World::new(deployment(replicas, "v1", surge, unavailable));
    world.run(&[]);
    world
}

fn check(actual: &str, expect: Expect) {
    expect.assert_eq(actual);
}

#[test]
fn the_first_plan_makes_the_set() {
    let world = World::new(deployment(3, "v1", "25%", "25%"));
    let shown = describe(&world.plan(), |action| match action.object::<ReplicaSet>() {
        Some(set) => format!(
            "{:?} {:?}",
            set.metadata.annotations.as_ref().unwrap(),
            set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()
        ),
        None => String::new(),
    });
    check(
        &shown,
        expect![[r#"
        create ReplicaSet default/web-554b68dfc4 {"deployment.kubernetes.io/desired-replicas": "3", "deployment.kubernetes.io/max-replicas": "4", "deployment.kubernetes.io/revision": "1"} {"app": "web", "pod-template-hash": "554b68dfc4"}
        event Normal ScalingReplicaSet: Scaled up replica set web-554b68dfc4 from 0 to 3
        status Deployment default/web
    "#]],
    );
}

#[test]
fn comes_up() {
    let mut world = World::new(deployment(3, "v1", "25%", "25%"));
    check(
        &world.run(&[]),
        expect![[r#"
        Scaled up replica set new from 0 to 3
        v1: 3 replicas, revision 1, history -
        revision 1, 3 updated of 3, 3 available; Available=True/MinimumReplicasAvailable Progressing=True/NewReplicaSetAvailable
    "#]],
    );
}

#[test]
fn rolls_over_within_its_bounds() {
    let mut world = running(4, "25%", "25%");
    world.set_image("v2");
    check(
        &world.run(&[]),
        expect![[r#"
        Scaled up replica set new from 0 to 1
        Scaled down replica set v1 from 4 to 2
        Scaled up replica set v2 from 1 to 3
        Scaled down replica set v1 from 2 to 0
        Scaled up replica set v2 from 3 to 4
        v1: 0 replicas, revision 1, history -
        v2: 4 replicas, revision 2, history -
        revision 2, 4 updated of 4, 4 available; Available=True/MinimumReplicasAvailable Progressing=True/NewReplicaSetAvailable
    "#]],
    );
}

#[test]
fn rolls_without_surge_and_without_unavailability() {
    let mut world = running(2, "0", "1");
    world.set_image("v2");
    check(
        &world.run(&[]),
        expect![[r#"
        Scaled down replica set v1 from 2 to 1
        Scaled up replica set v2 from 0 to 1
        Scaled down replica set v1 from 1 to 0
        Scaled up replica set v2 from 1 to 2
        v1: 0 replicas, revision 1, history -
        v2: 2 replicas, revision 2, history -
        revision 2, 2 updated of 2, 2 available; Available=True/MinimumReplicasAvailable Progressing=True/NewReplicaSetAvailable
    "#]],
    );
    let mut world = running(2, "1", "0");
    world.set_image("v2");
    check(
        &world.run(&[]),
        expect![[r#"
        Scaled up replica set new from 0 to 1
        Scaled down replica set v1 from 2 to 1
        Scaled up replica set v2 from 1 to 2
        Scaled down replica set v1 from 1 to 0
        v1: 0 replicas, revision 1, history -
        v2: 2 replicas, revision 2, history -
        revision 2, 2 updated of 2, 2 available; Available=True/MinimumReplicasAvailable Progressing=True/NewReplicaSetAvailable
    "#]],
    );
}

#[test]
fn a_broken_version_stops_the_rollout_and_undo_goes_back() {
    let mut world = running(4, "1", "1");
    world.set_image("v2");
    check(
        &world.run(&["v2"]),
        expect![[r#"
        Scaled up replica set new from 0 to 1
        Scaled down replica set v1 from 4 to 3
        Scaled up replica set v2 from 1 to 2
        v1: 3 replicas, revision 1, history -
        v2: 2 replicas, revision 2, history -
        revision 2, 2 updated of 5, 3 available; Available=True/MinimumReplicasAvailable Progressing=True/ReplicaSetUpdated
    "#]],
    );
    world.second += 700;
    check(
        &world.run(&["v2"]),
        expect![[r#"
        v1: 3 replicas, revision 1, history -
        v2: 2 replicas, revision 2, history -
        revision 2, 2 updated of 5, 3 available; Available=True/MinimumReplicasAvailable Progressing=False/ProgressDeadlineExceeded
    "#]],
    );
    world.set_image("v1");
    check(
        &world.run(&["v2"]),
        expect![[r#"
        Scaled down replica set v2 from 2 to 0
        Scaled up replica set v1 from 3 to 4
        v1: 4 replicas, revision 3, history 1
        v2: 0 replicas, revision 2, history -
        revision 3, 4 updated of 4, 4 available; Available=True/MinimumReplicasAvailable Progressing=True/NewReplicaSetAvailable
    "#]],
    );
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = running(2, "1", "0");
    let spec = world.deployment.spec.as_mut().unwrap();
    spec.strategy = Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
    let mut leaving =
        Pod { status: Some(PodStatus { phase: Some("Running".into()), ..PodStatus::default() }), ..Pod::default() };
    leaving.metadata.owner_references = Some(vec![object::controller_reference(&world.sets[0])]);
    world.pods = vec![leaving];
    world.set_image("v2");
    check(
        &world.run(&[]),
        expect![[r#"
        Scaled down replica set v1 from 2 to 0
        v1: 0 replicas, revision 1, history -
        revision 1, 0 updated of 0, 0 available; Progressing=True/NewReplicaSetAvailable Available=False/MinimumReplicasUnavailable
    "#]],
    );
    world.pods.clear();
    check(
        &world.run(&[]),
        expect![[r#"
        Scaled up replica set new from 0 to 2
        v1: 0 replicas, revision 1, history -
        v2: 2 replicas, revision 2, history -
        revision 2, 2 updated of 2, 2 available; Available=True/MinimumReplicasAvailable Progressing=True/NewReplicaSetAvailable
    "#]],
    );
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = running(2, "1", "0");
    world.deployment.spec.as_mut().unwrap().paused = Some(true);
    world.set_image("v2");
    world.deployment.spec.as_mut().unwrap().replicas = Some(5);
    check(
        &world.run(&[]),
        expect![[r#"
        Scaled up replica set v1 from 2 to 5
        v1: 5 replicas, revision 1, history -
        revision 1, 0 updated of 5, 5 available; Progressing=Unknown/DeploymentPaused Available=True/MinimumReplicasAvailable
    "#]],
    );
    world.deployment.spec.as_mut().unwrap().paused = None;
    check(
        &world.run(&[]),
        expect![[r#"
        Scaled up replica set new from 0 to 1
        Scaled down replica set v1 from 5 to 4
        Scaled up replica set v2 from 1 to 2
        Scaled down replica set v1 from 4 to 3
        Scaled up replica set v2 from 2 to 3
        Scaled down replica set v1 from 3 to 2
        Scaled up replica set v2 from 3 to 4
        Scaled down replica set v1 from 2 to 1
        Scaled up replica set v2 from 4 to 5
        Scaled down replica set v1 from 1 to 0
        v1: 0 replicas, revision 1, history -
        v2: 5 replicas, revision 2, history -
        revision 2, 5 updated of 5, 5 available; Available=True/MinimumReplicasAvailable Progressing=True/NewReplicaSetAvailable
    "#]],
    );
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_the_proportions() {
    let mut world = running(10, "3", "2");
    world.set_image("v2");
    world.run(&["v2"]);
    world.deployment.spec.as_mut().unwrap().replicas = Some(15);
    check(
        &world.run(&["v2"]),
        expect![[r#"
        Scaled up replica set v1 from 8 to 11
        Scaled up replica set v2 from 5 to 7
        v1: 11 replicas, revision 1, history -
        v2: 7 replicas, revision 2, history -
        revision 2, 7 updated of 18, 11 available; Available=False/MinimumReplicasUnavailable Progressing=True/ReplicaSetUpdated
    "#]],
    );
    world.deployment.spec.as_mut().unwrap().replicas = Some(5);
    check(
        &world.run(&["v2"]),
        expect![[r#"
        Scaled down replica set v1 from 11 to 5
        Scaled down replica set v2 from 7 to 3
        Scaled down replica set v1 from 5 to 3
        Scaled up replica set v2 from 3 to 5
        v1: 3 replicas, revision 1, history -
        v2: 5 replicas, revision 2, history -
        revision 2, 5 updated of 8, 3 available; Available=True/MinimumReplicasAvailable Progressing=True/ReplicaSetUpdated
    "#]],
    );
}

#[test]
fn old_history_is_dropped() {
    let mut world = running(1, "1", "0");
    world.deployment.spec.as_mut().unwrap().revision_history_limit = Some(1);
    for image in ["v2", "v3", "v4"] {
        world.set_image(image);
        world.run(&[]);
    }
    check(
        &world.show(),
        expect![[r#"
        v3: 0 replicas, revision 3, history -
        v4: 1 replicas, revision 4, history -
        revision 4, 1 updated of 1, 1 available; Available=True/MinimumReplicasAvailable Progressing=True/NewReplicaSetAvailable
    "#]],
    );
}

#[test]
fn a_name_that_is_taken_counts_as_a_collision() {
    let mut world = World::new(deployment(1, "v1", "1", "0"));
    let name = template::set_name(&world.deployment);
    let mut view = world.view();
    view.taken = true;
    let plan = plan(&view, at(0));
    world.apply(&plan);
    assert_eq!(world.deployment.status.as_ref().unwrap().collision_count, Some(1));
    assert_ne!(template::set_name(&world.deployment), name);
}

#[test]
fn an_empty_selector_is_refused() {
    let mut world = World::new(deployment(1, "v1", "1", "0"));
    world.deployment.spec.as_mut().unwrap().selector = LabelSelector::default();
    check(
        &describe(&world.plan(), |_| String::new()),
        expect![[r#"
        event Warning SelectingAll: This deployment is selecting all pods. A non-empty selector is required.
        status Deployment default/web
    "#]],
    );
}

#[test]
fn a_deployment_without_a_deadline_has_no_progress_condition() {
    let mut world = World::new(deployment(1, "v1", "1", "0"));
    world.deployment.spec.as_mut().unwrap().progress_deadline_seconds = None;
    check(
        &world.run(&[]),
        expect![[r#"
        Scaled up replica set new from 0 to 1
        v1: 1 replicas, revision 1, history -
        revision 1, 1 updated of 1, 1 available; Available=True/MinimumReplicasAvailable
    "#]],
    );
}

#[test]
fn interrupted_plans_converge() {
    for keep in 0..4 {
        let mut world = running(4, "25%", "25%");
        world.set_image("v2");
        for _ in 0..20 {
            let mut plan = world.plan();
            plan.actions.truncate(keep);
            world.apply(&plan);
            world.settle(&[]);
        }
        world.run(&[]);
        assert_eq!(world.deployment.status.unwrap().updated_replicas, Some(4), "after {keep} actions of each plan");
    }
}
