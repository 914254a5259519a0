use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// Checks that the path of the node is what its type says, making it where the type allows.
pub(super) fn check(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("hostPath \"{}\" must be absolute and must not contain '..'", source.path));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    let make = |result: std::io::Result<()>| result.map_err(|error| format!("cannot make {}: {error}", path.display()));
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            let made = std::fs::create_dir_all(path);
            return make(made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))));
        }
        "FileOrCreate" if !path.exists() => return make(std::fs::File::create(path).map(drop)),
        _ => {}
    }
    // A runtime makes a missing path a folder, as it always did for a path without a type.
    let found = std::fs::metadata(path).map(|metadata| metadata.file_type());
    let (wanted, sound) = match kind {
        "" => return Ok(()),
        "Directory" | "DirectoryOrCreate" => ("directory", found.as_ref().is_ok_and(std::fs::FileType::is_dir)),
        "File" | "FileOrCreate" => ("file", found.as_ref().is_ok_and(std::fs::FileType::is_file)),
        "Socket" => ("socket file", found.as_ref().is_ok_and(FileTypeExt::is_socket)),
        "CharDevice" => ("character device", found.as_ref().is_ok_and(FileTypeExt::is_char_device)),
        "BlockDevice" => ("block device", found.as_ref().is_ok_and(FileTypeExt::is_block_device)),
        other => return Err(format!("hostPath type {other} is not known")),
    };
    if sound { Ok(()) } else { Err(format!("hostPath type check failed: {} is not a {wanted}", source.path)) }
}
