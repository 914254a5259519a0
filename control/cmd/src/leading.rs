//! What only the leader does, kept warm on every member: controllers and scheduler.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prometheus_client::registry::Registry as MetricsRegistry;
use tandem_api::{Clock, Identity, Settings};
use tandem_apiserver::ApiServer;
use tandem_client::{
    events::{Note, Recorder, Severity},
    in_process, in_process_as_leader,
    k8s_openapi::api::core::v1::ObjectReference,
    kube,
};
use tandem_controllers::{LocalApi, Prober};
use tandem_pki::Pki;
use tandem_registry::{Registry, is_replaceable, priorities};
use tandem_store::{Leadership, Member, Role};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::signer::ClusterSigner;

/// Whether this member leads, and the term in which it does or last did. The term is told first: nobody works in a new
/// term with the fence of an old one.
pub(crate) fn follow(
    mut store: watch::Receiver<Leadership>,
    tasks: &mut JoinSet<()>,
    shutdown: CancellationToken,
) -> (watch::Receiver<bool>, watch::Receiver<u64>) {
    let (leads, leading) = watch::channel(false);
    let (term, terms) = watch::channel(0);
    tasks.spawn(async move {
        loop {
            let now = *store.borrow_and_update();
            let before = *term.borrow();
            // Another term is another time as leader, even where the one between was not seen.
            if !now.leader || before != now.term {
                leads.send_if_modified(std::mem::take);
            }
            if now.leader {
                term.send_replace(now.term);
                leads.send_if_modified(|leads| !std::mem::replace(leads, true));
            }
            tokio::select! {
                changed = store.changed() => if changed.is_err() { break },
                () = shutdown.cancelled() => break,
            }
        }
        leads.send_replace(false);
    });
    (leading, terms)
}

/// Where the voters are reached by clients; this member's own address until it knows more. Members that only their own
/// machine reaches are left out, as nobody else may be sent there.
pub(crate) fn addresses(
    mut members: watch::Receiver<Vec<Member>>,
    own: SocketAddr,
    tasks: &mut JoinSet<()>,
    shutdown: CancellationToken,
) -> watch::Receiver<Vec<SocketAddr>> {
    let (told, addresses) = watch::channel(voters(&members.borrow(), own));
    tasks.spawn(async move {
        loop {
            let now = voters(&members.borrow_and_update(), own);
            told.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            tokio::select! {
                changed = members.changed() => if changed.is_err() { return },
                () = shutdown.cancelled() => return,
            }
        }
    });
    addresses
}

fn voters(members: &[Member], own: SocketAddr) -> Vec<SocketAddr> {
    let voters = members.iter().filter(|member| member.role != Role::Learner);
    let found: Vec<SocketAddr> = voters.filter_map(|member| member.address.parse().ok()).collect();
    let mut found = if found.is_empty() { vec![own] } else { found };
    found.retain(|address| !address.ip().is_loopback());
    found
}

/// What the leader's work is made of.
pub(crate) struct Work<'a> {
    pub(crate) api: &'a ApiServer,
    pub(crate) router: &'a Router,
    pub(crate) leads: watch::Receiver<bool>,
    pub(crate) term: watch::Receiver<u64>,
    pub(crate) members: watch::Receiver<Vec<SocketAddr>>,
    /// Members that hold something else than the leader does.
    pub(crate) differing: watch::Receiver<Vec<u64>>,
    pub(crate) settings: &'a Settings,
    pub(crate) clock: &'a Arc<dyn Clock>,
    pub(crate) metrics: &'a Mutex<MetricsRegistry>,
    pub(crate) pki: &'a Arc<Pki>,
    pub(crate) schedulers: Vec<tandem_scheduler::Profile>,
    pub(crate) autoscaler_period: Duration,
}

impl Work<'_> {
    pub(crate) fn start(self, tasks: &mut JoinSet<()>, shutdown: &CancellationToken) {
        let (api, term) = (self.router.clone(), self.term.clone());
        let client_for = move |name: &str| -> kube::Client {
            in_process_as_leader(api.clone(), Identity::controller(name), term.clone())
        };
        let context = tandem_controllers::Context {
            client_for: Arc::new(client_for),
            reader: in_process(self.router.clone(), Identity::controller("generic-garbage-collector")),
            leadership: self.leads.clone(),
            settings: self.settings.clone(),
            clock: self.clock.clone(),
            metrics: tandem_controllers::Metrics::register(&mut self.metrics.lock()),
            ca_pem: self.pki.cluster.certificate().to_owned(),
            signer: Arc::new(ClusterSigner { pki: self.pki.clone(), clock: self.clock.clone() }),
            members: self.members,
            node_grace: tandem_controllers::NODE_GRACE,
            local_apis: local_apis(),
            prober: Arc::new(OtherServers(self.api.clone())),
            autoscaler_period: self.autoscaler_period,
        };
        tasks.spawn(tandem_controllers::run(context, shutdown.clone()));
        let events = in_process_as_leader(self.router.clone(), Identity::controller("member"), self.term.clone());
        let (recorder, writing) = Recorder::start(events, "tandem-members", self.clock.clone());
        tasks.spawn(tell_of_differing(self.differing, recorder, shutdown.clone()));
        tasks.spawn(async move {
            // It ends with its recorder.
            let _ended = writing.await;
        });
        let context = tandem_scheduler::Context {
            client: in_process_as_leader(self.router.clone(), Identity::scheduler(), self.term),
            leadership: self.leads,
            clock: self.clock.clone(),
            metrics: tandem_scheduler::Metrics::register(&mut self.metrics.lock()),
            profiles: self.schedulers,
        };
        tasks.spawn(tandem_scheduler::run(context, shutdown.clone()));
    }
}

