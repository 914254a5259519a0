//! What may be asked by whom: default deny, a compiled-in rule table, roles and bindings, the node authorizer.

pub(crate) mod defaults;
mod follow;
mod node;
pub(crate) mod rbac;
mod rules;

use tandem_api::{ApiError, Identity, Reason, groups};

pub(crate) use follow::Follower;
pub(crate) use rules::rules_of;

use crate::{
    core::Core,
    request::{RequestInfo, Target, Verb},
};

/// What a request wants to do, as rules see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) verb: String,
    pub(crate) group: String,
    /// With its subresource: `pods/log`. Empty for paths.
    pub(crate) resource: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    /// For what is not a resource.
    pub(crate) path: String,
    /// What a list or watch is narrowed to by labels.
    pub(crate) labels: Option<String>,
}

impl Attributes {
    pub(crate) fn of(info: &RequestInfo) -> Attributes {
        let verb = info.verb.as_str();
        match &info.target {
            Target::Path(path) => {
                Attributes { verb: path_verb(verb).to_owned(), path: path.clone(), ..Attributes::default() }
            }
            Target::Resource(path) => {
                let resource = match &path.subresource {
                    Some(sub) => format!("{}/{sub}", path.resource),
                    None => path.resource.clone(),
                };
                // A list or watch of one name is authorized as that name's; no other verb looks at the selector so.
                let selects = matches!(info.verb, Verb::List | Verb::Watch);
                let selected = info.query.get("fieldSelector").filter(|_| selects).and_then(selected_name);
                let name = path.name.as_deref().or(selected);
                let asked = Attributes::resource(verb, &path.group, &resource, path.namespace.as_deref(), name);
                let labels = info.query.get("labelSelector").filter(|_| selects);
                Attributes { labels: labels.map(|labels| labels.to_owned()), ..asked }
            }
        }
    }

    pub(crate) fn resource(
        verb: &str,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Attributes {
        Attributes {
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            path: String::new(),
            labels: None,
        }
    }

    pub(crate) fn is_path(&self) -> bool {
        self.resource.is_empty()
    }
}

/// Paths have HTTP's verbs, not Kubernetes'.
fn path_verb(verb: &str) -> &str {
    match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    }
}

fn selected_name(selector: &str) -> Option<&str> {
    let value = selector.strip_prefix("metadata.name=")?;
    let value = value.strip_prefix('=').unwrap_or(value);
    (!value.is_empty() && !value.contains([',', '\\'])).then_some(value)
}

/// Ok if the identity may do it, else the 403 in Kubernetes' words.
pub(crate) async fn authorize(core: &Core, identity: &Identity, asked: &Attributes) -> Result<(), ApiError> {
    match decide(core, identity, asked).await? {
        Decision::Allowed => Ok(()),
        Decision::Denied(why) => Err(forbidden(identity, asked, &why)),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Allowed,
    /// With what can be said beyond that no rule allows it.
    Denied(String),
}

/// Whether what is built in, or a role, allows it.
pub(crate) fn granted(grants: &rbac::Grants, identity: &Identity, asked: &Attributes) -> bool {
    identity.in_group(groups::MASTERS) || rules::allow(identity, asked) || grants.allow(identity, asked)
}

pub(crate) async fn decide(core: &Core, identity: &Identity, asked: &Attributes) -> Result<Decision, ApiError> {
    if identity.in_group(groups::MASTERS) || granted(&*core.grants.grants(core).await?, identity, asked) {
        return Ok(Decision::Allowed);
    }
    match identity.node_name() {
        Some(node) => node::decide(core, node, asked).await,
        None => Ok(Decision::Denied(String::new())),
    }
}

fn forbidden(identity: &Identity, asked: &Attributes, why: &str) -> ApiError {
    let user = &identity.name;
    let reason = if why.is_empty() { String::new() } else { format!(": {why}") };
    if asked.is_path() {
        let message = format!("forbidden: User {user:?} cannot {} path {:?}{reason}", asked.verb, asked.path);
        return ApiError::new(Reason::Forbidden, message);
    }
    let resource = asked.resource.split('/').next().unwrap_or_default();
    let qualified = if asked.group.is_empty() { resource.to_owned() } else { format!("{resource}.{}", asked.group) };
    let subject = match &asked.name {
        Some(name) => format!("{qualified} {name:?}"),
        None => qualified,
    };
    let place = match &asked.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let message = format!(
        "{subject} is forbidden: User {user:?} cannot {} resource {:?} in API group {:?} {place}{reason}",
        asked.verb, asked.resource, asked.group
    );
    ApiError::new(Reason::Forbidden, message).about(&asked.group, resource, asked.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_selector_names_what_is_listed_or_watched() {
        let check = |method: &str, query: &str, verb: &str, name: Option<&str>| {
            let method = http::Method::from_bytes(method.as_bytes()).unwrap();
            let uri = format!("/api/v1/namespaces/a/pods?{query}").parse().unwrap();
            let asked = Attributes::of(&RequestInfo::parse(&method, &uri).unwrap());
            assert_eq!((asked.verb.as_str(), asked.name.as_deref()), (verb, name), "{method} {query}");
        };
        check("GET", "fieldSelector=metadata.name%3Dweb", "list", Some("web"));
        check("GET", "watch=1&fieldSelector=metadata.name%3D%3Dweb", "watch", Some("web"));
        check("GET", "fieldSelector=metadata.name%21%3Dweb", "list", None);
        check("POST", "fieldSelector=metadata.name%3Dweb", "create", None);
        check("DELETE", "fieldSelector=metadata.name%3Dweb", "deletecollection", None);
    }

    #[test]
    fn refusals_are_worded_as_in_kubernetes() {
        let jane = Identity::user("jane", &[]);
        let message = |attributes: &Attributes| forbidden(&jane, attributes, "").message;
        assert_eq!(
            message(&Attributes::resource("list", "apps", "deployments", Some("default"), None)),
            r#"deployments.apps is forbidden: User "jane" cannot list resource "deployments" in API group "apps" in the namespace "default""#
        );
        assert_eq!(
            message(&Attributes::resource("get", "", "pods/log", Some("a"), Some("web"))),
            r#"pods "web" is forbidden: User "jane" cannot get resource "pods/log" in API group "" in the namespace "a""#
        );
        assert_eq!(
            message(&Attributes::resource("create", "", "nodes", None, None)),
            r#"nodes is forbidden: User "jane" cannot create resource "nodes" in API group "" at the cluster scope"#
        );
        let path = Attributes { verb: "get".to_owned(), path: "/metrics".to_owned(), ..Attributes::default() };
        assert_eq!(message(&path), r#"forbidden: User "jane" cannot get path "/metrics""#);
    }
}
