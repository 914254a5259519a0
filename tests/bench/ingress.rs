use tandem_tests::cluster::{Daemon, folder};

use crate::{
    footprint::answers,
    report::{Goal, Report},
    serving::{PATIENCE, load},
};

/// A page behind nginx, and nginx with one worker as a proxy to it.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: page, labels: {app: page}}
spec:
  containers: [{name: nginx, image: "nginx:1.25", ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: page}
spec: {selector: {app: page}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: page}
spec: {defaultBackend: {service: {name: page, port: {number: 80}}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: proxy}
data:
  default.conf: |
    upstream page { server page.default.svc.cluster.local; keepalive 64; }
    server {
      listen 80;
      access_log off;
      location / {
        proxy_pass http://page;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
      }
    }
---
apiVersion: v1
kind: Pod
metadata: {name: proxy}
spec:
  containers:
  - name: nginx
    image: nginx:1.25
    volumeMounts: [{name: conf, mountPath: /etc/nginx/conf.d}]
  volumes: [{name: conf, configMap: {name: proxy}}]
"#;

/// Requests per second to one page: straight, through the node's ingress, and through nginx as a proxy.
pub(crate) fn requests(report: &mut Report, cluster: &Daemon) -> anyhow::Result<()> {
    let folder = folder();
    let file = folder.path().join("pods.yaml");
    std::fs::write(&file, PODS)?;
    cluster.read(&["apply", "-f", &file.display().to_string()]);
    cluster.read(&["wait", "--for=condition=Ready", "pod/page", "pod/proxy", PATIENCE]);
    let address = |pod: &str| cluster.read(&["get", "pod", pod, "-o", "jsonpath=http://{.status.podIP}/"]);
    let rate = |url: &str| {
        answers(cluster, url);
        load(cluster, url)
    };
    let straight = rate(&address("page"))?;
    let ours = rate(&format!("http://{}/", cluster.machine.address))?;
    let theirs = rate(&address("proxy"))?;
    report.figure("a page of nginx, requests/s through the pod address", straight, "/s", Goal::None);
    report.figure("the same through the ingress", ours, "/s", Goal::None);
    report.figure("the same through nginx as a proxy, one worker", theirs, "/s", Goal::None);
    report.figure("ratio to nginx as a proxy", ours / theirs, "", Goal::AtLeast(1.0));
    Ok(())
}
