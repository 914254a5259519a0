//! What `custom.metrics.k8s.io` and `external.metrics.k8s.io` say of the metrics that an autoscaler names.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::autoscaling::v2::{MetricIdentifier, MetricSpec, ObjectMetricSource},
    apimachinery::pkg::{api::resource::Quantity as Text, apis::meta::v1::Time},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tandem_api::REQUESTS_IN_FLIGHT;

use super::{
    target,
    usage::{self, Reading},
};
use crate::{Error, Key, object};

const CUSTOM: &str = "/apis/custom.metrics.k8s.io";
/// Adapters serve one of them, or both; the newer one is asked first.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";
/// What stands in a segment of a path, or in a query, as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'*');
/// How Kubernetes says that nothing is served at a path.
const NOTHING_SERVED: &str = "the server could not find the requested resource";
const NO_CUSTOM: &str =
    "unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered";

/// One metric, as it was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Measured {
    /// Of each pod, by name.
    Pods(BTreeMap<String, Reading>),
    /// Of one object, or all values of an external metric together, in thousandths.
    Value(i64),
}

/// A value, in the forms of all versions.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Value {
    #[serde(default)]
    described_object: Described,
    timestamp: Time,
    #[serde(default, alias = "window")]
    window_seconds: Option<u64>,
    value: Text,
}

#[derive(Default, Deserialize)]
struct Described {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Values {
    #[serde(default)]
    items: Vec<Value>,
}

impl Values {
    fn readings(&self) -> BTreeMap<String, Reading> {
        let reading = |one: &Value| {
            let window = Duration::from_secs(one.window_seconds.unwrap_or(0));
            let reading = Reading { milli: usage::milli(&one.value)?, at: one.timestamp.0, window };
            Some((one.described_object.name.clone(), reading))
        };
        self.items.iter().filter_map(reading).collect()
    }

