use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use tandem_component::World;

use super::{Host, HostError, annotations};
use crate::{
    engine::{CompileError, Program},
    images::Stored,
    state::{Change, ContainerRecord, ContainerState, ImageRecord, Kind, MountRecord, RECORD_VERSION, ResourceRecord},
};

/// A container as it is asked for.
#[derive(Debug, Default)]
pub(crate) struct ContainerRequest {
    pub(crate) sandbox: String,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    /// Id, digest or name of an image that is on the node.
    pub(crate) image: String,
    pub(crate) image_reference: String,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) working_directory: Option<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<MountRecord>,
    pub(crate) resources: ResourceRecord,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) log_path: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Host {
    /// Makes a container that can be started: its component is compiled, and everything that it imports is there.
    pub(crate) async fn create(&self, request: ContainerRequest) -> Result<String, HostError> {
        let sandbox = self.table.sandbox(&request.sandbox);
        let sandbox = sandbox.ok_or_else(|| HostError::NotFound(format!("sandbox {}", request.sandbox)))?;
        if !sandbox.ready {
            return Err(HostError::Failed(format!("sandbox {} is stopped", sandbox.id)));
        }
        let same = |known: &ContainerRecord| known.name == request.name && known.attempt == request.attempt;
        match self.table.containers_of(&sandbox.id).into_iter().find(same) {
            // The answer to an earlier call was lost.
            Some(known) if known.state == ContainerState::Created => return Ok(known.id),
            Some(known) => {
                let text =
                    format!("attempt {} of container {} is there already: {}", known.attempt, known.name, known.id);
                return Err(HostError::Failed(text));
            }
            None => {}
        }
        let image = self.images.find(&request.image);
        let image = image.ok_or_else(|| HostError::NotFound(format!("image {}", request.image)))?;
        annotations::limits(&sandbox.annotations).map_err(HostError::Refused)?;
        let port = annotations::port(&request.annotations).map_err(HostError::Refused)?;
        let program = self.prepare(&image).await?;
        let kind = if program.http.is_some() { Kind::Http } else { Kind::Command };
        let id = self.new_id();
        let record = ContainerRecord {
            version: RECORD_VERSION,
            id: id.clone(),
            sandbox: request.sandbox,
            name: request.name,
            attempt: request.attempt,
            image: ImageRecord {
                digest: image.digest(&request.image_reference),
                reference: if request.image_reference.is_empty() { request.image } else { request.image_reference },
                id: image.id,
                file: image.file,
            },
            kind,
            command: request.command,
            args: request.args,
            working_directory: request.working_directory,
            env: request.env,
            mounts: request.mounts,
            resources: request.resources,
            stdin: request.stdin,
            stdin_once: request.stdin_once,
            port,
            log_path: request.log_path,
            labels: request.labels,
            annotations: request.annotations,
            created_at: self.now(),
            state: ContainerState::Created,
        };
        self.prepared.lock().insert(id.clone(), program);
        self.table.put_container(record)?;
        self.table.announce(&id, Change::Created);
        Ok(id)
    }

    async fn prepare(&self, image: &Stored) -> Result<Arc<Program>, HostError> {
        let missing = image.inspection.refused();
        if !missing.is_empty() {
            let names: Vec<&str> = missing.iter().map(|interface| interface.as_str()).collect();
            let text = format!("imports {}, which nothing on this node provides", names.join(", "));
            return Err(HostError::Refused(text));
        }
        if image.inspection.world == World::Library {
            return Err(HostError::Refused(
                "exports nothing that could be started: neither an HTTP handler nor a command".to_owned(),
            ));
        }
        self.program(&image.file, image).await
    }

    /// The program of a wasm file, shared by all containers that run it.
    pub(super) async fn program(&self, file: &str, image: &Stored) -> Result<Arc<Program>, HostError> {
        if let Some(program) = self.programs.lock().get(file).and_then(Weak::upgrade) {
            return Ok(program);
        }
        let path = self.images.file(file).ok_or_else(|| HostError::NotFound(format!("file {file}")))?;
        let compiled = self.compiler.compiled(file, &path).await;
        let compiled = compiled.map_err(|error| match error {
            CompileError::Refused(_) => HostError::Refused(error.to_string()),
            CompileError::Io(_) | CompileError::Timeout => HostError::Failed(error.to_string()),
        })?;
        let loaded = self.engine.load(&compiled, &image.inspection);
        let program = Arc::new(loaded.map_err(|error| HostError::Refused(format!("{error:#}")))?);
        let mut programs = self.programs.lock();
        programs.retain(|_, program| program.strong_count() > 0);
        programs.insert(file.to_owned(), Arc::downgrade(&program));
        Ok(program)
    }
}