/// The groups that every cluster has. Those that other servers may serve are left to whoever brings one: a chart could
/// not make an object that is there.
fn local_apis() -> Vec<LocalApi> {
    let groups = Registry::builtin().groups().into_iter();
    let own = groups.filter(|group| group.name != "apiregistration.k8s.io" && !is_replaceable(&group.name));
    let apis = own.flat_map(|group| {
        let api = move |version: String| {
            let (group_priority, version_priority) = priorities(&group.name, &version);
            LocalApi { group: group.name.clone(), version, group_priority, version_priority }
        };
        group.versions.clone().into_iter().map(api)
    });
    apis.collect()
}

struct OtherServers(ApiServer);

impl Prober for OtherServers {
    fn probe<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.0.probe(name))
    }
}

/// Events about members that hold something else than the leader does: the leader alone compares.
async fn tell_of_differing(mut differing: watch::Receiver<Vec<u64>>, events: Recorder, shutdown: CancellationToken) {
    loop {
        let now = differing.borrow_and_update().clone();
        for member in now {
            events.record(Note::new(api_service(), Severity::Warning, "MemberDiffers", differs(member)));
        }
        tokio::select! {
            changed = differing.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

fn differs(member: u64) -> String {
    format!(
        "member {member} of the control plane holds something else than the leader. Put a new one in its place: \
         `tandem control --data-dir EMPTY-FOLDER --join URL --token TOKEN --replace {member}`"
    )
}

/// Members are no objects: what there is to say of them is said of the Service that leads to them.
fn api_service() -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some("default".to_owned()),
        name: Some("kubernetes".to_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_member_that_differs_is_told_of_once() {
        let (told, differing) = watch::channel(Vec::new());
        let (recorder, mut notes) = Recorder::detached();
        let telling = tokio::spawn(tell_of_differing(differing, recorder, CancellationToken::new()));
        told.send_replace(vec![43]);
        let note = notes.recv().await.unwrap();
        assert_eq!((note.reason.as_str(), note.severity), ("MemberDiffers", Severity::Warning));
        assert!(note.message.contains("--replace 43"), "{}", note.message);
        told.send_replace(Vec::new());
        drop(told);
        telling.await.unwrap();
        assert_eq!(notes.recv().await, None);
    }

    #[tokio::test]
    async fn a_new_term_ends_the_work_of_the_old_one() {
        let leading = |leader, term| Leadership { leader, term };
        let (store, leadership) = watch::channel(leading(true, 2));
        let mut tasks = JoinSet::new();
        let (mut leads, term) = follow(leadership, &mut tasks, CancellationToken::new());
        leads.wait_for(|leads| *leads).await.unwrap();
        assert_eq!(*term.borrow(), 2);
        store.send_replace(leading(false, 3));
        leads.wait_for(|leads| !*leads).await.unwrap();
        assert_eq!(*term.borrow(), 2, "what is still under way belongs to the old term");
        store.send_replace(leading(true, 4));
        leads.wait_for(|leads| *leads).await.unwrap();
        assert_eq!(*term.borrow(), 4);
        drop(store);
        leads.wait_for(|leads| !*leads).await.unwrap();
    }

    #[test]
    fn clients_are_led_to_voters() {
        let member = |id, role| Member {
            id,
            name: String::new(),
            address: format!("192.0.2.{id}:6443"),
            role,
            matched: None,
            lag: None,
            reachable: None,
        };
        let own = "192.0.2.9:6443".parse().unwrap();
        let members = [member(1, Role::Leader), member(2, Role::Voter), member(3, Role::Learner)];
        let shown: Vec<String> = voters(&members, own).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.1:6443", "192.0.2.2:6443"]);
        assert_eq!(voters(&[], own), [own]);
        assert!(voters(&[], "127.0.0.1:6443".parse().unwrap()).is_empty());
    }
}
