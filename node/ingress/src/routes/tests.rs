use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde_json::{Value, json};

use super::*;

fn object<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn class(name: &str, controller: &str) -> Arc<IngressClass> {
    object(json!({"metadata": {"name": name}, "spec": {"controller": controller}}))
}

/// An Ingress of our class: `age` is the second of its creation, a path is `HOST KIND PATH SERVICE`.
fn ingress(age: u8, paths: &[&str]) -> Arc<Ingress> {
    let rules: Vec<Value> = paths
        .iter()
        .map(|line| {
            let [host, kind, path, service] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let backend = json!({"service": {"name": service, "port": {"number": 80}}});
            let rule = json!({"paths": [{"path": path, "pathType": kind, "backend": backend}]});
            if host == "-" { json!({"http": rule}) } else { json!({"host": host, "http": rule}) }
        })
        .collect();
    object(json!({
        "metadata": {"name": format!("i{age}"), "namespace": "ns", "creationTimestamp": format!("2026-01-01T00:00:{age:02}Z")},
        "spec": {"ingressClassName": "tandem", "rules": rules},
    }))
}

fn table_of(mut snapshot: Snapshot) -> Table {
    snapshot.classes.push(class("tandem", "tandem.dev/ingress"));
    snapshot.classes.push(class("other", "example.com/other"));
    build(&snapshot, &crate::certificates::self_signed().unwrap())
}

fn table(ingresses: Vec<Arc<Ingress>>) -> Table {
    table_of(Snapshot { ingresses, ..Snapshot::default() })
}

fn check(table: &Table, host: &str, path: &str, expected: &str) {
    let found = table.route(host, path).map_or("-", |backend| backend.name.trim_start_matches("ns/"));
    assert_eq!(found, expected, "{host} {path}");
}

/// The examples of <https://kubernetes.io/docs/concepts/services-networking/ingress/#examples>.
#[test]
fn paths_match_as_the_examples_of_kubernetes_say() {
    let examples: &[(&[&str], &str, &str)] = &[
        (&["Prefix /"], "/any/path", "/"),
        (&["Exact /foo"], "/foo", "/foo"),
        (&["Exact /foo"], "/bar", "-"),
        (&["Exact /foo"], "/foo/", "-"),
        (&["Exact /foo/"], "/foo", "-"),
        (&["Prefix /foo"], "/foo", "/foo"),
        (&["Prefix /foo"], "/foo/", "/foo"),
        (&["Prefix /foo/"], "/foo", "/foo/"),
        (&["Prefix /foo/"], "/foo/", "/foo/"),
        (&["Prefix /aaa/bb"], "/aaa/bbb", "-"),
        (&["Prefix /aaa/bbb"], "/aaa/bbb", "/aaa/bbb"),
        (&["Prefix /aaa/bbb/"], "/aaa/bbb", "/aaa/bbb/"),
        (&["Prefix /aaa/bbb"], "/aaa/bbb/", "/aaa/bbb"),
        (&["Prefix /aaa/bbb"], "/aaa/bbb/ccc", "/aaa/bbb"),
        (&["Prefix /aaa/bbb"], "/aaa/bbbxyz", "-"),
        (&["Prefix /", "Prefix /aaa"], "/aaa/ccc", "/aaa"),
        (&["Prefix /", "Prefix /aaa", "Prefix /aaa/bbb"], "/aaa/bbb", "/aaa/bbb"),
        (&["Prefix /", "Prefix /aaa", "Prefix /aaa/bbb"], "/ccc", "/"),
        (&["Prefix /aaa"], "/ccc", "-"),
        (&["ImplementationSpecific /a"], "/a/b", "/a"),
    ];
    for (paths, asked, expected) in examples {
        let lines: Vec<String> =
            paths.iter().map(|path| format!("- {path} {}", path.split(' ').nth(1).unwrap())).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        check(&table(vec![ingress(1, &lines)]), "h", asked, expected);
    }
    let mixed = table(vec![ingress(1, &["- Prefix /foo prefix", "- Exact /foo exact"])]);
    check(&mixed, "h", "/foo", "exact");
    check(&mixed, "h", "/foo/", "prefix");
}

