use percent_encoding::percent_decode_str;
use tandem_api::{ApiError, Cause, Reason};

/// The longest path that is parsed; longer ones are answered with 400.
const PATH_MAX_BYTES: usize = 8 * 1024;

/// What a request does, in the words that authorization and metrics use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    Head,
    Options,
}

impl Verb {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Head => "head",
            Verb::Options => "options",
        }
    }

    pub(crate) const fn is_read(self) -> bool {
        matches!(self, Verb::Get | Verb::List | Verb::Watch | Verb::Head | Verb::Options)
    }
}

/// The parameters of a query, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Query {
        let decode = |part: &str| percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Query(pairs.collect())
    }

    /// The first value of a parameter; `None` when it is absent or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(mine, _)| mine == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(mine, _)| mine == name)
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(mine, _)| mine == name).map(|(_, value)| value.as_str())
    }

    /// `true` and `1` are true; so is a parameter without a value, as in Go's conversion of query parameters.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        let Some((_, value)) = self.0.iter().find(|(mine, _)| mine == name) else { return Ok(false) };
        match value.as_str() {
            "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            other => {
                Err(ApiError::bad_request(format!("invalid value {other:?} for {name}: it must be true or false")))
            }
        }
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.parse().map_err(|_| {
            ApiError::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax (parameter {name})"))
        })?;
        Ok(Some(number))
    }
}

/// The resource that a request is about, with empty strings for what its path does not name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
    /// What follows the subresource, still encoded: the path behind `proxy`.
    pub(crate) rest: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Resource(ResourcePath),
    /// `/healthz`, `/apis/apps/v1`, `/v2/…`: everything else, without a trailing slash.
    Path(String),
}

/// A request line, read once. Nothing behind it looks at a URL again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    pub(crate) verb: Verb,
    pub(crate) target: Target,
    pub(crate) query: Query,
}

impl RequestInfo {
    /// Reads method, path and query. Paths that two parsers could read in two ways are refused: empty, `.` and `..`
    /// segments, encoded slashes, control characters.
    pub(crate) fn parse(method: &http::Method, uri: &http::Uri) -> Result<RequestInfo, ApiError> {
        let query = Query::parse(uri.query().unwrap_or_default());
        let segments = segments(uri.path())?;
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let Some((mut path, legacy_watch)) = resource_path(&words) else {
            let target = Target::Path(format!("/{}", words.join("/")));
            return Ok(RequestInfo { verb: path_verb(method)?, target, query });
        };
        if let Some(depth) = proxy_depth(&path, words.len()) {
            path.rest = rest(uri.path(), depth);
        }
        let verb = resource_verb(method, &mut path, &query, legacy_watch)?;
        Ok(RequestInfo { verb, target: Target::Resource(path), query })
    }

    pub(crate) fn resource(&self) -> Option<&ResourcePath> {
        match &self.target {
            Target::Resource(path) => Some(path),
            Target::Path(_) => None,
        }
    }

    /// Requests that last as long as the client likes: they have no deadline and do not count as in flight.
    pub(crate) fn is_long_running(&self) -> bool {
        let stream = |sub: &str| matches!(sub, "log" | "exec" | "attach" | "portforward" | "proxy");
        match &self.target {
            Target::Resource(path) => self.verb == Verb::Watch || path.subresource.as_deref().is_some_and(stream),
            // Blobs of any size pass here.
            Target::Path(path) => path == "/v2" || path.starts_with("/v2/"),
        }
    }
}

fn segments(path: &str) -> Result<Vec<String>, ApiError> {
    if path.len() > PATH_MAX_BYTES {
        return Err(ApiError::bad_request("the path is too long"));
    }
    let Some(trimmed) = path.strip_prefix('/') else {
        return Err(ApiError::bad_request("the path must begin with a slash"));
    };
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    if trimmed.is_empty() {
        return Ok(Vec::new());
    }
    trimmed.split('/').map(segment).collect()
}

fn segment(raw: &str) -> Result<String, ApiError> {
    if raw.is_empty() {
        return Err(not_found());
    }
    let refused = || ApiError::bad_request(format!("invalid path segment {raw:?}"));
    let decoded = percent_decode_str(raw).decode_utf8().map_err(|_| refused())?.into_owned();
    let sound =
        decoded != "." && decoded != ".." && !decoded.contains(['/', '\\']) && !decoded.contains(char::is_control);
    if sound { Ok(decoded) } else { Err(refused()) }
}

