use std::{net::IpAddr, path::Path};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::FromDer as _;

use crate::{Error, files};

const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// How long certificates of nodes, members and administrators are good for.
const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// Clocks of two machines may differ by this much.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    Both,
}

/// The subject of a certificate that we make the key for.
#[derive(Clone, Debug)]
pub struct CertificateRequest<'a> {
    /// The user's name, for clients.
    pub common_name: &'a str,
    /// The user's groups, for clients.
    pub organizations: &'a [&'a str],
    pub dns_names: &'a [String],
    pub addresses: &'a [IpAddr],
    pub usage: Usage,
}

/// What somebody else asks to have signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedSubject {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Leaf { .. }")
    }
}

/// A certificate authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Authority { .. }")
    }
}

impl Authority {
    pub(crate) fn open(directory: &Path, file: &str, common_name: &str, now: Timestamp) -> Result<Authority, Error> {
        let certificate_path = directory.join(file).with_extension("crt");
        let key_path = directory.join(file).with_extension("key");
        let malformed = |path: &Path, why: rcgen::Error| Error::Malformed {
            path: path.display().to_string(),
            why: why.to_string(),
        };
        match (files::read(&certificate_path)?, files::read(&key_path)?) {
            (Some(certificate), Some(key)) => {
                let key = KeyPair::from_pem(&key).map_err(|why| malformed(&key_path, why))?;
                let issuer =
                    Issuer::from_ca_cert_pem(&certificate, key).map_err(|why| malformed(&certificate_path, why))?;
                Ok(Authority { certificate, issuer })
            }
            (Some(_), None) => Err(Error::Malformed {
                path: key_path.display().to_string(),
                why: "the certificate is there but its key is not: restore both from one backup".to_owned(),
            }),
            (None, _) => {
                let (authority, key) = Authority::create(common_name, now)?;
                // The key goes first: a certificate without a key is the state that stops a start.
                files::write_private(&key_path, key.as_bytes())?;
                files::write_private(&certificate_path, authority.certificate.as_bytes())?;
                Ok(authority)
            }
        }
    }

    fn create(common_name: &str, now: Timestamp) -> Result<(Authority, String), Error> {
        let sign_error = |why: rcgen::Error| Error::Sign { subject: common_name.to_owned(), why: why.to_string() };
        let mut params = base_params(now, AUTHORITY_LIFE);
        params.distinguished_name = distinguished_name(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(sign_error)?;
        let pem = key.serialize_pem();
        let certificate = params.self_signed(&key).map_err(sign_error)?.pem();
        Ok((Authority { certificate, issuer: Issuer::new(params, key) }, pem))
    }

    /// The authority's own certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Makes a key and signs its certificate.
    pub fn issue(&self, request: &CertificateRequest<'_>, now: Timestamp) -> Result<Leaf, Error> {
        let sign_error =
            |why: rcgen::Error| Error::Sign { subject: request.common_name.to_owned(), why: why.to_string() };
        let mut params = base_params(now, LEAF_LIFE);
        params.distinguished_name = distinguished_name(request.common_name, request.organizations);
        for name in request.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(sign_error)?));
        }
        params.subject_alt_names.extend(request.addresses.iter().map(|address| SanType::IpAddress(*address)));
        restrict(&mut params, request.usage);
        let key = KeyPair::generate().map_err(sign_error)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(sign_error)?;
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Signs a request whose subject the caller has checked with [`Authority::requested`].
    pub fn sign(&self, request: &str, usage: Usage, now: Timestamp) -> Result<String, Error> {
        let refused = |why: rcgen::Error| Error::Request(why.to_string());
        let mut parsed = CertificateSigningRequestParams::from_pem(request).map_err(refused)?;
        let asked = std::mem::replace(&mut parsed.params, base_params(now, LEAF_LIFE));
        // Only the subject and its names are taken over: usages and constraints are ours to give.
        parsed.params.distinguished_name = asked.distinguished_name;
        parsed.params.subject_alt_names = asked.subject_alt_names;
        restrict(&mut parsed.params, usage);
        Ok(parsed.signed_by(&self.issuer).map_err(refused)?.pem())
    }

    /// What a PEM certificate request asks for. Its signature proves that the asker holds the key.
    pub fn requested(request: &str) -> Result<RequestedSubject, Error> {
        let refused = |why: String| Error::Request(why);
        let params = CertificateSigningRequestParams::from_pem(request).map_err(|why| refused(why.to_string()))?;
        let der = x509_parser::pem::parse_x509_pem(request.as_bytes()).map_err(|why| refused(why.to_string()))?.1;
        let (_, parsed) = x509_parser::certification_request::X509CertificationRequest::from_der(&der.contents)
            .map_err(|why| refused(why.to_string()))?;
        let subject = &parsed.certification_request_info.subject;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().map(ToOwned::to_owned).unwrap_or_default()
        };
        let mut requested = RequestedSubject {
            common_name: subject.iter_common_name().next().map(text).unwrap_or_default(),
            organizations: subject.iter_organization().map(text).collect(),
            ..RequestedSubject::default()
        };
        for name in params.params.subject_alt_names {
            match name {
                SanType::DnsName(name) => requested.dns_names.push(name.to_string()),
                SanType::IpAddress(address) => requested.addresses.push(address),
                _ => return Err(refused("it asks for a name that is neither a DNS name nor an address".to_owned())),
            }
        }
        Ok(requested)
    }

    /// Makes a key and a request for its certificate, to be signed elsewhere. Gives `(request, key)`, both PEM.
    pub fn request(
        common_name: &str,
        organizations: &[&str],
        dns_names: &[String],
        addresses: &[IpAddr],
    ) -> Result<(String, String), Error> {
        let failed = |why: rcgen::Error| Error::Sign { subject: common_name.to_owned(), why: why.to_string() };
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(common_name, organizations);
        for name in dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(failed)?));
        }
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        let key = KeyPair::generate().map_err(failed)?;
        let request = params.serialize_request(&key).map_err(failed)?.pem().map_err(failed)?;
        Ok((request, key.serialize_pem()))
    }
}

