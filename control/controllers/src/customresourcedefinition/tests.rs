use expect_test::{Expect, expect};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    types::{Names, Spec, Version},
    *,
};
use crate::action::testing::describe;

fn definition(plural: &str, kind: &str, short: &[&str]) -> CustomResourceDefinition {
    let names = Names {
        plural: plural.into(),
        singular: kind.to_lowercase(),
        short_names: short.iter().map(ToString::to_string).collect(),
        kind: kind.into(),
        list_kind: format!("{kind}List"),
        categories: Vec::new(),
    };
    CustomResourceDefinition {
        metadata: ObjectMeta {
            name: Some(format!("{plural}.example.com")),
            uid: Some(plural.into()),
            ..ObjectMeta::default()
        },
        spec: Spec { group: "example.com".into(), names, versions: vec![Version { name: "v1".into(), served: true }] },
        status: None,
    }
}

/// As it is after its plan.
fn decided(definition: CustomResourceDefinition, others: &[CustomResourceDefinition]) -> CustomResourceDefinition {
    let others = others.iter().cloned().map(Arc::new).collect();
    let view = View { definition: Arc::new(definition.clone()), others, instances: None };
    let plan = Definitions::plan(&view, Timestamp::UNIX_EPOCH);
    let written = plan.actions.first().and_then(|action| action.object::<CustomResourceDefinition>());
    written.cloned().unwrap_or(definition)
}

fn check(definition: &CustomResourceDefinition, expected: Expect) {
    let status = definition.status.clone().unwrap();
    let conditions = status.conditions.iter();
    let lines = conditions.map(|one| format!("{} {} {}: {}\n", one.type_, one.status, one.reason, one.message));
    let names = &status.accepted_names;
    let accepted = format!("{} {} {} {:?}\n", names.plural, names.singular, names.kind, names.short_names);
    expected.assert_eq(&(accepted + &lines.collect::<String>()));
}

#[test]
fn the_first_gets_its_names_and_keeps_them() {
    let tabs = decided(definition("crontabs", "CronTab", &["ct"]), &[]);
    check(
        &tabs,
        expect![[r#"
            crontabs crontab CronTab ["ct"]
            NamesAccepted True NoConflicts: no conflicts found
            Established True InitialNamesAccepted: the initial names have been accepted
        "#]],
    );
    let again = decided(definition("others", "CronTab", &["ct", "o"]), std::slice::from_ref(&tabs));
    check(
        &again,
        expect![[r#"
            others   []
            NamesAccepted False ListKindConflict: "CronTabList" is already in use
            Established False NotAccepted: not all names are accepted
        "#]],
    );
    let unmoved = decided(tabs.clone(), &[again]);
    assert_eq!(unmoved.status, tabs.status);
}

fn ending(objects: &[&str], expected: Expect) {
    let mut tabs = decided(definition("crontabs", "CronTab", &[]), &[]);
    tabs.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    tabs.metadata.finalizers = Some(vec![FINALIZER.into(), "example.com/mine".into()]);
    let resource = resource(&tabs).unwrap();
    let meta = |name: &&str| ObjectMeta {
        name: Some(name.trim_end_matches('!').into()),
        namespace: Some("a".into()),
        uid: Some((*name).into()),
        deletion_timestamp: name.ends_with('!').then_some(Time(Timestamp::UNIX_EPOCH)),
        ..ObjectMeta::default()
    };
    let instances = Some((resource, objects.iter().map(meta).collect()));
    let view = View { definition: Arc::new(tabs), others: Vec::new(), instances };
    expected.assert_eq(&describe(&Definitions::plan(&view, Timestamp::UNIX_EPOCH), |_| String::new()));
}

#[test]
fn objects_go_before_their_definition() {
    ending(
        &["one", "two!"],
        expect![[r#"
            delete CronTab a/one
            status CustomResourceDefinition crontabs.example.com
            again in 1s
        "#]],
    );
    ending(
        &[],
        expect![[r#"
            patch CustomResourceDefinition crontabs.example.com {"metadata":{"resourceVersion":null,"finalizers":["example.com/mine"]}}
        "#]],
    );
}
