//! Watches of the load: each goes on where it was, on another member when its own is gone.

use std::{collections::BTreeSet, collections::HashMap, sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tandem_simulation::history::{Change, Delivered, Text, Watch};
use tokio::time::timeout;

use crate::{
    client::{Client, count, pause},
    objects::{self, Line, Object, Refusal, Run},
};

/// A watch that has delivered nothing for so long is given up: its member may have stopped.
const SILENCE: Duration = Duration::from_secs(5);

/// What all watches of a load delivered, in the order of their beginnings.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) watches: Vec<Watch>,
    /// What must not happen: history that was forgotten within minutes.
    pub(crate) forgotten: Vec<String>,
    pub(crate) resumed: u64,
    pub(crate) overrun: u64,
}

pub(crate) struct Watcher {
    pub(crate) client: Client,
    pub(crate) run: Run,
    /// The namespace that is watched, or all.
    pub(crate) of: Option<usize>,
    pub(crate) writers: usize,
    pub(crate) after: u64,
    pub(crate) told: Arc<Mutex<Watched>>,
    known: HashMap<Text, u64>,
    last: BTreeSet<Text>,
}

/// Why a watch ended.
enum End {
    /// It has delivered the last object of each namespace.
    Complete,
    Broken,
}

impl Watcher {
    pub(crate) fn new(
        client: Client,
        run: Run,
        of: Option<usize>,
        writers: usize,
        after: u64,
        told: Arc<Mutex<Watched>>,
    ) -> Watcher {
        Watcher { client, run, of, writers, after, told, known: HashMap::new(), last: BTreeSet::new() }
    }

    pub(crate) fn name(&self) -> String {
        self.of.map_or("everything".to_owned(), objects::namespace)
    }

    /// Watches until the last objects have come.
    pub(crate) async fn run(mut self) {
        loop {
            let base = match self.of {
                Some(number) => objects::path(&objects::namespace(number), ""),
                None => "/api/v1/configmaps".to_owned(),
            };
            let path = format!("{base}?watch=1&allowWatchBookmarks=true&resourceVersion={}", self.after);
            match self.client.begin(&path).await {
                Ok(response) if response.status().is_success() => {
                    if let End::Complete = self.follow(response.into_body()).await {
                        return;
                    }
                    self.told.lock().resumed += 1;
                }
                Ok(response) => {
                    count(&self.client.tally().refused);
                    drop(response);
                }
                Err(_) => count(&self.client.tally().turned),
            }
            self.client.turn();
            pause().await;
        }
    }

    async fn follow(&mut self, mut body: Incoming) -> End {
        let slot = {
            let mut told = self.told.lock();
            let prefix = self.of.map_or(String::new(), |number| format!("{}/", objects::namespace(number)));
            let (member, after) = (self.client.member(), self.after);
            told.watches.push(Watch { member, prefix: prefix.into(), after, delivered: Vec::new() });
            told.watches.len() - 1
        };
        let mut rest = Vec::new();
        loop {
            let Ok(Some(Ok(frame))) = timeout(SILENCE, body.frame()).await else { return End::Broken };
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if let Some(end) = self.line(slot, &objects::read::<Line>(&line)) {
                    return end;
                }
            }
        }
    }

    fn line(&mut self, slot: usize, line: &Line) -> Option<End> {
        let text = line.object.get().as_bytes();
        if line.kind == "ERROR" {
            let refusal: Refusal = objects::read(text);
            let mut told = self.told.lock();
            if refusal.message.contains("for the provided watch") {
                told.overrun += 1;
            } else if refusal.code == 410 {
                told.forgotten.push(format!("{} after {}: {}", self.name(), self.after, refusal.message));
            }
            return Some(End::Broken);
        }
        let object: Object = objects::read(text);
        let revision = object.metadata.revision();
        self.after = self.after.max(revision);
        if line.kind == "BOOKMARK" {
            self.told.lock().watches[slot].delivered.push(Delivered::Progress(revision));
            return None;
        }
        if !self.run.is_ours(&object) {
            return None;
        }
        let key = object.metadata.key();
        let value = (line.kind != "DELETED").then(|| object.value());
        let before = match &value {
            Some(_) => self.known.insert(key.clone(), revision),
            None => self.known.remove(&key),
        };
        // What was there before follows from the kind of the event, and must be what this watcher saw.
        let previous = match (line.kind.as_str(), before) {
            ("ADDED", None) => None,
            ("ADDED", Some(_)) => Some(u64::MAX),
            (_, before) => Some(before.unwrap_or(u64::MAX)),
        };
        let change = Change { revision, key: key.clone(), value, previous };
        self.told.lock().watches[slot].delivered.push(Delivered::Change(change));
        if self.run.is_last(&key) {
            let namespace = key.split('/').next().unwrap_or_default();
            self.last.insert(namespace.into());
        }
        let wanted = if self.of.is_some() { 1 } else { self.writers };
        (self.last.len() == wanted).then_some(End::Complete)
    }
}