/// The SHA-256 of a PEM certificate's DER form, in hexadecimal: what a join token pins.
pub fn fingerprint(certificate: &str) -> Result<String, Error> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes())
        .map_err(|why| Error::Malformed { path: "certificate".to_owned(), why: why.to_string() })?;
    Ok(hex::encode(Sha256::digest(&pem.contents)))
}

/// When a PEM certificate ends.
pub fn not_after(certificate: &str) -> Result<Timestamp, Error> {
    let malformed = |why: String| Error::Malformed { path: "certificate".to_owned(), why };
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(certificate.as_bytes()).map_err(|why| malformed(why.to_string()))?;
    let parsed = pem.parse_x509().map_err(|why| malformed(why.to_string()))?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|why| malformed(why.to_string()))
}

fn distinguished_name(common_name: &str, organizations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn restrict(params: &mut CertificateParams, usage: Usage) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = match usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
    };
}

fn base_params(now: Timestamp, life: SignedDuration) -> CertificateParams {
    let at =
        |when: Timestamp| OffsetDateTime::from_unix_timestamp(when.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let mut params = CertificateParams::default();
    params.not_before = at(now.checked_sub(CLOCK_SKEW).unwrap_or(now));
    params.not_after = at(now.checked_add(life).unwrap_or(Timestamp::MAX));
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn an_authority_is_made_once_and_signs_what_was_asked() {
        let directory = tempfile::tempdir().unwrap();
        let first = Authority::open(directory.path(), "ca", "test", now()).unwrap();
        let again = Authority::open(directory.path(), "ca", "test", now()).unwrap();
        assert_eq!(first.certificate(), again.certificate());

        let names = ["n1".to_owned()];
        let (request, _key) =
            Authority::request("system:node:n1", &["system:nodes"], &names, &["10.0.0.1".parse().unwrap()]).unwrap();
        let subject = Authority::requested(&request).unwrap();
        assert_eq!(subject.common_name, "system:node:n1");
        assert_eq!(subject.organizations, ["system:nodes"]);
        assert_eq!(subject.dns_names, names);
        let signed = again.sign(&request, Usage::Both, now()).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert!(!certificate.is_ca());
        assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str().unwrap(), "system:node:n1");
    }

    #[test]
    fn a_lost_key_is_not_papered_over() {
        let directory = tempfile::tempdir().unwrap();
        Authority::open(directory.path(), "ca", "test", now()).unwrap();
        std::fs::remove_file(directory.path().join("ca.key")).unwrap();
        let error = Authority::open(directory.path(), "ca", "test", now()).unwrap_err();
        assert!(error.to_string().contains("its key is not"), "{error}");
    }
}