#[test]
fn hosts_match_exactly_then_by_one_label_then_all() {
    let table = table(vec![ingress(
        1,
        &["foo.com Prefix / apex", "*.foo.com Prefix / wild", "x.foo.com Prefix /x exact", "- Prefix /any any"],
    )]);
    check(&table, "bar.foo.com", "/", "wild");
    check(&table, "baz.bar.foo.com", "/", "-");
    check(&table, "foo.com", "/", "apex");
    check(&table, "x.foo.com", "/x", "exact");
    check(&table, "x.foo.com", "/y", "wild");
    check(&table, "else.test", "/any/thing", "any");
    check(&table, "", "/any", "any");
    check(&table, "else.test", "/", "-");
}

#[test]
fn the_oldest_keeps_what_two_want() {
    let both = vec![ingress(9, &["a Prefix / late", "a Prefix /late late"]), ingress(2, &["a Prefix / early"])];
    let table = table(both);
    check(&table, "a", "/", "early");
    check(&table, "a", "/late", "late");
}

#[test]
fn default_backends_take_what_no_rule_matches() {
    let with_default = |age: u8, service: &str, rules: Value| {
        object::<Ingress>(json!({
            "metadata": {"name": service, "namespace": "ns", "creationTimestamp": format!("2026-01-01T00:00:{age:02}Z")},
            "spec": {"ingressClassName": "tandem", "rules": rules,
                "defaultBackend": {"service": {"name": service, "port": {"number": 80}}}},
        }))
    };
    let table = table(vec![
        with_default(1, "all", json!([])),
        with_default(2, "own", json!([{"host": "own.test"}])),
        ingress(3, &["own.test Prefix /x x"]),
    ]);
    check(&table, "own.test", "/x", "x");
    check(&table, "own.test", "/y", "own");
    check(&table, "other.test", "/y", "all");
    let table = super::tests::table(vec![
        ingress(1, &["- Prefix / everything"]),
        with_default(2, "own", json!([{"host": "own.test"}, {"host": "*.wild.test"}])),
        ingress(3, &["none.test Prefix /x x"]),
    ]);
    check(&table, "own.test", "/y", "own");
    check(&table, "a.wild.test", "/y", "own");
    check(&table, "none.test", "/y", "everything");
    check(&table, "other.test", "/y", "everything");
}

#[test]
fn ingresses_of_other_classes_are_left_alone() {
    let of = |spec: Value, annotations: Value| {
        let mut one = json!({"metadata": {"name": "i", "namespace": "ns", "annotations": annotations}, "spec": spec});
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        one["spec"]["defaultBackend"] = backend;
        table(vec![object(one)])
    };
    check(&of(json!({"ingressClassName": "tandem"}), json!({})), "h", "/", "s");
    check(&of(json!({}), json!({"kubernetes.io/ingress.class": "tandem"})), "h", "/", "s");
    check(&of(json!({"ingressClassName": "other"}), json!({})), "h", "/", "-");
    check(&of(json!({"ingressClassName": "missing"}), json!({})), "h", "/", "-");
    check(&of(json!({}), json!({})), "h", "/", "-");
}

fn reach(service: Value, port: Value, slices: Vec<Value>) -> Reach {
    let slices = slices
        .into_iter()
        .map(|mut slice| {
            slice["metadata"] = json!({"namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}});
            slice["addressType"] = json!("IPv4");
            object(slice)
        })
        .collect();
    let service = object(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": service}));
    let ingress = object(json!({"metadata": {"name": "i", "namespace": "ns"}, "spec": {"ingressClassName": "tandem",
        "defaultBackend": {"service": {"name": "web", "port": port}}}}));
    let table = table_of(Snapshot { ingresses: vec![ingress], services: vec![service], slices, ..Snapshot::default() });
    table.route("h", "/").unwrap().reach.clone()
}

#[test]
fn only_ready_endpoints_of_the_port_are_asked() {
    let service =
        json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81, "appProtocol": "kubernetes.io/h2c"}]});
    let slices = || {
        vec![json!({"ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 9090}], "endpoints": [
            {"addresses": ["10.0.0.3"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.5"], "conditions": {"ready": true, "terminating": true}},
            {"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.169.254"]}, {"addresses": ["0.0.0.0"]},
        ]})]
    };
    let addresses = |port: u16| [2, 3].map(|last| SocketAddr::from(([10, 0, 0, last], port))).to_vec();
    let a = reach(service.clone(), json!({"number": 80}), slices());
    assert_eq!(a, Reach::Endpoints(addresses(8080), Protocol::Http1));
    let b = reach(service.clone(), json!({"name": "b"}), slices());
    assert_eq!(b, Reach::Endpoints(addresses(9090), Protocol::Http2));
    assert!(matches!(reach(service.clone(), json!({"number": 82}), slices()), Reach::Nowhere(_)));
    assert_eq!(reach(service, json!({"number": 80}), vec![]), Reach::Endpoints(vec![], Protocol::Http1));
    let tls = json!({"ports": [{"port": 80, "appProtocol": "https"}]});
    assert!(matches!(reach(tls, json!({"number": 80}), slices()), Reach::Nowhere(_)));
    let external = json!({"type": "ExternalName", "externalName": "a.test", "ports": [{"port": 80}]});
    assert!(matches!(reach(external, json!({"number": 80}), slices()), Reach::Nowhere(_)));
}

