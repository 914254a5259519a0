use expect_test::expect;
use tandem_api::Identity;

use super::*;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MERGE: &str = "application/merge-patch+json";

fn rules(group: &str, resource: &str) -> Value {
    json!([{ "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource] }])
}

impl Server {
    /// A policy and a binding of the same name.
    async fn policy(&self, sort: &str, name: &str, spec: &Value, binding: &Value) {
        let mut spec = spec.clone();
        if spec.get("matchConstraints").is_none() {
            spec["matchConstraints"] = json!({ "resourceRules": rules("apps", "deployments") });
        }
        self.create(
            &format!("{GROUP}/{sort}admissionpolicies"),
            &json!({ "metadata": { "name": name }, "spec": spec }),
        )
        .await;
        self.binding(sort, name, name, binding).await;
    }

    async fn binding(&self, sort: &str, name: &str, policy: &str, more: &Value) {
        let mut spec = json!({ "policyName": policy });
        if sort == "validating" {
            spec["validationActions"] = json!(["Deny"]);
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let body = json!({ "metadata": { "name": name }, "spec": spec });
        self.create(&format!("{GROUP}/{sort}admissionpolicybindings"), &body).await;
    }

    async fn validating(&self, name: &str, spec: &Value, binding: &Value) {
        self.policy("validating", name, spec, binding).await;
    }

    async fn mutating(&self, name: &str, spec: &Value) {
        let mut spec = spec.clone();
        if spec.get("reinvocationPolicy").is_none() {
            spec["reinvocationPolicy"] = "Never".into();
        }
        self.policy("mutating", name, &spec, &json!({})).await;
    }

    async fn deploy(&self, name: &str, replicas: i64) -> Answer {
        let mut body = deployment(name);
        body["spec"]["replicas"] = replicas.into();
        self.post(DEPLOYMENTS, &body).await
    }
}

fn none() -> Value {
    json!({})
}

#[tokio::test]
async fn a_policy_denies_what_it_does_not_hold_for() {
    let server = Server::start().await;
    let validation = json!({ "expression": "object.spec.replicas > 1",
        "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas" });
    server.validating("replicas.example.com", &json!({ "validations": [validation] }), &none()).await;
    let refused = server.deploy("marker", 1).await;
    expect![[r#"422 Invalid: deployments.apps "marker" is forbidden: ValidatingAdmissionPolicy 'replicas.example.com' with binding 'replicas.example.com' denied request: failed expression: object.spec.replicas > 1"#]]
        .assert_eq(&refused.status());
    let causes = &refused.json()["details"]["causes"];
    assert!(causes[0]["message"].as_str().unwrap().starts_with("ValidatingAdmissionPolicy 'replicas"), "{causes}");
    assert_eq!(server.deploy("web", 2).await.code, 201);
    let patched = server.patch(&format!("{DEPLOYMENTS}/web"), MERGE, &json!({ "spec": { "replicas": 1 } })).await;
    assert_eq!(patched.code, 422, "{}", patched.text());
    let scaled = server.patch(&format!("{DEPLOYMENTS}/web/scale"), MERGE, &json!({ "spec": { "replicas": 1 } })).await;
    assert_eq!(scaled.code, 200, "rules name subresources");
    assert_eq!(server.deploy("dry", 1).await.code, 422);
    let mut set = deployment("other");
    set["kind"] = "ReplicaSet".into();
    set["spec"]["replicas"] = 1.into();
    assert_eq!(server.post("/apis/apps/v1/namespaces/default/replicasets", &set).await.code, 201);
    server.delete(&format!("{GROUP}/validatingadmissionpolicybindings/replicas.example.com")).await;
    assert_eq!(server.deploy("late", 1).await.code, 201, "without a binding a policy has no effect");
}

#[tokio::test]
async fn policies_say_why_and_how() {
    let server = Server::start().await;
    let spec = json!({
        "variables": [
            { "name": "replicas", "expression": "object.spec.replicas" },
            { "name": "even", "expression": "variables.replicas % 2 == 0" },
            { "name": "lost", "expression": "object.spec.nothing.at.all" },
        ],
        "matchConditions": [{ "name": "not-kept", "expression": "object.metadata.name != 'kept'" }],
        "validations": [
            { "expression": "variables.even || (variables.replicas > 6 && variables.lost == 1)", "reason": "Forbidden",
                "messageExpression": "'odd: ' + string(variables.replicas)" },
            { "expression": "variables.replicas < 9", "message": " too many ", "reason": "RequestEntityTooLarge" },
            { "expression": "request.userInfo.username != 'jane' && request.operation == 'CREATE' && oldObject == null",
                "reason": "Unauthorized", "message": "not jane" },
            { "expression": "authorizer.group('').resource('pods').namespace('default').check('create').allowed() && namespaceObject.metadata.name == 'default'" },
        ],
    });
    server.validating("p", &spec, &none()).await;
    for (name, replicas, expected) in [
        ("a", 3, "403 Forbidden: odd: 3"),
        ("a", 10, "413 RequestEntityTooLarge: too many"),
        ("a", 2, "201"),
        ("kept", 3, "201"),
    ] {
        let answer = server.deploy(name, replicas).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        let why = message.split("denied request: ").nth(1).unwrap_or_default().to_owned();
        let found = if answer.code == 201 {
            "201".to_owned()
        } else {
            format!("{} {}: {why}", answer.code, answer.json()["reason"].as_str().unwrap())
        };
        assert_eq!(found, expected, "{name} {replicas}: {message}");
    }
    let all = json!({ "metadata": { "name": "jane" }, "rules": [{ "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create"] }] });
    server.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", &all).await;
    for user in ["jane", "joe"] {
        let binding = json!({ "metadata": { "name": user }, "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "jane" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }] });
        server.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    }
    let mut body = deployment("b");
    body["spec"]["replicas"] = 2.into();
    let refused = server.send(ask("POST", DEPLOYMENTS).json(&body).by(Identity::user("jane", &[]))).await;
    assert!(
        refused.status().starts_with("401 Unauthorized") && refused.status().ends_with("not jane"),
        "{}",
        refused.status()
    );
    let refused = server.send(ask("POST", DEPLOYMENTS).json(&body).by(Identity::user("joe", &[]))).await;
    assert!(refused.status().contains("failed expression: authorizer.group"), "{}", refused.status());
}

#[tokio::test]
async fn bindings_warn_and_audit() {
    let server = Server::start().await;
    let spec = json!({ "validations": [{ "expression": "object.spec.replicas > 1", "message": "too few" }],
        "auditAnnotations": [{ "key": "replicas", "valueExpression": "string(object.spec.replicas)" }] });
    server.validating("p", &spec, &json!({ "validationActions": ["Warn", "Audit"] })).await;
    let made = server.deploy("web", 1).await;
    assert_eq!(made.code, 201);
    expect![[r#"299 - "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p': too few""#]]
        .assert_eq(made.header(header::WARNING));
    assert_eq!(server.deploy("more", 2).await.header(header::WARNING), "");
}

#[tokio::test]
async fn failures_deny_unless_they_are_ignored() {
    let server = Server::start().await;
    let spec =
        |policy: &str| json!({ "failurePolicy": policy, "validations": [{ "expression": "object.spec.lost > 1" }] });
    server.validating("ignored", &spec("Ignore"), &none()).await;
    assert_eq!(server.deploy("a", 1).await.code, 201);
    server.validating("strict", &spec("Fail"), &none()).await;
    expect![[r#"422 Invalid: deployments.apps "b" is forbidden: ValidatingAdmissionPolicy 'strict' with binding 'strict' denied request: expression 'object.spec.lost > 1' resulted in error: no such key: lost"#]]
        .assert_eq(&server.deploy("b", 1).await.status());
    let endless = "[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, [1,2,3,4,5,6,7,8,9].all(c, [1,2,3,4,5,6,7,8,9].all(d, [1,2,3,4,5,6,7,8,9].all(e, [1,2,3,4,5,6,7,8,9].all(f, a + b + c + d + e + f > 0))))))";
    server.delete(&format!("{GROUP}/validatingadmissionpolicies/strict")).await;
    server.validating("long", &json!({ "validations": [{ "expression": endless }] }), &none()).await;
    let refused = server.deploy("b", 1).await.status();
    assert!(refused.ends_with("resulted in error: operation cancelled: actual cost limit exceeded"), "{refused}");
}

#[tokio::test]
async fn selectors_and_exclusions_narrow_a_policy() {
    let server = Server::start().await;
    server.create("/api/v1/namespaces", &json!({ "metadata": { "name": "a", "labels": { "strict": "true" } } })).await;
    let validations = json!([{ "expression": "false", "message": "no" }]);
    let mut excluded = rules("", "configmaps");
    excluded[0]["resourceNames"] = json!(["spared"]);
    let spec = json!({ "validations": validations, "matchConstraints": {
        "resourceRules": rules("", "configmaps"), "excludeResourceRules": excluded,
        "namespaceSelector": { "matchLabels": { "strict": "true" } } } });
    server
        .validating("p", &spec, &json!({ "matchResources": { "objectSelector": { "matchLabels": { "kind": "x" } } } }))
        .await;
    let mut chosen = config_map("chosen");
    chosen["metadata"]["labels"] = json!({ "kind": "x" });
    let mut spared = chosen.clone();
    spared["metadata"]["name"] = "spared".into();
    let there = "/api/v1/namespaces/a/configmaps";
    assert_eq!(server.post(there, &config_map("plain")).await.code, 201);
    assert_eq!(server.post(there, &chosen).await.code, 422);
    assert_eq!(server.post(there, &spared).await.code, 201);
    assert_eq!(server.post(&in_default("configmaps"), &chosen).await.code, 201);
    let label = json!({ "metadata": { "labels": { "kind": "x" } } });
    assert_eq!(server.patch(&format!("{there}/plain"), MERGE, &label).await.code, 422);
    let spec = json!({ "validations": [{ "expression": "!oldObject.metadata.name.startsWith('keep')" }], "matchConstraints": {
        "resourceRules": [{ "apiGroups": [""], "apiVersions": ["*"], "operations": ["DELETE"], "resources": ["configmaps"] }] } });
    server.validating("deletions", &spec, &none()).await;
    server.create(&in_default("configmaps"), &config_map("keep-me")).await;
    assert_eq!(server.delete(&in_default("configmaps/keep-me")).await.code, 422);
    assert_eq!(server.delete(&in_default("configmaps/chosen")).await.code, 200);
}

#[tokio::test]
async fn params_are_given_by_bindings() {
    let server = Server::start().await;
    let spec = json!({ "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" }, "validations": [{
        "expression": "object.spec.replicas <= int(params.data.most)",
        "messageExpression": "'at most ' + params.data.most" }] });
    let by_name = json!({ "paramRef": { "name": "limit", "namespace": "default", "parameterNotFoundAction": "Deny" } });
    server.validating("p", &spec, &by_name).await;
    let refused = server.deploy("a", 3).await.status();
    assert!(
        refused.ends_with(
            "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
        ),
        "{refused}"
    );
    let limit = |name: &str, most: &str| json!({ "metadata": { "name": name, "labels": { "limit": "x" } }, "data": { "most": most } });
    server.create(&in_default("configmaps"), &limit("limit", "5")).await;
    assert_eq!(server.deploy("a", 3).await.code, 201);
    assert!(server.deploy("b", 6).await.status().ends_with("at most 5"));
    let selector = json!({ "matchLabels": { "limit": "x" } });
    let all = json!({ "paramRef": { "selector": selector, "parameterNotFoundAction": "Allow" } });
    server.binding("validating", "all", "p", &all).await;
    server.create(&in_default("configmaps"), &limit("narrow", "2")).await;
    let refused = server.deploy("b", 4).await.status();
    assert!(refused.contains("binding 'all'") && refused.ends_with("at most 2"), "{refused}");
    server.delete(&in_default("configmaps/narrow")).await;
    assert_eq!(server.deploy("b", 4).await.code, 201);
    server.delete(&format!("{GROUP}/validatingadmissionpolicybindings/p")).await;
    server.delete(&in_default("configmaps/limit")).await;
    assert_eq!(server.deploy("c", 40).await.code, 201, "nothing is selected, and that is allowed");
    let lost = json!({ "paramKind": { "apiVersion": "example.com/v1", "kind": "Lost" }, "validations": [{ "expression": "true" }] });
    server.validating("lost", &lost, &json!({ "paramRef": { "name": "x", "parameterNotFoundAction": "Allow" } })).await;
    let refused = server.deploy("d", 1).await.status();
    assert!(
        refused.ends_with("failed to configure binding: paramKind kind `example.com/v1, Kind=Lost` not known"),
        "{refused}"
    );
}

#[tokio::test]
async fn custom_kinds_are_params_and_objects() {
    let server = Server::start().await;
    custom::establish(&server).await;
    let tabs = custom::tabs("v1");
    server.create(&tabs, &json!({ "metadata": { "name": "limit" }, "spec": { "size": 2 } })).await;
    let mut constraints = rules("example.com", "tabs");
    constraints[0]["operations"] = json!(["CREATE"]);
    let spec = json!({ "paramKind": { "apiVersion": "example.com/v1", "kind": "Tab" },
        "matchConstraints": { "resourceRules": constraints },
        "validations": [{ "expression": "object.spec.size <= params.spec.size && request.kind.version == 'v1' && object.apiVersion == 'example.com/v1'" }] });
    server.validating("p", &spec, &json!({ "paramRef": { "name": "limit", "parameterNotFoundAction": "Deny" } })).await;
    assert_eq!(server.post(&tabs, &json!({ "metadata": { "name": "a" }, "spec": { "size": 3 } })).await.code, 422);
    assert_eq!(server.post(&tabs, &json!({ "metadata": { "name": "a" }, "spec": { "size": 1 } })).await.code, 201);
    let old = json!({ "metadata": { "name": "b" }, "spec": { "size": 3 } });
    let refused = server.post(&custom::tabs("v1beta1"), &old).await;
    assert_eq!(refused.code, 422, "as the version that the rule names: {}", refused.text());
    let small = json!({ "metadata": { "name": "b" }, "spec": { "size": 1 } });
    assert_eq!(server.post(&custom::tabs("v1beta1"), &small).await.code, 201);
    let mutation = json!({ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": "Object{spec: Object.spec{color: 'blue'}}" } });
    server
        .mutating(
            "m",
            &json!({ "mutations": [mutation], "matchConstraints": { "resourceRules": rules("example.com", "tabs") } }),
        )
        .await;
    let made = server.create(&tabs, &json!({ "metadata": { "name": "c" }, "spec": { "size": 1 } })).await;
    assert_eq!(made["spec"], json!({ "size": 1, "color": "blue" }));
}

fn applying(expression: &str) -> Value {
    json!({ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": expression } })
}

fn patching(expression: &str) -> Value {
    json!({ "patchType": "JSONPatch", "jsonPatch": { "expression": expression } })
}

#[tokio::test]
async fn a_policy_changes_a_pod() {
    let server = Server::start().await;
    server.default_account().await;
    let constraints = json!({ "resourceRules": rules("", "pods") });
    let sidecar =
        "Object{spec: Object.spec{containers: [Object.spec.containers{name: 'proxy', image: variables.image}]}}";
    let escaped = "!has(object.metadata.annotations) ? [] : [JSONPatch{op: 'add', path: '/metadata/annotations/' + jsonpatch.escapeKey('example.com/by'), value: object.metadata.name}]";
    let spec = json!({
        "matchConstraints": constraints, "matchConditions": [{ "name": "new", "expression": "oldObject == null" }],
        "variables": [{ "name": "image", "expression": "'proxy:' + string(size(object.spec.containers))" }],
        "mutations": [
            applying("Object{metadata: Object.metadata{labels: {'added': 'yes'}}}"),
            applying(sidecar),
            patching(escaped),
            patching("[JSONPatch{op: 'test', path: '/spec/restartPolicy', value: 'Never'}, JSONPatch{op: 'remove', path: '/spec/containers'}]"),
        ],
    });
    server.mutating("m", &spec).await;
    let mut body = pod("web");
    body["metadata"]["labels"] = json!({ "app": "web" });
    let made = server.create(&in_default("pods"), &body).await;
    assert_eq!(made["metadata"]["labels"], json!({ "app": "web", "added": "yes" }));
    assert_eq!(made["metadata"]["annotations"]["example.com/by"], "web");
    let containers = made["spec"]["containers"].as_array().unwrap();
    let names: Vec<&str> = containers.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c", "proxy"]);
    assert_eq!(
        (&containers[1]["image"], &containers[1]["imagePullPolicy"]),
        (&json!("proxy:1"), &json!("IfNotPresent"))
    );
    assert!(containers[1]["volumeMounts"][0]["name"].as_str().unwrap().starts_with("kube-api-access"), "{made}");
    let labelled = json!({ "metadata": { "labels": { "added": null } } });
    let changed = server.patch(&in_default("pods/web"), MERGE, &labelled).await.json();
    assert_eq!(changed["metadata"]["labels"], json!({ "app": "web" }), "the condition wants new pods");
}

#[tokio::test]
async fn a_policy_changes_deployments_and_sees_what_others_change() {
    let server = Server::start().await;
    let first = json!({ "reinvocationPolicy": "IfNeeded", "mutations": [
        applying("Object{metadata: Object.metadata{annotations: {'labels': string(size(object.metadata.labels))}}}")] });
    server.mutating("a-first", &first).await;
    let last = json!({ "mutations": [patching("[JSONPatch{op: 'add', path: '/metadata/labels/more', value: 'x'}]")] });
    server.mutating("b-last", &last).await;
    server
        .validating(
            "held",
            &json!({ "validations": [{ "expression": "object.metadata.labels.more == 'x'" }] }),
            &none(),
        )
        .await;
    let made = server.deploy("web", 2).await.json();
    assert_eq!(made["metadata"]["annotations"]["labels"], "2", "invoked again: {made}");
    let patched =
        server.patch(&format!("{DEPLOYMENTS}/web"), MERGE, &json!({ "metadata": { "labels": { "more": "y" } } })).await;
    assert_eq!(patched.json()["metadata"]["labels"]["more"], "x", "{}", patched.text());
    let dry = server.post(&format!("{DEPLOYMENTS}?dryRun=All"), &deployment("dry")).await;
    assert_eq!(dry.json()["metadata"]["labels"]["more"], "x");
}

#[tokio::test]
async fn mutations_that_cannot_be_made_are_refused() {
    let server = Server::start().await;
    for (name, mutation, expected) in [
        (
            "atomic",
            applying("Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'a': 'b'}}}}"),
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector",
        ),
        ("types", applying("Object{spec: Object.spec{replicas: 'many'}}"), "json: cannot unmarshal string into Go"),
        ("unknown", applying("Object{spec: Object.spec{lost: 1}}"), "unknown field \"spec.lost\""),
        (
            "name",
            patching("[JSONPatch{op: 'replace', path: '/metadata/name', value: 'other'}]"),
            "metadata.name may not be changed by a policy",
        ),
        ("path", patching("[JSONPatch{op: 'remove', path: '/spec/lost'}]"), "JSON Patch:"),
        (
            "error",
            applying("Object{spec: Object.spec{replicas: object.spec.lost}}"),
            "resulted in error: no such key: lost",
        ),
    ] {
        server.mutating(name, &json!({ "mutations": [mutation] })).await;
        let refused = server.deploy("web", 1).await.status();
        let start = format!("422 Invalid: policy '{name}' with binding '{name}' denied request: ");
        assert!(refused.starts_with(&start) && refused.contains(expected), "{refused}");
        let ignore = json!({ "spec": { "failurePolicy": "Ignore" } });
        server.patch(&format!("{GROUP}/mutatingadmissionpolicies/{name}"), MERGE, &ignore).await;
    }
    assert_eq!(server.deploy("web", 1).await.code, 201);
}

#[tokio::test]
async fn policies_are_checked_when_they_are_written() {
    let server = Server::start().await;
    let policy = |spec: Value| json!({ "metadata": { "name": "p" }, "spec": spec });
    let validating = |expression: &str| {
        policy(
            json!({ "matchConstraints": { "resourceRules": rules("apps", "deployments") }, "validations": [{ "expression": expression }] }),
        )
    };
    let uri = format!("{GROUP}/validatingadmissionpolicies");
    for (expression, expected) in [
        ("object.spec.replicas", ""),
        ("1 + 1", "spec.validations[0].expression: Invalid value: \"1 + 1\": must evaluate to bool"),
        (
            "nobody == 1",
            "compilation failed: ERROR: <input>:1:1: undeclared reference to 'nobody' (in container '')\n | nobody == 1\n | ^",
        ),
        ("params.x == 1", "undeclared reference to 'params' (in container '')"),
        ("variables.x == 1", "undefined field 'x'"),
        ("request.user == 'x'", "undefined field 'user'"),
        ("object.x.frobnicate()", "undeclared reference to 'frobnicate'"),
        ("1 > 'a'", "found no matching overload for '_>_' applied to '(int, string)'"),
        ("(", "Syntax error"),
        (" ", "spec.validations[0].expression: Required value: expression is not specified"),
    ] {
        let answer = server.post(&format!("{uri}?dryRun=All"), &validating(expression)).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.code, if expected.is_empty() { 201 } else { 422 }, "{expression}: {message}");
        assert!(message.contains(expected), "{expression}: {message}");
    }
    expect![[r#"422 Invalid: ValidatingAdmissionPolicy.admissionregistration.k8s.io "p" is invalid: [spec.matchConstraints: Required value, spec.validations: Required value: validations or auditAnnotations must contain at least one item, spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item]"#]]
        .assert_eq(&server.post(&uri, &policy(json!({}))).await.status());
    let both = json!({ "metadata": { "name": "b" }, "spec": { "policyName": "p", "validationActions": ["Deny", "Warn"], "paramRef": {} } });
    let refused = server.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &both).await.status();
    for expected in [
        "must not contain both Deny and Warn",
        "spec.paramRef: Required value: one of name or selector must be specified",
        "spec.paramRef.parameterNotFoundAction: Required value",
    ] {
        assert!(refused.contains(expected), "{refused}");
    }
    let mutating = policy(json!({ "matchConstraints": { "resourceRules": rules("apps", "deployments") },
        "mutations": [applying("{'spec': 1}"), patching("[1]"), { "patchType": "Merge" }] }));
    let refused = server.post(&format!("{GROUP}/mutatingadmissionpolicies"), &mutating).await.status();
    for expected in [
        "spec.mutations[0].applyConfiguration.expression: Invalid value: \"{'spec': 1}\": must evaluate to Object",
        "must evaluate to list(JSONPatch)",
        "spec.mutations[2].patchType: Unsupported value",
        "spec.reinvocationPolicy: Required value",
    ] {
        assert!(refused.contains(expected), "{refused}");
    }
}

#[tokio::test]
async fn types_are_checked_and_told_in_the_status() {
    let server = Server::start().await;
    let uri = format!("{GROUP}/validatingadmissionpolicies");
    let policy = |expression: &str| {
        json!({ "metadata": { "name": "p" }, "spec": {
        "matchConstraints": { "resourceRules": rules("apps", "deployments") }, "validations": [{ "expression": expression }] } })
    };
    let made = server.create(&uri, &policy("object.replicas > 1")).await;
    assert_eq!(made["status"]["observedGeneration"], 1);
    let warning = &made["status"]["typeChecking"]["expressionWarnings"][0];
    assert_eq!(warning["fieldRef"], "spec.validations[0].expression");
    expect![
        "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^\n"
    ]
    .assert_eq(warning["warning"].as_str().unwrap());
    let mut sound = policy("object.spec.replicas > 1");
    sound["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    let changed = server.put(&format!("{uri}/p"), &sound).await.json();
    assert_eq!(changed["status"], json!({ "observedGeneration": 2, "typeChecking": {} }));
}

#[tokio::test]
async fn policies_do_not_guard_themselves() {
    let server = Server::start().await;
    let everything = json!([{ "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"] }]);
    let spec =
        json!({ "validations": [{ "expression": "false" }], "matchConstraints": { "resourceRules": everything } });
    server.validating("all", &spec, &none()).await;
    assert_eq!(server.post(&in_default("configmaps"), &config_map("a")).await.code, 422);
    assert_eq!(server.delete(&format!("{GROUP}/validatingadmissionpolicies/all")).await.code, 200);
    assert_eq!(server.post(&in_default("configmaps"), &config_map("a")).await.code, 201);
}

#[tokio::test]
async fn who_connects_is_asked_for_too() {
    let server = Server::start().await;
    server.default_account().await;
    server.create(&in_default("pods"), &pod("web")).await;
    let spec = json!({ "validations": [{ "expression": "request.kind.kind == 'PodExecOptions' && object.command[0] != 'sh'", "message": "no shells" }],
        "matchConstraints": { "resourceRules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/exec"] }] } });
    server.validating("p", &spec, &none()).await;
    let refused = server.send(ask("POST", &in_default("pods/web/exec?stdout=1&command=sh"))).await;
    assert!(refused.status().ends_with("denied request: no shells"), "{}", refused.status());
    let other = server.send(ask("POST", &in_default("pods/web/exec?stdout=1&command=ls"))).await;
    assert!(other.status().contains("does not have a host assigned"), "{}", other.status());
}
