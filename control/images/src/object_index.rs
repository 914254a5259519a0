use std::collections::BTreeMap;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tandem_client::kube::{
    self, Api, Client,
    api::{ApiResource, DeleteParams, ListParams, PostParams},
    core::object::{NotUsed, Object},
};

use crate::{
    index::{Entry, Index, IndexError},
    name::{Reference, Repository},
};

/// An image as an object of the cluster: what a repository has under one of its names.
type Image = Object<Entry, NotUsed>;

const GROUP: &str = "tandem.dev";
const VERSION: &str = "v1";
/// Lists of a repository are selected by it, since names of repositories can be longer than labels.
const REPOSITORY_LABEL: &str = "tandem.dev/repository";
const HASH_LETTERS: usize = 16;
const SLUG_LETTERS_MAX: usize = 80;
const PAGE: u32 = 500;
/// A put races with other puts of the same name only.
const ATTEMPTS: usize = 8;

/// The index of a cluster's registry: one object an entry, written through the cluster's own API.
#[derive(Clone)]
pub struct ObjectIndex {
    images: Api<Image>,
    resource: ApiResource,
}

fn short_hash(text: &str) -> String {
    hex::encode(Sha256::digest(text)).chars().take(HASH_LETTERS).collect()
}

/// A name that people recognise and that no two references share.
fn object_name(repository: &Repository, reference: &Reference) -> String {
    let full = format!("{repository}:{reference}");
    let mut slug = String::new();
    for letter in full.chars().take(SLUG_LETTERS_MAX) {
        match letter.to_ascii_lowercase() {
            letter @ ('a'..='z' | '0'..='9') => slug.push(letter),
            _ if slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    format!("{}-{}", slug.trim_matches('-'), short_hash(&full))
}

fn failed(operation: &'static str) -> impl Fn(kube::Error) -> IndexError {
    move |source| IndexError::Api { operation, source: Box::new(source) }
}

fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

const CONFLICT: u16 = 409;
const NOT_FOUND: u16 = 404;

impl ObjectIndex {
    pub fn new(client: Client) -> ObjectIndex {
        let resource = ApiResource {
            group: GROUP.to_owned(),
            version: VERSION.to_owned(),
            api_version: format!("{GROUP}/{VERSION}"),
            kind: "Image".to_owned(),
            plural: "images".to_owned(),
        };
        ObjectIndex { images: Api::all_with(client, &resource), resource }
    }

    /// All objects that the labels select, page by page.
    async fn select(&self, labels: Option<String>) -> Result<Vec<Entry>, IndexError> {
        let mut entries = Vec::new();
        let mut parameters = ListParams { label_selector: labels, ..ListParams::default() }.limit(PAGE);
        loop {
            let page = self.images.list(&parameters).await.map_err(failed("list images"))?;
            entries.extend(page.items.into_iter().map(|image| image.spec));
            match page.metadata.continue_ {
                Some(next) if !next.is_empty() => parameters = parameters.continue_token(&next),
                _ => return Ok(entries),
            }
        }
    }

    /// One try to put; false when somebody else was faster.
    async fn try_put(&self, name: &str, entry: &Entry) -> Result<bool, IndexError> {
        let found = self.images.get_opt(name).await.map_err(failed("read an image"))?;
        let written = match found {
            Some(image) if image.spec == *entry => return Ok(true),
            Some(mut image) => {
                image.spec = entry.clone();
                self.images.replace(name, &PostParams::default(), &image).await
            }
            None => {
                let mut image = Image::new(name, &self.resource, entry.clone());
                let label = (REPOSITORY_LABEL.to_owned(), short_hash(entry.repository.as_str()));
                image.metadata.labels = Some(BTreeMap::from([label]));
                self.images.create(&PostParams::default(), &image).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // It was changed, deleted, or made by another in between.
            Err(error) if has_code(&error, CONFLICT) || has_code(&error, NOT_FOUND) => Ok(false),
            Err(error) => Err(failed("write an image")(error)),
        }
    }
}

#[async_trait]
impl Index for ObjectIndex {
    async fn get(&self, repository: &Repository, reference: &Reference) -> Result<Option<Entry>, IndexError> {
        let found = self.images.get_opt(&object_name(repository, reference)).await.map_err(failed("read an image"))?;
        // The name is a hash: an object with another content is somebody else's.
        let mine = |entry: &Entry| entry.repository == *repository && entry.reference == *reference;
        Ok(found.map(|image| image.spec).filter(mine))
    }

    async fn list(&self, repository: &Repository) -> Result<Vec<Entry>, IndexError> {
        let mut entries = self.select(Some(format!("{REPOSITORY_LABEL}={}", short_hash(repository.as_str())))).await?;
        entries.retain(|entry| entry.repository == *repository);
        entries.sort_by(|one, other| one.reference.cmp(&other.reference));
        Ok(entries)
    }

    async fn repositories(&self) -> Result<Vec<Repository>, IndexError> {
        let mut names: Vec<Repository> = self.select(None).await?.into_iter().map(|entry| entry.repository).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    async fn put(&self, entry: Entry) -> Result<(), IndexError> {
        let name = object_name(&entry.repository, &entry.reference);
        for _ in 0..ATTEMPTS {
            if self.try_put(&name, &entry).await? {
                return Ok(());
            }
        }
        Err(IndexError::Contended { name })
    }

    async fn delete(&self, repository: &Repository, reference: &Reference) -> Result<bool, IndexError> {
        let name = object_name(repository, reference);
        match self.images.delete(&name, &DeleteParams::default()).await {
            Ok(_) => Ok(true),
            Err(error) if has_code(&error, NOT_FOUND) => Ok(false),
            Err(error) => Err(failed("delete an image")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_apart() {
        let name =
            |repository: &str, reference: &str| object_name(&repository.parse().unwrap(), &reference.parse().unwrap());
        assert_eq!(name("library/nginx", "1.25"), "library-nginx-1-25-54eb1527a6233dab");
        assert_ne!(name("a/b", "1"), name("a-b", "1"));
        assert_ne!(name("a", "A"), name("a", "a"));
        let digest = format!("sha256:{}", "0".repeat(64));
        for name in
            [name("a/".repeat(120).trim_end_matches('/'), &"T".repeat(128)), name("a__b", &digest), name("a", "_.")]
        {
            assert_eq!(tandem_api::names::dns1123_subdomain(&name), [""; 0], "{name}");
        }
    }
}
