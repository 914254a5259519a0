//! What goes wrong, and how it is mended: one fault at a time or two, each for a while.

use std::{sync::Arc, time::Duration};

use tandem_store::{Aim, Change, Error, Member, Role};

use crate::{
    bugs::Bug,
    cluster::Cluster,
    twins::{Crash, TRAPS},
    world::{self, Dice, pass_ms},
};

macro_rules! faults {
    ($($fault:ident = $name:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            $($fault,)*
        }

        impl Fault {
            pub const ALL: &[Fault] = &[$(Fault::$fault,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Fault::$fault => $name,)*
                }
            }
        }
    };
}

faults! {
    MinorityPartition = "minority partition",
    LeaderPartition = "leader partition",
    AsymmetricPartition = "asymmetric partition",
    RingPartition = "ring partition",
    Loss = "loss",
    Delay = "delay",
    Duplication = "duplication",
    Reordering = "reordering",
    Kill = "kill",
    KillLeader = "kill of the leader",
    PowerCut = "power cut",
    PowerCutOfAll = "power cut of all",
    Restart = "restart",
    LongAbsence = "long absence",
    Trapped = "crash at a step",
    SlowDisk = "slow disk",
    FullDisk = "full disk",
    FailedSync = "failed sync of a disk",
    Suspension = "suspension of all",
    WrongClock = "wrong clock",
    NewMember = "new member",
    Replacement = "replacement of a member",
    Removal = "removal of a member",
    HandOver = "handover",
}

/// How often a removal is tried.
const TRIES_MAX: usize = 20;

pub(crate) struct Nemesis {
    cluster: Arc<Cluster>,
    dice: Dice,
    /// Shuffled, and used up before one comes again.
    next: Vec<Fault>,
}

impl Nemesis {
    pub(crate) fn new(cluster: &Arc<Cluster>, number: u64) -> Nemesis {
        let dice = cluster.dice(&format!("nemesis {number}"));
        Nemesis { cluster: cluster.clone(), dice, next: Vec::new() }
    }

    fn draw(&mut self) -> Fault {
        if self.next.is_empty() {
            let mut faults = Fault::ALL.to_vec();
            while !faults.is_empty() {
                let place = usize::try_from(self.dice.below(faults.len() as u64)).unwrap_or(0);
                self.next.push(faults.swap_remove(place));
            }
        }
        self.next.pop().unwrap_or(Fault::Kill)
    }

    /// Causes faults until `until`; each is mended before the next.
    pub(crate) async fn run(mut self, until: Duration) {
        while world::now() < until {
            pass_ms(self.dice.between(200, 2_500)).await;
            let fault = self.draw();
            self.cluster.journal.hit(fault.name());
            self.cluster.journal.step(fault.name(), &[]);
            if self.dice.percent(25) {
                self.set_traps();
            }
            self.cause(fault).await;
        }
    }

    fn victim(&mut self) -> u64 {
        let ids = self.cluster.ids();
        *self.dice.pick(&ids)
    }

    async fn hold(&mut self, most_ms: u64) {
        pass_ms(self.dice.between(300, most_ms)).await;
    }

