//! Writers and readers of the load, and what each takes down of it.

use std::collections::HashMap;

use bytes::Bytes;
use http::{Method, StatusCode};
use tandem_simulation::history::{Freshness, Outcome, Read, Seen, Text, Write};
use tandem_tests::https::{Answer, Failure};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Client, count},
    objects::{self, List, Object, Run},
};

/// Each client's time from one request to the next: together more than 500 writes a second, on a build that can.
pub(crate) const WRITE_PACE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 120 } else { 22 });
const READ_PACE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 240 } else { 88 });
/// Keys in each namespace; each is written by two writers.
const KEYS: u64 = 6;
/// After so many reads a reader asks another member.
const READS_OF_ONE_MEMBER: u64 = 50;

/// What a writer took down. A deletion is answered without its revision: `deleted` says which write it is, and what was
/// deleted.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) writes: Vec<Write>,
    pub(crate) reads: Vec<Read>,
    pub(crate) deleted: Vec<(usize, u64)>,
    /// When a write was acknowledged.
    pub(crate) acknowledged: Vec<Instant>,
}

/// What a writer knows of a key.
#[derive(Clone, Copy, Debug, Default)]
enum Known {
    #[default]
    Nothing,
    Absent,
    At(u64),
}

pub(crate) struct Writer {
    pub(crate) client: Client,
    pub(crate) number: usize,
    pub(crate) run: Run,
    pub(crate) began: Instant,
    known: HashMap<Text, Known>,
    dice: u64,
    written: Written,
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The next of a row of numbers that look random (xorshift).
fn roll(dice: &mut u64, below: u64) -> u64 {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    *dice % below
}

fn outcome(answer: &Result<Answer, Failure>) -> Outcome {
    match answer {
        Ok(answer) if answer.status.is_success() => Outcome::Done(0),
        // 504 says that it may have happened; 500 says nothing.
        Ok(answer) => match answer.status {
            StatusCode::GATEWAY_TIMEOUT | StatusCode::INTERNAL_SERVER_ERROR => Outcome::Unknown,
            _ => Outcome::Refused,
        },
        Err(Failure::Unsent(_)) => Outcome::Refused,
        Err(Failure::Lost(_)) => Outcome::Unknown,
    }
}

impl Writer {
    pub(crate) fn new(client: Client, number: usize, run: Run, began: Instant) -> Writer {
        let dice = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1);
        Writer { client, number, run, began, known: HashMap::new(), dice, written: Written::default() }
    }

