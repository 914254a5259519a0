//! `metrics.k8s.io`: what nodes and pods use, answered from what the nodes say at the moment.
//!
//! ```text
//!  list pods ─> their nodes ─> nodes.rs: each asked once in a few seconds ─> PodMetrics of pods that run there
//! ```
//! Nothing is stored. A node that does not answer is left out with its pods, as metrics-server does; so is what has not
//! run long enough to have a rate.

mod nodes;
pub(crate) mod requests;

use std::collections::{BTreeSet, HashMap};

use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};
use tandem_api::{ApiError, Object};
use tandem_registry::{ResourceDef, columns};
use tandem_store::Consistency;

use crate::{
    call::Call,
    core::Core,
    deletion,
    negotiate::{Offer, Shape},
    options::Selection,
    request::{self, Verb},
    respond,
};

pub use nodes::KEPT;
pub(crate) use nodes::Nodes;
use nodes::{Cpu, Memory, Pod, Summary};

/// Whether objects of the row are measured, not stored.
pub(crate) fn is_usage(def: &ResourceDef) -> bool {
    def.group == "metrics.k8s.io" && def.custom.is_none()
}

pub(crate) async fn serve(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    if !def.allows(call.info.verb.as_str()) {
        return Err(request::method_not_allowed());
    }
    let path = call.path()?;
    let namespace = path.namespace.as_deref();
    let selection = Selection::of(&call.info.query, def, None)?;
    let selected = Selected { namespace, name: path.name.as_deref(), selection: &selection };
    let items =
        if def.is_namespaced() { pods(core, def, &selected).await? } else { self::nodes(core, def, &selected).await? };
    match (call.info.verb, &path.name) {
        (Verb::Get, Some(name)) => {
            let one = items.into_iter().next().ok_or_else(|| not_found(def, namespace, name))?;
            respond::object(core, call, def, StatusCode::OK, one)
        }
        _ => list(core, call, def, items),
    }
}

/// In the words of metrics-server, which names the kind and the whole key.
fn not_found(def: &ResourceDef, namespace: Option<&str>, name: &str) -> ApiError {
    let key = namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
    ApiError::not_found(&def.group, &def.singular, &key)
}

fn list(core: &Core, call: &Call, def: &ResourceDef, items: Vec<Object>) -> Result<Response, ApiError> {
    let as_ = call.representation(Offer::of(def))?;
    let list = match as_.shape {
        Shape::Table => {
            let rows: Vec<&Object> = items.iter().collect();
            columns::table(def, &rows, json!({}), call.include_object()?, true, core.clock.now())
        }
        Shape::Metadata => {
            let items: Vec<Value> = items.iter().map(respond::partial).collect();
            json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items })
        }
        Shape::Whole => {
            let items: Vec<Value> = items.into_iter().map(|object| Value::Object(object.0)).collect();
            json!({ "kind": def.list_kind, "apiVersion": def.api_version(), "metadata": {}, "items": items })
        }
    };
    respond::value(core, call, StatusCode::OK, &list, as_)
}

/// Which objects are asked for.
struct Selected<'a> {
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    selection: &'a Selection,
}

impl Selected<'_> {
    fn has(&self, def: &ResourceDef, object: &Object) -> bool {
        self.name.is_none_or(|name| object.name() == name) && self.selection.matches(def, object)
    }

    /// The stored objects that are meant, of a resource that shares its names with the measured one.
    async fn stored(&self, core: &Core, def: &ResourceDef, row: &ResourceDef) -> Result<Vec<Object>, ApiError> {
        let mut all = match self.name {
            Some(name) => {
                let found = core.objects.get(row, self.namespace, name, Consistency::Any).await?;
                found.into_iter().collect()
            }
            None => core.objects.all(row, self.namespace, Consistency::Any).await?,
        };
        all.retain(|object| self.has(def, object));
        Ok(all)
    }
}

