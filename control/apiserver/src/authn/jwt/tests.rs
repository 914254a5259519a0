use serde_json::json;

use super::*;

const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";

fn configuration(mappings: &str, more: &str) -> String {
    format!(
        "{HEAD}jwt:\n- issuer: {{url: 'https://issuer.example.com', audiences: [tandem]}}\n  claimMappings: {mappings}\n{more}"
    )
}

fn check(mappings: &str, more: &str, claims: Value, expected: Result<(&str, &[&str]), &str>) {
    let authentication = Authentication::parse(&configuration(mappings, more), "https://own").unwrap();
    let mut all = json!({ "iss": "https://issuer.example.com", "aud": "tandem", "exp": 1000, "sub": "jane" });
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    let found = authentication.issuers[0].judge(&all, Timestamp::from_second(500).unwrap());
    match (found, expected) {
        (Ok(identity), Ok((name, groups))) => {
            assert_eq!(identity.name, name);
            let mut expected: Vec<&str> = groups.to_vec();
            expected.push("system:authenticated");
            assert_eq!(identity.groups, expected);
        }
        (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
        (found, expected) => panic!("{found:?} instead of {expected:?}"),
    }
}

const PLAIN: &str = "{username: {claim: sub, prefix: 'oidc:'}, groups: {claim: groups, prefix: 'g:'}}";

#[test]
fn claims_become_users() {
    check(PLAIN, "", json!({}), Ok(("oidc:jane", &[])));
    check(PLAIN, "", json!({ "groups": ["a", "b"] }), Ok(("oidc:jane", &["g:a", "g:b"])));
    check(PLAIN, "", json!({ "groups": "a" }), Ok(("oidc:jane", &["g:a"])));
    check(PLAIN, "", json!({ "groups": [1] }), Err("neither a text"));
    check(PLAIN, "", json!({ "sub": "" }), Err("names no user"));
    check(PLAIN, "", json!({ "aud": ["other", "tandem"] }), Ok(("oidc:jane", &[])));
    check(PLAIN, "", json!({ "aud": "other" }), Err("other audiences"));
    check(PLAIN, "", json!({ "exp": 480 }), Err("expired"));
    check(PLAIN, "", json!({ "exp": null }), Err("no expiry"));
    check(PLAIN, "", json!({ "nbf": 600 }), Err("not good yet"));
    let email = "{username: {claim: email, prefix: ''}}";
    check(email, "", json!({ "email": "a@b", "email_verified": false }), Err("not verified"));
    check(email, "", json!({ "email": "a@b", "email_verified": true }), Ok(("a@b", &[])));
    check(email, "", json!({ "email": "system:node:n" }), Err("is not an issuer's to give"));
    let groups = "{username: {claim: sub, prefix: ''}, groups: {claim: groups, prefix: ''}}";
    check(groups, "", json!({ "groups": ["system:masters"] }), Err("is not an issuer's to give"));
}

#[test]
fn expressions_map_and_judge() {
    let mapped = "{username: {expression: 'claims.sub + \"@\" + claims.org'}, groups: {expression: 'claims.roles.map(r, \"r:\" + r)'}}";
    check(mapped, "", json!({ "org": "x", "roles": ["a"] }), Ok(("jane@x", &["r:a"])));
    check(mapped, "", json!({ "roles": [] }), Err("no such key"));
    let rules = "  claimValidationRules: [{claim: hd, requiredValue: x}, {expression: 'claims.exp - 900 < 200', message: too long}]\n  userValidationRules: [{expression: \"!user.username.startsWith('oidc:root')\", message: not root}]\n";
    check(PLAIN, rules, json!({ "hd": "x" }), Ok(("oidc:jane", &[])));
    check(PLAIN, rules, json!({}), Err("\"hd\" is not the required value"));
    check(PLAIN, rules, json!({ "hd": "x", "exp": 2000 }), Err("too long"));
    check(PLAIN, rules, json!({ "hd": "x", "sub": "root" }), Err("not root"));
}

#[test]
fn configurations_that_cannot_be_meant_are_refused() {
    let refused = |text: &str, expected: &str| {
        let why = Authentication::parse(text, "https://own").err().unwrap();
        assert!(why.contains(expected), "{why}");
    };
    refused("apiVersion: v1\nkind: AuthenticationConfiguration\n", "must be an AuthenticationConfiguration");
    refused(&configuration("{username: {claim: sub}}", ""), "prefix");
    refused(&configuration("{username: {expression: 'claims.'}}", ""), "cannot be used");
    refused(&configuration("{username: {claim: sub, prefix: ''}, more: 1}", ""), "more");
    refused(&configuration(PLAIN, "").replace("https://issuer.example.com", "http://issuer"), "https");
    refused(&configuration(PLAIN, "").replace("https://issuer.example.com", "https://own"), "is an issuer already");
    refused(&configuration(PLAIN, "").replace("[tandem]", "[]"), "audiences");
    refused(&configuration(PLAIN, "").replace("[tandem]", "[a, b]"), "MatchAny");
    refused(&configuration(PLAIN, "  claimValidationRules: [{message: x}]\n"), "exactly one");
    let anonymous = format!("{HEAD}anonymous: {{enabled: true, conditions: [{{path: /livez}}]}}\n");
    let authentication = Authentication::parse(&anonymous, "https://own").unwrap();
    assert!(authentication.allows_anonymous("/livez") && !authentication.allows_anonymous("/api"));
}
