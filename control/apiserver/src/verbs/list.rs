use axum::response::Response;
use base64::{
    Engine as _,
    engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tandem_api::{ApiError, Key, Object, Reason, Revision};
use tandem_registry::{ResourceDef, columns, protobuf};
use tandem_store::{Consistency, Stored};

use crate::{
    call::Call,
    core::Core,
    negotiate::{Format, Offer, Representation, Shape},
    objects::{self, Objects},
    options::{Freshness, Selection},
    request::Query,
    respond,
};

const TOKEN_VERSION: &str = "meta.k8s.io/v1";
/// How many keys are read from the store at a time while a selector looks for its matches.
const SCAN_KEYS: usize = 500;
const TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// Where a listing goes on. Clients hand it back as they got it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    v: String,
    /// The revision of the whole listing; -1 once that is no longer known, and the newest will do.
    rv: i64,
    /// The last key that was delivered, below the resource.
    start: String,
    /// How many follow it at that revision, where it was counted: it is counted once for all pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<usize>,
}

impl Token {
    fn read(text: &str) -> Result<Token, ApiError> {
        let invalid = |why: String| ApiError::bad_request(format!("continue key is not valid: {why}"));
        let text = text.trim_end_matches('=');
        let bytes =
            URL_SAFE_NO_PAD.decode(text).or_else(|_| URL_SAFE.decode(text)).map_err(|why| invalid(why.to_string()))?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|why| invalid(why.to_string()))?;
        let sound = token.v == TOKEN_VERSION && !token.start.is_empty() && (token.rv > 0 || token.rv == -1);
        if sound {
            Ok(token)
        } else {
            Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".to_owned()))
        }
    }

    fn write(revision: i64, start: &str, left: Option<usize>) -> String {
        let token = Token { v: TOKEN_VERSION.to_owned(), rv: revision, start: start.to_owned(), left };
        // Four plain fields always serialise.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }
}

/// What was found for a list request.
pub(super) struct Listing {
    pub(super) items: Vec<Stored>,
    pub(super) revision: Revision,
    next: Option<String>,
    remaining: Option<usize>,
}

pub(super) async fn list(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let as_ = call.representation(Offer::of(def))?;
    let path = call.path()?;
    let selection = Selection::of(&call.info.query, def, None)?;
    let listing = find(core, &call.info.query, def, path.namespace.as_deref(), &selection).await?;
    if as_ == (Representation { format: Format::Json, shape: Shape::Whole }) {
        return Ok(respond::json_bytes(StatusCode::OK, whole(def, &listing)?));
    }
    if as_ == (Representation { format: Format::Protobuf, shape: Shape::Whole }) {
        return Ok(respond::bytes(StatusCode::OK, respond::PROTOBUF, messages(core, def, &listing)?));
    }
    let items: Vec<Object> =
        listing.items.iter().map(|stored| core.objects.read(def, stored)).collect::<Result<_, _>>()?;
    let metadata = Value::Object(metadata(&listing));
    let list = match as_.shape {
        Shape::Table => {
            let rows: Vec<&Object> = items.iter().collect();
            columns::table(def, &rows, metadata, call.include_object()?, true, core.clock.now())
        }
        Shape::Metadata => {
            let items: Vec<Value> = items.iter().map(respond::partial).collect();
            json!({ "kind": "PartialObjectMetadataList", "apiVersion": TOKEN_VERSION, "metadata": metadata, "items": items })
        }
        Shape::Whole => {
            let items: Vec<Value> = items.into_iter().map(|object| Value::Object(object.0)).collect();
            json!({ "kind": def.list_kind, "apiVersion": def.api_version(), "metadata": metadata, "items": items })
        }
    };
    respond::value(core, call, StatusCode::OK, &list, as_)
}

fn metadata(listing: &Listing) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), listing.revision.to_string().into());
    if let Some(next) = &listing.next {
        metadata.insert("continue".to_owned(), next.as_str().into());
    }
    if let Some(remaining) = listing.remaining.filter(|remaining| *remaining > 0) {
        metadata.insert("remainingItemCount".to_owned(), remaining.into());
    }
    metadata
}

/// The list as JSON, its items copied from the store without being parsed.
fn whole(def: &ResourceDef, listing: &Listing) -> Result<Vec<u8>, ApiError> {
    let head =
        json!({ "kind": def.list_kind, "apiVersion": def.api_version(), "metadata": metadata(listing) }).to_string();
    let size: usize = listing.items.iter().map(|stored| stored.value.len() + 64).sum();
    let mut body = Vec::with_capacity(head.len() + size);
    body.extend_from_slice(head.trim_end_matches('}').as_bytes());
    // The metadata's own brace went with the list's.
    body.extend_from_slice(b"},\"items\":[");
    for (at, stored) in listing.items.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&objects::json(def, &stored.value, stored.revision)?);
    }
    body.extend_from_slice(b"]}");
    Ok(body)
}

/// The list as protobuf, one item after the other.
fn messages(core: &Core, def: &ResourceDef, listing: &Listing) -> Result<Vec<u8>, ApiError> {
    let missing = || ApiError::internal(format!("{} has no protobuf form", def.list_kind));
    let (schema, api_version) = (core.schema(), def.api_version());
    let metadata = Value::Object(metadata(listing));
    let list = protobuf::List::new(&schema, &api_version, &def.list_kind, &metadata);
    let mut list = list.ok_or_else(missing)?;
    for stored in &listing.items {
        list.push(&core.objects.read(def, stored)?.0);
    }
    Ok(list.finish())
}

