use expect_test::{Expect, expect};

use super::*;

#[test]
fn names_come_from_the_folder_and_fit_into_a_link_name() {
    let names = Names::new(Path::new("/var/lib/tandem/node"));
    expect!["tdl707a1490 /var/lib/tandem/node/netns/light [2, 112, 122, 20, 144, 1]"].assert_eq(&format!(
        "{} {} {:?}",
        names.light_link,
        names.light_namespace.display(),
        names.hardware(1)
    ));
    assert!(names.light_link.len() < 16);
    assert_ne!(names.light_link, Names::new(Path::new("/other/node")).light_link);
}

fn routes(text: &str) -> BTreeMap<Ipv4Net, Ipv4Addr> {
    text.split_whitespace()
        .map(|route| {
            let (network, via) = route.split_once('>').unwrap();
            (format!("10.{network}.0.0/16").parse().unwrap(), Ipv4Addr::new(192, 0, 2, via.parse().unwrap()))
        })
        .collect()
}

fn check(present: &str, wanted: &str, expected: Expect) {
    let changes = changes(&routes(present), &routes(wanted));
    expected.assert_eq(&format!("{changes:?}"));
}

#[test]
fn only_differences_are_changed() {
    check("", "", expect!["[]"]);
    check("1>1 2>2", "1>1 2>2", expect!["[]"]);
    check("", "1>1", expect!["[Set(10.1.0.0/16, 192.0.2.1)]"]);
    check("1>1 2>2", "2>2", expect!["[Remove(10.1.0.0/16, 192.0.2.1)]"]);
    check(
        "1>1 2>2",
        "2>3 4>1",
        expect!["[Remove(10.1.0.0/16, 192.0.2.1), Set(10.2.0.0/16, 192.0.2.3), Set(10.4.0.0/16, 192.0.2.1)]"],
    );
}
