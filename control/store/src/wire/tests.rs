use std::fmt::Write as _;

use expect_test::{expect, expect_file};
use openraft::EntryPayload;
use proptest::prelude::*;
use tandem_api::{Key, Revision};

use super::*;
use crate::{
    Aim, Change, Command, Expect, Member, Reply, Role, StateHash, Stored, Written,
    codec::Proposal,
    types::{Membership, Node},
};

fn vote(committed: bool) -> Vote {
    let mut vote = Vote::new(7, 3);
    vote.committed = committed;
    vote
}

fn at(index: u64) -> LogId {
    Position { term: 6, index }.into()
}

fn command() -> Command {
    Command::put(Key::from_raw("/core/pods/default/a"), Bytes::from_static(b"\0v"), Expect::At(Revision(258)))
}

fn entries() -> Vec<Entry> {
    let nodes = [(3, Node { name: "c".to_owned(), address: "10.0.0.3:6443".to_owned(), aim: Aim::Replace(1) })];
    let nodes: std::collections::BTreeMap<u64, Node> = nodes.into_iter().collect();
    let membership = Membership::new(vec![std::collections::BTreeSet::from([3])], nodes).unwrap();
    vec![
        Entry { log_id: at(8), payload: EntryPayload::Blank },
        Entry { log_id: at(9), payload: EntryPayload::Normal(Proposal(Arc::new(command()))) },
        Entry { log_id: at(10), payload: EntryPayload::Membership(membership) },
    ]
}

fn calls() -> Vec<Call> {
    let voting = || VoteRequest { leadership_transfer: true, ..VoteRequest::new(vote(false), Some(at(9))) };
    let append = AppendEntriesRequest {
        vote: vote(true),
        prev_log_id: Some(at(7)),
        entries: entries(),
        leader_commit: Some(at(8)),
    };
    let heartbeat =
        AppendEntriesRequest { vote: vote(true), prev_log_id: None, entries: Vec::new(), leader_commit: None };
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/command-v1.hex");
    vec![
        Call::Append(append),
        Call::Append(heartbeat),
        Call::Vote(voting()),
        Call::PreVote(voting()),
        Call::Transfer(TransferLeaderRequest::new(vote(true), 5, Some(at(10)))),
        Call::Snapshot { vote: vote(true), file },
        Call::Write(Arc::new(command())),
        Call::ReadIndex,
        Call::Change(Change::Join { name: "c".to_owned(), address: "10.0.0.3:6443".to_owned(), aim: Aim::Vote }),
        Call::Change(Change::Promote { member: 300 }),
        Call::Change(Change::Remove { member: 3 }),
        Call::Members,
        Call::Hash,
    ]
}