/// The objects that a list request means, of one revision.
pub(super) async fn find(
    core: &Core,
    query: &Query,
    def: &ResourceDef,
    namespace: Option<&str>,
    selection: &Selection,
) -> Result<Listing, ApiError> {
    let limit = usize::try_from(query.number("limit")?.unwrap_or_default()).unwrap_or_default();
    let freshness = Freshness::of(query)?;
    let prefix = Objects::prefix(def, namespace);
    let scan = match query.get("continue") {
        None => Scan { at: freshness.for_list(limit > 0)?, start: None, left: None, prefix: &prefix },
        Some(_) if freshness.revision.is_some_and(|revision| revision.0 > 0) => {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        Some(text) => resume(&prefix, &Token::read(text)?),
    };
    if let (Some(name), None) = (selection.fields.exact("metadata.name"), &scan.start)
        && (namespace.is_some() || !def.is_namespaced())
    {
        return one(core, def, namespace, name, selection, scan.at).await;
    }
    match collect(core, def, &scan, limit, selection).await {
        // The listing can go on, but no longer at its revision.
        Err(mut error) if error.reason == Reason::Expired && scan.start.is_some() => {
            let start =
                scan.start.as_ref().and_then(|key| key.as_str().strip_prefix(prefix.as_str())).unwrap_or_default();
            TOO_OLD.clone_into(&mut error.message);
            error.continue_token = Some(Token::write(-1, start, None));
            Err(error)
        }
        found => found,
    }
}

struct Scan<'a> {
    at: Consistency,
    start: Option<Key>,
    /// How many there are, where that is known.
    left: Option<usize>,
    prefix: &'a Key,
}

impl Scan<'_> {
    /// How many follow a page of so many, where that is known.
    fn left_after(&self, page: usize) -> Option<usize> {
        self.left?.checked_sub(page).filter(|left| *left > 0)
    }
}

fn resume<'a>(prefix: &'a Key, token: &Token) -> Scan<'a> {
    let (at, left) = match u64::try_from(token.rv) {
        Ok(revision) => (Consistency::Exactly(Revision(revision)), token.left),
        Err(_) => (Consistency::Linearizable, None),
    };
    // Kubernetes marks "after this key" by a zero byte at its end.
    let start = token.start.trim_end_matches('\0');
    Scan { at, start: Some(Key::from_raw(format!("{prefix}{start}"))), left, prefix }
}

async fn one(
    core: &Core,
    def: &ResourceDef,
    namespace: Option<&str>,
    name: &str,
    selection: &Selection,
    at: Consistency,
) -> Result<Listing, ApiError> {
    // The revision first: what is read after it is at least as new.
    let revision = core.objects.page(&Objects::key(def, namespace, name), at, None, 1).await?.revision;
    let stored = core.objects.stored(def, namespace, name, at).await?;
    let mut items = Vec::new();
    if let Some(stored) = stored
        && selection.matches(def, &core.objects.read(def, &stored)?)
    {
        items.push(stored);
    }
    let newest = items.first().map_or(revision, |stored: &Stored| stored.revision.max(revision));
    Ok(Listing { items, revision: newest, next: None, remaining: None })
}

async fn collect(
    core: &Core,
    def: &ResourceDef,
    scan: &Scan<'_>,
    limit: usize,
    selection: &Selection,
) -> Result<Listing, ApiError> {
    let everything = selection.is_everything();
    let mut at = scan.at;
    let mut from = scan.start.clone();
    let mut items: Vec<Stored> = Vec::new();
    loop {
        let want = if everything || limit == 0 { limit } else { SCAN_KEYS.max(limit) };
        let page = core.objects.page(scan.prefix, at, from.as_ref(), want).await?;
        // All pages of one answer are of the first page's revision.
        at = Consistency::Exactly(page.revision);
        let Some(last) = page.items.last().map(|stored| stored.key.clone()) else {
            return Ok(Listing { items, revision: page.revision, next: None, remaining: None });
        };
        let (in_page, mut cut) = (page.items.len(), None);
        for stored in core.objects.in_version(def, page.items).await? {
            if !everything && !selection.matches(def, &core.objects.read(def, &stored)?) {
                continue;
            }
            if limit > 0 && items.len() == limit {
                cut = items.last().map(|stored| stored.key.clone());
                break;
            }
            items.push(stored);
        }
        let full = limit > 0 && items.len() >= limit;
        let more = page.more || cut.is_some();
        if !more || (full && (everything || cut.is_some())) {
            let end = cut.unwrap_or(last);
            let left = match more && everything {
                true => Some(
                    scan.left_after(in_page)
                        .map_or_else(|| core.objects.count(scan.prefix, &end, page.revision), Ok)?,
                ),
                false => None,
            };
            let start = end.as_str().strip_prefix(scan.prefix.as_str()).unwrap_or_default();
            let revision = i64::try_from(page.revision.0).unwrap_or(i64::MAX);
            let next = more.then(|| Token::write(revision, &format!("{start}\0"), left));
            return Ok(Listing { items, revision: page.revision, next, remaining: left });
        }
        from = Some(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_client() {
        let token = Token::write(7, "default/web\0", Some(3));
        let read = Token::read(&token).unwrap();
        assert_eq!((read.rv, read.start.as_str()), (7, "default/web\0"));
        assert_eq!(resume(&Key::prefix("", "pods", None), &read).start.unwrap().as_str(), "/core/pods/default/web");
        for bad in ["", "x", "e30", &URL_SAFE_NO_PAD.encode(r#"{"v":"v0","rv":1,"start":"a"}"#)] {
            assert!(Token::read(bad).is_err(), "{bad}");
        }
    }
}
