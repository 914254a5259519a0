use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use tandem_client::{
    k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec},
    kube::{
        Api, Client,
        api::{DeleteParams, ObjectMeta, PostParams, WatchEvent, WatchParams},
    },
};
use tandem_tests::cluster::Daemon;
use tokio::time::timeout;

use crate::report::{Goal, Report, median};

const RUNS: usize = 30;
const PATIENCE: Duration = Duration::from_secs(60);

/// From `create` to Ready as a watcher sees it, one pod after the other, with a warm image.
pub(crate) fn creation(report: &mut Report, cluster: &Daemon) -> anyhow::Result<()> {
    for (what, image, port, goal_ms) in [
        ("component pod, create to Ready, median of 30", "registry.tandem/samples/hello-http:1", 8080, 50.0),
        ("container pod, create to Ready, median of 30", "nginx:1.25", 80, 300.0),
    ] {
        let kubeconfig = cluster.kubeconfig().to_owned();
        let times = cluster.machine.inside(async move {
            let client = tandem_client::from_kubeconfig(&kubeconfig).await?;
            // The first one fetches the image.
            create(&client, &format!("bench-{port}-first"), image, port).await?;
            let mut times = Vec::new();
            for run in 0..RUNS {
                times.push(create(&client, &format!("bench-{port}-{run}"), image, port).await?.as_secs_f64() * 1e3);
            }
            anyhow::Ok(times)
        })?;
        report.figure(what, median(times), "ms", Goal::AtMost(goal_ms));
    }
    Ok(())
}

async fn create(client: &Client, name: &str, image: &str, port: i32) -> anyhow::Result<Duration> {
    let pods = Api::<Pod>::default_namespaced(client.clone());
    let container = Container {
        name: "web".to_owned(),
        image: Some(image.to_owned()),
        ports: Some(vec![ContainerPort { container_port: port, ..ContainerPort::default() }]),
        ..Container::default()
    };
    let pod = Pod {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
        ..Pod::default()
    };
    let now = pods.list_metadata(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
    let watch = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = pods.watch(&watch, &now).await?.boxed();
    let began = Instant::now();
    pods.create(&PostParams::default(), &pod).await?;
    timeout(PATIENCE, async {
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
                && is_ready(&pod)
            {
                return Ok(());
            }
        }
        anyhow::bail!("the watch ended before {name} was ready")
    })
    .await
    .with_context(|| format!("{name} is not ready"))??;
    let took = began.elapsed();
    pods.delete(name, &DeleteParams::default().grace_period(1)).await?;
    // Its node has taken it down when the object is gone: nothing of it runs beside the next one.
    timeout(PATIENCE, async {
        while let Some(event) = events.try_next().await? {
            if matches!(event, WatchEvent::Deleted(_)) {
                return Ok(());
            }
        }
        anyhow::bail!("the watch ended before {name} was gone")
    })
    .await
    .with_context(|| format!("{name} is not gone"))??;
    Ok(took)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