/// The path as a resource's, and whether it is of the old form `/api/v1/watch/…`.
fn resource_path(words: &[&str]) -> Option<(ResourcePath, bool)> {
    let (group, version, rest) = match words {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (rest, legacy_watch) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
        rest => (rest, false),
    };
    let mut path = ResourcePath { group: group.to_owned(), version: version.to_owned(), ..ResourcePath::default() };
    let rest = match rest {
        // A namespace is both a resource of its own and where other resources live.
        ["namespaces", namespace] => {
            path.namespace = Some((*namespace).to_owned());
            ["namespaces", namespace].to_vec()
        }
        ["namespaces", namespace, sub @ ("status" | "finalize")] => {
            path.namespace = Some((*namespace).to_owned());
            ["namespaces", namespace, sub].to_vec()
        }
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => {
            path.namespace = Some((*namespace).to_owned());
            rest.to_vec()
        }
        rest => rest.to_vec(),
    };
    let mut words = rest.into_iter().map(str::to_owned);
    path.resource = words.next()?;
    path.name = words.next();
    path.subresource = words.next();
    let deeper = words.next().is_some();
    if deeper && path.subresource.as_deref() != Some("proxy") {
        // No resource has anything below its subresources.
        path.subresource.as_mut()?.push('/');
    }
    Some((path, legacy_watch))
}

fn proxy_depth(path: &ResourcePath, words: usize) -> Option<usize> {
    let front = if path.group.is_empty() { 2 } else { 3 };
    let namespace = if path.namespace.is_some() { 2 } else { 0 };
    let depth = front + namespace + 3;
    (path.subresource.as_deref() == Some("proxy") && words >= depth).then_some(depth)
}

/// The raw path behind its first `depth` segments, with its leading slash.
fn rest(path: &str, depth: usize) -> String {
    path.match_indices('/').nth(depth).map_or(String::new(), |(at, _)| path[at..].to_owned())
}

fn resource_verb(
    method: &http::Method,
    path: &mut ResourcePath,
    query: &Query,
    legacy_watch: bool,
) -> Result<Verb, ApiError> {
    if legacy_watch {
        return if method == http::Method::GET { Ok(Verb::Watch) } else { Err(method_not_allowed()) };
    }
    let named = path.name.is_some();
    let verb = match *method {
        http::Method::GET if named => Verb::Get,
        http::Method::GET if query.flag("watch")? => Verb::Watch,
        http::Method::GET => Verb::List,
        http::Method::POST => Verb::Create,
        http::Method::PUT => Verb::Update,
        http::Method::PATCH => Verb::Patch,
        http::Method::DELETE if named => Verb::Delete,
        http::Method::DELETE => Verb::DeleteCollection,
        http::Method::HEAD => Verb::Head,
        http::Method::OPTIONS => Verb::Options,
        _ => return Err(method_not_allowed()),
    };
    Ok(verb)
}

fn path_verb(method: &http::Method) -> Result<Verb, ApiError> {
    match *method {
        http::Method::GET => Ok(Verb::Get),
        http::Method::POST => Ok(Verb::Create),
        http::Method::PUT => Ok(Verb::Update),
        http::Method::PATCH => Ok(Verb::Patch),
        http::Method::DELETE => Ok(Verb::Delete),
        http::Method::HEAD => Ok(Verb::Head),
        http::Method::OPTIONS => Ok(Verb::Options),
        _ => Err(method_not_allowed()),
    }
}

/// What Kubernetes answers where nothing is served.
/// Nothing is at this path. With the details that clients of Go make up for a server that answers a plain 404: kubectl
/// looks into them without asking whether there are any.
pub(crate) fn not_found() -> ApiError {
    let mut error = ApiError::new(Reason::NotFound, "the server could not find the requested resource");
    let (reason, message) = ("UnexpectedServerResponse".to_owned(), "404 page not found".to_owned());
    error.details.causes.push(Cause { reason, message, ..Cause::default() });
    error
}

