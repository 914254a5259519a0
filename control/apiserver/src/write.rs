//! The one write path: every create, update, patch, apply, scale, bind and deletion of every kind ends here.
//!
//! ```text
//!  create: metadata -> defaults -> admission -> prepare -> owners -> validation -> others' -> allocation -> store (absent)
//!  update: read -> change -> metadata -> defaults -> admission -> prepare -> owners -> validation -> others' -> store (at
//!             └──────────────────────────── again when another writer was faster ──────────────────────────┘   revision)
//! ```

use std::time::Instant;

use bytes::Bytes;
use tandem_api::{ApiError, Identity, Object, Reason, Revision};
use tandem_registry::ResourceDef;
use tandem_store::{Consistency, Expect, Op, Reply};

use crate::{
    admission::{self, Effects, Operation, Request},
    call::Warnings,
    core::Core,
    deletion::{self, Propagation, Step},
    heartbeats,
    managed::{self, Writer},
    objects::Objects,
    options::WriteOptions,
    request,
};

/// How often a change is tried anew when other writers are faster.
const TRIES_MAX: usize = 16;
/// How often another name is tried for `generateName`.
const NAMES_MAX: usize = 8;
/// Letters of the random part of a generated name, and how much of the prefix is kept before them.
const SUFFIX_LENGTH: usize = 5;
const PREFIX_MAX_BYTES: usize = 63 - SUFFIX_LENGTH;

const CHANGED: &str = "the object has been modified; please apply your changes to the latest version and try again";

/// Who writes, and under which options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Author<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) trace: &'a str,
    pub(crate) options: &'a WriteOptions,
    /// The term of the leader whose work this is.
    pub(crate) fence: Option<u64>,
    /// Where warnings go; `None` where the server itself writes.
    pub(crate) warnings: Option<&'a Warnings>,
}

/// Which object is written, and through which of its doors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) def: &'a ResourceDef,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
}

impl Target<'_> {
    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.def.group, &self.def.plural, self.name)
    }

    pub(crate) fn conflict(&self, why: impl std::fmt::Display) -> ApiError {
        ApiError::conflict(&self.def.group, &self.def.plural, self.name, why)
    }

    pub(crate) fn request<'r>(&'r self, author: &'r Author<'_>, operation: Operation) -> Request<'r> {
        Request {
            operation,
            identity: author.identity,
            trace: author.trace,
            def: self.def,
            namespace: self.namespace,
            name: self.name,
            subresource: self.subresource,
            options: author.options,
            deletion: None,
            warnings: author.warnings,
        }
    }

    fn writer<'w>(&'w self, author: &'w Author<'_>, api_version: &'w str, time: &'w str) -> Writer<'w> {
        Writer { manager: &author.options.manager, api_version, subresource: self.subresource, time }
    }
}

/// What a change may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The object without its status.
    Object,
    Status,
    /// What a subresource of its own changes under rules of its own: binding, finalize.
    Free,
}

/// How the owners of fields are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    Update,
    /// Server-side apply has recorded them already.
    Applied,
}

/// A change of one object as a function of what it is now. It may be called several times.
pub(crate) struct Change<'a> {
    pub(crate) scope: Scope,
    pub(crate) ownership: Ownership,
    pub(crate) change: &'a (dyn Fn(&Object) -> Result<Object, ApiError> + Send + Sync),
}

/// Whether the kind takes objects by what all members know now: its definition may have gone while the body came in, and
/// what is made after its objects were removed would stay for ever.
async fn still_defined(core: &Core, def: &ResourceDef) -> Result<(), ApiError> {
    core.kinds.refresh(&core.objects).await?;
    let now = core.registry().by_path(&def.group, &def.version, &def.plural);
    let custom = now.as_ref().and_then(|def| def.custom.as_ref()).ok_or_else(request::not_found)?;
    if custom.is_ending {
        let message = "create not allowed while custom resource definition is terminating";
        return Err(ApiError::new(Reason::MethodNotAllowed, message));
    }
    Ok(())
}

