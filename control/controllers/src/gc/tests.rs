use expect_test::{Expect, expect};
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use kube::api::ApiResource;

use super::*;
use crate::{
    action::testing::describe,
    testing::{Answer, Server},
};

/// `uid:word…`; words: deleting, foreground, orphan, `<OWNER` and `<<OWNER` (blocks its deletion).
fn item(text: &str) -> Item {
    let mut words = text.split(':');
    let uid = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let owner = |word: &&str| {
        let uid = word.strip_prefix('<')?.trim_start_matches('<');
        Some(OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: uid.into(),
            uid: uid.into(),
            controller: None,
            block_owner_deletion: word.starts_with("<<").then_some(true),
        })
    };
    let finalizers = [("foreground", FOREGROUND), ("orphan", ORPHAN)];
    let resource =
        if uid.starts_with("rs") { ApiResource::erase::<ReplicaSet>(&()) } else { ApiResource::erase::<Pod>(&()) };
    Item {
        resource: Arc::new(resource),
        key: Key::new("ns", uid),
        uid: uid.into(),
        resource_version: Some("3".into()),
        owners: words.iter().filter_map(owner).collect(),
        finalizers: finalizers
            .iter()
            .filter(|(word, _)| words.contains(word))
            .map(|(_, name)| (*name).into())
            .collect(),
        is_deleting: words.contains(&"deleting"),
    }
}

/// The first object is planned; owners that are not among the others are gone.
fn check(text: &str, expect: Expect) {
    let items: Vec<Item> = text.split_whitespace().map(item).collect();
    let subject = items[0].clone();
    let state = |uid: &str| match items.iter().find(|item| item.uid == uid) {
        None => Owner::Gone,
        Some(item) if item.waits_for_dependents() => Owner::Waiting,
        Some(_) => Owner::There,
    };
    let owners = subject.owners.iter().map(|owner| (owner.clone(), state(&owner.uid))).collect();
    let owned = |item: &&Item| item.owners.iter().any(|owner| owner.uid == subject.uid);
    let dependents = items.iter().filter(owned).cloned().collect();
    let view = View { item: subject, owners, dependents };
    expect.assert_eq(&describe(&plan(&view), |action| match action {
        Action::Delete(deletion) => {
            format!(
                "{:?} at {}",
                deletion.propagation.as_ref().unwrap(),
                deletion.resource_version.as_deref().unwrap_or("any")
            )
        }
        _ => String::new(),
    }));
}

