use std::sync::Arc;

use bytes::Bytes;
use tandem_api::{ApiError, Cause, Key, Object, Reason, Revision};
use tandem_registry::{ResourceDef, custom::ConversionWebhook};
use tandem_store::{COMMAND_VERSION, Command, Consistency, Error, Op, Page, Reply, Storage, Stored};

use crate::{conversion::Converter, envelope, heartbeats::Heartbeats};

/// Kubernetes' limit for one object, in bytes of JSON.
const OBJECT_MAX_BYTES: usize = 1_536 * 1024;
/// Between `metadata`'s opening and its first key, where `resourceVersion` goes.
const METADATA: &[u8] = b"\"metadata\":{";

/// Objects over the byte store: keys, envelopes, revisions, and the shape that a row asks for.
#[derive(Clone)]
pub(crate) struct Objects {
    storage: Arc<dyn Storage>,
    heartbeats: Arc<Heartbeats>,
    /// Who converts between versions; the server's own reads of built-in kinds need nobody.
    converter: Option<Arc<Converter>>,
}

impl Objects {
    pub(crate) fn new(storage: Arc<dyn Storage>, heartbeats: Heartbeats) -> Objects {
        Objects { storage, heartbeats: Arc::new(heartbeats), converter: None }
    }

    pub(crate) fn converted_by(self, converter: Converter) -> Objects {
        Objects { converter: Some(Arc::new(converter)), ..self }
    }

