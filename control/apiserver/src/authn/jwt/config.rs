//! The file: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>

use serde::Deserialize;

const ISSUERS_MAX: usize = 64;
const API_VERSIONS: [&str; 2] = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    pub(super) jwt: Vec<Jwt>,
    pub(super) anonymous: Option<Anonymous>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Anonymous {
    pub(super) enabled: bool,
    #[serde(default)]
    pub(super) conditions: Vec<AnonymousPath>,
}

impl Default for Anonymous {
    fn default() -> Anonymous {
        Anonymous { enabled: true, conditions: Vec::new() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnonymousPath {
    pub(super) path: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Jwt {
    pub(super) issuer: IssuerConfig,
    #[serde(default)]
    pub(super) claim_validation_rules: Vec<ClaimRule>,
    pub(super) claim_mappings: Mappings,
    #[serde(default)]
    pub(super) user_validation_rules: Vec<UserRule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct IssuerConfig {
    pub(super) url: String,
    #[serde(default, rename = "discoveryURL")]
    pub(super) discovery_url: String,
    #[serde(default)]
    pub(super) certificate_authority: String,
    pub(super) audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClaimRule {
    #[serde(default)]
    pub(super) claim: String,
    #[serde(default)]
    pub(super) required_value: String,
    #[serde(default)]
    pub(super) expression: String,
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UserRule {
    pub(super) expression: String,
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mappings {
    pub(super) username: Claim,
    #[serde(default)]
    pub(super) groups: Claim,
    #[serde(default)]
    pub(super) uid: Claim,
    #[serde(default)]
    pub(super) extra: Vec<Extra>,
}

/// A claim or an expression.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Claim {
    #[serde(default)]
    pub(super) claim: String,
    pub(super) prefix: Option<String>,
    #[serde(default)]
    pub(super) expression: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Extra {
    pub(super) key: String,
    pub(super) value_expression: String,
}

impl Configuration {
    pub(super) fn parse(text: &str, own: &str) -> Result<Configuration, String> {
        let configuration: Configuration = serde_saphyr::from_str(text).map_err(|why| why.to_string())?;
        let Configuration { api_version, kind, jwt, .. } = &configuration;
        if !API_VERSIONS.contains(&api_version.as_str()) || kind != "AuthenticationConfiguration" {
            return Err(format!(
                "it must be an AuthenticationConfiguration of {}, not {kind} of {api_version}",
                API_VERSIONS[0]
            ));
        }
        if jwt.len() > ISSUERS_MAX {
            return Err(format!("jwt: must have at most {ISSUERS_MAX} items"));
        }
        for (at, one) in jwt.iter().enumerate() {
            let again = jwt[..at].iter().any(|other| other.issuer.url == one.issuer.url);
            if again || one.issuer.url == own {
                return Err(format!("jwt[{at}].issuer.url: {} is an issuer already", one.issuer.url));
            }
            one.check().map_err(|why| format!("jwt[{at}].{why}"))?;
        }
        Ok(configuration)
    }
}

impl Jwt {
    fn check(&self) -> Result<(), String> {
        let IssuerConfig { url, discovery_url, audiences, audience_match_policy, .. } = &self.issuer;
        for (field, url) in [("url", url), ("discoveryURL", discovery_url)] {
            if (field == "url" || !url.is_empty()) && !url.starts_with("https://") {
                return Err(format!("issuer.{field}: URL scheme must be https"));
            }
        }
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            return Err("issuer.audiences: at least one is required, and none may be empty".to_owned());
        }
        match audience_match_policy.as_str() {
            "MatchAny" => {}
            "" if audiences.len() == 1 => {}
            _ => return Err("issuer.audienceMatchPolicy: must be MatchAny for multiple audiences".to_owned()),
        }
        let username = &self.claim_mappings.username;
        if !username.claim.is_empty() && username.prefix.is_none() {
            return Err("claimMappings.username.prefix: it is required when claim is set, and may be empty".to_owned());
        }
        let groups = &self.claim_mappings.groups;
        if !groups.claim.is_empty() && groups.prefix.is_none() {
            return Err("claimMappings.groups.prefix: it is required when claim is set, and may be empty".to_owned());
        }
        if username.claim.is_empty() && username.expression.is_empty() {
            return Err("claimMappings.username: claim or expression is required".to_owned());
        }
        for (name, one) in [("username", username), ("groups", groups), ("uid", &self.claim_mappings.uid)] {
            if !one.expression.is_empty() && (!one.claim.is_empty() || one.prefix.is_some()) {
                return Err(format!("claimMappings.{name}: expression cannot be set together with claim or prefix"));
            }
        }
        for (at, rule) in self.claim_validation_rules.iter().enumerate() {
            if rule.claim.is_empty() == rule.expression.is_empty() {
                return Err(format!("claimValidationRules[{at}]: exactly one of claim and expression is required"));
            }
        }
        Ok(())
    }
}
