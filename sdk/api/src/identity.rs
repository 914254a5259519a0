use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Well-known groups.
pub mod groups {
    pub const MASTERS: &str = "system:masters";
    pub const AUTHENTICATED: &str = "system:authenticated";
    pub const UNAUTHENTICATED: &str = "system:unauthenticated";
    pub const NODES: &str = "system:nodes";
    pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
    /// Those who hold a token to become a control-plane member.
    pub const MEMBER_BOOTSTRAPPERS: &str = "system:bootstrappers:members";
    pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
}

/// The term of the leader in whose name a request inside the process writes: what it writes fails when that term has
/// passed. A request extension, as [`Identity`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence(pub u64);

/// Who makes a request, after authentication.
///
/// In-process clients carry theirs as a request extension, which no header can set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub name: String,
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub groups: Vec<String>,
    #[serde(default)]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// An authenticated user with these groups and `system:authenticated`.
    pub fn user(name: impl Into<String>, groups: &[&str]) -> Identity {
        let mut groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        groups.push(groups::AUTHENTICATED.to_owned());
        Identity { name: name.into(), uid: String::new(), groups, extra: BTreeMap::new() }
    }

    /// `system:serviceaccount:NAMESPACE:NAME` with the groups that Kubernetes gives it.
    pub fn service_account(namespace: &str, name: &str) -> Identity {
        let all = groups::SERVICE_ACCOUNTS;
        Identity::user(format!("system:serviceaccount:{namespace}:{name}"), &[all, &format!("{all}:{namespace}")])
    }

    /// The identity of a controller that runs inside the control plane.
    pub fn controller(name: &str) -> Identity {
        Identity::service_account("kube-system", &format!("{name}-controller"))
    }

    pub fn scheduler() -> Identity {
        Identity::user("system:kube-scheduler", &[])
    }

    pub fn node(name: &str) -> Identity {
        Identity::user(format!("system:node:{name}"), &[groups::NODES])
    }

    pub fn administrator() -> Identity {
        Identity::user("kubernetes-admin", &[groups::MASTERS])
    }

    pub fn anonymous() -> Identity {
        Identity {
            name: "system:anonymous".to_owned(),
            uid: String::new(),
            groups: vec![groups::UNAUTHENTICATED.to_owned()],
            extra: BTreeMap::new(),
        }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|mine| mine == group)
    }

    /// The node that this identity is, by Kubernetes' rule: the name's prefix and the group together.
    pub fn node_name(&self) -> Option<&str> {
        self.in_group(groups::NODES).then(|| self.name.strip_prefix("system:node:")).flatten()
    }
}