/// Creates the object; its `metadata.name` may still be empty for `generateName`.
pub(crate) async fn create(
    core: &Core,
    author: &Author<'_>,
    target: &Target<'_>,
    mut object: Object,
    ownership: Ownership,
) -> Result<Object, ApiError> {
    let def = target.def;
    if def.custom.is_some() {
        still_defined(core, def).await?;
    }
    begin(core, target, &mut object)?;
    def.default(&mut object);
    let request = target.request(author, Operation::Create);
    admission::admit(core, &request, &mut object, None).await?;
    def.default(&mut object);
    let generated = object.name().is_empty() && !object.generate_name().is_empty();
    for _ in 0..NAMES_MAX {
        let mut named = object.clone();
        if generated {
            named.set(&["metadata", "name"], generated_name(core, object.generate_name()));
        }
        // What is derived from the name (a Namespace's label) needs the name first.
        def.prepare_create(&mut named);
        match insert(core, author, target, &request, named, ownership).await {
            Err(error) if generated && error.reason == Reason::AlreadyExists => {}
            done => return done,
        }
    }
    let error =
        ApiError::new(Reason::AlreadyExists, format!("no free name was found for {:?}", object.generate_name()));
    Err(error.about(&def.group, &def.plural, object.generate_name()))
}

/// The part of the metadata that is the server's to set.
fn begin(core: &Core, target: &Target<'_>, object: &mut Object) -> Result<(), ApiError> {
    let def = target.def;
    if object.str_at(&["metadata", "resourceVersion"]).is_some_and(|version| !version.is_empty() && version != "0") {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    match (target.namespace.filter(|_| def.is_namespaced()), object.namespace()) {
        (Some(namespace), None) => object.set(&["metadata", "namespace"], namespace),
        (Some(namespace), Some(given)) if namespace == given => {}
        (None, _) => {
            object.remove(&["metadata", "namespace"]);
        }
        _ => {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    for gone in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        object.remove(&["metadata", gone]);
    }
    object.set(&["metadata", "uid"], core.entropy.uid());
    object.set(&["metadata", "creationTimestamp"], deletion::seconds(core.clock.now()));
    Ok(())
}

fn generated_name(core: &Core, prefix: &str) -> String {
    let mut end = prefix.len().min(PREFIX_MAX_BYTES);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &prefix[..end], core.entropy.suffix(SUFFIX_LENGTH))
}

async fn insert(
    core: &Core,
    author: &Author<'_>,
    target: &Target<'_>,
    request: &Request<'_>,
    mut object: Object,
    ownership: Ownership,
) -> Result<Object, ApiError> {
    let def = target.def;
    let (api_version, time) = (def.api_version(), deletion::seconds(core.clock.now()));
    if ownership == Ownership::Update {
        managed::record_update(
            &core.schema(),
            &def.type_name,
            None,
            &mut object,
            &target.writer(author, &api_version, &time),
        );
    }
    let causes = def.validate_create(&object);
    if !causes.is_empty() {
        let name = if object.name().is_empty() { object.generate_name() } else { object.name() };
        return Err(ApiError::invalid(&def.group, &def.kind, name, causes));
    }
    admission::validate(core, request, &object, None).await?;
    let name = object.name().to_owned();
    let exists = || ApiError::already_exists(&def.group, &def.plural, &name);
    for _ in 0..TRIES_MAX {
        let mut allocated = object.clone();
        let effects = admission::allocate(core, request, &mut allocated, None).await?;
        if author.options.dry_run {
            let found = core.objects.stored(def, target.namespace, &name, Consistency::Linearizable).await?;
            return if found.is_some() { Err(exists()) } else { Ok(allocated) };
        }
        let key = Objects::key(def, target.namespace, &name);
        let put = Op::Put { key, value: core.objects.encode(def, &allocated).await?, expect: Expect::Absent };
        match write(core, author.fence, put, effects).await? {
            Written::At(revision) => {
                allocated.set_revision(revision);
                return Ok(allocated);
            }
            Written::Lost => return Err(exists()),
            // Somebody took the address or port first, or what was left of a quota.
            Written::Taken => {}
        }
    }
    Err(target.conflict("other writers were faster to take an address or a port, or to charge a quota"))
}

/// How a write of one object and its effects ended.
enum Written {
    At(Revision),
    /// The object itself is not what was expected.
    Lost,
    /// An effect is not possible any longer.
    Taken,
}

async fn write(core: &Core, fence: Option<u64>, op: Op, mut effects: Effects<'_>) -> Result<Written, ApiError> {
    if let Op::Delete { key, .. } = &op {
        core.objects.heartbeats().forget(key);
    }
    let mut ops = vec![op];
    ops.append(&mut effects.ops);
    match core.objects.write(fence, ops).await? {
        Reply::Done { revision } => Ok(Written::At(revision)),
        Reply::Mismatch { op: 0, .. } => Ok(Written::Lost),
        Reply::Mismatch { .. } => Ok(Written::Taken),
        Reply::Fenced { term } => {
            let message = format!("this member does not lead any longer: it is term {term}, and nothing was written");
            Err(ApiError::new(Reason::ServiceUnavailable, message))
        }
        Reply::Unsupported { version } => {
            Err(ApiError::internal(format!("the store does not know commands of version {version}")))
        }
    }
}

/// Changes the object that is there. `Ok` holds what it is afterwards, also where nothing changed.
pub(crate) async fn update(
    core: &Core,
    author: &Author<'_>,
    target: &Target<'_>,
    change: &Change<'_>,
) -> Result<Object, ApiError> {
    for _ in 0..TRIES_MAX {
        let live = core.objects.get(target.def, target.namespace, target.name, Consistency::Linearizable).await?;
        let live = live.ok_or_else(|| target.not_found())?;
        if let Some(done) = try_update(core, author, target, change, &live).await? {
            return Ok(done);
        }
    }
    Err(target.conflict(CHANGED))
}

/// One attempt; `None` when another writer was faster.
async fn try_update(
    core: &Core,
    author: &Author<'_>,
    target: &Target<'_>,
    change: &Change<'_>,
    live: &Object,
) -> Result<Option<Object>, ApiError> {
    let def = target.def;
    let mut new = (change.change)(live)?;
    keep_identity(target, &mut new, live)?;
    def.default(&mut new);
    let request = target.request(author, Operation::Update);
    admission::admit(core, &request, &mut new, Some(live)).await?;
    prepare(change.scope, def, &mut new, live);
    if change.ownership == Ownership::Update {
        let (api_version, time) = (def.api_version(), deletion::seconds(core.clock.now()));
        let writer = target.writer(author, &api_version, &time);
        managed::record_update(&core.schema(), &def.type_name, Some(live), &mut new, &writer);
    }
    let causes = match change.scope {
        Scope::Object => def.validate_update(&new, live),
        Scope::Status => def.validate_status(&new, live),
        Scope::Free => Vec::new(),
    };
    if !causes.is_empty() {
        return Err(ApiError::invalid(&def.group, &def.kind, target.name, causes));
    }
    admission::validate(core, &request, &new, Some(live)).await?;
    if managed::same(&new, live) {
        return Ok(Some(live.clone()));
    }
    let effects = admission::allocate(core, &request, &mut new, Some(live)).await?;
    if author.options.dry_run {
        return Ok(Some(new));
    }
    let key = Objects::key(def, target.namespace, target.name);
    let expect = Expect::At(live.revision().unwrap_or_default());
    let over = deletion::is_over(def, &new);
    let op = if over {
        Op::Delete { key, expect }
    } else {
        let value = core.objects.encode(def, &new).await?;
        let revision = live.revision().unwrap_or_default();
        if heartbeats::is_heartbeat(def, &new, live)
            && core.objects.heartbeats().keep(&key, revision, value.clone(), Instant::now())
        {
            return Ok(Some(new));
        }
        Op::Put { key, value, expect }
    };
    let effects = if over { admission::release(def, live) } else { effects };
    match write(core, author.fence, op, effects).await? {
        Written::At(revision) => {
            new.set_revision(revision);
            Ok(Some(new))
        }
        Written::Lost | Written::Taken => Ok(None),
    }
}

fn prepare(scope: Scope, def: &ResourceDef, new: &mut Object, live: &Object) {
    match scope {
        Scope::Object => def.prepare_update(new, live),
        Scope::Status => def.prepare_status(new, live),
        Scope::Free => {}
    }
}

/// Name, uid and times are the object's for life; a revision, where one is given, must be the current one.
fn keep_identity(target: &Target<'_>, new: &mut Object, live: &Object) -> Result<(), ApiError> {
    if !new.name().is_empty() && new.name() != target.name {
        let (given, name) = (new.name(), target.name);
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    if let (Some(given), Some(namespace)) = (new.namespace(), live.namespace())
        && given != namespace
    {
        return Err(ApiError::bad_request(format!(
            "the namespace of the object ({given}) does not match the namespace on the request ({namespace})"
        )));
    }
    if !new.uid().is_empty() && new.uid() != live.uid() {
        let (given, uid) = (new.uid(), live.uid());
        return Err(
            target.conflict(format!("Precondition failed: UID in precondition: {given}, UID in object meta: {uid}"))
        );
    }
    let version = new.str_at(&["metadata", "resourceVersion"]).unwrap_or_default();
    if !version.is_empty() && version != "0" && new.revision() != live.revision() {
        return Err(target.conflict(CHANGED));
    }
    for kept in ["name", "namespace", "uid", "resourceVersion"] {
        keep(new, live, kept);
    }
    for kept in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if new.at(&["metadata", kept]).is_none_or(serde_json::Value::is_null) {
            keep(new, live, kept);
        }
    }
    new.remove(&["metadata", "selfLink"]);
    Ok(())
}

fn keep(new: &mut Object, live: &Object, key: &str) {
    match live.at(&["metadata", key]) {
        Some(value) => new.set(&["metadata", key], value.clone()),
        None => {
            new.remove(&["metadata", key]);
        }
    }
}

/// What must be true of an object that is to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Preconditions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

impl Preconditions {
    pub(crate) fn check(&self, target: &Target<'_>, live: &Object) -> Result<(), ApiError> {
        let differs = |what: &str, wanted: &Option<String>, found: &str| match wanted {
            Some(wanted) if wanted != found => Err(target.conflict(format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            ))),
            _ => Ok(()),
        };
        differs("UID", &self.uid, live.uid())?;
        let revision = live.str_at(&["metadata", "resourceVersion"]).unwrap_or_default();
        differs("ResourceVersion", &self.resource_version, revision)
    }
}

