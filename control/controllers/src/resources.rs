//! The resources that the API server has, for the controllers that treat all kinds alike.

use kube::{
    Client, Discovery,
    api::ApiResource,
    core::discovery::{Scope, verbs},
};

use crate::Error;

/// A resource whose objects can be listed and deleted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Resource {
    pub(crate) api: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) watched: bool,
}

/// The groups and versions whose resources the server does not know at the moment, because another server that has them
/// does not answer.
pub(crate) async fn undiscovered(client: &Client) -> Result<Vec<String>, Error> {
    let list = client.list_api_groups_aggregated().await?;
    let stale = list.items.iter().flat_map(|group| {
        let name = group.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default();
        let stale = group.versions.iter().filter(|version| version.freshness.as_deref() == Some("Stale"));
        stale.map(move |version| format!("{name}/{}", version.version.as_deref().unwrap_or_default()))
    });
    Ok(stale.collect())
}

/// One entry for each resource, in the version that the server prefers.
pub(crate) async fn all(client: &Client) -> Result<Vec<Resource>, Error> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    let mut resources = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (api, capabilities) in group.recommended_resources() {
            let supports = |verb: &str| capabilities.operations.iter().any(|own| own == verb);
            if supports(verbs::LIST) && supports(verbs::DELETE) {
                let namespaced = capabilities.scope == Scope::Namespaced;
                resources.push(Resource { api, namespaced, watched: supports(verbs::WATCH) });
            }
        }
    }
    Ok(resources)
}