async fn nodes(core: &Core, def: &ResourceDef, selected: &Selected<'_>) -> Result<Vec<Object>, ApiError> {
    let stored = selected.stored(core, def, &*core.row("", "v1", "nodes")?).await?;
    let names = stored.iter().map(|node| node.name().to_owned()).collect();
    let summaries = core.usage.ask(core, names).await?;
    let measured = stored.iter().filter_map(|node| {
        let summary = summaries.get(node.name())?;
        node_metrics(def, node, summary)
    });
    Ok(measured.collect())
}

async fn pods(core: &Core, def: &ResourceDef, selected: &Selected<'_>) -> Result<Vec<Object>, ApiError> {
    let stored = selected.stored(core, def, &*core.row("", "v1", "pods")?).await?;
    let node_of = |pod: &Object| pod.str_at(&["spec", "nodeName"]).filter(|node| !node.is_empty()).map(str::to_owned);
    let names: BTreeSet<String> = stored.iter().filter_map(node_of).collect();
    let summaries = core.usage.ask(core, names).await?;
    // By node as well: nobody is believed what he says of pods that run elsewhere.
    let mut measured: HashMap<(&str, &str), &Pod> = HashMap::new();
    for (node, summary) in &summaries {
        measured.extend(summary.pods.iter().map(|pod| ((node.as_str(), pod.pod_ref.uid.as_str()), pod)));
    }
    let found = stored.iter().filter_map(|pod| {
        let node = pod.str_at(&["spec", "nodeName"])?;
        pod_metrics(def, pod, measured.get(&(node, pod.uid()))?)
    });
    Ok(found.collect())
}

fn node_metrics(def: &ResourceDef, node: &Object, summary: &Summary) -> Option<Object> {
    let mut object = metrics(def, node, &summary.node.cpu)?;
    object.set(&["usage"], usage(&summary.node.cpu, &summary.node.memory)?);
    Some(object)
}

/// `None` until all of its containers have been measured.
fn pod_metrics(def: &ResourceDef, pod: &Object, measured: &Pod) -> Option<Object> {
    let mut object = metrics(def, pod, &measured.cpu)?;
    let containers: Option<Vec<Value>> = measured
        .containers
        .iter()
        .map(|one| Some(json!({ "name": one.name, "usage": usage(&one.cpu, &one.memory)? })))
        .collect();
    object.set(&["containers"], containers.filter(|containers| !containers.is_empty())?);
    Some(object)
}

/// What both kinds have: the name and labels of whom they are about, and when that was measured.
fn metrics(def: &ResourceDef, about: &Object, cpu: &Cpu) -> Option<Object> {
    let mut object = Object::default();
    object.set(&["kind"], def.kind.as_str());
    object.set(&["apiVersion"], def.api_version());
    object.set(&["metadata"], Map::new());
    for key in ["name", "namespace", "creationTimestamp", "labels"] {
        if let Some(value) = about.at(&["metadata", key]) {
            object.set(&["metadata", key], value.clone());
        }
    }
    object.set(&["timestamp"], deletion::seconds(cpu.time));
    object.set(&["window"], window(cpu.window_milliseconds?));
    Some(object)
}

/// As Go prints a duration: `10.066s`, `1m5s`.
fn window(milliseconds: u64) -> String {
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let fraction = format!("{:03}", rest % 1000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let minutes = if minutes == 0 { String::new() } else { format!("{minutes}m") };
    format!("{minutes}{}{dot}{fraction}s", rest / 1000)
}

/// In the units that metrics-server chooses.
fn usage(cpu: &Cpu, memory: &Memory) -> Option<Value> {
    let cpu = format!("{}n", cpu.usage_nano_cores?);
    Some(json!({ "cpu": cpu, "memory": format!("{}Ki", memory.working_set_bytes / 1024) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_go_durations() {
        for (milliseconds, text) in [(1000, "1s"), (10_066, "10.066s"), (500, "0.5s"), (65_010, "1m5.01s")] {
            assert_eq!(window(milliseconds), text);
        }
    }
}
