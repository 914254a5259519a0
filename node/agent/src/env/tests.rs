use expect_test::{Expect, expect};
use k8s_openapi::{
    ByteString,
    api::core::v1::{
        ConfigMapEnvSource, ConfigMapKeySelector, EnvFromSource, ObjectFieldSelector, SecretEnvSource, ServicePort,
        ServiceSpec,
    },
};

use super::*;
use crate::{fields::NodeSize, testing};

fn service(namespace: &str, name: &str, address: &str, ports: &[(&str, i32)]) -> Arc<Service> {
    let port = |(name, port): &(&str, i32)| ServicePort {
        name: (!name.is_empty()).then(|| (*name).to_owned()),
        port: *port,
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        cluster_ip: Some(address.to_owned()),
        ports: Some(ports.iter().map(port).collect()),
        ..ServiceSpec::default()
    };
    let mut service = Service { spec: Some(spec), ..Service::default() };
    service.metadata.namespace = Some(namespace.to_owned());
    service.metadata.name = Some(name.to_owned());
    Arc::new(service)
}

fn sources() -> Sources {
    let map = ConfigMap {
        data: Some([("K".into(), "v".into()), ("odd.key".into(), "x".into())].into()),
        ..ConfigMap::default()
    };
    let secret = Secret { data: Some([("S".into(), ByteString(b"hush".to_vec()))].into()), ..Secret::default() };
    Sources {
        config_maps: [("map".to_owned(), Arc::new(map))].into(),
        secrets: [("secret".to_owned(), Arc::new(secret))].into(),
    }
}

fn check(spec: &Spec, services: &[Arc<Service>], wanted: Expect) {
    let size = NodeSize { cpus: 1, memory_bytes: 1 };
    let place = Placement { node_name: "n1", node_address: [192, 0, 2, 1].into(), pod_address: None, size };
    let text = match environment(&testing::pod(&["a"]), spec, &sources(), services, &place) {
        Ok(variables) => variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect(),
        Err(error) => error,
    };
    wanted.assert_eq(&text);
}

fn plain(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), ..EnvVar::default() }
}

fn from_map(key: &str, optional: bool) -> EnvVar {
    let selector = ConfigMapKeySelector { key: key.to_owned(), name: "map".to_owned(), optional: Some(optional) };
    let from = EnvVarSource { config_map_key_ref: Some(selector), ..EnvVarSource::default() };
    EnvVar { name: "FROM".to_owned(), value_from: Some(from), ..EnvVar::default() }
}

#[test]
fn references_expand_in_order() {
    let env = vec![plain("A", "1"), plain("B", "$(A)-$(LATER)-$$(A)-$x"), plain("LATER", "$(B)")];
    check(
        &Spec { env: Some(env), ..Spec::default() },
        &[],
        expect![[r#"
        A=1
        B=1-$(LATER)-$(A)-$x
        LATER=1-$(LATER)-$(A)-$x
    "#]],
    );
}

#[test]
fn maps_and_secrets_come_before_what_is_named() {
    let env_from = vec![
        EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource { name: "map".to_owned(), optional: None }),
            prefix: Some("P_".to_owned()),
            ..EnvFromSource::default()
        },
        EnvFromSource {
            secret_ref: Some(SecretEnvSource { name: "secret".to_owned(), optional: None }),
            ..EnvFromSource::default()
        },
    ];
    let env = Some(vec![plain("S", "said"), from_map("K", false)]);
    check(
        &Spec { env_from: Some(env_from), env, ..Spec::default() },
        &[],
        expect![[r#"
        P_K=v
        P_odd.key=x
        S=said
        FROM=v
    "#]],
    );
}

#[test]
fn a_missing_key_is_an_error_unless_optional() {
    let with = |optional| Spec { env: Some(vec![from_map("no", optional)]), ..Spec::default() };
    check(&with(false), &[], expect!["couldn't find key no in ConfigMap default/map"]);
    check(&with(true), &[], expect![""]);
}

#[test]
fn services_of_the_namespace_and_the_api_are_told() {
    let services = [
        service("default", "kubernetes", "10.96.0.1", &[("https", 443)]),
        service("default", "my-db", "10.96.0.9", &[("", 5432)]),
        service("default", "headless", "None", &[("", 1)]),
        service("other", "far", "10.96.0.7", &[("", 1)]),
    ];
    let field = ObjectFieldSelector { field_path: "metadata.name".to_owned(), api_version: None };
    let from = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    let named = EnvVar { name: "NAME".to_owned(), value_from: Some(from), ..EnvVar::default() };
    let env = vec![named, plain("URL", "http://$(MY_DB_SERVICE_HOST)"), plain("MY_DB_SERVICE_PORT", "1")];
    check(
        &Spec { env: Some(env), ..Spec::default() },
        &services,
        expect![[r#"
        NAME=web
        URL=http://10.96.0.9
        MY_DB_SERVICE_PORT=1
        KUBERNETES_PORT=tcp://10.96.0.1:443
        KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443
        KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1
        KUBERNETES_PORT_443_TCP_PORT=443
        KUBERNETES_PORT_443_TCP_PROTO=tcp
        KUBERNETES_SERVICE_HOST=10.96.0.1
        KUBERNETES_SERVICE_PORT=443
        KUBERNETES_SERVICE_PORT_HTTPS=443
        MY_DB_PORT=tcp://10.96.0.9:5432
        MY_DB_PORT_5432_TCP=tcp://10.96.0.9:5432
        MY_DB_PORT_5432_TCP_ADDR=10.96.0.9
        MY_DB_PORT_5432_TCP_PORT=5432
        MY_DB_PORT_5432_TCP_PROTO=tcp
        MY_DB_SERVICE_HOST=10.96.0.9
    "#]],
    );
}
