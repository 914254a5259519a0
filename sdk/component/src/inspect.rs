use std::{
    collections::{BTreeSet, HashSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use wasmparser::{
    ComponentExportSectionReader, ComponentImportSectionReader, Encoding, ExternalKind, FuncValidatorAllocations,
    Parser, Payload, ValidPayload, Validator, WasmFeatures,
    component_types::{ComponentAnyTypeId, ComponentEntityType, ResourceId},
    types::Types,
};

use crate::{
    SIZE_MAX,
    looks::{Looks, looks},
    provided::{Grant, PREVIEW1, PREVIEW1_FUNCTIONS, provider, refuse},
};

/// Why bytes cannot be a workload.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not a WebAssembly component or module: {0}")]
    NotWasm(Looks),
    #[error("not a WebAssembly binary that this version reads: layer {layer}, version {version}")]
    Version { layer: u16, version: u16 },
    #[error("a WIT package: it describes interfaces and holds no code to run")]
    WitPackage,
    #[error("broken WebAssembly at byte {offset:#x}: {message}")]
    Broken { message: String, offset: usize },
    #[error("{size} bytes are more than the {SIZE_MAX} that a component may have")]
    TooLarge { size: u64 },
    #[error("broken image: {0}")]
    Image(String),
}

impl From<wasmparser::Error> for Error {
    fn from(error: wasmparser::Error) -> Error {
        Error::Broken { message: error.message().to_owned(), offset: error.offset() }
    }
}

/// The two binary formats of WebAssembly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binary {
    Component,
    Module,
}

/// The release of WASI that a world belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Release {
    #[serde(rename = "0.1")]
    Preview1,
    #[serde(rename = "0.2")]
    Preview2,
    #[serde(rename = "0.3")]
    Preview3,
}

impl fmt::Display for Release {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Release::Preview1 => "0.1",
            Release::Preview2 => "0.2",
            Release::Preview3 => "0.3",
        })
    }
}

/// How a guest is run; found from its exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum World {
    /// Answers HTTP requests.
    HttpHandler(Release),
    /// Runs from start to end as a process does.
    Command(Release),
    /// Exports nothing that a pod could start; made to be composed with others.
    Library,
}

/// The name of an interface with its version, `wasi:http/types@0.2.3`; of a function that a component imports
/// directly, its plain name; of a function that a core module needs and WASI 0.1 lacks, `module#function`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Interface(String);

