use async_trait::async_trait;
use base64::Engine as _;
use tandem_cri::v1::{self, image_service_server::ImageService};
use tonic::{Request, Response, Status};

use super::Services;
use crate::images::{Credentials, PullError, Stored};

fn image(stored: &Stored) -> v1::Image {
    v1::Image {
        id: stored.id.clone(),
        repo_tags: stored.tags.iter().cloned().collect(),
        repo_digests: stored.repositories.iter().map(|repository| format!("{repository}@{}", stored.id)).collect(),
        size: stored.size,
        ..v1::Image::default()
    }
}

/// What CRI calls an image: an id or a name.
fn named(spec: Option<v1::ImageSpec>) -> Result<String, Status> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() { Err(Status::invalid_argument("no image is named")) } else { Ok(name) }
}

fn credentials(auth: v1::AuthConfig) -> Result<Option<Credentials>, Status> {
    if !auth.registry_token.is_empty() {
        return Ok(Some(Credentials::Token(auth.registry_token)));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::Token(auth.identity_token)));
    }
    if !auth.username.is_empty() {
        return Ok(Some(Credentials::Basic { username: auth.username, password: auth.password }));
    }
    if auth.auth.is_empty() {
        return Ok(None);
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(&auth.auth).ok();
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|text| text.split_once(':'));
    let (username, password) = pair.ok_or_else(|| Status::invalid_argument("the credentials cannot be read"))?;
    Ok(Some(Credentials::Basic { username: username.to_owned(), password: password.to_owned() }))
}

fn refused(error: &PullError) -> Status {
    let text = error.to_string();
    match error {
        PullError::Name(_) | PullError::NotWasm { .. } => Status::invalid_argument(text),
        PullError::NotFound { .. } => Status::not_found(text),
        PullError::Denied { .. } => Status::permission_denied(text),
        PullError::Answer { .. } | PullError::Transport { .. } | PullError::Digest { .. } | PullError::Io { .. } => {
            Status::unknown(text)
        }
    }
}

#[async_trait]
impl ImageService for Services {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let wanted = request.into_inner().filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let images = match wanted.filter(|name| !name.is_empty()) {
            Some(name) => self.host.images.find(&name).iter().map(image).collect(),
            None => self.host.images.all().iter().map(image).collect(),
        };
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let name = named(request.into_inner().image)?;
        let image = self.host.images.find(&name).as_ref().map(image);
        Ok(Response::new(v1::ImageStatusResponse { image, ..v1::ImageStatusResponse::default() }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let credentials = request.auth.map(credentials).transpose()?.flatten();
        let registries = self.host.registries().map_err(|error| Status::internal(error.to_string()))?;
        let pulled = self.host.images.pull(&name, &registries, credentials.as_ref()).await;
        let stored = pulled.map_err(|error| refused(&error))?;
        tracing::info!(image = name, id = stored.id, size = stored.size, "pulled");
        Ok(Response::new(v1::PullImageResponse { image_ref: stored.id }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let name = named(request.into_inner().image)?;
        self.host.remove_image(&name)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        let number = |value: u64| Some(v1::UInt64Value { value });
        let usage = v1::FilesystemUsage {
            timestamp: self.host.now(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.host.images.folder().display().to_string() }),
            used_bytes: number(self.host.images.used_bytes()),
            inodes_used: number(self.host.images.all().len() as u64),
        };
        Ok(Response::new(v1::ImageFsInfoResponse { image_filesystems: vec![usage], ..Default::default() }))
    }
}
