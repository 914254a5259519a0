use std::{fs, os::unix::fs::PermissionsExt};

use jiff::SignedDuration;

use super::{
    atomic::{File, Payload},
    *,
};
use crate::testing::at;

fn payload(files: &[(&str, &str)]) -> Payload {
    let file = |text: &str| File { content: text.as_bytes().to_vec(), mode: 0o640 };
    files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
}

/// What a reader sees: path and content, sorted.
fn shown(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("..") {
            continue;
        }
        let path = folder.join(&name);
        if path.is_dir() {
            lines.extend(shown(&path).into_iter().map(|line| format!("{name}/{line}")));
        } else {
            lines.push(format!("{name}={}", fs::read_to_string(path).unwrap()));
        }
    }
    lines.sort();
    lines
}

#[test]
fn files_change_all_at_once_and_old_ones_go() {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |files: &[(&str, &str)], second| atomic::write(folder.path(), &payload(files), None, at(second)).unwrap();
    write(&[("a", "1"), ("sub/b", "2")], 0);
    assert_eq!(shown(folder.path()), ["a=1", "sub/b=2"]);
    assert_eq!(fs::metadata(folder.path().join("a")).unwrap().permissions().mode() & 0o777, 0o640);
    let first = fs::read_link(folder.path().join("..data")).unwrap();
    write(&[("a", "1"), ("sub/b", "2")], 1);
    assert_eq!(fs::read_link(folder.path().join("..data")).unwrap(), first, "nothing changed, nothing is written");
    write(&[("a", "3"), ("c", "4")], 2);
    assert_eq!(shown(folder.path()), ["a=3", "c=4"]);
    assert_eq!(fs::read_link(folder.path().join("a")).unwrap(), Path::new("..data/a"));
    let versions = fs::read_dir(folder.path()).unwrap().filter(|entry| {
        let entry = entry.as_ref().unwrap();
        entry.file_type().unwrap().is_dir()
    });
    assert_eq!(versions.count(), 1);
}

#[test]
fn paths_that_lead_out_are_refused() {
    for path in ["", "/etc", "..", "a/../../b", "a/./../..", "../x", "a\0b"] {
        assert!(!is_below(path), "{path:?}");
    }
    for path in ["a", "a/b", "..data", "a..b"] {
        assert!(is_below(path), "{path:?}");
    }
}

#[test]
fn host_paths_are_what_their_type_says() {
    let folder = tempfile::tempdir().unwrap();
    let check = |path: &str, kind: &str| {
        let path = folder.path().join(path).display().to_string();
        host_path::check(&k8s_openapi::api::core::v1::HostPathVolumeSource { path, type_: Some(kind.to_owned()) })
    };
    assert!(check("new", "Directory").is_err());
    assert_eq!(check("new", "DirectoryOrCreate"), Ok(()));
    assert_eq!(check("new", "Directory"), Ok(()));
    assert!(check("new", "File").unwrap_err().contains("is not a file"));
    assert_eq!(check("file", "FileOrCreate"), Ok(()));
    assert_eq!(check("file", "File"), Ok(()));
    assert!(check("a/../../x", "").is_err());
}

#[test]
fn memory_volumes_and_sub_paths_are_mounted_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    fs::create_dir(&volume).unwrap();
    sub_path::mount_memory(&volume, Some(1 << 20)).expect("this test mounts, so it needs root");
    sub_path::mount_memory(&volume, Some(1 << 20)).unwrap();
    fs::create_dir(volume.join("inside")).unwrap();
    fs::write(volume.join("inside/file"), "here").unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
    let target = folder.path().join("subpaths/0");
    let bound = sub_path::bind(&volume, "inside", &target, false).unwrap();
    assert_eq!(fs::read_to_string(bound.join("file")).unwrap(), "here");
    sub_path::bind(&volume, "made/anew", &target, false).unwrap();
    let mode = |path: &str| fs::metadata(volume.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!([mode("made"), mode("made/anew")], [0o777; 2], "as open as the volume");
    let file = sub_path::bind(&volume, "inside/file", &folder.path().join("subpaths/1"), false).unwrap();
    assert_eq!(fs::read_to_string(file).unwrap(), "here");
    for path in ["out", "out/passwd", "../volume", "/etc"] {
        assert!(sub_path::bind(&volume, path, &folder.path().join("subpaths/2"), false).is_err(), "{path}");
    }
    sub_path::unmount_below(folder.path()).unwrap();
    assert!(!volume.join("inside").exists(), "the memory volume is gone");
}

#[test]
fn groups_get_what_they_may_read_and_write() {
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o7777;
    fs::write(folder.path().join("file"), "").unwrap();
    fs::set_permissions(folder.path().join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    atomic::give_to_group(folder.path(), 1234, true).expect("this test changes groups, so it needs root");
    assert_eq!(mode("file"), 0o660);
    assert_eq!(mode("") & 0o2070, 0o2070);
}

#[test]
fn folders_of_versions_are_named_by_time() {
    let folder = tempfile::tempdir().unwrap();
    let now = at(1) + SignedDuration::from_nanos(5);
    atomic::write(folder.path(), &payload(&[("a", "1")]), None, now).unwrap();
    let link = fs::read_link(folder.path().join("..data")).unwrap();
    assert_eq!(link, Path::new("..2026_01_01_00_00_01.000000005"));
}

#[test]
fn a_volume_of_a_claim_is_given_to_a_group_without_leaving_it() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let (volume, outside) = (folder.path().join("volume"), folder.path().join("outside"));
    fs::create_dir_all(volume.join("deep")).unwrap();
    for file in [&outside, &volume.join("deep/file")] {
        fs::write(file, "").unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    std::os::unix::fs::symlink(&outside, volume.join("deep/link")).unwrap();
    std::os::unix::fs::symlink(folder.path(), volume.join("folder")).unwrap();
    group::give(&volume, 1234, false).expect("this test changes groups, so it needs root");
    let seen = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.gid(), found.permissions().mode() & 0o7777)
    };
    assert_eq!(seen(&volume.join("deep/file")), (1234, 0o660));
    assert_eq!(seen(&outside).1, 0o600, "what a link leads to is not touched");
    assert_ne!(seen(&outside).0, 1234);
    assert_eq!((seen(&volume).0, seen(&volume).1 & 0o2770), (1234, 0o2770));
    fs::set_permissions(volume.join("deep/file"), fs::Permissions::from_mode(0o600)).unwrap();
    group::give(&volume, 1234, true).unwrap();
    assert_eq!(seen(&volume.join("deep/file")).1, 0o600, "the root tells that all is done");
    group::give(&volume, 1234, false).unwrap();
    assert_eq!(seen(&volume.join("deep/file")).1, 0o660);
    assert!(group::give(&volume.join("folder"), 1234, false).is_err(), "the root is no link");
    let deep = (0..200).fold(volume, |path, _| path.join("d"));
    fs::create_dir_all(&deep).unwrap();
    assert!(group::give(&folder.path().join("volume"), 1234, false).unwrap_err().contains("deeper"));
}

#[test]
fn folders_of_volumes_are_named_by_their_volume() {
    let directories = Directories::new(Path::new("/node"));
    assert_eq!(folder_of(&directories, "pvc-1").unwrap(), Path::new("/node/volumes/pvc-1"));
    for name in ["", ".", "..", "a/b", "/etc", "a\0"] {
        assert!(folder_of(&directories, name).is_err(), "{name:?}");
    }
}
