//! `postStart` and `preStop`.

use std::{net::Ipv4Addr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container as Spec, HTTPGetAction, LifecycleHandler},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tandem_runtime::{ContainerId, Runtime};

/// A hook may take long; whoever runs it sets the real bound.
const EXEC_TIMEOUT: Duration = Duration::from_secs(3600);

pub(crate) struct Target<'a> {
    pub(crate) runtime: &'a dyn Runtime,
    pub(crate) id: &'a ContainerId,
    pub(crate) spec: &'a Spec,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) http: &'a reqwest::Client,
}

pub(crate) async fn run(hook: &LifecycleHandler, target: &Target<'_>) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = target.runtime.exec(target.id, &command, EXEC_TIMEOUT).await.map_err(|error| error.to_string())?;
        return match output.code {
            0 => Ok(()),
            code => Err(format!(
                "command '{}' exited with {code}: {}",
                command.join(" "),
                String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr })
            )),
        };
    }
    if let Some(get) = &hook.http_get {
        let response = request(get, target.spec, target.address, target.http)?.send().await;
        return response.and_then(reqwest::Response::error_for_status).map(drop).map_err(|error| error.to_string());
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("the hook names no known action".to_owned())
}

/// The port by its number, or by its name among the container's ports.
pub(crate) fn port(port: &IntOrString, spec: &Spec) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = spec.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
    number.ok_or_else(|| format!("couldn't find port: {port:?}"))
}

/// The request of an `httpGet`, to the pod's address unless it names a host.
pub(crate) fn request(
    get: &HTTPGetAction,
    spec: &Spec,
    address: Option<Ipv4Addr>,
    http: &reqwest::Client,
) -> Result<reqwest::RequestBuilder, String> {
    let host = match get.host.as_deref().filter(|host| !host.is_empty()) {
        Some(host) => host.to_owned(),
        None => address.ok_or("the pod has no address")?.to_string(),
    };
    let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = get.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let url = format!("{scheme}://{host}:{}{slash}{path}", port(&get.port, spec)?);
    let mut request = http.get(url).header(http::header::ACCEPT, "*/*");
    for header in get.http_headers.iter().flatten() {
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    Ok(request)
}
