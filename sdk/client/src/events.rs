//! Events (core/v1) as `kubectl describe` expects them: repeats are counted, similar ones combined, noise held back.
//!
//! ```text
//!  record(Note) ─ bounded queue ─> Correlator (pure) ─> create, or patch the count of one that is there
//! ```

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde::Serialize;
use tandem_api::Clock;
use tokio::{sync::mpsc, task::JoinHandle};

/// Notes that wait to be written. A recorder that cannot keep up drops notes: events are best effort.
const QUEUE: usize = 1024;
/// Events that the correlator remembers; the oldest are forgotten first.
const REMEMBERED: usize = 4096;
/// A source may send this many events about one object at once, then one every `REFILL_SECONDS`.
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
/// More messages than this about one object for one reason within the window are combined into one event.
const SIMILAR: usize = 10;
const SIMILAR_WINDOW_SECONDS: i64 = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    const fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// Something worth telling the user about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub regarding: ObjectReference,
    pub severity: Severity,
    pub reason: String,
    pub message: String,
    pub annotations: BTreeMap<String, String>,
}

impl Note {
    pub fn new(regarding: ObjectReference, severity: Severity, reason: &str, message: impl Into<String>) -> Note {
        let (reason, message) = (reason.to_owned(), message.into());
        Note { regarding, severity, reason, message, annotations: BTreeMap::new() }
    }
}

/// What an event refers to.
pub fn reference<K>(object: &K) -> ObjectReference
where
    K: k8s_openapi::Resource + k8s_openapi::Metadata<Ty = ObjectMeta>,
{
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// Hands notes to a task that writes them. Cloning is cheap; the task ends when the last recorder is dropped.
#[derive(Clone, Debug)]
pub struct Recorder {
    notes: mpsc::Sender<Note>,
}

impl Recorder {
    /// Starts the writing task. `component` is what `kubectl describe` shows under "From".
    pub fn start(client: kube::Client, component: &str, clock: Arc<dyn Clock>) -> (Recorder, JoinHandle<()>) {
        let (notes, mut waiting) = mpsc::channel(QUEUE);
        let mut correlator = Correlator::new(component);
        let task = tokio::spawn(async move {
            while let Some(note) = waiting.recv().await {
                let Some(write) = correlator.decide(note, clock.now()) else { continue };
                if let Err(error) = perform(&client, &mut correlator, write).await {
                    tracing::debug!(%error, "event not recorded");
                }
            }
        });
        (Recorder { notes }, task)
    }

    /// A recorder whose notes come out of the receiver, for tests.
    pub fn detached() -> (Recorder, mpsc::Receiver<Note>) {
        let (notes, receiver) = mpsc::channel(QUEUE);
        (Recorder { notes }, receiver)
    }

    /// Never waits: a note that finds the queue full is dropped.
    pub fn record(&self, note: Note) {
        if let Err(error) = self.notes.try_send(note) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

async fn perform(client: &kube::Client, correlator: &mut Correlator, write: Write) -> Result<(), kube::Error> {
    match write {
        Write::Create(event) => create(client, &event).await,
        Write::Count { identity, event } => {
            let api: Api<Event> = Api::namespaced(client.clone(), namespace_of(&event));
            let name = event.metadata.name.as_deref().unwrap_or_default();
            let repeat = Repeat {
                count: event.count,
                last_timestamp: event.last_timestamp.clone(),
                message: event.message.clone(),
            };
            match api.patch(name, &PatchParams::default(), &Patch::Merge(&repeat)).await {
                Ok(_) => Ok(()),
                // Its time to live has passed: the count starts anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    correlator.forget(&identity);
                    create(
                        client,
                        &Event { metadata: ObjectMeta { resource_version: None, ..event.metadata.clone() }, ..*event },
                    )
                    .await
                }
                Err(error) => Err(error),
            }
        }
    }
}

async fn create(client: &kube::Client, event: &Event) -> Result<(), kube::Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace_of(event));
    api.create(&PostParams::default(), event).await.map(drop)
}

