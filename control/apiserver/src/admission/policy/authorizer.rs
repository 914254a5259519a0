//! `authorizer` in expressions: what the author of a request may do besides.

use std::{rc::Rc, sync::Arc};

use tandem_api::Identity;
use tandem_cel::{Host, Value};

use crate::authz::{self, Attributes, rbac::Grants};

/// Which question has been put together so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
    Decision,
}

/// Who is asked about, and by what. Roles, bindings and the built-in rules are asked; what a node may do with the
/// objects of its own pods takes more than one look, and is not granted here.
#[derive(Clone, Debug)]
pub(super) struct Authorizer {
    grants: Arc<Grants>,
    identity: Identity,
    stage: Stage,
    asked: Attributes,
    /// The resource of the request.
    own: Attributes,
    allowed: bool,
}

impl Authorizer {
    pub(super) fn new(grants: Arc<Grants>, identity: Identity, own: Attributes) -> Authorizer {
        let asked = Attributes::default();
        Authorizer { grants, identity, stage: Stage::Authorizer, asked, own, allowed: false }
    }

    fn at(&self, stage: Stage, change: impl FnOnce(&mut Attributes)) -> Authorizer {
        let mut next = Authorizer { stage, ..self.clone() };
        change(&mut next.asked);
        next
    }

    fn resource(&self, name: &str, argument: &str) -> Option<Authorizer> {
        let text = || Some(argument.to_owned()).filter(|text| !text.is_empty());
        Some(self.at(Stage::Resource, |asked| match name {
            "subresource" if !argument.is_empty() => asked.resource = format!("{}/{argument}", asked.resource),
            "namespace" => asked.namespace = text(),
            "name" => asked.name = text(),
            "labelSelector" => asked.labels = text(),
            // A rule that is narrowed by fields grants what it grants without.
            _ => {}
        }))
        .filter(|_| ["subresource", "namespace", "name", "labelSelector", "fieldSelector"].contains(&name))
    }

    fn check(&self, verb: &str) -> Authorizer {
        let mut next = self.at(Stage::Decision, |asked| asked.verb = verb.to_owned());
        next.allowed = authz::granted(&next.grants, &next.identity, &next.asked);
        next
    }
}

impl Host for Authorizer {
    fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
            Stage::Decision => "kubernetes.authorization.Decision",
        }
    }

    fn field(&self, name: &str) -> Option<Value<'static>> {
        let found = (self.stage == Stage::Authorizer && name == "requestResource")
            .then(|| self.at(Stage::Resource, |asked| *asked = self.own.clone()));
        found.map(|found| Value::Host(Rc::new(found)))
    }

    fn call(&self, name: &str, arguments: &[&str]) -> Option<Value<'static>> {
        let next = match (self.stage, name, arguments) {
            (Stage::Authorizer, "path", [path]) => self.at(Stage::Path, |asked| asked.path = (*path).to_owned()),
            (Stage::Authorizer, "group", [group]) => self.at(Stage::Group, |asked| asked.group = (*group).to_owned()),
            (Stage::Authorizer, "serviceAccount", [namespace, name]) => {
                Authorizer { identity: Identity::service_account(namespace, name), ..self.clone() }
            }
            (Stage::Group, "resource", [resource]) => {
                self.at(Stage::Resource, |asked| asked.resource = (*resource).to_owned())
            }
            (Stage::Resource | Stage::Path, "check", [verb]) => self.check(verb),
            (Stage::Resource, name, [argument]) => self.resource(name, argument)?,
            (Stage::Decision, "allowed", []) => return Some(Value::Bool(self.allowed)),
            (Stage::Decision, "errored", []) => return Some(Value::Bool(false)),
            (Stage::Decision, "reason" | "error", []) => return Some(Value::JsonText("")),
            _ => return None,
        };
        Some(Value::Host(Rc::new(next)))
    }
}