    pub(crate) async fn run(mut self, writers: usize, stop: CancellationToken) -> Written {
        let mut pace = interval(WRITE_PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !stop.is_cancelled() {
            pace.tick().await;
            // One write in four goes to what the next writer writes, too.
            let other = roll(&mut self.dice, 4) == 0;
            let namespace = objects::namespace((self.number + usize::from(other)) % writers);
            let name = self.run.name(&format!("k{}", roll(&mut self.dice, KEYS)));
            let key = objects::key(&namespace, &name);
            match self.known.get(&key).copied().unwrap_or_default() {
                Known::Nothing => self.look(&namespace, &name, key).await,
                Known::Absent => self.put(&namespace, &name, key, None).await,
                Known::At(at) if roll(&mut self.dice, 8) == 0 => self.delete(&namespace, &name, key, at).await,
                Known::At(at) => self.put(&namespace, &name, key, Some(at)).await,
            }
        }
        self.written
    }

    async fn look(&mut self, namespace: &str, name: &str, key: Text) {
        let path = objects::path(namespace, name);
        if let Some(read) = get(&mut self.client, &path, &key, self.began).await {
            let Seen::Key { found, .. } = &read.seen else { return };
            let known = found.as_ref().map_or(Known::Absent, |found| Known::At(found.revision));
            self.known.insert(key, known);
            self.written.reads.push(read);
        }
    }

    async fn put(&mut self, namespace: &str, name: &str, key: Text, at: Option<u64>) {
        let value: Text = format!("{}-{}-{}", self.run.0, self.number, self.written.writes.len()).into();
        let body = objects::map(name, &value, at);
        let (method, path) = match at {
            None => (Method::POST, objects::path(namespace, "")),
            Some(_) => (Method::PUT, objects::path(namespace, name)),
        };
        let begun = nanoseconds(self.began);
        let answer = self.client.ask(method, &path, &body).await;
        let outcome = match (outcome(&answer), &answer) {
            (Outcome::Done(_), Ok(answer)) => Outcome::Done(objects::read::<Object>(&answer.body).metadata.revision()),
            (outcome, _) => outcome,
        };
        self.note(begun, key, Some(value), outcome);
    }

    async fn delete(&mut self, namespace: &str, name: &str, key: Text, at: u64) {
        let begun = nanoseconds(self.began);
        let path = objects::path(namespace, name);
        let answer = self.client.ask(Method::DELETE, &path, &objects::deletion(at)).await;
        let outcome = outcome(&answer);
        if matches!(outcome, Outcome::Done(_)) {
            self.written.deleted.push((self.written.writes.len(), at));
        }
        self.note(begun, key, None, outcome);
    }

    fn note(&mut self, begun: u64, key: Text, value: Option<Text>, outcome: Outcome) {
        let ended = match outcome {
            Outcome::Done(_) => {
                count(&self.client.tally().acknowledged);
                self.written.acknowledged.push(Instant::now());
                nanoseconds(self.began)
            }
            Outcome::Refused | Outcome::Unknown => u64::MAX,
        };
        let known = match (outcome, &value) {
            (Outcome::Done(_), None) => Known::Absent,
            (Outcome::Done(at), Some(_)) => Known::At(at),
            _ => Known::Nothing,
        };
        self.known.insert(key.clone(), known);
        self.written.writes.push(Write { begun, ended, changes: vec![(key, value)], outcome, work: None });
    }

    /// Writes the last object of each namespace, each until it is acknowledged.
    pub(crate) async fn last(mut self, writers: usize) -> Written {
        for number in 0..writers {
            let namespace = objects::namespace(number);
            let before = self.written.acknowledged.len();
            for attempt in 0u64.. {
                let name = self.run.name(&format!("last-{attempt}"));
                let key = objects::key(&namespace, &name);
                self.put(&namespace, &name, key, None).await;
                if self.written.acknowledged.len() > before {
                    break;
                }
            }
        }
        self.written
    }
}

async fn get(client: &mut Client, path: &str, key: &Text, began: Instant) -> Option<Read> {
    let begun = nanoseconds(began);
    let answer = client.ask(Method::GET, path, &Bytes::new()).await.ok()?;
    let found = match answer.status {
        StatusCode::OK => Some(objects::read::<Object>(&answer.body).item()),
        StatusCode::NOT_FOUND => None,
        _ => return None,
    };
    let seen = Seen::Key { key: key.clone(), found };
    let asked = Freshness::Linearizable;
    Some(Read { member: client.member(), begun, ended: nanoseconds(began), asked, seen })
}

/// Reads single keys and lists, each of which must be of the newest that anyone was told before, or of what the reader
/// names.
pub(crate) async fn read(
    mut client: Client,
    number: usize,
    (run, writers): (Run, usize),
    began: Instant,
    stop: CancellationToken,
) -> Vec<Read> {
    let mut dice = 0x2545_f491_4f6c_dd1d_u64.wrapping_mul(number as u64 + 1);
    let (mut reads, mut told) = (Vec::new(), 0);
    let mut pace = interval(READ_PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in 1u64.. {
        pace.tick().await;
        if stop.is_cancelled() {
            break;
        }
        if turn % READS_OF_ONE_MEMBER == 0 {
            client.turn();
        }
        let namespace = objects::namespace(number % writers);
        if roll(&mut dice, 3) > 0 {
            let name = run.name(&format!("k{}", roll(&mut dice, KEYS)));
            let (path, key) = (objects::path(&namespace, &name), objects::key(&namespace, &name));
            reads.extend(get(&mut client, &path, &key, began).await);
            continue;
        }
        let asked =
            if told > 0 && roll(&mut dice, 3) == 0 { Freshness::AtLeast(told) } else { Freshness::Linearizable };
        let query = match asked {
            Freshness::AtLeast(told) => format!("?resourceVersion={told}&resourceVersionMatch=NotOlderThan"),
            _ => String::new(),
        };
        let begun = nanoseconds(began);
        let path = format!("{}{query}", objects::path(&namespace, ""));
        let Ok(answer) = client.ask(Method::GET, &path, &Bytes::new()).await else { continue };
        if answer.status == StatusCode::OK {
            let list: List = objects::read(&answer.body);
            let (revision, items) = (list.metadata.revision(), run.items(&list));
            told = told.max(revision);
            let prefix = objects::key(&namespace, "");
            let seen = Seen::List { prefix, revision, items };
            reads.push(Read { member: client.member(), begun, ended: nanoseconds(began), asked, seen });
        }
    }
    reads
}
