use std::time::Duration;

use expect_test::expect;
use tokio::time::timeout;

use super::*;

/// A watch being read.
struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

impl Watch {
    async fn open(server: &Server, uri: &str) -> Watch {
        Watch::ask(server, ask("GET", uri)).await
    }

    async fn ask(server: &Server, ask: Ask) -> Watch {
        let response = server.open(ask).await;
        assert_eq!(response.status(), StatusCode::OK);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = timeout(Duration::from_secs(600), self.body.frame()).await.expect("the watch is silent")?;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    async fn line(&mut self) -> String {
        let Some(event) = self.next().await else { return "end".to_owned() };
        format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or_default()
        )
    }
}

fn labelled(name: &str, tier: &str) -> Value {
    let mut body = config_map(name);
    body["metadata"]["labels"] = json!({ "tier": tier });
    body
}

#[tokio::test]
async fn changes_are_told_in_order() {
    let server = Server::start().await;
    let maps = in_default("configmaps");
    server.create(&maps, &config_map("a")).await;
    let list = server.get(&maps).await.json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = Watch::open(&server, &format!("{maps}?watch=true&resourceVersion={version}")).await;
    server.create(&maps, &config_map("b")).await;
    server.put(&in_default("configmaps/a"), &json!({ "metadata": { "name": "a" }, "data": { "a": "2" } })).await;
    server.delete(&in_default("configmaps/a")).await;
    assert_eq!(watch.line().await, "ADDED b");
    let modified = watch.next().await.unwrap();
    assert_eq!((modified["type"].as_str(), modified["object"]["data"]["a"].as_str()), (Some("MODIFIED"), Some("2")));
    let deleted = watch.next().await.unwrap();
    assert_eq!(deleted["type"], "DELETED");
    let number =
        |event: &Value| event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(number(&deleted) > number(&modified));
}

#[tokio::test]
async fn selectors_turn_changes_into_comings_and_goings() {
    let server = Server::start().await;
    let maps = in_default("configmaps");
    let mut watch = Watch::open(&server, &format!("{maps}?watch=1&labelSelector=tier%3Dx")).await;
    server.create(&maps, &labelled("a", "y")).await;
    server.create(&maps, &labelled("b", "x")).await;
    server.put(&in_default("configmaps/a"), &labelled("a", "x")).await;
    server.put(&in_default("configmaps/b"), &labelled("b", "y")).await;
    server.delete(&in_default("configmaps/b")).await;
    server.delete(&in_default("configmaps/a")).await;
    let mut lines = Vec::new();
    for _ in 0..4 {
        lines.push(watch.line().await);
    }
    assert_eq!(lines, ["ADDED b", "ADDED a", "DELETED b", "DELETED a"]);
}

#[tokio::test]
async fn streaming_lists_end_with_a_bookmark() {
    let server = Server::start().await;
    let maps = in_default("configmaps");
    server.create(&maps, &config_map("a")).await;
    server.create(&maps, &config_map("b")).await;
    let query = "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut watch = Watch::open(&server, &format!("{maps}?{query}")).await;
    assert_eq!(watch.line().await, "ADDED a");
    assert_eq!(watch.line().await, "ADDED b");
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    server.create(&maps, &config_map("c")).await;
    assert_eq!(watch.line().await, "ADDED c");
    let refused = server.get(&format!("{maps}?watch=true&sendInitialEvents=true")).await;
    assert_eq!(refused.code, 422);
}

#[tokio::test]
async fn watches_end_with_a_last_bookmark() {
    let server = Server::start().await;
    let maps = in_default("configmaps");
    let mut watch = Watch::open(&server, &format!("{maps}?watch=true&allowWatchBookmarks=true&timeoutSeconds=1")).await;
    assert_eq!(watch.line().await, "BOOKMARK ");
    assert_eq!(watch.line().await, "end");
    let mut silent = Watch::open(&server, &format!("{maps}?watch=true&timeoutSeconds=1")).await;
    assert_eq!(silent.line().await, "end");
}

#[tokio::test]
async fn history_that_is_gone_is_told() {
    use tandem_store::Storage as _;
    let server = Server::start().await;
    let maps = in_default("configmaps");
    server.create(&maps, &config_map("a")).await;
    server.create(&maps, &config_map("b")).await;
    let newest = server.store.revision();
    server.store.write(tandem_store::Command::compact(newest)).await.unwrap();
    let mut watch = Watch::open(&server, &format!("{maps}?watch=true&resourceVersion=1")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((event["type"].as_str(), event["object"]["code"].as_i64()), (Some("ERROR"), Some(410)));
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn tables_name_their_columns_once() {
    let server = Server::start().await;
    let maps = in_default("configmaps");
    server.create(&maps, &config_map("a")).await;
    server.create(&maps, &config_map("b")).await;
    let table =
        ask("GET", &format!("{maps}?watch=true")).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let mut watch = Watch::ask(&server, table).await;
    let (first, second) = (watch.next().await.unwrap(), watch.next().await.unwrap());
    assert!(first["object"]["columnDefinitions"].is_array());
    assert!(second["object"]["columnDefinitions"].is_null());
    expect![[r#""b""#]].assert_eq(&second["object"]["rows"][0]["cells"][0].to_string());
}

#[tokio::test]
async fn one_object_can_be_watched() {
    let server = Server::start().await;
    let maps = in_default("configmaps");
    server.create(&maps, &config_map("a")).await;
    server.create(&maps, &config_map("b")).await;
    let mut watch = Watch::open(&server, &format!("{maps}?watch=true&fieldSelector=metadata.name%3Db")).await;
    server.delete(&in_default("configmaps/a")).await;
    server.delete(&in_default("configmaps/b")).await;
    assert_eq!(watch.line().await, "ADDED b");
    assert_eq!(watch.line().await, "DELETED b");
    let mut old = Watch::open(&server, "/api/v1/watch/namespaces/default/configmaps?resourceVersion=0").await;
    server.create(&maps, &config_map("c")).await;
    assert_eq!(old.line().await, "ADDED c");
}

#[tokio::test]
async fn a_watch_may_be_asked_to_last_for_ever() {
    let server = Server::start().await;
    let maps = in_default("configmaps");
    server.create(&maps, &config_map("a")).await;
    let mut watch = Watch::open(&server, &format!("{maps}?watch=true&timeoutSeconds={}", i64::MAX)).await;
    expect!["ADDED a"].assert_eq(&watch.line().await);
}