fn namespace_of(event: &Event) -> &str {
    event.metadata.namespace.as_deref().unwrap_or("default")
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Repeat {
    count: Option<i32>,
    last_timestamp: Option<Time>,
    message: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subject {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    /// The part of the object, such as one container of a pod.
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Series {
    subject: Subject,
    severity: Severity,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    series: Series,
    message: String,
}

#[derive(Debug)]
enum Write {
    Create(Box<Event>),
    Count { identity: Identity, event: Box<Event> },
}

#[derive(Debug)]
struct Budget {
    tokens: f64,
    at: Timestamp,
}

#[derive(Debug)]
struct Messages {
    since: Timestamp,
    distinct: Vec<String>,
}

/// Decides what a note becomes, from what was recorded before. Pure: the time is an argument.
#[derive(Debug)]
struct Correlator {
    component: String,
    recorded: HashMap<Identity, Event>,
    order: VecDeque<Identity>,
    series: HashMap<Series, Messages>,
    budgets: HashMap<Subject, Budget>,
    sequence: u64,
}

impl Correlator {
    fn new(component: &str) -> Correlator {
        Correlator {
            component: component.to_owned(),
            recorded: HashMap::new(),
            order: VecDeque::new(),
            series: HashMap::new(),
            budgets: HashMap::new(),
            sequence: 0,
        }
    }

    fn decide(&mut self, note: Note, now: Timestamp) -> Option<Write> {
        let subject = Subject {
            kind: note.regarding.kind.clone().unwrap_or_default(),
            namespace: note.regarding.namespace.clone().unwrap_or_default(),
            name: note.regarding.name.clone().unwrap_or_default(),
            uid: note.regarding.uid.clone().unwrap_or_default(),
            path: note.regarding.field_path.clone().unwrap_or_default(),
        };
        if !self.spend(&subject, now) {
            return None;
        }
        let series = Series { subject, severity: note.severity, reason: note.reason.clone() };
        let (text, message) = if self.is_one_of_many(&series, &note.message, now) {
            (format!("(combined from similar events): {}", note.message), String::new())
        } else {
            (note.message.clone(), note.message.clone())
        };
        let identity = Identity { series, message };
        if let Some(event) = self.recorded.get_mut(&identity) {
            event.count = event.count.map(|count| count.saturating_add(1));
            event.last_timestamp = Some(Time(now));
            event.message = Some(text);
            return Some(Write::Count { identity, event: Box::new(event.clone()) });
        }
        let event = self.event(note, text, now);
        self.remember(identity, event.clone());
        Some(Write::Create(Box::new(event)))
    }

    fn spend(&mut self, subject: &Subject, now: Timestamp) -> bool {
        if self.budgets.len() >= REMEMBERED {
            self.budgets.retain(|_, budget| budget.refilled(now) < BURST);
        }
        if self.budgets.len() >= REMEMBERED {
            self.budgets.clear();
        }
        let budget = self.budgets.entry(subject.clone()).or_insert(Budget { tokens: BURST, at: now });
        let tokens = budget.refilled(now);
        *budget = Budget { tokens: if tokens >= 1.0 { tokens - 1.0 } else { tokens }, at: now };
        tokens >= 1.0
    }

    fn is_one_of_many(&mut self, series: &Series, message: &str, now: Timestamp) -> bool {
        if self.series.len() >= REMEMBERED {
            self.series.retain(|_, seen| now.as_second() - seen.since.as_second() < SIMILAR_WINDOW_SECONDS);
        }
        if self.series.len() >= REMEMBERED {
            self.series.clear();
        }
        let seen = self.series.entry(series.clone()).or_insert(Messages { since: now, distinct: Vec::new() });
        if now.as_second() - seen.since.as_second() >= SIMILAR_WINDOW_SECONDS {
            *seen = Messages { since: now, distinct: Vec::new() };
        }
        let known = seen.distinct.iter().any(|other| other == message);
        if !known && seen.distinct.len() < SIMILAR {
            seen.distinct.push(message.to_owned());
            return false;
        }
        !known
    }

    fn event(&mut self, note: Note, text: String, now: Timestamp) -> Event {
        self.sequence += 1;
        let name = note.regarding.name.as_deref().unwrap_or_default();
        let stamp = u128::try_from(now.as_nanosecond()).unwrap_or_default() + u128::from(self.sequence);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{stamp:x}")),
                namespace: Some(note.regarding.namespace.clone().unwrap_or_else(|| "default".to_owned())),
                annotations: (!note.annotations.is_empty()).then_some(note.annotations),
                ..ObjectMeta::default()
            },
            involved_object: note.regarding,
            reason: Some(note.reason),
            message: Some(text),
            type_: Some(note.severity.as_str().to_owned()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(self.component.clone()), host: None }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(String::new()),
            ..Event::default()
        }
    }

    fn remember(&mut self, identity: Identity, event: Event) {
        while self.order.len() >= REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.recorded.remove(&oldest);
            }
        }
        self.order.push_back(identity.clone());
        self.recorded.insert(identity, event);
    }

    fn forget(&mut self, identity: &Identity) {
        self.recorded.remove(identity);
        self.order.retain(|other| other != identity);
    }
}

