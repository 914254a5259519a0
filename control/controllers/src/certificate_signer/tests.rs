use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::CertificateSigningRequestStatus,
        core::v1::{NodeAddress, NodeStatus},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::*;
use crate::action::testing::describe;

struct Case {
    signer: &'static str,
    user: &'static str,
    group: &'static str,
    usages: &'static [&'static str],
    asked: Asked,
}

fn client() -> Case {
    Case {
        signer: CLIENT,
        user: "system:bootstrap:abcdef",
        group: groups::BOOTSTRAPPERS,
        usages: &["digital signature", "client auth"],
        asked: Asked {
            common_name: "system:node:n1".into(),
            organizations: vec![groups::NODES.into()],
            ..Asked::default()
        },
    }
}

fn serving() -> Case {
    let mut case = client();
    case.asked.dns_names = vec!["n1".into(), "n1.example.com".into()];
    case.asked.addresses = vec!["192.0.2.1".parse().unwrap()];
    Case { signer: SERVING, user: "system:node:n1", group: groups::NODES, usages: &["server auth"], ..case }
}

fn node() -> Node {
    let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
    let addresses = vec![address("InternalIP", "192.0.2.1"), address("Hostname", "n1.example.com")];
    Node { status: Some(NodeStatus { addresses: Some(addresses), ..NodeStatus::default() }), ..Node::default() }
}

fn view(case: Case, status: Option<CertificateSigningRequestStatus>) -> View {
    let mut request = CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(Vec::new()),
            signer_name: case.signer.into(),
            username: Some(case.user.into()),
            groups: Some(vec![case.group.into()]),
            usages: Some(case.usages.iter().map(ToString::to_string).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status,
        ..CertificateSigningRequest::default()
    };
    request.metadata.name = Some("r".into());
    request.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    View { request: Arc::new(request), asked: Some(case.asked), node: Some(Arc::new(node())) }
}

fn show(view: &View, second: i64) -> String {
    let plan = plan(view, Timestamp::from_second(second).unwrap());
    describe(&Plan { requeue: None, ..plan }, |_| String::new())
}

fn check(case: Case) -> bool {
    match show(&view(case, None), 1).as_str() {
        "approval CertificateSigningRequest r\n" => true,
        "" => false,
        other => panic!("{other}"),
    }
}

#[test]
fn nodes_get_certificates_of_their_own() {
    assert!(check(client()), "a machine that joins");
    assert!(check(Case { user: "system:node:n1", group: groups::NODES, ..client() }), "a node that renews");
    assert!(check(serving()));
    let mut waiting = view(serving(), None);
    waiting.node = None;
    assert_eq!(show(&waiting, 1), "", "its addresses are not known yet");
}

#[test]
fn nobody_else_gets_any() {
    let with = |change: fn(&mut Case), base: fn() -> Case| {
        let mut case = base();
        change(&mut case);
        check(case)
    };
    assert!(!with(|case| case.group = groups::AUTHENTICATED, client), "a user");
    assert!(!with(|case| (case.user, case.group) = ("system:node:n2", groups::NODES), client), "another node");
    assert!(!with(|case| case.asked.organizations.push(groups::MASTERS.into()), client), "more groups");
    assert!(!with(|case| case.asked.common_name = "system:node:".into(), client));
    assert!(!with(|case| case.asked.common_name = "admin".into(), client));
    assert!(!with(|case| case.asked.dns_names.push("n1".into()), client), "names in a client certificate");
    assert!(!with(|case| case.usages = &["client auth", "server auth"], client));
    assert!(!with(|case| case.usages = &["digital signature"], client));
    assert!(!with(|case| case.signer = "kubernetes.io/kube-apiserver-client", client));
    assert!(!with(|case| case.group = groups::BOOTSTRAPPERS, serving), "a serving certificate for a token");
    assert!(!with(|case| case.user = "system:node:n2", serving));
    assert!(!with(|case| case.asked.dns_names.push("kubernetes.default".into()), serving), "a name of others");
    assert!(!with(|case| case.asked.addresses.push("10.96.0.1".parse().unwrap()), serving), "an address of others");
    assert!(!with(|case| (case.asked.dns_names, case.asked.addresses) = (Vec::new(), Vec::new()), serving));
    let mut unread = view(client(), None);
    unread.asked = None;
    assert_eq!(show(&unread, 1), "");
}

#[test]
fn what_was_approved_is_signed_once_and_forgotten_later() {
    let condition = |kind: &str| CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        ..CertificateSigningRequestCondition::default()
    };
    let status = |kinds: &[&str], certificate: bool| {
        let conditions = Some(kinds.iter().map(|kind| condition(kind)).collect());
        Some(CertificateSigningRequestStatus { conditions, certificate: certificate.then(|| ByteString(vec![1])) })
    };
    assert_eq!(show(&view(client(), status(&["Approved"], false)), 1), "sign Client\n");
    assert_eq!(show(&view(serving(), status(&["Approved"], false)), 1), "sign Server\n");
    assert_eq!(show(&view(client(), status(&["Approved", "Denied"], false)), 1), "");
    assert_eq!(show(&view(client(), status(&["Approved"], true)), 1), "");
    assert_eq!(show(&view(client(), status(&["Approved"], true)), 3600), "delete CertificateSigningRequest r\n");
    let foreign = Case { signer: "example.com/own", ..client() };
    assert_eq!(show(&view(foreign, status(&["Approved"], false)), 1), "", "another's to sign");
}
