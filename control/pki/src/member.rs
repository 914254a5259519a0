use std::{fmt, str::FromStr};

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use crate::{Authority, CertificateRequest, Error, Leaf, Usage};

const PREFIX: &str = "member-";
const DOMAIN: &str = "members.tandem";

/// A member of one cluster, as its certificate names it: `member-3.CLUSTER.members.tandem`.
///
/// The name holds the cluster, too: the CA alone would not tell a cluster from one that was restored from its backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberName {
    pub id: u64,
    pub cluster: String,
}

impl MemberName {
    /// The one name in a member's certificate.
    pub fn dns_name(&self) -> String {
        format!("{PREFIX}{}.{}.{DOMAIN}", self.id, self.cluster)
    }

    /// A certificate by which this member is known to the others, on both sides of a connection.
    pub fn issue(&self, members: &Authority, now: Timestamp) -> Result<Leaf, Error> {
        let request = CertificateRequest {
            common_name: &format!("system:member:{}", self.id),
            organizations: &[],
            dns_names: &[self.dns_name()],
            addresses: &[],
            usage: Usage::Both,
        };
        members.issue(&request, now)
    }

    /// The member that a certificate names. The caller has verified that the CA of members signed it.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<MemberName, Error> {
        let refused = |why: String| Error::Member(why);
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|why| refused(why.to_string()))?;
        let names = parsed.subject_alternative_name().map_err(|why| refused(why.to_string()))?;
        match names.map(|names| names.value.general_names.as_slice()) {
            Some([GeneralName::DNSName(name)]) => name.parse(),
            _ => Err(refused("it must hold one name".to_owned())),
        }
    }
}

impl FromStr for MemberName {
    type Err = Error;

    fn from_str(name: &str) -> Result<MemberName, Error> {
        let parts = name.strip_prefix(PREFIX).and_then(|rest| {
            let (id, rest) = rest.split_once('.')?;
            let cluster = rest.strip_suffix(DOMAIN)?.strip_suffix('.')?;
            Some(MemberName { id: id.parse().ok()?, cluster: cluster.to_owned() })
        });
        // A number can be written in several ways; a name cannot.
        let exact = parts.filter(|parts| parts.dns_name() == name);
        exact.ok_or_else(|| Error::Member(format!("{name:?} is not the name of a member")))
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "member {} of cluster {}", self.id, self.cluster)
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn a_certificate_names_one_member_of_one_cluster() {
        let now = "2026-11-22T00:00:00Z".parse().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pki = crate::Pki::open(directory.path(), now).unwrap();
        let name = MemberName { id: 3, cluster: "7e57".to_owned() };
        let leaf = name.issue(&pki.members, now).unwrap();
        let der = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
        assert_eq!(MemberName::of(&der).unwrap(), name);
        let ours = CertificateDer::from_pem_slice(pki.members.certificate().as_bytes()).unwrap();
        assert!(MemberName::of(&ours).is_err());
    }

    #[test]
    fn names_are_exact() {
        let parse = |name: &str| name.parse::<MemberName>().ok().map(|name| (name.id, name.cluster));
        assert_eq!(parse("member-12.a-b.members.tandem"), Some((12, "a-b".to_owned())));
        for bad in ["member-012.a.members.tandem", "member-+1.a.members.tandem", "member-1.members.tandem", "n1", ""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