/// How to delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deletion {
    pub(crate) grace_seconds: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) preconditions: Preconditions,
}

/// What a deletion left.
#[derive(Clone, Debug)]
pub(crate) enum Deleted {
    /// Nothing; the object is as it last was.
    Gone(Object),
    /// The object, marked: its node, or its finalizers, have to act first.
    Marked(Object),
}

pub(crate) async fn delete(
    core: &Core,
    author: &Author<'_>,
    target: &Target<'_>,
    deletion: &Deletion,
) -> Result<Deleted, ApiError> {
    let def = target.def;
    let request = Request { deletion: Some(deletion), ..target.request(author, Operation::Delete) };
    for _ in 0..TRIES_MAX {
        let live = core.objects.get(def, target.namespace, target.name, Consistency::Linearizable).await?;
        let mut live = live.ok_or_else(|| target.not_found())?;
        deletion.preconditions.check(target, &live)?;
        admission::delete(core, &request, &live).await?;
        let step = deletion::step(def, &live, deletion.grace_seconds, deletion.propagation, core.clock.now());
        let (op, effects, outcome) = match step {
            Step::Wait => return Ok(Deleted::Marked(live)),
            Step::Remove if author.options.dry_run => return Ok(Deleted::Gone(live)),
            Step::Mark(marked) if author.options.dry_run => return Ok(Deleted::Marked(marked)),
            Step::Remove => (None, admission::release(def, &live), None),
            Step::Mark(marked) => (Some(core.objects.encode(def, &marked).await?), Effects::default(), Some(marked)),
        };
        match write(core, author.fence, removal(target, &live, op), effects).await? {
            Written::At(revision) => {
                return Ok(match outcome {
                    Some(mut marked) => {
                        marked.set_revision(revision);
                        Deleted::Marked(marked)
                    }
                    None => {
                        live.set_revision(revision);
                        Deleted::Gone(live)
                    }
                });
            }
            Written::Lost | Written::Taken => {}
        }
    }
    Err(target.conflict(CHANGED))
}

fn removal(target: &Target<'_>, live: &Object, value: Option<Bytes>) -> Op {
    let key = Objects::key(target.def, target.namespace, target.name);
    let expect = Expect::At(live.revision().unwrap_or_default());
    match value {
        Some(value) => Op::Put { key, value, expect },
        None => Op::Delete { key, expect },
    }
}
