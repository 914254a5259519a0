//! What pods use, as `metrics.k8s.io` says.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity as Text,
    apis::meta::v1::{ObjectMeta, Time},
};
use kube::{api::ListParams, core::Request};
use serde::Deserialize;
use tandem_api::quantity::Quantity;

use crate::{Error, Key, object};

/// The use of one pod, container by container.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodMetrics {
    pub(super) metadata: ObjectMeta,
    pub(super) timestamp: Time,
    /// As Go prints a duration.
    pub(super) window: String,
    #[serde(default)]
    pub(super) containers: Vec<ContainerMetrics>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ContainerMetrics {
    pub(super) name: String,
    #[serde(default)]
    pub(super) usage: BTreeMap<String, Text>,
}

#[derive(Deserialize)]
struct List {
    items: Vec<PodMetrics>,
}

/// What the pods of a selector use; the error is told to the autoscaler's user.
pub(super) async fn read(client: &kube::Client, key: &Key, selector: &str) -> Result<Vec<PodMetrics>, String> {
    let ask = async || -> Result<List, Error> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", key.namespace);
        let request = Request::new(path).list(&ListParams::default().labels(selector))?;
        Ok(client.request(request).await?)
    };
    match ask().await {
        Ok(list) => Ok(list.items),
        Err(error) => Err(format!("unable to fetch metrics from resource metrics API: {error}")),
    }
}

/// One pod's use of one resource, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) milli: i64,
    pub(super) at: Timestamp,
    pub(super) window: Duration,
}

/// The amount in thousandths; nothing where the text is no quantity.
pub(super) fn milli(text: &Text) -> Option<i64> {
    Quantity::parse(&text.0).ok().map(|amount| amount.milli_value())
}

/// The use of a resource by pod, of one container or of all together. A pod of which a part was not measured is left
/// out.
pub(super) fn readings(
    all: &[PodMetrics],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, Reading>, String> {
    if all.is_empty() {
        return Err("no metrics returned from resource metrics API".to_owned());
    }
    let mut readings = BTreeMap::new();
    for pod in all {
        let name = object::name(&pod.metadata);
        let wanted: Vec<&ContainerMetrics> =
            pod.containers.iter().filter(|one| container.is_none_or(|wanted| one.name == wanted)).collect();
        if let (Some(container), true) = (container, wanted.is_empty()) {
            let namespace = object::namespace(&pod.metadata);
            return Err(format!(
                "failed to get container metrics: container {container} not present in metrics for pod {namespace}/{name}"
            ));
        }
        let amounts: Option<Vec<i64>> = wanted.iter().map(|one| milli(one.usage.get(resource)?)).collect();
        let window = pod.window.parse::<jiff::SignedDuration>().ok().and_then(|window| window.try_into().ok());
        if let (Some(amounts), Some(window)) = (amounts.filter(|amounts| !amounts.is_empty()), window) {
            let milli = amounts.into_iter().fold(0, i64::saturating_add);
            readings.insert(name.to_owned(), Reading { milli, at: pod.timestamp.0, window });
        }
    }
    Ok(readings)
}
