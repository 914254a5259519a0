//! Role, ClusterRole, RoleBinding, ClusterRoleBinding.

use tandem_api::Object;

use crate::{Hooks, NameRule, columns, json::FieldsExt, validate};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) const ROLE: Hooks = Hooks { validate: validate::rbac::role, name: NameRule::PathSegment, ..Hooks::NONE };
pub(super) const CLUSTER_ROLE: Hooks = Hooks { validate: validate::rbac::cluster_role, ..ROLE };
pub(super) const BINDING: Hooks = Hooks {
    default: default_binding,
    validate: validate::rbac::role_binding,
    name: NameRule::PathSegment,
    cells: columns::rbac::binding,
    ..Hooks::NONE
};
pub(super) const CLUSTER_BINDING: Hooks = Hooks { validate: validate::rbac::cluster_role_binding, ..BINDING };

fn default_binding(object: &mut Object) {
    if let Some(role) = object.0.child_mut("roleRef") {
        role.or_text("apiGroup", GROUP);
    }
    for subject in object.0.each_mut("subjects") {
        if matches!(subject.text("kind"), "User" | "Group") {
            subject.or_text("apiGroup", GROUP);
        }
    }
}