    fn sum(&self) -> i64 {
        self.items.iter().filter_map(|one| usage::milli(&one.value)).fold(0, i64::saturating_add)
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// What a metric is of the pods of this selector, or of what it describes; `None` for metrics of other APIs. The error
/// is told to the autoscaler's user.
pub(super) async fn read(
    client: &kube::Client,
    key: &Key,
    metric: &MetricSpec,
    pods: &str,
) -> Option<Result<Measured, String>> {
    let namespace = key.namespace.as_str();
    if let Some(source) = &metric.pods {
        return Some(of_pods(client, namespace, &source.metric, pods).await.map(Measured::Pods));
    }
    if let Some(source) = &metric.object {
        return Some(of_object(client, namespace, source).await.map(Measured::Value));
    }
    let source = metric.external.as_ref()?;
    Some(external(client, namespace, &source.metric).await.map(Measured::Value))
}

async fn of_pods(
    client: &kube::Client,
    namespace: &str,
    metric: &MetricIdentifier,
    pods: &str,
) -> Result<BTreeMap<String, Reading>, String> {
    let selectors = [("labelSelector", pods.to_owned()), ("metricLabelSelector", selector(metric))];
    let of = format!("namespaces/{}/pods/*/{}", encoded(namespace), encoded(&metric.name));
    let values = custom(client, &of, &selectors).await?;
    if values.items.is_empty() {
        return Err("no metrics returned from custom metrics API".to_owned());
    }
    Ok(values.readings())
}

async fn of_object(client: &kube::Client, namespace: &str, source: &ObjectMetricSource) -> Result<i64, String> {
    let about = &source.described_object;
    let found = target::resource(client, about.api_version.as_deref(), &about.kind).await?;
    let resource = match found.group.as_str() {
        "" => found.plural,
        group => format!("{}.{group}", found.plural),
    };
    let (name, metric) = (encoded(&about.name), encoded(&source.metric.name));
    let of = format!("namespaces/{}/{resource}/{name}/{metric}", encoded(namespace));
    let values = custom(client, &of, &[("metricLabelSelector", selector(&source.metric))]).await?;
    let first = values.items.first().and_then(|value| usage::milli(&value.value));
    first.ok_or_else(|| "no metrics returned from custom metrics API".to_owned())
}

async fn external(client: &kube::Client, namespace: &str, metric: &MetricIdentifier) -> Result<i64, String> {
    let path = format!("{EXTERNAL}/namespaces/{}/{}", encoded(namespace), encoded(&metric.name));
    let unable = |error: String| format!("unable to fetch metrics from external metrics API: {error}");
    match get(client, &path, &[("labelSelector", selector(metric))]).await {
        Ok(values) if values.items.is_empty() => Err("no metrics returned from external metrics API".to_owned()),
        Ok(values) => Ok(values.sum()),
        Err(error) => Err(unable(error)),
    }
}

/// How many requests the pods of a selector answer at the moment; `None` where nobody knows.
pub(super) async fn in_flight(client: &kube::Client, key: &Key, pods: &str) -> Option<i64> {
    let metric = MetricIdentifier { name: REQUESTS_IN_FLIGHT.to_owned(), selector: None };
    let readings = of_pods(client, &key.namespace, &metric, pods).await.ok()?;
    Some(readings.values().map(|reading| reading.milli).fold(0, i64::saturating_add) / 1000)
}

fn selector(metric: &MetricIdentifier) -> String {
    metric.selector.as_ref().and_then(object::selector).map(|selector| selector.to_string()).unwrap_or_default()
}

async fn custom(client: &kube::Client, of: &str, query: &[(&str, String)]) -> Result<Values, String> {
    for version in CUSTOM_VERSIONS {
        match get(client, &format!("{CUSTOM}/{version}/{of}"), query).await {
            Err(error) if error.contains(NOTHING_SERVED) => {}
            found => return found.map_err(|error| format!("unable to fetch metrics from custom metrics API: {error}")),
        }
    }
    Err(NO_CUSTOM.to_owned())
}

async fn get(client: &kube::Client, path: &str, query: &[(&str, String)]) -> Result<Values, String> {
    let given = query.iter().filter(|(_, value)| !value.is_empty());
    let query: Vec<String> = given.map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    let request = http::Request::get(uri).body(Vec::new()).map_err(|error| error.to_string())?;
    client.request(request).await.map_err(|error| Error::from(error).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_all_versions_are_read() {
        let check = |text: &str, expected: (i64, u64)| {
            let values: Values = serde_json::from_str(text).unwrap();
            let reading = values.readings()["a"];
            assert_eq!((reading.milli, reading.window.as_secs()), expected, "{text}");
        };
        check(
            r#"{"items":[{"describedObject":{"kind":"Pod","name":"a"},"metric":{"name":"x","selector":null},
            "timestamp":"2026-01-01T00:00:00Z","windowSeconds":10,"value":"1500m"}]}"#,
            (1500, 10),
        );
        check(
            r#"{"items":[{"describedObject":{"kind":"Pod","name":"a"},"metricName":"x",
            "timestamp":"2026-01-01T00:00:00Z","window":5,"value":"2","selector":null}]}"#,
            (2000, 5),
        );
        let external = r#"{"items":[{"metricName":"x","metricLabels":{},"timestamp":"2026-01-01T00:00:00Z","value":"2"},
            {"metricName":"x","metricLabels":{},"timestamp":"2026-01-01T00:00:00Z","value":"1k"}]}"#;
        assert_eq!(serde_json::from_str::<Values>(external).unwrap().sum(), 1_002_000);
    }

    #[test]
    fn names_from_users_stay_in_their_segment() {
        assert_eq!(encoded("a/b?c=d#e f%"), "a%2Fb%3Fc%3Dd%23e%20f%25");
        assert_eq!(encoded("http_requests.x-y~*"), "http_requests.x-y~*");
    }
}
