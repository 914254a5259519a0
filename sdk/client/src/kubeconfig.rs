use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::Error;

/// What goes into a kubeconfig with one cluster, one user and one context, all of the same name.
#[derive(Clone, Copy, Debug)]
pub struct Kubeconfig<'a> {
    pub name: &'a str,
    pub server: &'a str,
    /// PEM.
    pub authority: &'a str,
    pub certificate: &'a str,
    pub key: &'a str,
}

/// The file's text (YAML).
pub fn kubeconfig(content: &Kubeconfig<'_>) -> String {
    let Kubeconfig { name, server, authority, certificate, key } = content;
    let encode = |pem: &str| STANDARD.encode(pem);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {name}\n\
         clusters:\n- name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n\
         users:\n- name: {name}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
         contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\n",
        encode(authority),
        encode(certificate),
        encode(key),
    )
}

impl Kubeconfig<'_> {
    /// Merges this cluster, user and context into a user's kubeconfig and makes the context current.
    /// Everything else in the file is kept; entries of the same name are replaced.
    pub fn merged_into(&self, path: &Path) -> Result<String, Error> {
        let at = |source| Error::Kubeconfig { path: path.display().to_string(), source };
        let mine = kube::config::Kubeconfig::from_yaml(&kubeconfig(self)).map_err(at)?;
        let mut all = match path.try_exists() {
            Ok(true) => kube::config::Kubeconfig::read_from(path).map_err(at)?,
            Ok(false) => kube::config::Kubeconfig::default(),
            Err(source) => return Err(Error::File { path: path.display().to_string(), source }),
        };
        all.clusters.retain(|cluster| cluster.name != self.name);
        all.auth_infos.retain(|user| user.name != self.name);
        all.contexts.retain(|context| context.name != self.name);
        all.clusters.extend(mine.clusters);
        all.auth_infos.extend(mine.auth_infos);
        all.contexts.extend(mine.contexts);
        all.current_context = mine.current_context;
        serde_saphyr::to_string(&all)
            .map_err(|why| Error::Write { path: path.display().to_string(), why: why.to_string() })
    }
}

/// The DER content of each block of a PEM text.
pub(crate) fn pem_blocks(pem: &str) -> Vec<Vec<u8>> {
    let body = |block: &str| {
        let base64: String = block.split("-----END").next()?.lines().skip(1).map(str::trim).collect();
        STANDARD.decode(base64).ok()
    };
    pem.split("-----BEGIN").skip(1).filter_map(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_is_there() {
        let directory = std::env::temp_dir().join(format!("tandem-kubeconfig-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("config");
        let other = Kubeconfig { name: "other", server: "https://a:1", authority: "a", certificate: "b", key: "c" };
        std::fs::write(&path, kubeconfig(&other)).unwrap();
        let mine = Kubeconfig { name: "tandem", server: "https://b:2", ..other };
        std::fs::write(&path, mine.merged_into(&path).unwrap()).unwrap();
        let merged = kube::config::Kubeconfig::read_from(&path).unwrap();
        let names: Vec<&str> = merged.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        assert_eq!(names, ["other", "tandem"]);
        assert_eq!(merged.current_context.as_deref(), Some("tandem"));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn pem_is_split_into_blocks() {
        let pem = "-----BEGIN X-----\nAAEC\n-----END X-----\n-----BEGIN X-----\nAw==\n-----END X-----\n";
        assert_eq!(pem_blocks(pem), [vec![0, 1, 2], vec![3]]);
    }
}
