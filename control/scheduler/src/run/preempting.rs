//! Pods that fit nowhere: room is made for them, or they are told why not.

use super::{Error, Nomination, PodInfo, Scheduler, Setback, Taken, Victim, Written, bind, within};
use crate::{Preemption, Unschedulable, Verdict, preempt};

impl Scheduler {
    pub(super) fn refused(&mut self, taken: Taken, mut refused: Unschedulable) {
        let mut stuck = self.snapshot.storage.to_deselect(&taken.pod);
        // Another pod may be about to get what was chosen.
        stuck.retain(|claim| self.snapshot.claim_users(&taken.pod, claim) == 0);
        if !stuck.is_empty() {
            // What was chosen for its claims before does not do any more; when they are free it is tried again.
            let (client, pod) = (self.context.client.clone(), taken.pod.clone());
            self.put_back(&taken, Setback::FitsNowhere, refused.to_string(), Nomination::Keep);
            self.writes
                .spawn(async move { Written::Explained(within(bind::select(&client, &pod, &stuck, None)).await) });
            return;
        }
        if refused.nodes == 0 {
            return self.put_back(&taken, Setback::FitsNowhere, refused.to_string(), Nomination::Keep);
        }
        self.context.metrics.tried_to_preempt();
        let verdict = preempt(&taken.pod, &self.snapshot, self.profile(&taken.pod), self.turn, &refused);
        let (why, nomination) = match verdict {
            Verdict::Evict(preemption) => return self.make_room(taken, refused.to_string(), preemption),
            Verdict::Ineligible(why) => (why, Nomination::Keep),
            Verdict::Helpless(why) => {
                if self.snapshot.nominations.remove(&taken.pod.uid) {
                    self.queue.wake();
                }
                (why, Nomination::Clear)
            }
        };
        refused.preemption = Some(why);
        self.put_back(&taken, Setback::FitsNowhere, refused.to_string(), nomination);
    }

    /// Has the victims end. The pod is tried again when they are gone.
    fn make_room(&mut self, taken: Taken, message: String, preemption: Preemption) {
        let Preemption { node, mut victims } = preemption;
        self.yield_to(&taken.pod, &node);
        self.snapshot.nominations.set(&taken.pod, &node);
        self.context.metrics.preempted(victims.len());
        // Those that wait for their volumes do not run yet: they give their room back themselves.
        victims.retain(|victim| match self.waiting.remove(&victim.uid) {
            Some(held) => {
                self.give_back(&held, "rejected due to preemption".to_owned());
                false
            }
            None => true,
        });
        for victim in victims.iter().filter(|victim| !victim.terminating) {
            self.snapshot.condemn(&victim.uid);
        }
        let (client, now) = (self.context.client.clone(), self.context.clock.now());
        let taken = Box::new(taken);
        self.writes.spawn(async move {
            let failed = bind::preempt(&client, &victims, &taken.pod.scheduler, now).await;
            Written::Preempted { taken, node, victims, message, failed }
        });
    }

    /// Pods of lower priority that wait for the same node look for another one.
    fn yield_to(&mut self, pod: &PodInfo, node: &str) {
        let lower = self.snapshot.nominations.on(node).filter(|other| other.priority < pod.priority);
        let lower: Vec<[String; 3]> =
            lower.map(|other| [other.namespace.clone(), other.name.clone(), other.uid.clone()]).collect();
        for [namespace, name, uid] in lower {
            self.snapshot.nominations.remove(&uid);
            let client = self.context.client.clone();
            self.writes.spawn(async move {
                Written::Explained(within(bind::denominate(&client, &namespace, &name, &uid)).await)
            });
        }
    }

    pub(super) fn room_is_made(
        &mut self,
        taken: &Taken,
        node: String,
        victims: &[Victim],
        message: String,
        failed: &[(String, Error)],
    ) {
        let pod = &taken.pod;
        for victim in victims.iter().filter(|victim| !victim.terminating) {
            match failed.iter().find(|(uid, _)| *uid == victim.uid) {
                None => self.recorder.record(bind::preempted(victim, pod, &node)),
                Some((_, error)) => {
                    tracing::warn!(pod = victim.name, namespace = victim.namespace, %error, "not preempted");
                    self.snapshot.spare(&victim.uid);
                }
            }
        }
        if failed.is_empty() {
            self.put_back(taken, Setback::FitsNowhere, message, Nomination::Set(node));
        } else {
            self.snapshot.nominations.remove(&pod.uid);
            self.put_back(taken, Setback::Error, message, Nomination::Clear);
        }
    }

    /// What the API says of where room is made for a pod that waits; what was only decided here stays.
    pub(super) fn follow_nomination(&mut self, pod: &PodInfo) {
        let was_nominated = self.queue.get(&pod.uid).is_some_and(|known| known.nominated.is_some());
        match &pod.nominated {
            Some(node) if !self.snapshot.is_placed(&pod.uid) => self.snapshot.nominations.set(pod, node),
            None if was_nominated && self.snapshot.nominations.remove(&pod.uid) => self.queue.wake(),
            Some(_) | None => {}
        }
    }
}