impl Budget {
    fn refilled(&self, now: Timestamp) -> f64 {
        let seconds = now.duration_since(self.at).as_secs_f64().max(0.0);
        (self.tokens + seconds / REFILL_SECONDS).min(BURST)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};

    use super::*;

    fn note(message: &str) -> Note {
        let regarding = ObjectReference {
            kind: Some("Pod".into()),
            name: Some("web".into()),
            namespace: Some("default".into()),
            ..ObjectReference::default()
        };
        Note::new(regarding, Severity::Warning, "FailedScheduling", message)
    }

    fn check(notes: &[(i64, &str)], expect: Expect) {
        let mut correlator = Correlator::new("test");
        let mut lines = String::new();
        for (second, message) in notes {
            let line = match correlator.decide(note(message), Timestamp::from_second(*second).unwrap()) {
                None => "dropped".to_owned(),
                Some(Write::Create(event)) => format!("create {:?}", event.message.unwrap()),
                Some(Write::Count { event, .. }) => {
                    format!("count {} {:?}", event.count.unwrap(), event.message.unwrap())
                }
            };
            writeln!(lines, "{line}").unwrap();
        }
        expect.assert_eq(&lines);
    }

    #[test]
    fn repeats_are_counted() {
        check(
            &[(0, "no room"), (5, "no room"), (9, "other"), (10, "no room")],
            expect![[r#"
            create "no room"
            count 2 "no room"
            create "other"
            count 3 "no room"
        "#]],
        );
    }

    #[test]
    fn similar_messages_are_combined() {
        let messages: Vec<String> = (0..12).map(|index| format!("m{index}")).collect();
        let notes: Vec<(i64, &str)> = messages.iter().map(|message| (0, message.as_str())).collect();
        check(
            &notes[8..],
            expect![[r#"
            create "m8"
            create "m9"
            create "m10"
            create "m11"
        "#]],
        );
        let mut correlator = Correlator::new("test");
        let last =
            notes.iter().filter_map(|(_, message)| correlator.decide(note(message), Timestamp::UNIX_EPOCH)).last();
        let Some(Write::Count { event, .. }) = last else { panic!("{last:?}") };
        assert_eq!(event.message.as_deref(), Some("(combined from similar events): m11"));
    }

    #[test]
    fn a_noisy_source_is_held_back() {
        let mut correlator = Correlator::new("test");
        let written = |correlator: &mut Correlator, second| {
            (0..100).filter(|_| correlator.decide(note("x"), Timestamp::from_second(second).unwrap()).is_some()).count()
        };
        assert_eq!(written(&mut correlator, 0), 25);
        assert_eq!(written(&mut correlator, 300), 1);
    }
}
