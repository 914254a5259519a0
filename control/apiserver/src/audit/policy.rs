//! Which requests are written down, and how much of them.
//!
//! <https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/>

use serde::{Deserialize, Serialize};
use tandem_api::Identity;

use crate::request::{RequestInfo, ResourcePath, Target};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Policy {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: Option<serde_json::Value>,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    paths: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What the policy says of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) level: Level,
    pub(crate) omit_stages: Vec<Stage>,
    pub(crate) omit_managed_fields: bool,
}

fn has(list: &[String], text: &str) -> bool {
    list.iter().any(|own| own == text)
}

impl Policy {
    pub(crate) fn parse(text: &str) -> Result<Policy, String> {
        let policy: Policy = serde_saphyr::from_str(text).map_err(|why| why.to_string())?;
        if policy.api_version != "audit.k8s.io/v1" || policy.kind != "Policy" {
            let found = format!("{}, {}", policy.api_version, policy.kind);
            return Err(format!("it must be of apiVersion audit.k8s.io/v1 and kind Policy, not {found}"));
        }
        if policy.rules.is_empty() {
            return Err("it has no rules".to_owned());
        }
        for (at, rule) in policy.rules.iter().enumerate() {
            if !(rule.paths.is_empty() || rule.resources.is_empty() && rule.namespaces.is_empty()) {
                return Err(format!("rules[{at}]: rules cannot apply to both regular resources and non-resource URLs"));
            }
        }
        Ok(policy)
    }

    /// The first rule decides; without one nothing is written. Nobody is known where authentication failed.
    pub(crate) fn judge(&self, info: &RequestInfo, user: Option<&Identity>) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(info, user)) else { return Verdict::default() };
        let mut omit_stages = self.omit_stages.clone();
        omit_stages.extend(&rule.omit_stages);
        let level = info.resource().map_or(rule.level, |path| capped(rule, path));
        let omit_managed_fields = rule.omit_managed_fields.unwrap_or(self.omit_managed_fields);
        Verdict { level, omit_stages, omit_managed_fields }
    }
}

/// Credentials are never written down, whatever a rule says; other configuration, which often holds some, only where a
/// rule names it.
fn capped(rule: &Rule, path: &ResourcePath) -> Level {
    let subresource = path.subresource.as_deref().unwrap_or_default();
    let least = rule.level.min(Level::Metadata);
    match (path.group.as_str(), path.resource.as_str(), subresource) {
        ("", "secrets", _) | ("", "serviceaccounts", "token") | ("authentication.k8s.io", "tokenreviews", _) => least,
        ("", "configmaps", _) => {
            let named = rule.resources.iter().any(|own| has(&own.resources, "configmaps"));
            if named { rule.level } else { least }
        }
        _ => rule.level,
    }
}

impl Rule {
    fn matches(&self, info: &RequestInfo, user: Option<&Identity>) -> bool {
        let of_user = self.users.is_empty() || user.is_some_and(|user| has(&self.users, &user.name));
        let in_group = |user: &Identity| user.groups.iter().any(|group| has(&self.user_groups, group));
        let of_group = self.user_groups.is_empty() || user.is_some_and(in_group);
        let of_verb = self.verbs.is_empty() || has(&self.verbs, info.verb.as_str());
        of_user && of_group && of_verb && self.matches_target(&info.target)
    }

    fn matches_target(&self, target: &Target) -> bool {
        if self.resources.is_empty() && self.namespaces.is_empty() && self.paths.is_empty() {
            return true;
        }
        match target {
            Target::Path(path) => self.paths.iter().any(|own| match own.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => own == path,
            }),
            Target::Resource(path) => {
                let here = path.namespace.as_deref().unwrap_or_default();
                self.paths.is_empty()
                    && (self.namespaces.is_empty() || has(&self.namespaces, here))
                    && (self.resources.is_empty() || self.resources.iter().any(|own| own.matches(path)))
            }
        }
    }
}