#[test]
fn what_lost_all_its_owners_goes() {
    check(
        "p:<rs1",
        expect![[r#"
        delete Pod ns/p Background at 3
    "#]],
    );
    check("p:<rs1 rs1", expect![""]);
    check("p:deleting:<rs1", expect![""]);
}

#[test]
fn what_lost_some_of_its_owners_stays() {
    check(
        "p:<rs1:<rs2 rs2",
        expect![[r#"
        patch Pod ns/p {"metadata":{"uid":"p","resourceVersion":"3","ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"rs2","uid":"rs2"}]}}
    "#]],
    );
}

#[test]
fn in_the_foreground_the_owned_go_first() {
    check(
        "p:<<rs1 rs1:deleting:foreground",
        expect![[r#"
        delete Pod ns/p Background at 3
    "#]],
    );
    check("rs1:deleting:foreground p:<<rs1", expect![""]);
    check(
        "rs1:deleting:foreground p:<rs1",
        expect![[r#"
        patch ReplicaSet ns/rs1 {"metadata":{"resourceVersion":"3","finalizers":[]}}
    "#]],
    );
    check(
        "rs1:<<rs0 rs0:deleting:foreground p:<<rs1",
        expect![[r#"
        delete ReplicaSet ns/rs1 Foreground at 3
    "#]],
    );
}

#[test]
fn a_circle_of_waiting_owners_is_broken() {
    check(
        "rs1:<<rs2 rs2:<<rs1:deleting:foreground",
        expect![[r#"
        patch ReplicaSet ns/rs1 {"metadata":{"uid":"rs1","resourceVersion":"3","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":false,"kind":"ReplicaSet","name":"rs2","uid":"rs2"}]}}
        delete ReplicaSet ns/rs1 Foreground at any
    "#]],
    );
}

#[test]
fn orphans_are_let_go() {
    check(
        "rs1:deleting:orphan p:<rs1 q:<rs1:<rs2",
        expect![[r#"
        patch Pod ns/p {"metadata":{"uid":"p","resourceVersion":"3","ownerReferences":[]}}
        patch Pod ns/q {"metadata":{"uid":"q","resourceVersion":"3","ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"rs2","uid":"rs2"}]}}
        patch ReplicaSet ns/rs1 {"metadata":{"resourceVersion":"3","finalizers":[]}}
    "#]],
    );
}

#[test]
fn a_change_wakes_those_that_it_matters_to() {
    let mut graph = Graph::default();
    let mut set = |text: &str| {
        let mut woken = graph.set(item(text));
        woken.sort();
        woken.dedup();
        woken.join(" ")
    };
    assert_eq!(set("rs1"), "");
    assert_eq!(set("p:<<rs1"), "p");
    assert_eq!(set("q:<<rs1"), "q");
    assert_eq!(set("q:<<rs1"), "", "only something else has changed");
    assert_eq!(set("rs1:deleting:foreground"), "p q rs1");
    assert_eq!(set("p"), "rs1", "it blocks no more");
    assert_eq!(graph.dependents("rs1").count(), 1);
    assert_eq!(graph.remove("q"), ["rs1"]);
    graph.set(item("q:<<rs1"));
    assert_eq!(graph.remove("rs1"), ["q"]);
    let pods = ApiResource::erase::<Pod>(&());
    graph.set(item("rs2"));
    graph.retain(&pods, &HashSet::from(["p".to_owned()]));
    assert!(graph.get("p").is_some() && graph.get("q").is_none() && graph.get("rs2").is_some());
}

fn collector(namespaced: bool) -> Collector {
    let collector = Collector::default();
    let resource = Resource { api: ApiResource::erase::<ReplicaSet>(&()), namespaced, watched: true };
    collector.0.resources.write().push(resource);
    collector
}

async fn planned(collector: &Collector, server: &Server, dependent: Item) -> String {
    let uid = dependent.uid.clone();
    collector.0.graph.write().set(dependent);
    let (cache, client) = (Cache::default(), server.client());
    let input = Input { cache: &cache, client: &client, failure: None, now: jiff::Timestamp::UNIX_EPOCH };
    describe(&collector.plan(&input, &uid).await.unwrap(), |_| String::new())
}

fn within(namespace: &str, text: &str) -> Item {
    let item = item(text);
    Item { key: Key::new(namespace, &item.key.name), ..item }
}

#[tokio::test]
async fn what_has_no_namespace_keeps_an_owner_that_has_one() {
    let (server, collector) = (Server::new(|_| Answer::NotFound), collector(true));
    let expected = expect![[r#"
        event Warning OwnerRefInvalidNamespace: ownerRef [apps/v1/ReplicaSet, namespace: , name: rs1, uid: rs1] does not exist in namespace ""
    "#]];
    expected.assert_eq(&planned(&collector, &server, within("", "p:<rs1")).await);
    collector.0.graph.write().set(item("rs1"));
    expected.assert_eq(&planned(&collector, &server, within("", "p:<rs1")).await);
    assert_eq!(server.asked(), [""; 0], "there is no such path");
}

#[tokio::test]
async fn an_owner_that_is_gone_from_one_namespace_may_be_in_another() {
    let there = r#"{"metadata": {"uid": "rs1"}}"#;
    let server =
        Server::new(move |asked| if asked.contains("/mine/") { Answer::Body(there) } else { Answer::NotFound });
    let collector = collector(true);
    expect![[r#"
        delete Pod other/p
    "#]]
    .assert_eq(&planned(&collector, &server, within("other", "p:<rs1")).await);
    assert_eq!(planned(&collector, &server, within("mine", "q:<rs1")).await, "", "its owner is there");
    planned(&collector, &server, within("other", "r:<rs1")).await;
    assert_eq!(server.asked().len(), 2, "what is gone is known");
}

#[tokio::test]
async fn what_is_out_of_reach_holds_no_owner_back() {
    let (server, collector) = (Server::new(|_| Answer::NotFound), collector(true));
    collector.0.graph.write().set(within("", "p:<<rs1"));
    let planned = planned(&collector, &server, item("rs1:deleting:foreground")).await;
    expect![[r#"
        patch ReplicaSet ns/rs1 {"metadata":{"resourceVersion":"3","finalizers":[]}}
    "#]]
    .assert_eq(&planned);
}
