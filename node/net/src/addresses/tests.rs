use std::collections::HashMap;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn ranges(network: &str) -> Ranges {
    Ranges::new(network.parse().unwrap()).unwrap()
}

fn check(network: &str, expected: Expect) {
    let ranges = ranges(network);
    let show = |class| {
        let offsets = ranges.offsets(class);
        format!("{} to {}", ranges.at(*offsets.start()), ranges.at(*offsets.end()))
    };
    let [one, two] = ranges.light_networks();
    expected.assert_eq(&format!(
        "gateway {}, own {}, light {} in {one} and {two}, by way of {}",
        ranges.gateway(),
        show(AddressClass::Own),
        show(AddressClass::Light),
        ranges.light_hop(),
    ));
}

#[test]
fn a_node_network_is_divided_by_prefix() {
    check(
        "10.128.64.0/18",
        expect![
            "gateway 10.128.64.1, own 10.128.64.2 to 10.128.79.255, light 10.128.80.0 to 10.128.127.254 in 10.128.80.0/20 and 10.128.96.0/19, by way of 10.128.127.255"
        ],
    );
    check(
        "10.1.2.0/24",
        expect![
            "gateway 10.1.2.1, own 10.1.2.2 to 10.1.2.63, light 10.1.2.64 to 10.1.2.254 in 10.1.2.64/26 and 10.1.2.128/25, by way of 10.1.2.255"
        ],
    );
    check(
        "10.1.2.32/27",
        expect![
            "gateway 10.1.2.33, own 10.1.2.34 to 10.1.2.39, light 10.1.2.40 to 10.1.2.62 in 10.1.2.40/29 and 10.1.2.48/28, by way of 10.1.2.63"
        ],
    );
}

#[test]
fn a_network_without_room_is_refused() {
    let error = Ranges::new("10.1.2.0/28".parse().unwrap()).unwrap_err();
    expect!["the pod network 10.1.2.0/28 of this node is too small: /27 at least"].assert_eq(&error.to_string());
}

#[test]
fn an_owner_keeps_its_address_until_it_is_released() {
    let mut table = Table::new(ranges("10.1.2.0/24"));
    let first = table.allocate("a", AddressClass::Own).unwrap();
    assert_eq!(table.allocate("a", AddressClass::Own).unwrap(), first);
    table.release("a");
    table.release("a");
    assert_ne!(table.allocate("a", AddressClass::Own).unwrap(), first);
}

#[test]
fn exhaustion_says_so_and_ends_with_a_release() {
    let mut table = Table::new(ranges("10.1.2.0/27"));
    for number in 0..6 {
        table.allocate(&number.to_string(), AddressClass::Own).unwrap();
    }
    let error = table.allocate("more", AddressClass::Own).unwrap_err();
    expect!["all 6 addresses for ordinary pods in 10.1.2.0/27 are in use"].assert_eq(&error.to_string());
    table.allocate("light", AddressClass::Light).unwrap();
    table.release("3");
    assert_eq!(table.allocate("more", AddressClass::Own).unwrap().to_string(), "10.1.2.5");
}

