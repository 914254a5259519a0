use expect_test::{Expect, expect};
use k8s_openapi::{
    api::batch::v1::{JobCondition, JobStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::*;
use crate::action::testing::describe;

/// 12:00:10 of a day.
const NOW: &str = "2026-01-05T12:00:10Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cron(schedule: &str, change: impl FnOnce(&mut CronJob)) -> CronJob {
    let mut cron = CronJob {
        metadata: ObjectMeta {
            name: Some("sum".into()),
            namespace: Some("default".into()),
            uid: Some("cron".into()),
            creation_timestamp: Some(Time(at("2026-01-05T11:59:30Z"))),
            ..ObjectMeta::default()
        },
        spec: CronJobSpec {
            schedule: schedule.into(),
            successful_jobs_history_limit: Some(1),
            failed_jobs_history_limit: Some(1),
            ..CronJobSpec::default()
        },
        status: Some(CronJobStatus::default()),
    };
    change(&mut cron);
    cron
}

/// `name:word…`: complete, failed, manual, mN (made for the minute N of the hour before now).
fn job(text: &str) -> Arc<Job> {
    let mut words = text.split(':');
    let name = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let minute = words.iter().find_map(|word| word.strip_prefix('m')?.parse::<u32>().ok()).unwrap_or(0);
    let time = at(&format!("2026-01-05T11:{minute:02}:00Z"));
    let ended = if words.contains(&"complete") {
        Some("Complete")
    } else if words.contains(&"failed") {
        Some("Failed")
    } else {
        None
    };
    let condition = |kind: &str| JobCondition { type_: kind.into(), status: "True".into(), ..JobCondition::default() };
    Arc::new(Job {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(name.into()),
            annotations: (!words.contains(&"manual"))
                .then(|| [(SCHEDULED.to_owned(), local(time, &TimeZone::UTC))].into()),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(JobStatus {
            start_time: Some(object::time(time)),
            completion_time: (ended == Some("Complete")).then(|| object::time(time)),
            conditions: ended.map(|kind| vec![condition(kind)]),
            ..JobStatus::default()
        }),
    })
}

fn detail(action: &Action) -> String {
    if let Some(job) = action.object::<Job>() {
        return object::annotation(&job.metadata, SCHEDULED).unwrap_or_default().to_owned();
    }
    let Some(status) = action.object::<CronJob>().and_then(|cron| cron.status.as_ref()) else { return String::new() };
    let active: Vec<_> = status.active.iter().flatten().filter_map(|job| job.name.as_deref()).collect();
    let time = |time: &Option<Time>| time.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
    format!(
        "active={active:?} last={} succeeded={}",
        time(&status.last_schedule_time),
        time(&status.last_successful_time)
    )
}

fn check(cron: CronJob, jobs: &str, expect: Expect) {
    let view = View { cron: Arc::new(cron), jobs: jobs.split_whitespace().map(job).collect() };
    expect.assert_eq(&describe(&plan(&view, at(NOW)), detail));
}

#[test]
fn a_job_is_made_when_it_is_due() {
    check(
        cron("* * * * *", |_| ()),
        "",
        expect![[r#"
        create Job default/sum-29460240 2026-01-05T12:00:00Z
        status CronJob default/sum active=[] last=2026-01-05T12:00:00Z succeeded=
        again in 50.1s
    "#]],
    );
    check(
        cron("5 * * * *", |_| ()),
        "",
        expect![[r#"
        again in 290.1s
    "#]],
    );
    let zone = |zone: &str| cron("0 13 * * *", |cron| cron.spec.time_zone = Some(zone.into()));
    check(
        zone("Europe/Berlin"),
        "",
        expect![[r#"
        create Job default/sum-29460240 2026-01-05T13:00:00+01:00
        status CronJob default/sum active=[] last=2026-01-05T12:00:00Z succeeded=
        again in 86390.1s
    "#]],
    );
    check(
        zone("Moon/Tranquility"),
        "",
        expect![[r#"
        event Warning UnknownTimeZone: invalid timeZone: "Moon/Tranquility": failed to find time zone `Moon/Tranquility` in time zone database
    "#]],
    );
    check(cron("* * * * *", |cron| cron.spec.suspend = Some(true)), "", expect![""]);
}

#[test]
fn a_job_is_made_once_for_a_time() {
    let served = |cron: &mut CronJob| {
        cron.status.get_or_insert_default().last_schedule_time = Some(Time(at("2026-01-05T12:00:00Z")));
    };
    check(
        cron("* * * * *", served),
        "",
        expect![[r#"
        again in 50.1s
    "#]],
    );
    check(
        cron("0 11 * * *", |_| ()),
        "sum-1:m0",
        expect![[r#"
        status CronJob default/sum active=["sum-1"] last=2026-01-05T11:00:00Z succeeded=
        again in 82790.1s
    "#]],
    );
}

#[test]
fn too_late_is_never() {
    let late = |deadline| {
        cron("59 11 * * *", |cron| {
            cron.metadata.creation_timestamp = Some(Time(at("2026-01-05T11:00:00Z")));
            cron.spec.starting_deadline_seconds = Some(deadline);
        })
    };
    check(
        late(5),
        "",
        expect![[r#"
        again in 86330.1s
    "#]],
    );
    check(
        late(100),
        "",
        expect![[r#"
        create Job default/sum-29460239 2026-01-05T11:59:00Z
        status CronJob default/sum active=[] last=2026-01-05T11:59:00Z succeeded=
        again in 86330.1s
    "#]],
    );
    let long_ago = cron("* * * * *", |cron| {
        cron.metadata.creation_timestamp = Some(Time(at("2026-01-01T00:00:00Z")));
    });
    check(
        long_ago,
        "",
        expect![[r#"
        create Job default/sum-29460240 2026-01-05T12:00:00Z
        status CronJob default/sum active=[] last=2026-01-05T12:00:00Z succeeded=
        event Warning TooManyMissedTimes: too many missed start times: 6479. Set or decrease .spec.startingDeadlineSeconds or check clock skew
        again in 50.1s
    "#]],
    );
}

#[test]
fn a_policy_says_what_to_do_about_one_that_runs() {
    let policy = |policy: &str| cron("0 * * * *", |cron| cron.spec.concurrency_policy = Some(policy.into()));
    check(
        policy("Allow"),
        "sum-1:m0",
        expect![[r#"
        create Job default/sum-29460240 2026-01-05T12:00:00Z
        status CronJob default/sum active=["sum-1"] last=2026-01-05T12:00:00Z succeeded=
        again in 3590.1s
    "#]],
    );
    check(
        policy("Forbid"),
        "sum-1:m0",
        expect![[r#"
        status CronJob default/sum active=["sum-1"] last=2026-01-05T11:00:00Z succeeded=
        event Normal JobAlreadyActive: Not starting job because prior execution is running and concurrency policy is Forbid
        again in 3590.1s
    "#]],
    );
    check(
        policy("Forbid"),
        "by-hand:manual",
        expect![[r#"
        create Job default/sum-29460240 2026-01-05T12:00:00Z
        status CronJob default/sum active=[] last=2026-01-05T12:00:00Z succeeded=
        again in 3590.1s
    "#]],
    );
    check(
        policy("Replace"),
        "sum-1:m0",
        expect![[r#"
        delete Job default/sum-1
        create Job default/sum-29460240 2026-01-05T12:00:00Z
        status CronJob default/sum active=[] last=2026-01-05T12:00:00Z succeeded=
        again in 3590.1s
    "#]],
    );
}

#[test]
fn the_history_is_bounded() {
    let known = cron("5 * * * *", |cron| {
        let active = ["sum-3", "sum-9"].map(|name| ObjectReference {
            name: Some(name.into()),
            uid: Some(name.into()),
            ..ObjectReference::default()
        });
        cron.status.get_or_insert_default().active = Some(active.into());
    });
    check(
        known,
        "sum-1:complete:m1 sum-2:failed:m2 sum-3:complete:m3 sum-4:failed:m4 sum-5:m5",
        expect![[r#"
        delete Job default/sum-1
        delete Job default/sum-2
        status CronJob default/sum active=["sum-5"] last=2026-01-05T11:05:00Z succeeded=2026-01-05T11:03:00Z
        event Normal SawCompletedJob: Saw completed job: sum-3, condition: Complete
        event Normal MissingJob: Active job went missing: sum-9
        again in 290.1s
    "#]],
    );
}
