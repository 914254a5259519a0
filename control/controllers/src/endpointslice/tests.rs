use expect_test::{Expect, expect};

use super::*;
use crate::{action::testing::describe, testing};

fn view(service: &str, pods: &str) -> View {
    View {
        service: Arc::new(testing::service(service)),
        pods: pods.split_whitespace().map(|text| Arc::new(testing::pod(text))).collect(),
        slices: Vec::new(),
        zones: [("n1".to_owned(), "z1".to_owned())].into(),
        api: None,
        woken_by: None,
    }
}

fn show(plan: &Plan) -> String {
    describe(plan, |action| {
        let Some(slice) = action.object::<EndpointSlice>() else { return String::new() };
        let endpoint = |endpoint: &Endpoint| {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let mut words = vec![endpoint.addresses.join(",")];
            let flags =
                [("ready", conditions.ready), ("serving", conditions.serving), ("terminating", conditions.terminating)];
            words.extend(flags.iter().filter(|(_, flag)| *flag == Some(true)).map(|(name, _)| (*name).to_owned()));
            words.extend(endpoint.zone.clone());
            words.extend(endpoint.hostname.clone());
            words.join(" ")
        };
        let endpoints: Vec<String> = slice.endpoints.iter().flatten().map(endpoint).collect();
        let ports: Vec<String> = slice.ports.iter().flatten().map(|port| port.port.unwrap().to_string()).collect();
        format!("[{}] on [{}]", endpoints.join(", "), ports.join(","))
    })
}

fn check(service: &str, pods: &str, expect: Expect) {
    expect.assert_eq(&show(&plan(&view(service, pods))));
}

/// Performs a plan on the slices of the view.
fn apply(view: &mut View, plan: Plan) {
    for action in plan.actions {
        if let Action::Delete(deletion) = &action {
            view.slices.retain(|slice| slice.metadata.name.as_deref() != Some(&deletion.target.key.name));
        } else if let Some(slice) = action.object::<EndpointSlice>() {
            let mut slice = slice.clone();
            if slice.metadata.name.is_none() {
                slice.metadata.name = Some(format!("web-{}", view.slices.len()));
            }
            view.slices.retain(|other| other.metadata.name != slice.metadata.name);
            view.slices.push(Arc::new(slice));
        }
    }
    view.slices.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
    assert!(super::plan(view).actions.is_empty(), "nothing is left to do: {}", show(&super::plan(view)));
}

fn sizes(view: &View) -> Vec<usize> {
    view.slices.iter().map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).collect()
}

fn many(count: usize) -> Vec<Arc<Pod>> {
    let text = |index: usize| format!("p{index}:ready:ip=10.0.{}.{}", index / 250, index % 250);
    (0..count).map(|index| Arc::new(testing::pod(&text(index)))).collect()
}

#[test]
fn conditions_tell_ready_serving_and_terminating() {
    check(
        "80:8080",
        "a:ip=10.0.0.1:ready:node=n1 b:ip=10.0.0.2 c:ip=10.0.0.3:ready:deleting",
        expect![[r#"
        create EndpointSlice default/ [10.0.0.1 ready serving z1, 10.0.0.2, 10.0.0.3 serving terminating] on [8080]
    "#]],
    );
    check(
        "80:8080 publish",
        "a:ip=10.0.0.1",
        expect![[r#"
        create EndpointSlice default/ [10.0.0.1 ready] on [8080]
    "#]],
    );
}

#[test]
fn named_ports_divide_the_pods() {
    check(
        "80:http",
        "a:ip=10.0.0.1:ready:http=8080 b:ip=10.0.0.2:ready:http=9090",
        expect![[r#"
        create EndpointSlice default/ [10.0.0.1 ready serving] on [8080]
        create EndpointSlice default/ [10.0.0.2 ready serving] on [9090]
    "#]],
    );
}

#[test]
fn a_service_without_pods_has_an_empty_slice() {
    check(
        "80:8080",
        "",
        expect![[r#"
        create EndpointSlice default/ [] on []
    "#]],
    );
    let mut view = view("80:8080", "a:ip=10.0.0.1:ready");
    let first = plan(&view);
    apply(&mut view, first);
    view.pods.clear();
    let last = plan(&view);
    expect![[r#"
        update EndpointSlice default/web-0 [] on [8080]
    "#]]
    .assert_eq(&show(&last));
    apply(&mut view, last);
}

#[test]
fn services_without_a_selector_are_left_alone() {
    check("80:8080 manual", "a:ip=10.0.0.1:ready", expect![""]);
}

#[test]
fn slices_hold_a_hundred() {
    let mut view = view("80:8080", "");
    view.pods = many(250);
    let first = plan(&view);
    apply(&mut view, first);
    assert_eq!(sizes(&view), [100, 100, 50]);
    view.pods = many(270);
    let second = plan(&view);
    assert_eq!(second.actions.len(), 1, "only the slice with room changes");
    apply(&mut view, second);
    assert_eq!(sizes(&view), [100, 100, 70]);
    view.pods.retain(|pod| object::name(&pod.metadata) == "p3");
    let third = plan(&view);
    apply(&mut view, third);
    assert_eq!(sizes(&view), [1]);
}

#[test]
fn a_change_of_one_pod_changes_one_slice() {
    let mut view = view("80:8080", "");
    view.pods = many(250);
    let first = plan(&view);
    apply(&mut view, first);
    let mut changed = testing::pod("p120:ip=10.0.0.120");
    changed.metadata.uid = Some("p120".into());
    view.pods[120] = Arc::new(changed);
    assert_eq!(plan(&view).actions.len(), 1);
}

#[test]
fn the_api_service_has_one_slice_with_its_name() {
    let mut view = view("443:6443 manual", "");
    view.api = Some(vec!["192.0.2.1:6443".parse().unwrap()]);
    let first = plan(&view);
    expect![[r#"
        create EndpointSlice default/web [192.0.2.1 ready] on [6443]
    "#]]
    .assert_eq(&show(&first));
    apply(&mut view, first);
    view.api = Some(vec!["192.0.2.2:6443".parse().unwrap(), "192.0.2.3:6443".parse().unwrap()]);
    expect![[r#"
        update EndpointSlice default/web [192.0.2.2 ready, 192.0.2.3 ready] on [6443]
    "#]]
    .assert_eq(&show(&plan(&view)));
}
