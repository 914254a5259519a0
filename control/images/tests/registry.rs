//! The protocol, request by request, against the router in this process.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body};
use expect_test::{Expect, expect};
use http::{Method, Request, header};
use http_body_util::BodyExt;
use tandem_api::{FixedClock, Identity};
use tandem_images::{Config, Digest, FileIndex, Kind, Limits, Registry};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Harness {
    folder: tempfile::TempDir,
    clock: Arc<FixedClock>,
    registry: Arc<Registry>,
    router: Router,
    identity: Identity,
}

/// What of an answer a test shows.
struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: bytes::Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn text(&self) -> String {
        let code = serde_json::from_slice::<Errors>(&self.body).ok().map(|body| body.errors[0].code.clone());
        let body = code.unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned());
        let shown = [
            "location",
            "range",
            "content-range",
            "docker-content-digest",
            "link",
            "retry-after",
            "oci-subject",
            "oci-tag",
        ];
        let headers = shown.iter().filter(|name| !self.header(name).is_empty());
        let headers: String = headers.map(|name| format!(" {name}={}", self.header(name))).collect();
        format!("{} {body}{headers}", self.status)
    }
}

#[derive(serde::Deserialize)]
struct Errors {
    errors: Vec<Failure>,
}

#[derive(serde::Deserialize)]
struct Failure {
    code: String,
}

impl Harness {
    fn new() -> Harness {
        Harness::with(Limits::default())
    }

    fn with(limits: Limits) -> Harness {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(FixedClock::new(jiff::Timestamp::from_second(1_800_000_000).unwrap()));
        let registry = open(folder.path(), &clock, limits);
        let router = registry.router();
        Harness { folder, clock, registry, router, identity: Identity::administrator() }
    }

    /// The same folder after the process ended.
    fn restart(&mut self) {
        self.registry = open(self.folder.path(), &self.clock, Limits::default());
        self.router = self.registry.router();
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body.into()).unwrap();
        request.extensions_mut().insert(self.identity.clone());
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Body::empty()).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Body::empty()).await
    }

    /// Pushes a blob in one request.
    async fn blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        assert_eq!(self.send(Method::POST, &path, &[], bytes.to_vec()).await.status, 201);
        digest
    }

    async fn put(&self, path: &str, media_type: &str, manifest: &str) -> Answer {
        self.send(Method::PUT, path, &[("content-type", media_type)], manifest.to_owned()).await
    }

    /// Pushes a container image and says its digest.
    async fn image(&self, repository: &str, tag: &str, layer: &str) -> String {
        let manifest = self.image_manifest(repository, layer).await;
        let answer = self.put(&format!("/v2/{repository}/manifests/{tag}"), MANIFEST, &manifest).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.header("docker-content-digest").to_owned()
    }

    async fn image_manifest(&self, repository: &str, layer: &str) -> String {
        let config = r#"{"architecture":"amd64","os":"linux"}"#;
        let (config, layer) = (
            self.part(repository, "image.config.v1+json", config).await,
            self.part(repository, "image.layer.v1.tar", layer).await,
        );
        format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{layer}]}}"#)
    }

    async fn part(&self, repository: &str, media_type: &str, text: &str) -> String {
        let digest = self.blob(repository, text.as_bytes()).await;
        format!(r#"{{"mediaType":"application/vnd.oci.{media_type}","digest":"{digest}","size":{}}}"#, text.len())
    }
}

fn open(folder: &std::path::Path, clock: &Arc<FixedClock>, limits: Limits) -> Arc<Registry> {
    let index = FileIndex::open(&folder.join("index.json")).unwrap();
    let config = Config {
        folder: folder.to_owned(),
        index: Arc::new(index),
        clock: Arc::clone(clock) as Arc<dyn tandem_api::Clock>,
        verifier: None,
        others: None,
        limits,
    };
    Arc::new(Registry::open(config).unwrap())
}

/// Compares answers with identifiers and hashes made short.
fn check(answers: &[Answer], expected: &Expect) {
    let mut text: String = answers.iter().map(|answer| answer.text() + "\n").collect();
    for length in [128, 64, 36] {
        let is_id =
            |word: &str| word.len() == length && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let words: Vec<String> = text
            .split(|letter: char| !letter.is_ascii_hexdigit() && letter != '-')
            .filter(|word| is_id(word))
            .map(str::to_owned)
            .collect();
        for word in words {
            text = text.replace(&word, if length == 36 { "UUID" } else { "HASH" });
        }
    }
    expected.assert_eq(&text);
}

