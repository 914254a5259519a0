use std::time::Duration;

use tandem_api::Clock as _;
use tokio::time::Instant;

use super::*;
use crate::audit::{AuditLog, LogOptions};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
omitStages: [RequestReceived]
rules:
- level: None
  users: ["silent"]
- level: RequestResponse
  resources: [{ group: "", resources: [secrets, pods, nodes] }, { group: apps }]
- level: Metadata
"#;

struct Audited {
    server: Server,
    folder: tempfile::TempDir,
}

async fn audited() -> Audited {
    let folder = tempfile::tempdir().unwrap();
    let options =
        LogOptions { path: folder.path().join("audit.log"), max_bytes: 1 << 20, max_age: None, max_backups: None };
    let clock = Arc::new(FixedClock::new("2026-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(clock.now().as_second() % 60, 0);
    let audit = AuditLog::open(POLICY, options, clock, &mut Default::default()).unwrap();
    let server = Server::with(Parts { audit: Some(audit), ..Parts::default() }).await;
    Audited { server, folder }
}

impl Audited {
    /// The events that are about this, once there is one of the stage.
    async fn event(&self, about: &str, stage: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let text = std::fs::read_to_string(self.folder.path().join("audit.log")).unwrap();
            let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let found = events.filter(|event| event["requestURI"].as_str().unwrap().contains(about));
            if let Some(event) = found.filter(|event| event["stage"] == stage).next_back() {
                return event;
            }
            assert!(Instant::now() < deadline, "no event about {about} in:\n{text}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn requests_and_answers_are_written_down() {
    let audited = audited().await;
    let server = &audited.server;
    server.create(DEPLOYMENTS, &deployment("web")).await;
    let event = audited.event("/deployments", "ResponseComplete").await;
    assert_eq!(event["user"]["username"], Identity::administrator().name);
    let expected = json!({ "resource": "deployments", "namespace": "default", "name": "web", "apiGroup": "apps", "apiVersion": "v1" });
    assert_eq!(event["objectRef"], expected);
    assert_eq!((&event["verb"], &event["responseStatus"]["code"]), (&json!("create"), &json!(201)));
    assert_eq!(event["requestObject"]["spec"]["replicas"], 2);
    assert_eq!(event["responseObject"]["metadata"]["name"], "web");
    assert!(event["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(event["stageTimestamp"], "2026-01-01T00:00:00.000000Z");

    let jane = ask("GET", "/api/v1/nodes/n").by(Identity::user("jane", &["system:authenticated"]));
    assert_eq!(server.send(jane).await.code, 403);
    let refused = audited.event("/nodes/n", "ResponseComplete").await;
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
    let unknown = ask("GET", "/api/v1/pods?unknown").unknown().header("authorization", "Bearer nonsense");
    assert_eq!(server.send(unknown).await.code, 401);
    let unknown = audited.event("?unknown", "ResponseComplete").await;
    assert_eq!((&unknown["responseStatus"]["code"], unknown.get("user")), (&json!(401), None));
    let acting = ask("GET", "/api/v1/pods?acting").header("impersonate-user", "jane");
    server.send(acting).await;
    assert_eq!(audited.event("?acting", "ResponseComplete").await["impersonatedUser"]["username"], "jane");
    let response = server.open(ask("GET", "/api/v1/pods?watch=1")).await;
    audited.event("/pods?watch=1", "ResponseStarted").await;
    drop(response);
    let ended = audited.event("/pods?watch=1", "ResponseComplete").await;
    assert!(ended.get("responseObject").is_none());
}

#[tokio::test]
async fn what_is_secret_is_not_written_down() {
    let audited = audited().await;
    let secret = json!({ "metadata": { "name": "hidden" }, "stringData": { "password": "hunter2" } });
    audited.server.create(&in_default("secrets"), &secret).await;
    audited.server.get(&in_default("secrets/hidden")).await;
    let silent = ask("GET", &in_default("secrets/unseen")).by(Identity::user("silent", &["system:masters"]));
    audited.server.send(silent).await;
    let review =
        json!({ "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": { "token": "hunter2" } });
    audited.server.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    audited.event("/tokenreviews", "ResponseComplete").await;
    let event = audited.event("/secrets/hidden", "ResponseComplete").await;
    assert_eq!(event["level"], "Metadata");
    assert_eq!(audited.event("/secrets", "ResponseComplete").await["objectRef"]["name"], "hidden");
    let text = std::fs::read_to_string(audited.folder.path().join("audit.log")).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg") && !text.contains("unseen"), "{text}");
}
