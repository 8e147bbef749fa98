//! Certificates for TLS on loopback.

pub use rcgen;
pub use tokio_rustls;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::files::Folder;

/// A server's certificate, its key, and the certificate that it is checked against, as files.
pub struct Certificates {
    pub cert: String,
    pub key: String,
    pub ca: String,
    _folder: Folder,
}

impl Certificates {
    /// An authority's certificate for these names, changed by `change`.
    pub fn issued(names: &[&str], change: impl Fn(&mut CertificateParams)) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let mut certificate = params(names);
        change(&mut certificate);
        let certificate = certificate.signed_by(&key, &issuer).unwrap().pem();
        Self::written(&certificate, &key, &ca_pem)
    }

    /// As `openssl req -x509` makes it: self-signed, and marked as an authority.
    pub fn self_signed(names: &[&str], change: impl Fn(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut certificate = params(names);
        certificate.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut certificate);
        let pem = certificate.self_signed(&key).unwrap().pem();
        Self::written(&pem, &key, &pem)
    }

    fn written(certificate: &str, key: &KeyPair, ca: &str) -> Self {
        let folder = Folder::new();
        Self {
            cert: folder.write("cert.pem", certificate, 0o600),
            key: folder.write("key.pem", key.serialize_pem(), 0o600),
            ca: folder.write("ca.pem", ca, 0o600),
            _folder: folder,
        }
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    CertificateParams::new(names).unwrap()
}