    pub(crate) fn heartbeats(&self) -> &Heartbeats {
        &self.heartbeats
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    pub(crate) fn key(def: &ResourceDef, namespace: Option<&str>, name: &str) -> Key {
        let namespace = namespace.filter(|_| def.is_namespaced());
        Key::object(&def.storage.group, &def.storage.plural, namespace, name)
    }

    pub(crate) fn prefix(def: &ResourceDef, namespace: Option<&str>) -> Key {
        let namespace = namespace.filter(|_| def.is_namespaced());
        Key::prefix(&def.storage.group, &def.storage.plural, namespace)
    }

    pub(crate) async fn get(
        &self,
        def: &ResourceDef,
        namespace: Option<&str>,
        name: &str,
        at: Consistency,
    ) -> Result<Option<Object>, ApiError> {
        let found = self.stored(def, namespace, name, at).await?;
        found.map(|stored| self.read(def, &stored)).transpose()
    }

    /// An object that others refer to: as this member knows it, or, where it does not know it yet, as it is.
    pub(crate) async fn find(
        &self,
        def: &ResourceDef,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Object>, ApiError> {
        match self.get(def, namespace, name, Consistency::Any).await? {
            None => self.get(def, namespace, name, Consistency::Linearizable).await,
            found => Ok(found),
        }
    }

    pub(crate) async fn stored(
        &self,
        def: &ResourceDef,
        namespace: Option<&str>,
        name: &str,
        at: Consistency,
    ) -> Result<Option<Stored>, ApiError> {
        let key = Objects::key(def, namespace, name);
        let found = self.storage.get(&key, at).await.map_err(store_error)?;
        let found = found.map(|stored| self.heartbeats.newest(stored)).into_iter().collect();
        Ok(self.in_version(def, found).await?.pop())
    }

    /// Stored values in the row's version. Where a webhook converts the kind, those of other versions go through it.
    pub(crate) async fn in_version(&self, def: &ResourceDef, mut items: Vec<Stored>) -> Result<Vec<Stored>, ApiError> {
        let Some(webhook) = conversion(def) else { return Ok(items) };
        let to = def.api_version();
        let (mut places, mut objects) = (Vec::new(), Vec::new());
        for (at, stored) in items.iter().enumerate() {
            let opened = envelope::open(&stored.value)?;
            if opened.storage_version != to {
                places.push(at);
                objects.push(Object::from_slice(&opened.json).map_err(ApiError::internal)?);
            }
        }
        if places.is_empty() {
            return Ok(items);
        }
        let objects = self.converter()?.convert(webhook, &to, objects).await?;
        for (at, object) in places.into_iter().zip(objects) {
            items[at].value = seal(&to, &def.kind, object)?;
        }
        Ok(items)
    }

    /// The value to store, in the version in which the kind is stored.
    pub(crate) async fn encode(&self, def: &ResourceDef, object: &Object) -> Result<Bytes, ApiError> {
        match conversion(def).filter(|_| def.version != def.storage.version) {
            None => encode(def, object),
            Some(webhook) => {
                let to = storage_version(def);
                let mut object = object.clone();
                object.remove(&["metadata", "resourceVersion"]);
                let converted = self.converter()?.convert(webhook, &to, vec![object]).await?;
                seal(&to, &def.kind, converted.into_iter().next().unwrap_or_default())
            }
        }
    }

    fn converter(&self) -> Result<&Converter, ApiError> {
        self.converter.as_deref().ok_or_else(|| ApiError::internal("nobody converts between versions here"))
    }

    pub(crate) async fn page(
        &self,
        prefix: &Key,
        at: Consistency,
        from: Option<&Key>,
        limit: usize,
    ) -> Result<Page, ApiError> {
        let mut page = self.storage.list(prefix, at, from, limit).await.map_err(store_error)?;
        if self.heartbeats.covers(prefix) {
            page.items = page.items.into_iter().map(|stored| self.heartbeats.newest(stored)).collect();
        }
        Ok(page)
    }

    /// How many keys follow a page.
    pub(crate) fn count(&self, prefix: &Key, after: &Key, at: Revision) -> Result<usize, ApiError> {
        self.storage.count(prefix, after, at).map_err(store_error)
    }

    /// All objects of a resource, as one revision knows them.
    pub(crate) async fn all(
        &self,
        def: &ResourceDef,
        namespace: Option<&str>,
        at: Consistency,
    ) -> Result<Vec<Object>, ApiError> {
        let page = self.page(&Objects::prefix(def, namespace), at, None, 0).await?;
        self.in_version(def, page.items).await?.iter().map(|stored| self.read(def, stored)).collect()
    }

    /// Everything happens, at one revision, or nothing. With a fence nothing happens once that term has passed.
    pub(crate) async fn write(&self, fence: Option<u64>, ops: Vec<Op>) -> Result<Reply, ApiError> {
        let command = Command { version: COMMAND_VERSION, fence, ops };
        self.storage.write(command).await.map_err(store_error)
    }

    /// The object of a stored value, in the row's shape, with its revision. The value is in the row's version already.
    pub(crate) fn read(&self, def: &ResourceDef, stored: &Stored) -> Result<Object, ApiError> {
        decode(def, &stored.value, stored.revision)
    }
}

fn conversion(def: &ResourceDef) -> Option<&ConversionWebhook> {
    def.custom.as_ref().and_then(|custom| custom.conversion.as_deref())
}

pub(crate) fn decode(def: &ResourceDef, value: &Bytes, revision: Revision) -> Result<Object, ApiError> {
    let opened = envelope::open(value)?;
    if conversion(def).is_some() && opened.storage_version != def.api_version() {
        let (from, to) = (opened.storage_version, def.api_version());
        return Err(ApiError::internal(format!("an object of {from} was read as {to} without its conversion")));
    }
    let mut object = Object::from_slice(&opened.json).map_err(ApiError::internal)?;
    if let Some(conversion) = def.conversion {
        (conversion.from_storage)(&mut object);
        object.set(&["apiVersion"], def.api_version());
        object.set(&["kind"], def.kind.as_str());
    }
    if let Some(custom) = &def.custom {
        custom.read(&mut object);
        object.set(&["apiVersion"], def.api_version());
    }
    object.set_revision(revision);
    Ok(object)
}

/// The value to store: without its revision, which the store itself gives, and with type and metadata in front.
pub(crate) fn encode(def: &ResourceDef, object: &Object) -> Result<Bytes, ApiError> {
    let mut converted = object.clone();
    if let Some(conversion) = def.conversion {
        (conversion.to_storage)(&mut converted);
    }
    seal(&storage_version(def), &def.storage.kind, converted)
}

fn storage_version(def: &ResourceDef) -> String {
    let storage = &def.storage;
    if storage.group.is_empty() { storage.version.clone() } else { format!("{}/{}", storage.group, storage.version) }
}

fn seal(api_version: &str, kind: &str, object: Object) -> Result<Bytes, ApiError> {
    let mut stored = Object::default();
    stored.set(&["kind"], kind);
    stored.set(&["apiVersion"], api_version);
    stored.set(&["metadata"], serde_json::Map::new());
    for (key, value) in object.0 {
        if key != "kind" && key != "apiVersion" {
            stored.0.insert(key, value);
        }
    }
    stored.remove(&["metadata", "resourceVersion"]);
    let json = stored.to_vec();
    if json.len() > OBJECT_MAX_BYTES {
        let message = "Request entity too large: etcdserver: request is too large";
        return Err(ApiError::new(Reason::RequestEntityTooLarge, message));
    }
    Ok(envelope::seal(api_version, &json))
}

/// The JSON of a stored value with its revision, without parsing it where row and store have one shape.
pub(crate) fn json(def: &ResourceDef, value: &Bytes, revision: Revision) -> Result<Vec<u8>, ApiError> {
    if def.conversion.is_none() {
        let opened = envelope::open(value)?;
        let as_stored = def
            .custom
            .as_ref()
            .is_none_or(|custom| custom.reads_as_stored() && opened.storage_version == def.api_version());
        if as_stored && let Some(spliced) = splice(&opened.json, revision) {
            return Ok(spliced);
        }
    }
    Ok(decode(def, value, revision)?.to_vec())
}

/// `kind` and `apiVersion` stand before `metadata` and hold no braces, so the first match is the right one.
fn splice(json: &[u8], revision: Revision) -> Option<Vec<u8>> {
    let head = &json[..json.len().min(256)];
    let at = head.windows(METADATA.len()).position(|window| window == METADATA)? + METADATA.len();
    let comma = if json.get(at) == Some(&b'}') { "" } else { "," };
    let field = format!("\"resourceVersion\":\"{revision}\"{comma}");
    let mut spliced = Vec::with_capacity(json.len() + field.len());
    spliced.extend_from_slice(&json[..at]);
    spliced.extend_from_slice(field.as_bytes());
    spliced.extend_from_slice(&json[at..]);
    Some(spliced)
}

pub(crate) fn store_error(error: Error) -> ApiError {
    match error {
        Error::Compacted { .. } => expired(),
        Error::Overrun => ApiError::new(Reason::Expired, "The resourceVersion for the provided watch is too old."),
        Error::TooNew { requested, current } => {
            let message = format!("Too large resource version: {requested}, current: {current}");
            let mut error = ApiError::new(Reason::Timeout, format!("Timeout: {message}")).retry_after(1);
            error.details.causes = vec![Cause {
                reason: "ResourceVersionTooLarge".to_owned(),
                message: "Too large resource version".to_owned(),
                field: String::new(),
            }];
            error
        }
        Error::Unavailable(why) => {
            ApiError::new(Reason::ServiceUnavailable, format!("the store is not available: {why}")).retry_after(1)
        }
        Error::Removed { .. } => ApiError::new(Reason::ServiceUnavailable, error.to_string()),
        Error::Full => ApiError::new(Reason::ServiceUnavailable, error.to_string()).retry_after(1),
        // Whether it happened is not known: clients must look before they try again, so no time is named for that.
        Error::Unknown(why) => ApiError::new(
            Reason::Timeout,
            format!("Timeout: request did not complete within the allowed duration: {why}"),
        ),
        Error::Denied(why) => ApiError::new(Reason::Conflict, why),
        Error::Data { .. } | Error::Damaged { .. } | Error::Storage { .. } => {
            tracing::error!(%error, "the store failed");
            ApiError::internal(error)
        }
    }
}

pub(crate) fn expired() -> ApiError {
    ApiError::new(Reason::Expired, "The resourceVersion for the provided list is too old.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_spliced_in() {
        let text = |json: &str| String::from_utf8(splice(json.as_bytes(), Revision(7)).unwrap()).unwrap();
        assert_eq!(
            text(r#"{"kind":"A","apiVersion":"v1","metadata":{"name":"x"}}"#),
            r#"{"kind":"A","apiVersion":"v1","metadata":{"resourceVersion":"7","name":"x"}}"#
        );
        assert_eq!(text(r#"{"metadata":{}}"#), r#"{"metadata":{"resourceVersion":"7"}}"#);
        assert!(splice(b"{}", Revision(7)).is_none());
    }

    #[test]
    fn stored_values_have_no_revision_and_read_back_with_one() {
        let registry = tandem_registry::Registry::builtin();
        let def = registry.by_kind("", "v1", "ConfigMap").unwrap();
        let mut object = Object::default();
        object.set(&["data", "a"], "b");
        object.set(&["metadata", "name"], "x");
        object.set(&["apiVersion"], "v1");
        object.set(&["kind"], "ConfigMap");
        let value = encode(&def, &object).unwrap();
        assert_eq!(
            envelope::open(&value).unwrap().json,
            r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":{"a":"b"}}"#
        );
        object.set_revision(Revision(3));
        assert_eq!(decode(&def, &value, Revision(3)).unwrap(), object);
        assert_eq!(encode(&def, &object).unwrap(), value);
    }
}