#[test]
fn an_address_comes_back_only_after_all_others() {
    let mut table = Table::new(ranges("10.1.2.0/24"));
    let mut seen = HashSet::new();
    for _ in 0..62 {
        assert!(seen.insert(table.allocate("a", AddressClass::Own).unwrap()));
        table.release("a");
    }
    assert!(!seen.insert(table.allocate("a", AddressClass::Own).unwrap()));
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u8, AddressClass),
    Release(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u8>(), prop_oneof![Just(AddressClass::Own), Just(AddressClass::Light)])
            .prop_map(|(owner, class)| Step::Allocate(owner, class)),
        3 => any::<u8>().prop_map(Step::Release),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// No address has two owners, each is of its class, and the one given last is not the next one.
    #[test]
    fn addresses_are_never_given_twice(steps in proptest::collection::vec(step(), 1..400)) {
        let ranges = ranges("10.1.2.0/26");
        let mut table = Table::new(ranges);
        let mut held: HashMap<u8, Ipv4Addr> = HashMap::new();
        let mut given: Vec<(AddressClass, Ipv4Addr)> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate(owner, class) => match table.allocate(&owner.to_string(), class) {
                    Ok(address) => match held.get(&owner) {
                        Some(before) => prop_assert_eq!(*before, address),
                        None => {
                            prop_assert!(!held.values().any(|other| *other == address));
                            let offsets = ranges.offsets(class);
                            prop_assert!(offsets.contains(&ranges.offset(address).unwrap()));
                            let free = offsets.count() - held.values().filter(|other| {
                                ranges.offsets(class).contains(&ranges.offset(**other).unwrap())
                            }).count();
                            let last = given.iter().rev().find(|(of, _)| *of == class);
                            prop_assert!(free == 1 || last.is_none_or(|(_, last)| *last != address));
                            given.push((class, address));
                            held.insert(owner, address);
                        }
                    },
                    Err(_) => {
                        let held = held.values().filter(|other| {
                            ranges.offsets(class).contains(&ranges.offset(**other).unwrap())
                        }).count();
                        prop_assert_eq!(held, ranges.offsets(class).count());
                    }
                },
                Step::Release(owner) => {
                    table.release(&owner.to_string());
                    held.remove(&owner);
                }
                Step::Restart => {
                    let text = serde_json::to_vec(&table.save()).unwrap();
                    table = Table::restore(ranges, parse(Path::new("addresses.json"), &text).unwrap());
                }
            }
        }
    }
}

fn network() -> Ipv4Net {
    "10.1.2.0/24".parse().unwrap()
}

#[tokio::test]
async fn what_was_given_is_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("addresses.json");
    let allocator = Allocator::open(&path, network()).unwrap();
    let address = allocator.allocate("a", AddressClass::Light).await.unwrap();
    let gone = allocator.allocate("b", AddressClass::Light).await.unwrap();
    allocator.release("b").await.unwrap();
    drop(allocator);

    let allocator = Allocator::open(&path, network()).unwrap();
    assert_eq!(allocator.find("a"), Some(address));
    assert_eq!(allocator.find("b"), None);
    assert_ne!(allocator.allocate("c", AddressClass::Light).await.unwrap(), gone);
}

#[tokio::test]
async fn the_format_of_the_file_is_fixed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("addresses.json");
    let allocator = Allocator::open(&path, network()).unwrap();
    allocator.allocate("pod/u1", AddressClass::Light).await.unwrap();
    allocator.allocate("cni/s1", AddressClass::Own).await.unwrap();
    expect![[r#"{"format":1,"network":"10.1.2.0/24","next":{"own":3,"light":65},"owners":{"cni/s1":"10.1.2.2","pod/u1":"10.1.2.64"}}"#]]
        .assert_eq(&std::fs::read_to_string(&path).unwrap());
}

#[test]
fn a_file_that_cannot_be_used_is_not_thrown_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("addresses.json");
    let open = |contents: &str| {
        std::fs::write(&path, contents).unwrap();
        Allocator::open(&path, network()).unwrap_err().to_string().replace(path.to_str().unwrap(), "FILE")
    };
    expect!["FILE has format 2, which this version does not know"].assert_eq(&open(r#"{"format":2}"#));
    expect!["FILE is damaged: EOF while parsing a value at line 1 column 0"].assert_eq(&open(""));
}

#[tokio::test]
async fn many_at_once_share_writes_and_get_different_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let allocator = Allocator::open(&directory.path().join("addresses.json"), network()).unwrap();
    let tasks = (0..150).map(|number| {
        let allocator = allocator.clone();
        async move { allocator.allocate(&number.to_string(), AddressClass::Light).await.unwrap() }
    });
    let addresses: HashSet<Ipv4Addr> = futures::future::join_all(tasks).await.into_iter().collect();
    assert_eq!(addresses.len(), 150);
}
