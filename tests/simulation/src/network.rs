//! The network between members: function calls that take time, get lost, come twice, and stop at partitions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use openraft::EntryPayload;
use parking_lot::Mutex;
use tandem_store::{Answer, Call, PeerError, Peers, RaftStore};
use tokio_util::sync::CancellationToken;

use crate::{
    bugs::Bug,
    world::{Dice, Journal, pass},
};

/// After so long a connection is found to be dead.
const DEAD: Duration = Duration::from_secs(3);

/// What the network does to calls and answers, in percent and microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    /// From whom to whom nothing gets through.
    pub(crate) blocked: BTreeSet<(u64, u64)>,
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) delay_us: u64,
    /// Some calls take up to so much longer than the others, and are overtaken by them.
    pub(crate) jitter_us: u64,
}

/// One process of a member, as others reach it.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(crate) store: Option<Arc<RaftStore>>,
    /// Cancelled when the process ends.
    pub(crate) gone: CancellationToken,
}

pub(crate) struct Network {
    seats: Mutex<BTreeMap<u64, Seat>>,
    weather: Mutex<Weather>,
    dice: Mutex<Dice>,
    journal: Arc<Journal>,
    bug: Option<Bug>,
}

impl Network {
    pub(crate) fn new(dice: Dice, journal: Arc<Journal>, bug: Option<Bug>) -> Arc<Network> {
        Arc::new(Network { seats: Mutex::default(), weather: Mutex::default(), dice: Mutex::new(dice), journal, bug })
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.weather.lock());
    }

    pub(crate) fn sit(&self, member: u64, seat: Seat) {
        self.seats.lock().insert(member, seat);
    }

    pub(crate) fn seat(&self, member: u64) -> Option<Seat> {
        self.seats.lock().get(&member).cloned()
    }

    /// The wire of one process of a member.
    pub(crate) fn wire(self: &Arc<Network>, from: u64, gone: CancellationToken) -> Arc<dyn Peers> {
        Arc::new(Wire { from, gone, network: self.clone() })
    }

    /// How long a message takes, or nothing when it does not arrive.
    fn fate(&self, from: u64, to: u64) -> Option<Duration> {
        let (weather, mut dice) = (self.weather.lock(), self.dice.lock());
        if weather.blocked.contains(&(from, to)) {
            self.journal.hit("message blocked");
            return None;
        }
        if dice.percent(weather.loss) {
            self.journal.hit("message lost");
            return None;
        }
        let mut time_us = dice.between(100, 900) + weather.delay_us;
        if weather.jitter_us > 0 && dice.percent(30) {
            self.journal.hit("message overtaken");
            time_us += dice.below(weather.jitter_us);
        }
        Some(Duration::from_micros(time_us))
    }

    fn mutate(&self, call: &mut Call) {
        let Call::Append(request) = call else { return };
        let commands: Vec<usize> = (0..request.entries.len())
            .filter(|index| matches!(request.entries[*index].payload, EntryPayload::Normal(_)))
            .collect();
        match self.bug {
            Some(Bug::ApplyOutOfOrder) if commands.len() >= 2 && self.dice.lock().percent(5) => {
                let (left, right) = request.entries.split_at_mut(commands[1]);
                std::mem::swap(&mut left[commands[0]].payload, &mut right[0].payload);
            }
            Some(Bug::SkippedEntry) if !commands.is_empty() && self.dice.lock().percent(1) => {
                request.entries[commands[0]].payload = EntryPayload::Blank;
            }
            _ => {}
        }
    }
}

fn kind(call: &Call) -> &'static str {
    match call {
        Call::Append(_) => "append call",
        Call::Vote(_) => "vote call",
        Call::PreVote(_) => "pre-vote call",
        Call::Transfer(_) => "transfer call",
        Call::Snapshot { .. } => "snapshot call",
        Call::Write(_) => "forwarded write",
        Call::ReadIndex => "read index call",
        Call::Change(_) => "change call",
        Call::Members => "members call",
        Call::Hash => "hash call",
    }
}

/// A second copy of a call, where it may come twice: raft's calls do, since each is sent anew until it is answered.
fn copy(call: &Call) -> Option<Call> {
    matches!(call, Call::Append(_) | Call::Vote(_) | Call::PreVote(_)).then(|| call.clone())
}

struct Wire {
    from: u64,
    gone: CancellationToken,
    network: Arc<Network>,
}

impl Wire {
    /// Nobody says that a message was lost: its sender finds out by waiting.
    async fn silence<T>(&self, to: u64) -> Result<T, PeerError> {
        pass(DEAD).await;
        Err(PeerError::unanswered(to, "no answer"))
    }

    /// Has the call carried out where it was sent to. What was begun there goes on when nobody waits any longer.
    async fn deliver(&self, to: u64, call: Call) -> Result<Answer, PeerError> {
        let from = self.from;
        let Some(Seat { store: Some(store), gone }) = self.network.seat(to) else {
            return Err(PeerError::unsent(to, "connection refused"));
        };
        let ended = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = gone.cancelled() => Err(PeerError::unanswered(to, "connection reset")),
                answer = store.answer(from, call) => Ok(answer),
            }
        });
        ended.await.unwrap_or_else(|error| Err(PeerError::unanswered(to, error.to_string())))
    }

    fn duplicate(&self, to: u64, call: &Call) {
        let Some(copy) = copy(call) else { return };
        let after = {
            let (weather, mut dice) = (self.network.weather.lock(), self.network.dice.lock());
            if !dice.percent(weather.duplication) {
                return;
            }
            Duration::from_micros(dice.between(100, 60_000))
        };
        self.network.journal.hit("message doubled");
        let again = Wire { from: self.from, gone: self.gone.clone(), network: self.network.clone() };
        tokio::spawn(async move {
            pass(after).await;
            drop(again.deliver(to, copy).await);
        });
    }
}

#[async_trait]
impl Peers for Wire {
    async fn call(&self, to: u64, _: &str, mut call: Call) -> Result<Answer, PeerError> {
        let Wire { from, gone, network } = self;
        if gone.is_cancelled() {
            return self.silence(to).await;
        }
        let what = kind(&call);
        network.journal.hit(what);
        network.mutate(&mut call);
        let Some(way) = network.fate(*from, to) else { return self.silence(to).await };
        self.duplicate(to, &call);
        pass(way).await;
        if gone.is_cancelled() {
            return self.silence(to).await;
        }
        network.journal.step(what, &[*from, to]);
        let answer = self.deliver(to, call).await;
        let Some(back) = network.fate(to, *from) else { return self.silence(to).await };
        pass(back).await;
        if gone.is_cancelled() {
            return self.silence(to).await;
        }
        answer
    }
}