impl Resources {
    fn matches(&self, path: &ResourcePath) -> bool {
        let name = path.name.as_deref().unwrap_or_default();
        let subresource = path.subresource.as_deref();
        let is_named = self.resource_names.is_empty() || has(&self.resource_names, name);
        let is_meant = |own: &String| match (own.split_once('/'), subresource) {
            (None, _) if own == "*" => true,
            (None, None) => *own == path.resource,
            (Some(("*", sub)), Some(asked)) => sub == asked,
            (Some((resource, "*")), _) => resource == path.resource,
            (Some((resource, sub)), Some(asked)) => resource == path.resource && sub == asked,
            _ => false,
        };
        self.group == path.group && (self.resources.is_empty() || (is_named && self.resources.iter().any(is_meant)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: [watch]
- level: None
  userGroups: ["system:authenticated"]
  nonResourceURLs: ["/api*", "/version"]
- level: Request
  resources: [{ group: "", resources: [configmaps, pods/log, "services/*"], resourceNames: [] }]
  namespaces: [kube-system]
  omitStages: [ResponseStarted]
  omitManagedFields: false
- level: RequestResponse
  resources: [{ group: apps, resources: ["*/scale", deployments], resourceNames: [web] }]
- level: RequestResponse
  resources: [{ group: "" }, { group: authentication.k8s.io }]
- level: Metadata
  verbs: [create]
"#;

    fn check(user: &str, line: &str, expected: Level) {
        let (method, uri) = line.split_once(' ').unwrap();
        let info = RequestInfo::parse(&method.parse().unwrap(), &uri.parse().unwrap()).unwrap();
        let user = (!user.is_empty()).then(|| Identity::user(user, &["system:authenticated"]));
        assert_eq!(Policy::parse(POLICY).unwrap().judge(&info, user.as_ref()).level, expected, "{line}");
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        check("system:kube-proxy", "GET /api/v1/services?watch=1", Level::None);
        check("jane", "GET /api/v1/services?watch=1", Level::RequestResponse);
        check("jane", "GET /apis", Level::None);
        check("jane", "GET /version", Level::None);
        check("", "GET /version", Level::None);
        check("", "POST /elsewhere", Level::Metadata);
        check("jane", "GET /elsewhere", Level::None);
        check("jane", "GET /api/v1/namespaces/kube-system/configmaps/a", Level::Request);
        check("jane", "GET /api/v1/namespaces/kube-system/pods/p/log", Level::Request);
        check("jane", "GET /api/v1/namespaces/kube-system/pods/p", Level::RequestResponse);
        check("jane", "GET /api/v1/namespaces/kube-system/services/s", Level::Request);
        check("jane", "PATCH /apis/apps/v1/namespaces/a/deployments/web", Level::RequestResponse);
        check("jane", "PATCH /apis/apps/v1/namespaces/a/statefulsets/web/scale", Level::RequestResponse);
        check("jane", "PATCH /apis/apps/v1/namespaces/a/deployments/other", Level::None);
        check("jane", "POST /apis/apps/v1/namespaces/a/deployments", Level::Metadata);
    }

    #[test]
    fn credentials_are_not_written_down() {
        check("jane", "POST /api/v1/namespaces/a/secrets", Level::Metadata);
        check("jane", "POST /api/v1/namespaces/a/serviceaccounts/s/token", Level::Metadata);
        check("jane", "POST /apis/authentication.k8s.io/v1/tokenreviews", Level::Metadata);
        check("jane", "GET /api/v1/namespaces/a/configmaps/c", Level::Metadata);
        check("jane", "GET /api/v1/namespaces/a/serviceaccounts/s", Level::RequestResponse);
    }

    #[test]
    fn stages_and_managed_fields() {
        let policy = Policy::parse(POLICY).unwrap();
        let judge = |uri: &str| {
            let info = RequestInfo::parse(&http::Method::GET, &uri.parse().unwrap()).unwrap();
            policy.judge(&info, None)
        };
        let own = judge("/api/v1/namespaces/kube-system/configmaps/a");
        assert_eq!(own.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert!(!own.omit_managed_fields && judge("/api/v1/nodes").omit_managed_fields);
    }

    #[test]
    fn policies_that_mean_nothing_are_refused() {
        let refused = |text: &str| Policy::parse(text).unwrap_err();
        assert!(
            refused("apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]").contains("apiVersion")
        );
        assert!(refused("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []").contains("no rules"));
        assert!(refused("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]").contains("All"));
        assert!(
            refused("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, verb: [get]}]").contains("verb")
        );
    }
}
