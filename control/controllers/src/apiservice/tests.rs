use expect_test::{Expect, expect};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};

use super::*;
use crate::{action::testing::describe, testing::service};

fn api(service: bool, managed: Option<&str>) -> APIService {
    let local =
        LocalApi { group: "example.com".into(), version: "v1".into(), group_priority: 1000, version_priority: 100 };
    let mut api = local.object(managed.unwrap_or_default());
    if managed.is_none() {
        api.metadata.labels = None;
    }
    if service {
        let port = None;
        let reference = ServiceReference { name: Some("web".into()), namespace: Some("default".into()), port };
        api.spec.as_mut().unwrap().service = Some(reference);
    }
    api
}

fn slice(port: &str, ready: bool) -> Arc<EndpointSlice> {
    let port = EndpointPort { name: Some(port.into()), port: Some(8443), ..EndpointPort::default() };
    let conditions = EndpointConditions { ready: Some(ready), ..EndpointConditions::default() };
    let mut slice = EndpointSlice { ports: Some(vec![port]), ..EndpointSlice::default() };
    slice.endpoints = Some(vec![Endpoint { conditions: Some(conditions), ..Endpoint::default() }]);
    slice.metadata.labels = Some([(SERVICE_NAME.to_owned(), "web".to_owned())].into());
    Arc::new(slice)
}

fn check(service: Option<&str>, slices: &[Arc<EndpointSlice>], expect: Expect) {
    let api = api(true, None);
    let service = service.map(crate::testing::service);
    let found = problem(reference(&api).unwrap(), service.as_ref(), slices);
    expect.assert_eq(&found.map_or_else(String::new, |(reason, message)| format!("{reason}: {message}")));
}

#[test]
fn what_keeps_requests_from_a_service() {
    check(None, &[], expect![[r#"ServiceNotFound: service/web in "default" is not present"#]]);
    check(
        Some("80:8443"),
        &[],
        expect![[r#"ServicePortError: service/web in "default" is not listening on port 443"#]],
    );
    check(
        Some("443:8443"),
        &[],
        expect![[r#"EndpointsNotFound: cannot find endpointslices for service/web in "default""#]],
    );
    let missing = expect![[
        r#"MissingEndpoints: endpointslices for service/web in "default" have no addresses with port name """#
    ]];
    check(Some("443:8443"), &[slice("", false), slice("other", true)], missing);
    check(Some("443:8443"), &[slice("", true)], expect![""]);
    let mut outside = service("443:8443");
    outside.spec.as_mut().unwrap().type_ = Some("ExternalName".into());
    let api = api(true, None);
    assert_eq!(problem(reference(&api).unwrap(), Some(&outside), &[]).unwrap().0, "ServiceAccessError");
}

fn planned(api: APIService, local: bool, probe: Option<Result<(), String>>, expect: Expect) {
    let own = self::api(false, Some("true"));
    let local = local.then(|| LocalApi {
        group: own.spec.as_ref().unwrap().group.clone().unwrap(),
        version: "v1".into(),
        group_priority: 1000,
        version_priority: 100,
    });
    let view = View { api: Arc::new(api), local, unreachable: None, probe };
    expect.assert_eq(&describe(&plan(&view, Timestamp::UNIX_EPOCH), |action| {
        let Some(api) = action.object::<APIService>() else { return String::new() };
        let conditions = api.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let shown = conditions.map(|one| format!("{}={} {}", one.type_, one.status, one.reason.clone().unwrap()));
        shown.collect::<Vec<_>>().join(", ")
    }));
}

#[test]
fn what_the_system_keeps_stays_as_it_is() {
    let available = expect![[r#"
        status APIService v1.example.com Available=True Local
    "#]];
    planned(api(false, Some("true")), true, None, available);
    let taken = expect![[r#"
        update APIService v1.example.com
    "#]];
    planned(api(true, Some("true")), true, Some(Ok(())), taken);
    let gone = expect![[r#"
        delete APIService v1.example.com
    "#]];
    planned(api(false, Some("true")), false, None, gone);
}

#[test]
fn other_servers_are_available_when_they_answer() {
    let passed = expect![[r#"
        status APIService v1.example.com Available=True Passed
        again in 30s
    "#]];
    planned(api(true, None), true, Some(Ok(())), passed);
    let failed = expect![[r#"
        status APIService v1.example.com Available=False FailedDiscoveryCheck
        again in 5s
    "#]];
    planned(api(true, None), false, Some(Err("no answer".into())), failed);
}

#[test]
fn conditions_of_others_stay() {
    let other = APIServiceCondition { type_: "Other".into(), status: "True".into(), ..APIServiceCondition::default() };
    let before = APIServiceStatus { conditions: Some(vec![other.clone()]) };
    let once = set(&before, ("True", "Passed", String::new()), Timestamp::UNIX_EPOCH);
    assert_eq!(once.conditions.as_ref().unwrap()[0], other);
    let later = Timestamp::from_second(60).unwrap();
    assert_eq!(set(&once, ("True", "Passed", String::new()), later), once, "only a change counts as one");
}