    async fn cause(&mut self, fault: Fault) {
        match fault {
            Fault::MinorityPartition => {
                let victim = self.victim();
                self.partition(|from, to| (from == victim) != (to == victim)).await;
            }
            Fault::LeaderPartition => {
                let Some(leader) = self.cluster.leader() else { return };
                self.partition(|from, to| (from == leader) != (to == leader)).await;
            }
            Fault::AsymmetricPartition => {
                let (victim, deaf) = (self.victim(), self.dice.percent(50));
                self.partition(|from, to| if deaf { to == victim } else { from == victim }).await;
            }
            Fault::RingPartition => self.ring().await,
            Fault::Loss => self.weather(|weather, dice| weather.loss = dice.between(5, 40)).await,
            Fault::Delay => self.weather(|weather, dice| weather.delay_us = dice.between(5_000, 120_000)).await,
            Fault::Duplication => self.weather(|weather, dice| weather.duplication = dice.between(10, 60)).await,
            Fault::Reordering => self.weather(|weather, dice| weather.jitter_us = dice.between(5_000, 150_000)).await,
            Fault::Kill | Fault::KillLeader | Fault::PowerCut | Fault::LongAbsence => self.end_one(fault).await,
            Fault::PowerCutOfAll => self.end_all().await,
            Fault::Trapped => self.set_traps(),
            Fault::Restart => {
                let victim = self.victim();
                self.cluster.stop(victim).await;
            }
            Fault::SlowDisk | Fault::FullDisk | Fault::FailedSync => self.spoil_disk(fault).await,
            Fault::Suspension => {
                let time_ms = self.dice.between(200, 5_000);
                world::jump(Duration::from_millis(time_ms));
            }
            Fault::WrongClock => {
                let (victim, by_ms) = (self.victim(), self.dice.below(7_200_000));
                let by_ms = i64::try_from(by_ms).unwrap_or(0) - 3_600_000;
                self.cluster.with(victim, |member| member.day.set_wrong(by_ms));
            }
            Fault::NewMember => self.grow().await,
            Fault::Replacement => self.replace().await,
            Fault::Removal => self.shrink().await,
            Fault::HandOver => self.hand_over().await,
        }
    }

    async fn partition(&mut self, blocked: impl Fn(u64, u64) -> bool) {
        let ids = self.cluster.ids();
        let pairs: Vec<(u64, u64)> = ids
            .iter()
            .flat_map(|from| ids.iter().map(move |to| (*from, *to)))
            .filter(|(from, to)| from != to && blocked(*from, *to))
            .collect();
        self.cluster.network.change(|weather| weather.blocked.extend(pairs.iter().copied()));
        self.hold(5_000).await;
        self.cluster.network.change(|weather| weather.blocked.retain(|pair| !pairs.contains(pair)));
    }

    /// Each reaches its two neighbours only; of three, two don't reach each other.
    async fn ring(&mut self) {
        let ids = self.cluster.ids();
        let shift = self.dice.below(ids.len() as u64);
        let place = |id: u64| ids.iter().position(|other| *other == id).map_or(0, |place| place as u64);
        let count = ids.len() as u64;
        self.partition(|from, to| {
            let (left, right) = ((place(from) + shift) % count, (place(to) + shift) % count);
            let apart = left.abs_diff(right);
            if count <= 3 { apart == 2 } else { apart != 1 && apart != count - 1 }
        })
        .await;
    }

    async fn weather(&mut self, worsen: impl FnOnce(&mut crate::network::Weather, &mut Dice)) {
        let dice = &mut self.dice;
        self.cluster.network.change(|weather| worsen(weather, dice));
        self.hold(6_000).await;
        self.cluster.network.change(|weather| {
            (weather.loss, weather.duplication, weather.delay_us, weather.jitter_us) = (0, 0, 0, 0);
        });
    }

    async fn end_one(&mut self, fault: Fault) {
        let victim = match fault {
            Fault::KillLeader => self.cluster.leader().unwrap_or(1),
            _ => self.victim(),
        };
        let how = if fault == Fault::PowerCut { Crash::Power } else { Crash::Process };
        self.cluster.keep_down(victim, true);
        self.cluster.crash(victim, how);
        if self.cluster.bug == Some(Bug::ReusedId) && victim != crate::cluster::FIRST {
            self.cluster.with(victim, |member| member.disk.wipe());
        }
        self.hold(if fault == Fault::LongAbsence { 9_000 } else { 2_500 }).await;
        self.cluster.keep_down(victim, false);
    }

    async fn end_all(&mut self) {
        for id in self.cluster.ids() {
            self.cluster.crash(id, Crash::Power);
        }
        self.hold(1_000).await;
    }

    /// Some steps are rare: a trap stays until somebody falls into it.
    fn set_traps(&mut self) {
        for id in self.cluster.ids() {
            let trap = *self.dice.pick(TRAPS);
            self.cluster.with(id, |member| member.disk.set_trap(trap));
        }
    }

