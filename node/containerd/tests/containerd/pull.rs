use tandem_runtime::Error;

use crate::{
    node::{BUSYBOX, Node},
    registry::REPOSITORY,
};

pub(crate) async fn the_clusters_registry_is_asked_with_a_certificate() {
    let node = Node::start().await;
    let runtime = node.runtime();
    assert_eq!(runtime.image(BUSYBOX).await.unwrap(), None);
    let mirrored = runtime.pull(BUSYBOX, None).await.unwrap();
    assert!(mirrored.digest.starts_with("docker.io/tools/busybox@sha256:"), "{}", mirrored.digest);
    assert!(mirrored.size_bytes > 100_000 && mirrored.user_id == Some(0), "{mirrored:?}");

    let own = runtime.pull(&format!("registry.tandem/{REPOSITORY}:1"), None).await.unwrap();
    assert_eq!(own.id, mirrored.id);
    assert!(own.digest.starts_with("registry.tandem/tools/busybox@sha256:"), "{}", own.digest);
    let digest = own.digest.split_once('@').unwrap().1.to_owned();
    let by_digest = runtime.pull(&format!("registry.tandem/{REPOSITORY}@{digest}"), None).await.unwrap();
    assert_eq!(by_digest.id, own.id);
}

pub(crate) async fn failures_carry_the_registrys_answer() {
    let node = Node::start().await;
    for reference in ["nginx:1.25", "registry.tandem/shop/absent:1"] {
        match node.runtime().pull(reference, None).await {
            Err(Error::Pull(message)) => assert!(message.contains("not found"), "{message}"),
            other => panic!("{reference}: {other:?}"),
        }
    }
    match node.runtime().pull("registry.tandem/Not A Name", None).await {
        Err(Error::Pull(message)) | Err(Error::Refused(message)) => {
            assert!(message.contains("invalid reference format"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}
