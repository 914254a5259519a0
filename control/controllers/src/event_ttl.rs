//! Events are kept for an hour after they happened last.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Namespace};
use kube::{Api, api::ListParams};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan},
    guarded::Guarded,
    object,
};

/// Kubernetes' `--event-ttl`.
const TTL_SECONDS: i64 = 3600;
/// How often a namespace is looked at: an Event may stay so much longer.
const PERIOD: Duration = Duration::from_secs(300);
/// Events that one plan deletes; the next one goes on from there.
const BURST: usize = 500;
const PAGE: u32 = 500;

pub(crate) struct EventsOfNamespaces;

#[derive(Debug)]
pub(crate) struct View {
    events: Vec<Event>,
}

impl Controller for EventsOfNamespaces {
    type Parent = Namespace;
    type View = View;

    const NAME: &'static str = "event-ttl";
    const READS: &'static [&'static str] = &["Namespace"];

    fn store(cache: &Cache) -> &Store<Namespace> {
        &cache.namespaces
    }

    fn wakes(&self, _cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Namespace(delta) if delta.old.is_none() => vec![delta.key()],
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, namespace: Arc<Namespace>) -> Result<View, Error> {
        let api = Api::<Guarded<Event>>::namespaced(input.client.clone(), object::name(&namespace.metadata));
        let mut page = ListParams::default().limit(PAGE);
        let mut events = Vec::new();
        loop {
            let list = api.list(&page).await?;
            events.extend(list.items.into_iter().filter_map(Guarded::sound).map(brief));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(View { events }),
            }
        }
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

/// Without what makes an Event long.
fn brief(mut event: Event) -> Event {
    event.metadata.managed_fields = None;
    event.metadata.annotations = None;
    Event { message: None, ..event }
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let over = |event: &&Event| object::after(last(event), TTL_SECONDS) <= now;
    let mut plan = Plan::default();
    // With the version that was seen: what happens again meanwhile is kept.
    let deletion =
        |event: &Event| Deletion { resource_version: event.metadata.resource_version.clone(), ..Deletion::of(event) };
    plan.actions.extend(view.events.iter().filter(over).take(BURST).map(|event| Action::Delete(deletion(event))));
    plan.requeue_after(if plan.actions.len() == BURST { Duration::ZERO } else { PERIOD });
    plan
}

/// When it happened last, whichever of its many times says so.
fn last(event: &Event) -> Timestamp {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let told = [&event.last_timestamp, &event.first_timestamp].into_iter().flatten().map(|time| time.0);
    let at = event.event_time.as_ref().map(|time| time.0);
    let made = event.metadata.creation_timestamp.as_ref().map(|time| time.0);
    told.chain(series).chain(at).max().or(made).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::EventSeries,
        apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
    };

    use super::*;
    use crate::action::testing::describe;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn event(name: &str, change: impl FnOnce(&mut Event)) -> Event {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("default".to_owned()),
            creation_timestamp: Some(Time(at(0))),
            ..ObjectMeta::default()
        };
        let mut event = Event { metadata, ..Event::default() };
        change(&mut event);
        event
    }

    #[test]
    fn an_event_goes_an_hour_after_it_happened_last() {
        let events = vec![
            event("made", |_| {}),
            event("told", |event| event.last_timestamp = Some(Time(at(1)))),
            event("new-style", |event| event.event_time = Some(MicroTime(at(2)))),
            event("again", |event| {
                let last_observed_time = Some(MicroTime(at(3)));
                event.series = Some(EventSeries { last_observed_time, ..EventSeries::default() });
            }),
        ];
        let view = View { events };
        let shown = |now| describe(&plan(&view, at(now)), |_| String::new());
        assert_eq!(shown(TTL_SECONDS - 1), "again in 300s\n");
        assert_eq!(shown(TTL_SECONDS), "delete Event default/made\nagain in 300s\n");
        assert_eq!(shown(TTL_SECONDS + 2).lines().count(), 4);
        assert_eq!(shown(TTL_SECONDS + 3).lines().count(), 5);
    }

    #[test]
    fn many_go_in_several_plans() {
        let view = View { events: (0..=BURST).map(|index| event(&format!("e{index}"), |_| {})).collect() };
        let plan = plan(&view, at(TTL_SECONDS));
        assert_eq!((plan.actions.len(), plan.requeue), (BURST, Some(Duration::ZERO)));
    }
}