#[tokio::test]
async fn chunks() {
    let harness = Harness::new();
    let start = harness.send(Method::POST, "/v2/a/blobs/uploads/", &[], "").await;
    let path = start.header("location").to_owned();
    let patch = |range: &'static str, body: &'static str| {
        let (harness, path) = (&harness, path.clone());
        async move { harness.send(Method::PATCH, &path, &[("content-range", range)], body).await }
    };
    let digest = Digest::of(b"hello world!");
    let answers = [
        start,
        patch("0-5", "hello ").await,
        patch("0-5", "hello ").await,
        patch("9-12", "orld").await,
        patch("6-3", "x").await,
        patch("6-9", "wo").await,
        patch("6-7", "world").await,
        harness.get(&path).await,
        harness.send(Method::PATCH, &path, &[], "world").await,
        harness.send(Method::PUT, &path, &[], "!").await,
        harness.send(Method::PUT, &format!("{path}?digest={digest}"), &[], "!").await,
        harness.get(&path).await,
        harness.get(&format!("/v2/a/blobs/{digest}")).await,
        harness.get(&format!("/v2/b/blobs/{digest}")).await,
        harness.send(Method::GET, &format!("/v2/a/blobs/{digest}"), &[("range", "bytes=6-10")], "").await,
        harness.send(Method::GET, &format!("/v2/a/blobs/{digest}"), &[("range", "bytes=60-")], "").await,
        harness.send(Method::HEAD, &format!("/v2/a/blobs/{digest}"), &[], "").await,
    ];
    assert_eq!(answers[16].header("content-length"), "12");
    check(
        &answers,
        &expect![[r#"
        202  location=/v2/a/blobs/uploads/UUID range=0-0
        202  location=/v2/a/blobs/uploads/UUID range=0-5
        416 BLOB_UPLOAD_INVALID range=0-5
        416 BLOB_UPLOAD_INVALID range=0-5
        400 BLOB_UPLOAD_INVALID
        400 BLOB_UPLOAD_INVALID
        400 BLOB_UPLOAD_INVALID
        204  location=/v2/a/blobs/uploads/UUID range=0-5
        202  location=/v2/a/blobs/uploads/UUID range=0-10
        400 DIGEST_INVALID
        201  location=/v2/a/blobs/sha256:HASH docker-content-digest=sha256:HASH
        404 BLOB_UPLOAD_UNKNOWN
        200 hello world! docker-content-digest=sha256:HASH
        404 BLOB_UNKNOWN
        206 world content-range=bytes 6-10/12 docker-content-digest=sha256:HASH
        416 SIZE_INVALID content-range=bytes */12
        200  docker-content-digest=sha256:HASH
    "#]],
    );
}

#[tokio::test]
async fn digests_are_checked() {
    let harness = Harness::new();
    let wrong = Digest::of(b"other");
    let sha512 = "sha512:309ecc489c12d6eb4cc40f50c902f2b4d0ed77ee511a7c7a9bcd3ca86d4cd86f989dd35bc5ff499670da34255b45b0cfd830e81f605dcf7dc5542e93ae9cd76f";
    let post = |digest: String| {
        let harness = &harness;
        async move { harness.send(Method::POST, &format!("/v2/a/blobs/uploads/?digest={digest}"), &[], "hello world").await }
    };
    let answers = [
        post(wrong.to_string()).await,
        post(Digest::of(b"hello world").as_str().to_uppercase()).await,
        post("sha256:00".to_owned()).await,
        post("md5:5eb63bbbe01eeed093cb22bb8f5acdc3".to_owned()).await,
        harness.get(&format!("/v2/a/blobs/{wrong}")).await,
        post(sha512.to_owned()).await,
        harness.get(&format!("/v2/a/blobs/{sha512}")).await,
        harness.send(Method::POST, "/v2/a/blobs/uploads/?digest-algorithm=sha512", &[], "").await,
        harness.send(Method::POST, "/v2/a/blobs/uploads/?digest-algorithm=md5", &[], "").await,
    ];
    check(
        &answers,
        &expect![[r#"
        400 DIGEST_INVALID
        400 DIGEST_INVALID
        400 DIGEST_INVALID
        400 DIGEST_INVALID
        404 BLOB_UNKNOWN
        201  location=/v2/a/blobs/sha512:HASH docker-content-digest=sha512:HASH
        200 hello world docker-content-digest=sha512:HASH
        202  location=/v2/a/blobs/uploads/UUID range=0-0
        400 DIGEST_INVALID
    "#]],
    );
    let left = std::fs::read_dir(harness.folder.path().join("uploads")).unwrap().count();
    assert_eq!(left, 2, "one upload with its ticket, of the request that only started one");
}

#[tokio::test]
async fn mounts() {
    let mut harness = Harness::new();
    let digest = harness.blob("a", b"shared").await;
    let mount = |to: &str, from: &str| format!("/v2/{to}/blobs/uploads/?mount={digest}{from}");
    let answers = [
        harness.send(Method::POST, &mount("b", "&from=a"), &[], "").await,
        harness.get(&format!("/v2/b/blobs/{digest}")).await,
        harness.send(Method::POST, &mount("c", "&from=nowhere"), &[], "").await,
        harness.send(Method::POST, &mount("c", ""), &[], "").await,
        harness.delete(&format!("/v2/a/blobs/{digest}")).await,
        harness.get(&format!("/v2/a/blobs/{digest}")).await,
        harness.get(&format!("/v2/b/blobs/{digest}")).await,
    ];
    check(
        &answers,
        &expect![[r#"
        201  location=/v2/b/blobs/sha256:HASH docker-content-digest=sha256:HASH
        200 shared docker-content-digest=sha256:HASH
        202  location=/v2/c/blobs/uploads/UUID range=0-0
        202  location=/v2/c/blobs/uploads/UUID range=0-0
        202 
        404 BLOB_UNKNOWN
        200 shared docker-content-digest=sha256:HASH
    "#]],
    );
    harness.identity = Identity::service_account("default", "default");
    assert_eq!(harness.send(Method::POST, &mount("d", "&from=b"), &[], "").await.status, 403);
}

#[tokio::test]
async fn uploads_belong_to_their_owner_and_survive() {
    let mut harness = Harness::new();
    let path = harness.send(Method::POST, "/v2/a/blobs/uploads/", &[], "").await.header("location").to_owned();
    let first = harness.send(Method::PATCH, &path, &[("content-range", "0-4")], "hello").await;
    let foreign = harness.get(&path.replace("/v2/a/", "/v2/b/")).await;
    harness.identity = Identity::user("other", &[tandem_api::groups::MASTERS]);
    let other = harness.get(&path).await;
    harness.identity = Identity::administrator();
    harness.restart();
    let digest = Digest::of(b"hello world");
    let answers = [
        first,
        foreign,
        other,
        harness.get(&path).await,
        harness.get("/v2/a/blobs/uploads/00000000-0000-0000-0000-000000000000").await,
        harness.get("/v2/a/blobs/uploads/..").await,
        harness.send(Method::PUT, &format!("{path}?digest={digest}"), &[("content-range", "5-10")], " world").await,
        harness.get(&format!("/v2/a/blobs/{digest}")).await,
    ];
    check(
        &answers,
        &expect![[r#"
        202  location=/v2/a/blobs/uploads/UUID range=0-4
        404 BLOB_UPLOAD_UNKNOWN
        404 BLOB_UPLOAD_UNKNOWN
        204  location=/v2/a/blobs/uploads/UUID range=0-4
        404 BLOB_UPLOAD_UNKNOWN
        404 BLOB_UPLOAD_UNKNOWN
        201  location=/v2/a/blobs/sha256:HASH docker-content-digest=sha256:HASH
        200 hello world docker-content-digest=sha256:HASH
    "#]],
    );
    let path = harness.send(Method::POST, "/v2/a/blobs/uploads/", &[], "").await.header("location").to_owned();
    assert_eq!(harness.delete(&path).await.status, 204);
    assert_eq!(harness.get(&path).await.status, 404);
}

#[tokio::test]
async fn uploads_expire() {
    let harness = Harness::new();
    let start =
        |_| async { harness.send(Method::POST, "/v2/a/blobs/uploads/", &[], "").await.header("location").to_owned() };
    let old = start(()).await;
    harness.clock.advance(Duration::from_secs(25 * 3600));
    let young = start(()).await;
    let stop = CancellationToken::new();
    let sweeper = tokio::spawn(Arc::clone(&harness.registry).run(stop.clone()));
    let gone = async {
        while harness.get(&old).await.status != 404 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the old upload is swept");
    assert_eq!(harness.get(&young).await.status, 204);
    stop.cancel();
    sweeper.await.unwrap();
}

#[tokio::test]
async fn manifests() {
    let harness = Harness::new();
    let manifest = harness.image_manifest("lib/app", "layer").await;
    let digest = Digest::of(manifest.as_bytes());
    let put = |reference: String| {
        let (harness, manifest) = (&harness, manifest.clone());
        async move { harness.put(&format!("/v2/lib/app/manifests/{reference}"), MANIFEST, &manifest).await }
    };
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{MANIFEST}","digest":"{digest}","size":{}}}]}}"#,
        manifest.len()
    );
    let layer = Digest::of(b"layer");
    let answers = [
        harness.put("/v2/lib/app/manifests/index", INDEX, &index).await,
        put("1.0".to_owned()).await,
        put(digest.to_string()).await,
        put(Digest::of(b"").to_string()).await,
        put("1.1?tag=1.2&tag=1.3".to_owned()).await,
        put(".bad".to_owned()).await,
        harness.put("/v2/other/manifests/1", MANIFEST, &manifest).await,
        harness.put("/v2/lib/app/manifests/x", INDEX, &manifest).await,
        harness.put("/v2/lib/app/manifests/x", MANIFEST, &manifest.replacen('{', r#"{"a":1,"a":2,"#, 1)).await,
        harness.put("/v2/lib/app/manifests/x", MANIFEST, &manifest.replacen('{', r#"{"manifests":[],"#, 1)).await,
        harness.put("/v2/lib/app/manifests/index", INDEX, &index).await,
        harness.get("/v2/lib/app/tags/list").await,
        harness.get("/v2/lib/app/tags/list?n=2").await,
        harness.get("/v2/lib/app/tags/list?n=2&last=1.1").await,
        harness.get("/v2/lib/app/tags/list?n=1000000000").await,
        harness.get("/v2/nothing/tags/list").await,
        harness.get("/v2/_catalog").await,
        harness.get("/v2/_catalog?n=1000000000").await,
        harness.delete(&format!("/v2/lib/app/blobs/{layer}")).await,
        harness.delete(&format!("/v2/lib/app/manifests/{digest}")).await,
        harness.delete("/v2/lib/app/manifests/index").await,
        harness.delete(&format!("/v2/lib/app/manifests/{}", Digest::of(index.as_bytes()))).await,
        harness.delete(&format!("/v2/lib/app/manifests/{digest}")).await,
        harness.get("/v2/lib/app/manifests/1.0").await,
        harness.delete("/v2/lib/app/manifests/1.0").await,
        harness.delete(&format!("/v2/lib/app/blobs/{layer}")).await,
    ];
    check(
        &answers,
        &expect![[r#"
            404 MANIFEST_BLOB_UNKNOWN
            201  location=/v2/lib/app/manifests/sha256:HASH docker-content-digest=sha256:HASH
            201  location=/v2/lib/app/manifests/sha256:HASH docker-content-digest=sha256:HASH
            400 DIGEST_INVALID
            201  location=/v2/lib/app/manifests/sha256:HASH docker-content-digest=sha256:HASH oci-tag=1.2, 1.3
            400 TAG_INVALID
            404 MANIFEST_BLOB_UNKNOWN
            400 MANIFEST_INVALID
            400 MANIFEST_INVALID
            400 MANIFEST_INVALID
            201  location=/v2/lib/app/manifests/sha256:HASH docker-content-digest=sha256:HASH
            200 {"name":"lib/app","tags":["1.0","1.1","1.2","1.3","index"]}
            200 {"name":"lib/app","tags":["1.0","1.1"]} link=</v2/lib/app/tags/list?n=2&last=1.1>; rel="next"
            200 {"name":"lib/app","tags":["1.2","1.3"]} link=</v2/lib/app/tags/list?n=2&last=1.3>; rel="next"
            400 PAGINATION_NUMBER_INVALID
            404 NAME_UNKNOWN
            200 {"repositories":["lib/app"]}
            400 PAGINATION_NUMBER_INVALID
            405 DENIED
            405 DENIED
            202 
            202 
            202 
            404 MANIFEST_UNKNOWN
            404 MANIFEST_UNKNOWN
            202 
        "#]],
    );
}

#[tokio::test]
async fn a_manifest_comes_back_as_it_went() {
    let mut harness = Harness::new();
    let manifest = harness.image_manifest("library/nginx", "layer").await;
    harness.put("/v2/library/nginx/manifests/1.25", MANIFEST, &manifest).await;
    harness.restart();
    harness.identity = Identity::node("n1");
    let answer = harness.get("/v2/library/nginx/manifests/1.25?ns=docker.io").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, MANIFEST));
    assert_eq!(answer.body, manifest.as_bytes());
    let head = harness.send(Method::HEAD, "/v2/library/nginx/manifests/1.25", &[], "").await;
    assert_eq!(head.header("content-length"), manifest.len().to_string());
    assert_eq!(head.header("docker-content-digest"), Digest::of(manifest.as_bytes()).as_str());
}

#[tokio::test]
async fn referrers() {
    let harness = Harness::new();
    let digest = harness.image("a", "1", "layer").await;
    let empty = harness.part("a", "empty.v1+json", "{}").await;
    let subject = format!(r#"{{"mediaType":"{MANIFEST}","digest":"{digest}","size":1}}"#);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","artifactType":"example/sbom","config":{empty},"layers":[{empty}],"subject":{subject},"annotations":{{"a":"b"}}}}"#
    );
    let own = Digest::of(manifest.as_bytes());
    let answers = [
        harness.get(&format!("/v2/a/referrers/{digest}")).await,
        harness.put(&format!("/v2/a/manifests/{own}"), MANIFEST, &manifest).await,
        harness.get(&format!("/v2/a/referrers/{digest}")).await,
        harness.get(&format!("/v2/a/referrers/{digest}?artifactType=other")).await,
    ];
    assert_eq!(answers[3].header("oci-filters-applied"), "artifactType");
    assert_eq!(answers[2].header("content-type"), INDEX);
    check(
        &answers,
        &expect![[r#"
        200 {"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}
        201  location=/v2/a/manifests/sha256:HASH docker-content-digest=sha256:HASH oci-subject=sha256:HASH
        200 {"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:HASH","size":595,"artifactType":"example/sbom","annotations":{"a":"b"}}]}
        200 {"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}
    "#]],
    );
}

#[tokio::test]
async fn who_may_do_what() {
    let mut harness = Harness::new();
    let digest = harness.blob("a", b"blob").await;
    harness.image("a", "1", "layer").await;
    let mut answers = Vec::new();
    for identity in [Identity::anonymous(), Identity::user("jane", &[]), Identity::node("n1")] {
        harness.identity = identity;
        answers.push(harness.get("/v2/").await);
        answers.push(harness.get(&format!("/v2/a/blobs/{digest}")).await);
        answers.push(harness.send(Method::POST, "/v2/a/blobs/uploads/", &[], "").await);
        answers.push(harness.put("/v2/a/manifests/1", MANIFEST, "{}").await);
        answers.push(harness.delete("/v2/a/manifests/1").await);
        answers.push(harness.get("/v2/_catalog").await);
    }
    assert_eq!(answers[0].header(header::WWW_AUTHENTICATE.as_str()), "Basic realm=\"tandem\"");
    check(
        &answers,
        &expect![[r#"
        401 UNAUTHORIZED
        401 UNAUTHORIZED
        401 UNAUTHORIZED
        401 UNAUTHORIZED
        401 UNAUTHORIZED
        401 UNAUTHORIZED
        200 {}
        403 DENIED
        403 DENIED
        403 DENIED
        403 DENIED
        403 DENIED
        200 {}
        200 blob docker-content-digest=sha256:HASH
        403 DENIED
        403 DENIED
        403 DENIED
        403 DENIED
    "#]],
    );
}

#[tokio::test]
async fn sizes_are_bounded() {
    let limits = Limits { manifest_bytes: 1000, blob_bytes: 10, bodies: 1, uploads: 1 };
    let harness = Harness::with(limits);
    let start = harness.send(Method::POST, "/v2/a/blobs/uploads/", &[], "").await;
    let path = start.header("location").to_owned();
    let answers = [
        start,
        harness.send(Method::POST, "/v2/a/blobs/uploads/", &[], "").await,
        harness.send(Method::PATCH, &path, &[], "much more than ten bytes").await,
        harness.put("/v2/a/manifests/1", MANIFEST, &" ".repeat(1001)).await,
    ];
    check(
        &answers,
        &expect![[r#"
        202  location=/v2/a/blobs/uploads/UUID range=0-0
        429 TOOMANYREQUESTS retry-after=1
        413 SIZE_INVALID
        413 SIZE_INVALID
    "#]],
    );
}

#[tokio::test]
async fn wrong_requests() {
    let harness = Harness::new();
    let mut answers = Vec::new();
    for path in [
        "/v2/a%2fb/tags/list".to_owned(),
        "/v2/../secrets/tags/list".to_owned(),
        "/v2/A/tags/list".to_owned(),
        format!("/v2/{}/tags/list", "a".repeat(4096)),
        "/v2/a/blobs/sha256:00".to_owned(),
        "/v2/a".to_owned(),
        "/v2/a/manifests/".to_owned(),
    ] {
        answers.push(harness.get(&path).await);
    }
    answers.push(harness.send(Method::PATCH, "/v2/a/manifests/1", &[], "").await);
    answers.push(harness.get("/v2/a/blobs/uploads/").await);
    check(
        &answers,
        &expect![[r#"
        400 NAME_INVALID
        400 NAME_INVALID
        400 NAME_INVALID
        400 NAME_INVALID
        400 DIGEST_INVALID
        404 UNSUPPORTED
        400 TAG_INVALID
        405 UNSUPPORTED
        405 UNSUPPORTED
    "#]],
    );
}

#[tokio::test]
async fn kinds_are_known_before_a_node_has_seen_the_image() {
    let harness = Harness::new();
    harness.image("library/nginx", "1.25", "layer").await;
    let fine = r#"(component
        (import "wasi:cli/environment@0.2.0" (instance (export "f" (func)))) (core module))"#;
    let greedy = r#"(component (import "acme:db/query@1.0.0" (instance (export "f" (func)))) (core module))"#;
    for (tag, bytes) in [("fine", wat::parse_str(fine).unwrap()), ("greedy", wat::parse_str(greedy).unwrap())] {
        let image = tandem_component::image::wrap(&bytes, std::collections::BTreeMap::new()).unwrap();
        harness.blob("samples/x", &bytes).await;
        harness.blob("samples/x", &image.config).await;
        let manifest = String::from_utf8(image.manifest).unwrap();
        assert_eq!(harness.put(&format!("/v2/samples/x/manifests/{tag}"), MANIFEST, &manifest).await.status, 201);
    }
    let text = harness.blob("samples/x", b"not wasm").await;
    let config = harness.blob("samples/x", b"{}").await;
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.wasm.config.v0+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/wasm","digest":"{text}","size":8}}]}}"#
    );
    assert_eq!(harness.put("/v2/samples/x/manifests/text", MANIFEST, &manifest).await.status, 201);

    let known = |image: &'static str| {
        let registry = &harness.registry;
        async move { registry.known(image).await.unwrap() }
    };
    assert_eq!(known("nginx:1.25").await.unwrap().kind, Kind::Container);
    assert_eq!(known("docker.io/library/nginx:1.25").await.unwrap().kind, Kind::Container);
    assert_eq!(known("quay.io/library/nginx:1.25").await, None);
    assert_eq!(known("nginx:9").await, None);
    assert_eq!(known("Not An Image").await, None);
    let fine = known("registry.tandem/samples/x:fine").await.unwrap();
    assert_eq!((fine.kind, fine.refused, fine.broken), (Kind::Component, vec![], None));
    let greedy = known("registry.tandem/samples/x:greedy").await.unwrap();
    assert_eq!(greedy.refused.iter().map(ToString::to_string).collect::<Vec<_>>(), ["acme:db/query@1.0.0"]);
    let text = known("registry.tandem/samples/x:text").await.unwrap();
    assert_eq!(text.broken.as_deref(), Some("not a WebAssembly component or module: it is text"));
}
