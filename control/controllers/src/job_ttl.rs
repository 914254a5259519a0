//! Jobs that asked to be deleted some time after they have ended.
//!
//! <https://kubernetes.io/docs/concepts/workloads/controllers/ttlafterfinished/>

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::PropagationPolicy;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan},
    job, object,
};

pub(crate) struct FinishedJobs;

impl Controller for FinishedJobs {
    type Parent = Job;
    type View = Arc<Job>;

    const NAME: &'static str = "ttl-after-finished";
    const READS: &'static [&'static str] = &["Job"];

    fn store(cache: &Cache) -> &Store<Job> {
        &cache.jobs
    }

    fn wakes(&self, _cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Job(delta) => vec![delta.key()],
            _ => Vec::new(),
        }
    }

    async fn view(&self, _input: &Input<'_>, job: Arc<Job>) -> Result<Arc<Job>, Error> {
        Ok(job)
    }

    fn plan(job: &Arc<Job>, now: Timestamp) -> Plan {
        plan(job, now)
    }
}

fn plan(job: &Job, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let seconds = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
    let ended = job::finished(job).and_then(|condition| condition.last_transition_time.as_ref());
    let (Some(seconds), Some(ended)) = (seconds, ended) else { return plan };
    if object::is_deleting(&job.metadata) {
        return plan;
    }
    let left = object::until(object::after(ended.0, seconds.into()), now);
    if left.is_zero() {
        // With the version that was seen: somebody may have just given it more time.
        plan.actions.push(Action::Delete(Deletion {
            resource_version: job.metadata.resource_version.clone(),
            propagation: Some(PropagationPolicy::Foreground),
            ..Deletion::of(job)
        }));
    } else {
        plan.requeue_after(left);
    }
    plan
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use k8s_openapi::{
        api::batch::v1::{JobCondition, JobSpec, JobStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };
    use kube::api::ObjectMeta;

    use super::*;
    use crate::action::testing::describe;

    fn check(ttl: Option<i32>, ended: Option<i64>, expect: Expect) {
        let at = |second| Timestamp::from_second(second).unwrap();
        let condition = ended.map(|ended| JobCondition {
            type_: "Complete".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(ended))),
            ..JobCondition::default()
        });
        let job = Job {
            metadata: ObjectMeta { name: Some("sum".into()), ..ObjectMeta::default() },
            spec: Some(JobSpec { ttl_seconds_after_finished: ttl, ..JobSpec::default() }),
            status: Some(JobStatus { conditions: condition.map(|condition| vec![condition]), ..JobStatus::default() }),
        };
        expect.assert_eq(&describe(&plan(&job, at(1_000)), |_| String::new()));
    }

    #[test]
    fn a_job_goes_when_its_time_is_over() {
        check(Some(10), None, expect![""]);
        check(None, Some(0), expect![""]);
        check(
            Some(10),
            Some(995),
            expect![[r#"
            again in 5s
        "#]],
        );
        check(
            Some(10),
            Some(990),
            expect![[r#"
            delete Job sum
        "#]],
        );
    }
}