pub(crate) fn method_not_allowed() -> ApiError {
    ApiError::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(method: &str, uri: &str, expected: Expect) {
        let method = http::Method::from_bytes(method.as_bytes()).unwrap();
        let line = match RequestInfo::parse(&method, &uri.parse().unwrap()) {
            Err(error) => format!("{} {}", error.code(), error.message),
            Ok(RequestInfo { verb, target: Target::Path(path), .. }) => format!("{} {path}", verb.as_str()),
            Ok(RequestInfo { verb, target: Target::Resource(path), .. }) => format!(
                "{} {}/{} {} ns={} name={} sub={} rest={}",
                verb.as_str(),
                path.group,
                path.version,
                path.resource,
                path.namespace.unwrap_or_default(),
                path.name.unwrap_or_default(),
                path.subresource.unwrap_or_default(),
                path.rest
            ),
        };
        expected.assert_eq(&line);
    }

    #[test]
    fn resources() {
        check("GET", "/api/v1/pods", expect!["list /v1 pods ns= name= sub= rest="]);
        check("GET", "/api/v1/pods?watch=1", expect!["watch /v1 pods ns= name= sub= rest="]);
        check("GET", "/api/v1/namespaces", expect!["list /v1 namespaces ns= name= sub= rest="]);
        check("GET", "/api/v1/namespaces/a", expect!["get /v1 namespaces ns=a name=a sub= rest="]);
        check("PUT", "/api/v1/namespaces/a/finalize", expect!["update /v1 namespaces ns=a name=a sub=finalize rest="]);
        check(
            "POST",
            "/apis/apps/v1/namespaces/a/deployments",
            expect!["create apps/v1 deployments ns=a name= sub= rest="],
        );
        check(
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/d/scale",
            expect!["patch apps/v1 deployments ns=a name=d sub=scale rest="],
        );
        check("DELETE", "/api/v1/namespaces/a/pods", expect!["deletecollection /v1 pods ns=a name= sub= rest="]);
        check("GET", "/api/v1/watch/namespaces/a/pods", expect!["watch /v1 pods ns=a name= sub= rest="]);
        check(
            "GET",
            "/api/v1/nodes/n%3A1/proxy/a%20b/c",
            expect!["get /v1 nodes ns= name=n:1 sub=proxy rest=/a%20b/c"],
        );
        check("GET", "/api/v1/namespaces/a/pods/p/log/x", expect!["get /v1 pods ns=a name=p sub=log/ rest="]);
    }

    #[test]
    fn paths() {
        check("GET", "/", expect!["get /"]);
        check("GET", "/api/", expect!["get /api"]);
        check("GET", "/apis/apps/v1", expect!["get /apis/apps/v1"]);
        check("HEAD", "/v2/library/nginx/blobs/sha256:00", expect!["head /v2/library/nginx/blobs/sha256:00"]);
        check("BREW", "/healthz", expect!["405 the server does not allow this method on the requested resource"]);
    }

    #[test]
    fn hostile_paths_are_refused() {
        check("GET", "/api/v1/../../etc", expect![[r#"400 invalid path segment "..""#]]);
        check("GET", "/api//v1/pods", expect!["404 the server could not find the requested resource"]);
        check("GET", "/api/v1/%2e%2e/pods", expect![[r#"400 invalid path segment "%2e%2e""#]]);
        check("GET", "/api/v1/namespaces/a%2Fb/pods", expect![[r#"400 invalid path segment "a%2Fb""#]]);
        check("GET", "/api/v1/namespaces/a%00/pods", expect![[r#"400 invalid path segment "a%00""#]]);
        check("GET", "/api/v1/namespaces/a%ff/pods", expect![[r#"400 invalid path segment "a%ff""#]]);
    }

    #[test]
    fn query_parameters() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&x=&watch&command=a+b&command=c&limit=5");
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert_eq!(query.get("x"), None);
        assert!(query.flag("watch").unwrap());
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["a b", "c"]);
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert!(Query::parse("limit=x").number("limit").is_err());
        assert!(Query::parse("force=maybe").flag("force").is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_never_lets_dots_through(path in "(/[a-z.%2eEfF]{0,6}){0,8}") {
            let Ok(uri) = path.parse::<http::Uri>() else { return Ok(()) };
            if let Ok(info) = RequestInfo::parse(&http::Method::GET, &uri) {
                let names = match info.target {
                    Target::Path(path) => path.split('/').map(str::to_owned).collect(),
                    Target::Resource(path) => vec![path.resource, path.name.unwrap_or_default()],
                };
                assert!(!names.iter().any(|name| name == ".." || name == "."), "{path}");
            }
        }
    }
}
