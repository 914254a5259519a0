//! The programs that must be on the machine, and whether their versions are safe to use.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::Error;

/// Where system programs are, also where PATH does not say so (services, sudo).
const USUAL: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where distributions and others put the network plugins.
pub(crate) const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) containerd: PathBuf,
    pub(crate) runc: PathBuf,
    pub(crate) ctr: PathBuf,
    /// Holds the network plugins.
    pub(crate) plugins: PathBuf,
}

/// The plugins that a pod's network takes.
pub(crate) const REQUIRED_PLUGINS: [&str; 2] = ["loopback", "ptp"];
/// Needed for host ports only.
pub(crate) const PORT_PLUGIN: &str = "portmap";

impl Programs {
    /// The error names everything that is missing, so that it is installed in one go.
    pub(crate) fn find() -> Result<Programs, Error> {
        let mut missing = Vec::new();
        let mut program = |name: &'static str, package: &'static str| {
            in_path(name).unwrap_or_else(|| {
                missing.push(Missing { program: name.to_owned(), package });
                PathBuf::new()
            })
        };
        let containerd = program("containerd", "containerd");
        let ctr = program("ctr", "containerd");
        let runc = program("runc", "runc");
        let plugins = PLUGIN_FOLDERS
            .iter()
            .map(Path::new)
            .find(|folder| REQUIRED_PLUGINS.iter().all(|plugin| folder.join(plugin).exists()));
        let plugins = plugins.map(Path::to_owned).unwrap_or_else(|| {
            let program = format!("network plugins {}", REQUIRED_PLUGINS.join(", "));
            missing.push(Missing { program, package: "containernetworking-plugins" });
            PathBuf::new()
        });
        match missing.is_empty() {
            true => Ok(Programs { containerd, runc, ctr, plugins }),
            false => Err(Error::Missing(MissingPrograms(missing))),
        }
    }

    /// What is unsafe about the versions, in words.
    pub(crate) async fn warnings(&self) -> Vec<String> {
        let (containerd, runc) = tokio::join!(version_text(&self.containerd), version_text(&self.runc));
        let checks = [(&self.containerd, containerd, CONTAINERD_FLOORS), (&self.runc, runc, RUNC_FLOORS)];
        checks.into_iter().filter_map(|(program, text, floors)| warning(program, text.as_deref(), floors)).collect()
    }
}

fn warning(program: &Path, text: Option<&str>, floors: &[Version]) -> Option<String> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    match text.and_then(Version::find) {
        Some(version) if is_safe(version, floors) => None,
        Some(version) => Some(format!(
            "{name} {version} has known holes through which images can take over the node; install {} or later",
            newest(floors)
        )),
        None => Some(format!("{name} does not tell its version, so it may have known holes")),
    }
}

/// Programs that are not on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingPrograms(Vec<Missing>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    program: String,
    package: &'static str,
}

impl fmt::Display for MissingPrograms {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let programs: Vec<&str> = self.0.iter().map(|missing| missing.program.as_str()).collect();
        let mut packages: Vec<&str> = self.0.iter().map(|missing| missing.package).collect();
        packages.dedup();
        write!(formatter, "{} not found; install the packages {}", programs.join(", "), packages.join(" "))
    }
}

/// Our PATH with the usual folders, for us and for what we start.
pub(crate) fn path() -> std::ffi::OsString {
    let own = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&own).filter(|folder| folder.is_absolute()).collect();
    for folder in USUAL.map(PathBuf::from) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    env::join_paths(folders).unwrap_or(own)
}

fn in_path(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let executable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&path()).map(|folder| folder.join(name)).find(executable)
}

async fn version_text(program: &Path) -> Option<String> {
    let output = tokio::process::Command::new(program).arg("--version").stdin(Stdio::null()).output().await.ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

const fn version(major: u32, minor: u32, patch: u32) -> Version {
    Version { major, minor, patch }
}

impl Version {
    /// The first word that is a version: `containerd github.com/containerd/containerd v1.7.33 abc`.
    fn find(text: &str) -> Option<Version> {
        text.split_whitespace().find_map(Version::parse)
    }

    fn parse(word: &str) -> Option<Version> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let mut parts = word.splitn(3, '.').map(|part| {
            let digits = part.find(|character: char| !character.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        Some(version(parts.next()??, parts.next()??, parts.next()??))
    }
}

/// The first release of each line without the known ways from an image or container to the node: CVE-2026-53488,
/// CVE-2026-53492, CVE-2024-40635 and older.
const CONTAINERD_FLOORS: &[Version] =
    &[version(1, 7, 33), version(2, 0, 10), version(2, 1, 9), version(2, 2, 5), version(2, 3, 2)];
/// CVE-2025-31133, CVE-2025-52565, CVE-2025-52881, CVE-2024-21626.
const RUNC_FLOORS: &[Version] = &[version(1, 2, 8), version(1, 3, 3), version(1, 4, 0)];

fn newest(floors: &[Version]) -> String {
    floors.iter().map(Version::to_string).collect::<Vec<_>>().join(", ")
}

fn is_safe(found: Version, floors: &[Version]) -> bool {
    let line = |version: &Version| (version.major, version.minor);
    match floors.iter().find(|floor| line(floor) == line(&found)) {
        Some(floor) => found >= *floor,
        None => floors.iter().all(|floor| found > *floor),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let find = |text| Version::find(text).map(|version| version.to_string());
        assert_eq!(
            find("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3"),
            Some("1.6.20".into())
        );
        assert_eq!(find("containerd containerd.io v2.1.9 abcdef"), Some("2.1.9".into()));
        assert_eq!(find("runc version 1.2.0-rc.1\ncommit: x"), Some("1.2.0".into()));
        assert_eq!(find("nothing here"), None);
    }

    #[test]
    fn a_line_is_safe_from_its_own_floor_on() {
        let table = [
            ("1.6.20", false),
            ("1.6.99", false),
            ("1.7.32", false),
            ("1.7.33", true),
            ("1.8.0", false),
            ("2.0.9", false),
            ("2.0.10", true),
            ("2.2.4", false),
            ("2.3.2", true),
            ("2.4.0", true),
            ("3.0.0", true),
        ];
        for (text, safe) in table {
            assert_eq!(is_safe(Version::parse(text).unwrap(), CONTAINERD_FLOORS), safe, "{text}");
        }
    }

    #[test]
    fn old_and_unknown_versions_are_warned_of() {
        let check = |text| warning(Path::new("/usr/sbin/runc"), text, RUNC_FLOORS);
        assert_eq!(check(Some("runc version 1.3.3")), None);
        expect!["runc 1.1.5 has known holes through which images can take over the node; install 1.2.8, 1.3.3, 1.4.0 or later"]
            .assert_eq(&check(Some("runc version 1.1.5+ds1")).unwrap());
        expect!["runc does not tell its version, so it may have known holes"].assert_eq(&check(None).unwrap());
    }

    #[test]
    fn all_that_is_missing_is_said_at_once() {
        let missing = |program: &str, package| Missing { program: program.into(), package };
        let error = MissingPrograms(vec![
            missing("containerd", "containerd"),
            missing("ctr", "containerd"),
            missing("runc", "runc"),
        ]);
        expect!["containerd, ctr, runc not found; install the packages containerd runc"].assert_eq(&error.to_string());
    }
}
