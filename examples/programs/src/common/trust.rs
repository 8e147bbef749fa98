//! Checks the certificates of servers.

use std::error;
use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::verify_server_name,
};

use super::program::Failure;
use super::words;

/// `rsaEncryption` as DER.
const RSA: [u8; 11] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

/// Fewest bytes of an RSA key of 2048 bits with its algorithm, as DER.
const RSA_2048: usize = 292;

/// Why a signature is not believed. WebPKI says of all of them that the signature is wrong.
#[derive(Debug)]
pub enum Unproven {
    ShortKey,
    ShortIssuer,
    OtherKey,
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ShortKey => {
                "the RSA key of its certificate has fewer than 2048 bits: make a longer key and a \
                 certificate for it"
            }
            Self::ShortIssuer => {
                "an issuer of its certificate has an RSA key of fewer than 2048 bits: make an \
                 issuer with a longer key"
            }
            Self::OtherKey => "it does not prove that it has the key of its certificate",
        })
    }
}

impl error::Error for Unproven {}

/// Trusts certificates that a root has issued, and the given ones themselves.
///
/// `openssl req -x509` makes a self-signed certificate that claims to be an authority. WebPKI
/// refuses it as the certificate of a server, after it has checked the validity and before anything
/// else.
#[derive(Debug)]
pub struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// # Errors
    /// There are no roots.
    pub fn new(
        roots: RootCertStore,
        given: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Failure> {
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Self { webpki, given })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let checked = self
            .webpki
            .verify_server_cert(end_entity, intermediates, name, ocsp, now);
        let given = || self.given.iter().any(|given| given == end_entity);
        match checked {
            Err(Error::InvalidCertificate(wrong)) if words::is_authority(&wrong) && given() => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            Err(Error::InvalidCertificate(CertificateError::BadSignature))
                if self.given.iter().chain(intermediates).any(has_short_key) =>
            {
                Err(unproven(match has_short_key(end_entity) {
                    true => Unproven::ShortKey,
                    false => Unproven::ShortIssuer,
                }))
            }
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self
            .webpki
            .verify_tls12_signature(message, certificate, signature);
        verified.map_err(|error| proof_failed(error, certificate))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self
            .webpki
            .verify_tls13_signature(message, certificate, signature);
        verified.map_err(|error| proof_failed(error, certificate))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Why the signature of a handshake is not believed.
fn proof_failed(error: Error, certificate: &CertificateDer<'_>) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            unproven(match has_short_key(certificate) {
                true => Unproven::ShortKey,
                false => Unproven::OtherKey,
            })
        }
        error => error,
    }
}

fn unproven(why: Unproven) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

fn has_short_key(certificate: &CertificateDer<'_>) -> bool {
    ParsedCertificate::try_from(certificate).is_ok_and(|certificate| {
        let key = certificate.subject_public_key_info();
        key.len() < RSA_2048 && key.windows(RSA.len()).any(|part| part == RSA)
    })
}
