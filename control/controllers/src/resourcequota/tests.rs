use expect_test::{Expect, expect};
use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::*;
use crate::{
    action::testing::describe,
    cache::Gone,
    testing::{Answer, Server},
};

fn quota(spec: &str, status: &str) -> ResourceQuota {
    let json = format!(
        r#"{{"apiVersion":"v1","kind":"ResourceQuota","metadata":{{"name":"q","namespace":"a"}},"spec":{spec},"status":{status}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

fn objects(json: &str) -> Objects {
    Objects::All(serde_json::from_str(json).unwrap())
}

fn check(spec: &str, status: &str, found: Vec<(&str, Objects)>, expect: Expect) {
    let quota = Arc::new(quota(spec, status));
    let plain = serde_json::from_slice(&serde_json::to_vec(&*quota).unwrap()).unwrap();
    let found = found.into_iter().map(|(resource, objects)| Found {
        group: String::new(),
        resource: resource.to_owned(),
        objects,
    });
    let view = View { quota, plain, found: found.collect() };
    expect.assert_eq(&describe(&plan(&view, Timestamp::UNIX_EPOCH), |action| {
        let Some(quota) = action.object::<ResourceQuota>() else { return String::new() };
        let status = quota.status.clone().unwrap();
        let show = |amounts: Option<std::collections::BTreeMap<String, Quantity>>| {
            let pairs = amounts.unwrap_or_default().into_iter().map(|(name, amount)| format!("{name}={}", amount.0));
            pairs.collect::<Vec<_>>().join(",")
        };
        format!("{} of {}", show(status.used), show(status.hard))
    }));
}

const PODS: &str = r#"[
    {"spec": {"containers": [{"resources": {"requests": {"cpu": "250m"}}}]}, "status": {"qosClass": "Burstable"}},
    {"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}, "status": {"phase": "Succeeded"}},
    {"spec": {"containers": [{}]}, "status": {"qosClass": "BestEffort"}}
]"#;

#[test]
fn a_new_quota_is_counted() {
    check(
        r#"{"hard": {"pods": "4", "count/pods": "9", "requests.cpu": "1", "configmaps": "3", "nobody/knows": "1"}}"#,
        "{}",
        vec![("pods", objects(PODS)), ("configmaps", Objects::Number(2))],
        expect![[r#"
            status ResourceQuota a/q configmaps=2,count/pods=3,pods=2,requests.cpu=250m of configmaps=3,count/pods=9,nobody/knows=1,pods=4,requests.cpu=1
            again in 1s
        "#]],
    );
}

#[test]
fn what_is_known_is_not_written_again() {
    let status = |used: &str| format!(r#"{{"hard": {{"pods": "4"}}, "used": {{"pods": "{used}"}}}}"#);
    let found = || vec![("pods", objects(PODS))];
    check(
        r#"{"hard": {"pods": "4"}}"#,
        &status("2"),
        found(),
        expect![[r#"
        again in 300s
    "#]],
    );
    check(
        r#"{"hard": {"pods": "4"}}"#,
        &status("3"),
        found(),
        expect![[r#"
        status ResourceQuota a/q pods=2 of pods=4
        again in 300s
    "#]],
    );
}

#[test]
fn scopes_choose_what_counts() {
    check(
        r#"{"hard": {"pods": "4", "configmaps": "1"}, "scopes": ["BestEffort"]}"#,
        "{}",
        vec![("pods", objects(PODS)), ("configmaps", Objects::Number(2))],
        expect![[r#"
            status ResourceQuota a/q configmaps=0,pods=1 of configmaps=1,pods=4
            again in 1s
        "#]],
    );
}

#[test]
fn only_what_frees_something_wakes() {
    let cache = Cache::default();
    let quota = quota(r#"{"hard": {"pods": "4", "secrets": "1", "count/jobs.batch": "1"}}"#, "{}");
    let charged = ResourceQuota { status: Some(ResourceQuotaStatus::default()), ..quota.clone() };
    let wakes = |change: Change| Quotas.wakes(&cache, &change).len();
    assert_eq!(wakes(Change::ResourceQuota(cache.quotas.apply(quota))), 1);
    assert_eq!(wakes(Change::ResourceQuota(cache.quotas.apply(charged))), 0);
    let pod = |phase: &str| {
        let metadata = ObjectMeta { name: Some("p".into()), namespace: Some("a".into()), ..ObjectMeta::default() };
        let status = PodStatus { phase: Some(phase.into()), ..PodStatus::default() };
        Pod { metadata, status: Some(status), ..Pod::default() }
    };
    assert_eq!(wakes(Change::Pod(cache.pods.apply(pod("Running")))), 0);
    assert_eq!(wakes(Change::Pod(cache.pods.apply(pod("Failed")))), 1);
    assert_eq!(wakes(Change::Pod(cache.pods.remove(&pod("Failed")))), 1);
    let gone = |namespace: &str, group: &str, plural: &str| {
        let (namespace, group, plural) = (namespace.to_owned(), group.to_owned(), plural.to_owned());
        wakes(Change::Gone(Gone { namespace, group, plural }))
    };
    assert_eq!([gone("a", "", "secrets"), gone("a", "batch", "jobs")], [1, 1]);
    assert_eq!([gone("b", "", "secrets"), gone("a", "", "configmaps"), gone("a", "", "pods")], [0, 0, 0]);
}

#[tokio::test]
async fn objects_are_counted_without_being_read() {
    let server = Server::new(|asked| match asked {
        "GET /api/v1/namespaces/a/secrets" => {
            Answer::Body(r#"{"metadata": {"remainingItemCount": 6}, "items": [{"metadata": {"name": "one"}}]}"#)
        }
        "GET /api/v1/namespaces/a/pods" => Answer::Body(r#"{"metadata": {}, "items": [{"spec": {}}, {"spec": {}}]}"#),
        _ => Answer::NotFound,
    });
    let (cache, client) = (Cache::default(), server.client());
    let input = Input { cache: &cache, client: &client, failure: None, now: Timestamp::UNIX_EPOCH };
    let hard = r#"{"hard": {"pods": "4", "secrets": "1", "count/secrets": "1", "count/unicorns": "1"}}"#;
    let view = Quotas.view(&input, Arc::new(quota(hard, "{}"))).await.unwrap();
    assert_eq!(quota::show(&used(&view, input.now)), "count/secrets=7,pods=2,secrets=7");
    assert_eq!(server.asked().len(), 3, "each resource once");
}