fn answers() -> Vec<Answer> {
    let stored = Stored {
        key: Key::from_raw("/core/pods/default/a"),
        value: Bytes::from_static(b"v"),
        created: Revision(4),
        revision: Revision(300),
    };
    let member = Member {
        id: 300,
        name: "c".to_owned(),
        address: "10.0.0.3:6443".to_owned(),
        role: Role::Learner,
        matched: Some(9),
        lag: None,
        reachable: Some(true),
    };
    let voted = || VoteResponse::new(vote(false), Some(at(9)), true);
    let written = |reply| Answer::Write(Written { reply, index: 11 });
    let mut answers = vec![
        Answer::Append(AppendEntriesResponse::Success),
        Answer::Append(AppendEntriesResponse::PartialSuccess(Some(at(9)))),
        Answer::Append(AppendEntriesResponse::Conflict),
        Answer::Append(AppendEntriesResponse::HigherVote(vote(false))),
        Answer::Vote(voted()),
        Answer::PreVote(voted()),
        Answer::Transfer(Ok(())),
        Answer::Transfer(Err(TransferLeaderError::VoteChanged { expected: vote(true), actual: vote(false) })),
        Answer::Transfer(Err(TransferLeaderError::LogNotFlushed { expected: Some(at(10)), actual: None })),
        Answer::Snapshot(SnapshotResponse::new(vote(true))),
        written(Reply::Done { revision: Revision(300) }),
        written(Reply::Mismatch { op: 1, current: Some(stored) }),
        written(Reply::Fenced { term: 8 }),
        written(Reply::Unsupported { version: 2 }),
        Answer::ReadIndex(11),
        Answer::Change(300),
        Answer::Members(vec![member]),
        Answer::Hash(vec![StateHash { index: 9, hash: u64::MAX }]),
    ];
    let refusals = [
        Refusal::Version { known: 1 },
        Refusal::Kind { kind: 99 },
        Refusal::Damaged("x".to_owned()),
        Refusal::WrongMember { here: 3 },
        Refusal::NotLeader,
        Refusal::Unavailable("x".to_owned()),
        Refusal::Unknown("x".to_owned()),
        Refusal::Denied("x".to_owned()),
        Refusal::Removed { member: 3 },
        Refusal::Full,
    ];
    answers.extend(refusals.map(Answer::Refused));
    answers
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const ROUTE: Route = Route { from: 3, to: 300 };

/// Members of the next release read these, and members of this one must go on writing them.
#[test]
fn the_bytes_of_calls_and_answers_are_frozen() {
    let mut shown = String::new();
    for call in calls() {
        let (frame, body) = encode_call(ROUTE, &call).unwrap();
        let _ = writeln!(shown, "{} {body}", hex(&frame));
        let received = decode_call(&frame).unwrap();
        assert_eq!((received.route, received.body_bytes), (ROUTE, body));
        if !matches!(call, Call::Snapshot { .. }) {
            assert_eq!(format!("{:?}", received.call), format!("{call:?}"));
        }
    }
    shown.push('\n');
    for answer in answers() {
        let frame = encode_answer(&answer).unwrap();
        let _ = writeln!(shown, "{}", hex(&frame));
        assert_eq!(format!("{:?}", decode_answer(&frame).unwrap()), format!("{answer:?}"));
    }
    expect_file!["../../tests/golden/wire-v1.hex"].assert_eq(&shown);
}

#[test]
fn what_is_not_understood_is_named() {
    let (good, _) = encode_call(ROUTE, &calls()[0]).unwrap();
    let changed = |at: usize, to: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = to;
        bytes
    };
    let long = vec![WIRE_VERSION; FRAME_BYTES_MAX + 1];
    let snapshot = |bytes| frame(SNAPSHOT, &(ROUTE, WireSnapshot { vote: vote(true).into(), bytes })).unwrap();
    let cases: [Vec<u8>; 8] = [
        changed(0, 2),
        changed(1, 99),
        changed(good.windows(4).position(|bytes| bytes == b"pods").unwrap(), b'P'),
        good[..good.len() - 1].to_vec(),
        [&good[..], b"more"].concat(),
        Vec::new(),
        long,
        snapshot(SNAPSHOT_BYTES_MAX + 1).to_vec(),
    ];
    let mut shown = String::new();
    for case in cases {
        let error = decode_call(&case).unwrap_err();
        let _ = writeln!(shown, "{error} -> {}", Refusal::from(error.clone()));
    }
    expect![[r#"
        is of version 2, and this release speaks 1 -> it speaks version 1 of the protocol between members
        is of the unknown kind 99 -> it does not know calls of kind 99; run the same release on all members
        is damaged: is damaged: entry 9 does not have its checksum; restore a backup into an empty folder -> the call was damaged on its way: is damaged: is damaged: entry 9 does not have its checksum; restore a backup into an empty folder
        is damaged: Hit the end of buffer, expected more data -> the call was damaged on its way: is damaged: Hit the end of buffer, expected more data
        is damaged: bytes follow it -> the call was damaged on its way: is damaged: bytes follow it
        is damaged: cut short -> the call was damaged on its way: is damaged: cut short
        has 17825793 bytes; 17825792 are the most -> the call was damaged on its way: has 17825793 bytes; 17825792 are the most
        has 68719476737 bytes; 68719476736 are the most -> the call was damaged on its way: has 68719476737 bytes; 68719476736 are the most
    "#]].assert_eq(&shown);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(kind in 0u8..12, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let frame = [&[WIRE_VERSION, kind], &bytes[..]].concat();
        let _ = decode_call(&frame);
        let _ = decode_answer(&frame);
        let _ = decode_call(&bytes);
    }

    #[test]
    fn damaged_frames_are_read_or_refused_without_a_panic(which: prop::sample::Index, at: prop::sample::Index, to: u8) {
        let mut frames: Vec<Vec<u8>> = calls().iter().map(|call| encode_call(ROUTE, call).unwrap().0.to_vec()).collect();
        frames.extend(answers().iter().map(|answer| encode_answer(answer).unwrap().to_vec()));
        let mut frame = which.get(&frames).clone();
        let at = at.index(frame.len());
        frame[at] = to;
        let _ = decode_call(&frame);
        let _ = decode_answer(&frame);
        frame.truncate(at);
        let _ = decode_call(&frame);
        let _ = decode_answer(&frame);
    }
}
