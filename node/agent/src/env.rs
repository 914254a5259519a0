//! A container's environment, command and arguments.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{ConfigMap, Container as Spec, EnvVar, EnvVarSource, Pod, Secret, Service};

use crate::{
    fields::{self, Placement},
    objects::{Age, Error, Objects},
    pod,
};

/// A variable that other values may refer to, in the order of its definition.
pub(crate) type Environment = Vec<(String, String)>;

/// The objects that a container's environment is made of.
#[derive(Default)]
pub(crate) struct Sources {
    config_maps: BTreeMap<String, Arc<ConfigMap>>,
    secrets: BTreeMap<String, Arc<Secret>>,
}

impl Sources {
    /// Reads what the container refers to; an object that is missing is an error only where it is not optional.
    pub(crate) async fn read(objects: &Objects, pod: &Pod, spec: &Spec) -> Result<Sources, Error> {
        let mut sources = Sources::default();
        let namespace = pod::namespace(pod);
        let from = spec.env_from.iter().flatten();
        let values = spec.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
        let map = |name: &str, optional: Option<bool>| (name.to_owned(), optional.unwrap_or(false));
        let config_maps = from
            .clone()
            .filter_map(|source| source.config_map_ref.as_ref().map(|r| map(&r.name, r.optional)))
            .chain(values.clone().filter_map(|v| v.config_map_key_ref.as_ref().map(|r| map(&r.name, r.optional))));
        for (name, optional) in config_maps {
            match objects.config_map(namespace, &name, Age::Now).await {
                Ok(object) => drop(sources.config_maps.insert(name, object)),
                Err(error) if optional && error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let secrets = from
            .filter_map(|source| source.secret_ref.as_ref().map(|r| map(&r.name, r.optional)))
            .chain(values.filter_map(|v| v.secret_key_ref.as_ref().map(|r| map(&r.name, r.optional))));
        for (name, optional) in secrets {
            match objects.secret(namespace, &name, Age::Now).await {
                Ok(object) => drop(sources.secrets.insert(name, object)),
                Err(error) if optional && error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sources)
    }
}

/// The variables of the container, later ones overriding earlier ones: services, then `envFrom`, then `env`.
pub(crate) fn environment(
    pod: &Pod,
    spec: &Spec,
    sources: &Sources,
    services: &[Arc<Service>],
    place: &Placement<'_>,
) -> Result<Environment, String> {
    let mut variables = Variables::default();
    let links = pod::spec(pod).and_then(|spec| spec.enable_service_links).unwrap_or(true);
    // What services say is there to be referred to, but never overrides what the pod says.
    let of_services = service_variables(services, pod::namespace(pod), links);
    for source in spec.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let data = sources.config_maps.get(&reference.name).and_then(|map| map.data.clone());
            data.into_iter().flatten().for_each(|(key, value)| variables.set(format!("{prefix}{key}"), value));
        }
        if let Some(reference) = &source.secret_ref {
            let data = sources.secrets.get(&reference.name).and_then(|secret| secret.data.clone());
            for (key, value) in data.into_iter().flatten() {
                variables.set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
            }
        }
    }
    for variable in spec.env.iter().flatten() {
        if let Some(value) = value(pod, spec, variable, sources, &variables, &of_services, place)? {
            variables.set(variable.name.clone(), value);
        }
    }
    for (name, value) in of_services {
        variables.set_if_absent(name, value);
    }
    Ok(variables.0)
}

#[derive(Default)]
struct Variables(Environment);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    fn set_if_absent(&mut self, name: String, value: String) {
        if self.get(&name).is_none() {
            self.0.push((name, value));
        }
    }
}

/// `None` leaves the variable out: an optional reference to what is not there.
fn value(
    pod: &Pod,
    spec: &Spec,
    variable: &EnvVar,
    sources: &Sources,
    known: &Variables,
    of_services: &BTreeMap<String, String>,
    place: &Placement<'_>,
) -> Result<Option<String>, String> {
    let Some(from) = &variable.value_from else {
        let text = variable.value.as_deref().unwrap_or_default();
        let lookup = |name: &str| known.get(name).map(str::to_owned).or_else(|| of_services.get(name).cloned());
        return Ok(Some(expand(text, lookup)));
    };
    from_source(pod, spec, from, sources, place)
}

fn from_source(
    pod: &Pod,
    spec: &Spec,
    from: &EnvVarSource,
    sources: &Sources,
    place: &Placement<'_>,
) -> Result<Option<String>, String> {
    let namespace = pod::namespace(pod);
    if let Some(selector) = &from.field_ref {
        return fields::field(pod, selector, place).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        return fields::resource(pod, Some(spec), selector, place.size).map(Some);
    }
    if let Some(selector) = &from.config_map_key_ref {
        let map = sources.config_maps.get(&selector.name);
        let value = map.and_then(|map| map.data.as_ref()?.get(&selector.key).cloned());
        return match value {
            Some(value) => Ok(Some(value)),
            None if selector.optional.unwrap_or(false) => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", selector.key, selector.name)),
        };
    }
    if let Some(selector) = &from.secret_key_ref {
        let secret = sources.secrets.get(&selector.name);
        let value = secret.and_then(|secret| secret.data.as_ref()?.get(&selector.key).cloned());
        return match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if selector.optional.unwrap_or(false) => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", selector.key, selector.name)),
        };
    }
    if from.file_key_ref.is_some() {
        return Err("env valueFrom fileKeyRef is not supported by this node".to_owned());
    }
    Ok(Some(String::new()))
}

/// `$(NAME)` becomes the variable's value where there is one; `$$` is a dollar sign.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Expands the container's command or arguments.
pub(crate) fn expand_all(words: Option<&Vec<String>>, environment: &Environment) -> Vec<String> {
    let lookup = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    words.into_iter().flatten().map(|word| expand(word, lookup)).collect()
}

/// `REDIS_SERVICE_HOST` and the like, for the services of the pod's namespace and for the API itself.
fn service_variables(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let is_master = |service: &Service| {
        service.metadata.namespace.as_deref() == Some("default")
            && service.metadata.name.as_deref() == Some("kubernetes")
    };
    let (masters, others): (Vec<_>, Vec<_>) = services.iter().partition(|service| is_master(service));
    let mine = others.into_iter().filter(|s| links && s.metadata.namespace.as_deref() == Some(namespace));
    for service in masters.into_iter().chain(mine) {
        add_service(service, &mut variables);
    }
    variables
}

fn add_service(service: &Service, variables: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let Some(address) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let upper = |text: &str| text.to_uppercase().replace(['-', '.'], "_");
    let name = upper(service.metadata.name.as_deref().unwrap_or_default());
    let mut set = |key: String, value: String| drop(variables.insert(key, value));
    set(format!("{name}_SERVICE_HOST"), address.to_owned());
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let number = port.port;
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        if index == 0 {
            set(format!("{name}_SERVICE_PORT"), number.to_string());
            set(format!("{name}_PORT"), format!("{lower}://{address}:{number}"));
        }
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            set(format!("{name}_SERVICE_PORT_{}", upper(port_name)), number.to_string());
        }
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_uppercase());
        set(prefix.clone(), format!("{lower}://{address}:{number}"));
        set(format!("{prefix}_PROTO"), lower);
        set(format!("{prefix}_PORT"), number.to_string());
        set(format!("{prefix}_ADDR"), address.to_owned());
    }
}

#[cfg(test)]
mod tests;