    async fn spoil_disk(&mut self, fault: Fault) {
        let victim = self.victim();
        let slowness = Duration::from_millis(self.dice.between(20, 600));
        let Some(disk) = self.cluster.with(victim, |member| member.disk.clone()) else { return };
        match fault {
            Fault::SlowDisk => disk.set_slowness(slowness),
            Fault::FullDisk => disk.set_full(true),
            _ => return disk.fail_next_sync(),
        }
        self.hold(5_000).await;
        disk.set_slowness(Duration::ZERO);
        disk.set_full(false);
    }

    /// One member more, as a listener first and then as a voter.
    async fn grow(&mut self) {
        if (self.cluster.ids().len() as u64) < self.cluster.setup.members_max {
            grow(&self.cluster, Aim::Vote).await;
        }
    }

    /// A member dies with its disk, and a new one takes its place.
    async fn replace(&mut self) {
        let victim = self.victim();
        if self.cluster.ids().len() < 3 || self.cluster.is_changing() {
            return;
        }
        self.cluster.retire(victim);
        grow(&self.cluster, Aim::Replace(victim)).await;
    }

    /// A member that runs is removed.
    async fn shrink(&mut self) {
        let victim = self.victim();
        if self.cluster.ids().len() as u64 <= self.cluster.setup.members || self.cluster.is_changing() {
            return;
        }
        for _ in 0..TRIES_MAX {
            match change(&self.cluster, Change::Remove { member: victim }).await {
                Ok(_) => {
                    self.cluster.journal.hit("member removed");
                    self.hold(500).await;
                    return self.cluster.retire(victim);
                }
                // It is gone already: the answer to an earlier try was lost.
                Err(Error::Denied(why)) if why.starts_with("there is no member") => {
                    return self.cluster.retire(victim);
                }
                Err(_) => pass_ms(300).await,
            }
        }
    }

    async fn hand_over(&mut self) {
        if let Some((store, gone)) = self.cluster.leader().and_then(|leader| self.cluster.store(leader)) {
            tokio::select! {
                biased;
                () = gone.cancelled() => {}
                handed = store.hand_over() => if handed { self.cluster.journal.hit("handed over") },
            }
        }
    }
}

/// Asks some member that runs.
async fn change(cluster: &Arc<Cluster>, change: Change) -> Result<u64, Error> {
    let ids = cluster.ids();
    let asked = cluster.leader().into_iter().chain(ids).find_map(|id| cluster.store(id));
    let Some((store, gone)) = asked else { return Err(Error::Unavailable("nobody runs".to_owned())) };
    tokio::select! {
        biased;
        () = gone.cancelled() => Err(Error::Unknown("the member ended".to_owned())),
        changed = store.change(change) => changed,
    }
}

/// Brings a new member in and waits until it votes.
pub(crate) async fn grow(cluster: &Arc<Cluster>, mut aim: Aim) {
    let name = cluster.name();
    let _changing = cluster.changing();
    let id = loop {
        let join = Change::Join { name: name.clone(), address: name.clone(), aim };
        match change(cluster, join).await {
            Ok(id) => break id,
            Err(Error::Denied(why)) => {
                if cluster.journal.is_told() {
                    world::tell(&format!("a new member was denied: {why}"));
                }
                cluster.journal.hit("member denied");
                // Never given up: one dead voter more, and the next fault would take the quorum for good.
                if why.starts_with("there is no member") {
                    aim = Aim::Vote;
                }
                pass_ms(500).await;
            }
            Err(_) => pass_ms(200).await,
        }
    };
    cluster.start(id);
    cluster.journal.step("member joined", &[id]);
    let votes = |member: &Member| member.id == id && member.role != Role::Learner;
    loop {
        let leader = cluster.leader().and_then(|leader| cluster.store(leader));
        if leader.is_some_and(|(store, _)| store.members().borrow().iter().any(votes)) {
            cluster.journal.hit("member added");
            cluster.journal.step("member added", &[id]);
            return;
        }
        pass_ms(100).await;
    }
}