#[test]
fn a_path_that_is_too_long_costs_no_request_anything() {
    let long = |length: usize| format!("a Prefix /{} long", "/".repeat(length));
    check(&table(vec![ingress(1, &[&long(1000)])]), "a", &"/".repeat(5000), "long");
    check(&table(vec![ingress(1, &[&long(1024)])]), "a", &"/".repeat(5000), "-");
}

/// An Ingress with TLS for the host `a.test`.
fn with_tls(namespace: &str, age: u8, secrets: &[String]) -> Arc<Ingress> {
    let tls: Vec<Value> = secrets.iter().map(|name| json!({"secretName": name, "hosts": ["a.test"]})).collect();
    object(json!({
        "metadata": {"name": "i", "namespace": namespace, "creationTimestamp": format!("2026-01-01T00:00:{age:02}Z")},
        "spec": {"ingressClassName": "tandem", "tls": tls},
    }))
}

#[test]
fn no_namespace_takes_the_places_of_all_secrets() {
    let names = |count: usize| (0..count).map(|name| name.to_string()).collect::<Vec<_>>();
    let mut ingresses = vec![with_tls("aaa", 9, &names(1000)), with_tls("zzz", 1, &names(1))];
    let served_of = |ingresses: &[Arc<Ingress>]| served(ingresses, &[class("tandem", "tandem.dev/ingress")]);
    let (watched_now, all) = watched(&served_of(&ingresses));
    assert!(!all && watched_now.len() == 65 && watched_now.contains(&("zzz".to_owned(), "0".to_owned())));
    ingresses.extend((0..20).map(|count| with_tls(&format!("b{count}"), 5, &names(60))));
    let (watched_now, all) = watched(&served_of(&ingresses));
    let of = |namespace: &str| watched_now.iter().filter(|(of, _)| of == namespace).count();
    assert!(!all && watched_now.len() == 512);
    assert_eq!((of("zzz"), of("b0"), of("aaa")), (1, 60, 0), "the oldest come first");
    assert!(watched(&served_of(&[with_tls("ns", 1, &names(64))])).1);
}

#[test]
fn a_host_keeps_its_certificate_until_its_new_secret_is_known() {
    let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let secret = json!({"type": "kubernetes.io/tls"});
    let mut secret: k8s_openapi::api::core::v1::Secret = serde_json::from_value(secret).unwrap();
    let data = [("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())];
    let data = data.map(|(name, text)| (name.to_owned(), k8s_openapi::ByteString(text.into_bytes())));
    secret.data = Some(data.into_iter().collect());
    let old = Arc::new(crate::certificates::of_secret(&secret).unwrap());
    let name = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
    let shows_old = |awaited: &[Name], former: Name| {
        let table = table_of(Snapshot {
            ingresses: vec![with_tls("ns", 1, &["new".to_owned()])],
            awaited: awaited.iter().cloned().collect(),
            former: [(former, old.clone())].into(),
            ..Snapshot::default()
        });
        Arc::ptr_eq(table.certificates.of("a.test"), &old.key)
    };
    assert!(shows_old(&[name("ns", "new")], name("ns", "old")));
    assert!(!shows_old(&[], name("ns", "old")), "the Secret is known to give none");
    assert!(!shows_old(&[name("ns", "new")], name("other", "old")), "certificates stay in their namespace");
}

#[test]
fn secrets_of_our_ingresses_are_named_once() {
    let of = |name: &str, class: &str| {
        object::<Ingress>(json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"ingressClassName": class, "tls": [{"secretName": "cert"}, {"hosts": ["a"]}]}}))
    };
    let classes = [class("tandem", "tandem.dev/ingress")];
    let served = served(&[of("a", "tandem"), of("b", "tandem"), of("c", "else")], &classes);
    assert_eq!(watched(&served).0.into_iter().collect::<Vec<_>>(), [("ns".to_owned(), "cert".to_owned())]);
}
