//! What typed clients ask for: answers in protobuf.

use tandem_api::Object;
use tandem_registry::protobuf;
use tandem_store::Storage as _;

use super::*;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// What client-go sends where its content type is protobuf.
const TYPED: &str = "application/vnd.kubernetes.protobuf,application/json";

fn read(bytes: &[u8]) -> Object {
    let registry = Registry::builtin();
    protobuf::decode(registry.schema(), &registry, bytes).unwrap()
}

async fn typed(server: &Server, method: &str, uri: &str, body: Option<&Value>) -> Object {
    let ask = ask(method, uri).header("accept", TYPED);
    let answer = server.send(if let Some(body) = body { ask.json(body) } else { ask }).await;
    assert_eq!(answer.header(header::CONTENT_TYPE), PROTOBUF, "{}", answer.text());
    read(&answer.body)
}

/// An object without what protobuf has no word for: fields that are there and empty.
fn bare(mut object: Value) -> Object {
    if object["metadata"]["resourceVersion"] == "" {
        object["metadata"] = json!({});
    }
    Object::from_value(object).unwrap()
}

#[tokio::test]
async fn objects_and_lists_say_the_same_in_protobuf() {
    let server = Server::start().await;
    let created = typed(&server, "POST", DEPLOYMENTS, Some(&deployment("web"))).await;
    assert_eq!(created.name(), "web");
    let one = format!("{DEPLOYMENTS}/web");
    assert_eq!(typed(&server, "GET", &one, None).await, bare(server.get(&one).await.json()));
    for list in [DEPLOYMENTS, "/api/v1/namespaces", "/api/v1/namespaces?limit=1"] {
        let mut json = server.get(list).await.json();
        for item in json["items"].as_array_mut().unwrap() {
            // Items say their kind in JSON only.
            item.as_object_mut().unwrap().retain(|field, _| field != "kind" && field != "apiVersion");
        }
        assert_eq!(typed(&server, "GET", list, None).await, bare(json), "{list}");
    }
    let metadata = ask("GET", DEPLOYMENTS).header(
        "accept",
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
    );
    let metadata = read(&server.send(metadata).await.body);
    assert_eq!((metadata.kind(), metadata.api_version()), ("PartialObjectMetadataList", "meta.k8s.io/v1"));
    assert_eq!(metadata.at(&["items"]).unwrap()[0]["metadata"]["name"], "web");
    let scale = typed(&server, "GET", &format!("{one}/scale"), None).await;
    assert_eq!((scale.kind(), scale.i64_at(&["spec", "replicas"])), ("Scale", Some(2)));
    let status = typed(&server, "DELETE", &one, None).await;
    assert_eq!((status.kind(), status.str_at(&["status"])), ("Status", Some("Success")));
    let table =
        server.send(ask("GET", DEPLOYMENTS).header("accept", &format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1"))).await;
    assert_eq!(table.code, 406);
}

/// The next event of a stream of frames: its type, and the object in its envelope.
async fn event(body: &mut Body, buffer: &mut Vec<u8>) -> (String, Object) {
    loop {
        let length = buffer.first_chunk().map(|length| u32::from_be_bytes(*length) as usize + 4);
        if let Some(length) = length.filter(|length| buffer.len() >= *length) {
            let frame: Vec<u8> = buffer.drain(..length).skip(4).collect();
            // Field 1, the type; field 2, the object, whose field 1 are the bytes.
            let (kind, rest) = frame[2..].split_at(usize::from(frame[1]));
            let magic = rest.windows(4).position(|four| four == protobuf::MAGIC).unwrap();
            return (String::from_utf8(kind.to_vec()).unwrap(), read(&rest[magic..]));
        }
        buffer.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
}

#[tokio::test]
async fn watches_come_in_frames() {
    let server = Server::start().await;
    let maps = in_default("configmaps");
    server.create(&maps, &config_map("a")).await;
    let uri =
        format!("{maps}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true");
    let response = server.open(ask("GET", &uri).header("accept", TYPED)).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], format!("{PROTOBUF};stream=watch"));
    let (mut body, mut buffer) = (response.into_body(), Vec::new());
    let (kind, object) = event(&mut body, &mut buffer).await;
    assert_eq!((kind.as_str(), object), ("ADDED", bare(server.get(&in_default("configmaps/a")).await.json())));
    let (kind, object) = event(&mut body, &mut buffer).await;
    assert_eq!((kind.as_str(), object.kind()), ("BOOKMARK", "ConfigMap"));
    assert_eq!(object.str_at(&["metadata", "annotations", "k8s.io/initial-events-end"]), Some("true"));
    server.delete(&in_default("configmaps/a")).await;
    let (kind, object) = event(&mut body, &mut buffer).await;
    assert_eq!((kind.as_str(), object.name()), ("DELETED", "a"));

    let newest = server.store.revision();
    server.store.write(tandem_store::Command::compact(newest)).await.unwrap();
    let old = format!("{maps}?watch=true&resourceVersion=1");
    let mut body = server.open(ask("GET", &old).header("accept", PROTOBUF)).await.into_body();
    let (kind, status) = event(&mut body, &mut Vec::new()).await;
    assert_eq!((kind.as_str(), status.i64_at(&["code"])), ("ERROR", Some(410)));
}