impl Interface {
    pub fn new(text: impl Into<String>) -> Interface {
        Interface(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without its version.
    pub fn name(&self) -> &str {
        self.0.split_once('@').map_or(&self.0, |(name, _)| name)
    }

    pub fn version(&self) -> Option<&str> {
        self.0.split_once('@').map(|(_, version)| version)
    }

    /// What is compatible: `1` of 1.x.y, `0.2` of 0.2.x; the whole version of a pre-release; empty without a version.
    pub(crate) fn track(&self) -> &str {
        let version = self.version().unwrap_or_default();
        if version.contains('-') {
            return version;
        }
        let parts = if version.starts_with("0.") { 2 } else { 1 };
        version.match_indices('.').nth(parts - 1).map_or(version, |(dot, _)| &version[..dot])
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What a guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    pub binary: Binary,
    pub world: World,
    /// What has to be provided for it to run, sorted.
    pub imports: Vec<Interface>,
    /// Interfaces imported for their types alone; nobody has to provide those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<Interface>,
    pub exports: Vec<Interface>,
    pub size: u64,
}

impl Inspection {
    /// The imports that nobody provides.
    pub fn refused(&self) -> Vec<Interface> {
        refuse(&self.imports)
    }

    /// What it can reach beyond the WASI core that every guest has.
    pub fn grants(&self) -> Vec<Grant> {
        let grants = self.imports.iter().filter_map(|import| provider(import)?.grant);
        grants.collect::<BTreeSet<Grant>>().into_iter().collect()
    }
}

/// A guest as a file.
#[derive(Clone, Copy, Debug)]
pub struct Component;

impl Component {
    /// Validates the bytes and says what they are.
    pub fn inspect(bytes: &[u8]) -> Result<Inspection, Error> {
        let size = bytes.len() as u64;
        if size > SIZE_MAX {
            return Err(Error::TooLarge { size });
        }
        let binary = magic(bytes)?;
        let outline = Outline::read(bytes)?;
        match binary {
            Binary::Component => component(&outline, size),
            Binary::Module => Ok(module(&outline, size)),
        }
    }
}

const WASM_MAGIC: &[u8] = b"\0asm";

/// Which binary the first eight bytes announce.
pub fn magic(head: &[u8]) -> Result<Binary, Error> {
    if !head.starts_with(WASM_MAGIC) {
        return Err(Error::NotWasm(looks(head)));
    }
    let Some([v0, v1, l0, l1]) = head.get(4..8) else {
        return Err(Error::Broken { message: "the file ends inside its header".to_owned(), offset: head.len() });
    };
    let (version, layer) = (u16::from_le_bytes([*v0, *v1]), u16::from_le_bytes([*l0, *l1]));
    match (layer, version) {
        (0, 1) => Ok(Binary::Module),
        (1, 0x0d) => Ok(Binary::Component),
        _ => Err(Error::Version { layer, version }),
    }
}

/// What a runtime of this version can be asked to compile.
fn features() -> WasmFeatures {
    WasmFeatures::default() | WasmFeatures::CM_ASYNC | WasmFeatures::CM_ERROR_CONTEXT
}

/// The outermost level of a binary.
#[derive(Default)]
struct Outline {
    /// Each import's module and name; a component's imports have no module.
    imports: Vec<(String, String)>,
    exports: Vec<String>,
    functions: BTreeSet<String>,
    holds_code: bool,
    types: Option<Types>,
}

impl Outline {
    fn read(bytes: &[u8]) -> Result<Outline, Error> {
        let mut validator = Validator::new_with_features(features());
        let mut allocations = FuncValidatorAllocations::default();
        let mut outline = Outline::default();
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload?;
            if depth == 0 {
                outline.note(&payload)?;
            }
            match &payload {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                _ => {}
            }
            match validator.payload(&payload)? {
                ValidPayload::Func(function, body) => {
                    let mut function = function.into_validator(allocations);
                    function.validate(&body)?;
                    allocations = function.into_allocations();
                }
                // The last end is the outermost one.
                ValidPayload::End(types) => outline.types = Some(types),
                ValidPayload::Ok | ValidPayload::Parser(_) => {}
            }
        }
        Ok(outline)
    }

    fn note(&mut self, payload: &Payload<'_>) -> Result<(), Error> {
        match payload {
            Payload::ImportSection(section) => {
                for import in section.clone().into_imports() {
                    let import = import?;
                    self.imports.push((import.module.to_owned(), import.name.to_owned()));
                }
            }
            Payload::ExportSection(section) => {
                for export in section.clone() {
                    let export = export?;
                    if matches!(export.kind, ExternalKind::Func | ExternalKind::FuncExact) {
                        self.functions.insert(export.name.to_owned());
                    }
                    self.exports.push(export.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) => self.component_imports(section)?,
            Payload::ComponentExportSection(section) => self.component_exports(section)?,
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => self.holds_code = true,
            Payload::Version { encoding: Encoding::Module, .. } => self.holds_code = true,
            _ => {}
        }
        Ok(())
    }

    fn component_imports(&mut self, section: &ComponentImportSectionReader<'_>) -> Result<(), Error> {
        for import in section.clone() {
            self.imports.push((import?.name.name.to_owned(), String::new()));
        }
        Ok(())
    }

    fn component_exports(&mut self, section: &ComponentExportSectionReader<'_>) -> Result<(), Error> {
        for export in section.clone() {
            self.exports.push(export?.name.name.to_owned());
        }
        Ok(())
    }

    /// The imports of a component that can be left unprovided, because they only name types that are already there.
    fn types_only(&self) -> BTreeSet<&str> {
        let Some(types) = self.types.as_ref().map(Types::as_ref) else { return BTreeSet::new() };
        let mut defined = HashSet::new();
        let mut found = BTreeSet::new();
        for (name, _) in &self.imports {
            let Some(item) = types.component_item_for_import(name) else { continue };
            let items = match item.ty {
                ComponentEntityType::Instance(instance) => {
                    types[instance].exports.values().map(|item| item.ty).collect()
                }
                other => vec![other],
            };
            // All are looked at, since resources that one import defines can be named by the next.
            let free = items.iter().filter(|item| is_type(**item, &mut defined)).count();
            if free == items.len() {
                found.insert(name.as_str());
            }
        }
        found
    }
}

/// Whether an item is a plain type or a resource that an earlier import defined.
fn is_type(item: ComponentEntityType, defined: &mut HashSet<ResourceId>) -> bool {
    match item {
        ComponentEntityType::Type { created: ComponentAnyTypeId::Resource(resource), .. } => {
            !defined.insert(resource.resource())
        }
        ComponentEntityType::Type { .. } => true,
        _ => false,
    }
}

/// The exports that make a world, the newest release first, a handler before a command.
const WORLDS: &[(&str, &str, World)] = &[
    ("wasi:http/handler", "0.3", World::HttpHandler(Release::Preview3)),
    ("wasi:http/incoming-handler", "0.2", World::HttpHandler(Release::Preview2)),
    ("wasi:cli/run", "0.3", World::Command(Release::Preview3)),
    ("wasi:cli/run", "0.2", World::Command(Release::Preview2)),
];

fn component(outline: &Outline, size: u64) -> Result<Inspection, Error> {
    if !outline.holds_code {
        return Err(Error::WitPackage);
    }
    let exports = sorted(outline.exports.iter().cloned());
    let found = WORLDS.iter().find(|(name, track, _)| {
        exports.iter().any(|interface| interface.name() == *name && interface.track() == *track)
    });
    let types_only = outline.types_only();
    let all = sorted(outline.imports.iter().map(|(name, _)| name.clone()));
    let (types, imports) = all.into_iter().partition(|import| types_only.contains(import.as_str()));
    let world = found.map_or(World::Library, |(_, _, world)| *world);
    Ok(Inspection { binary: Binary::Component, world, imports, types, exports, size })
}

fn module(outline: &Outline, size: u64) -> Inspection {
    let is_command = outline.functions.contains("_start");
    let world = if is_command { World::Command(Release::Preview1) } else { World::Library };
    let imports = outline.imports.iter().map(|(module, name)| match module.as_str() {
        PREVIEW1 if PREVIEW1_FUNCTIONS.contains(&name.as_str()) => module.clone(),
        _ => format!("{module}#{name}"),
    });
    let exports = sorted(outline.exports.iter().cloned());
    Inspection { binary: Binary::Module, world, imports: sorted(imports), types: Vec::new(), exports, size }
}

fn sorted(names: impl Iterator<Item = String>) -> Vec<Interface> {
    names.collect::<BTreeSet<String>>().into_iter().map(Interface).collect()
}
