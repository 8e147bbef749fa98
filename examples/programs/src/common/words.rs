//! Translates the errors of TLS, HTTP and PEM into sentences that say what to do.

use std::error::Error;
use std::io;
use std::time::Duration;

use kohakuriver_tunnel::mux::TunnelError;
use kohakuriver_tunnel::session::clean_text;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::{UnixTime, pem};
use tokio_rustls::rustls::{AlertDescription, CertificateError};

use super::net;
use super::trust::Unproven;

/// Most names of a certificate that are shown.
const NAMES_SHOWN: usize = 3;

/// Kinds of keys that can be used.
const KEYS: &str = "RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519";

const NOTHING_IN_COMMON: &str =
    "it has no version or cipher of TLS in common with this side, which speaks 1.2 and 1.3";

const NO_ISSUER: &str = "nobody known here issued its certificate: give that of its issuer, or \
                         itself if it is self-signed, with --ca FILE";

/// As `openssl x509 -req` makes it unless it is told which extensions to write.
const VERSION_1: &str = "of X.509 version 1, which has no subjectAltName: make one of version 3, \
                         by openssl x509 -req with -extfile or openssl req -x509 with -addext";

const CRITICAL: &str = "has a critical extension that is not known here: issue it without, or \
                        without marking it as critical";

/// WebPKI's name for that.
const EXTENSION: &str = "UnsupportedCriticalExtension";

/// Signatures with SHA-1: `sha1WithRSAEncryption` and `ecdsa-with-SHA1`, as DER.
const SHA_1: [&[u8]; 2] = [
    &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5],
    &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1],
];

/// How a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Against the file of `--ca`.
    File,
    /// Against the usual certificates.
    Known,
}

/// Why a client's TLS handshake failed.
pub fn client_tls(error: &io::Error, trust: Trust) -> String {
    match (rustls_error(error), error.kind()) {
        (Some(rustls::Error::InvalidMessage(_)), _) => {
            "it speaks no TLS: write ws:// or http:// if it is meant to be reached so".to_owned()
        }
        (Some(rustls::Error::InvalidCertificate(wrong)), _) => certificate(wrong, trust),
        (Some(rustls::Error::PeerIncompatible(_)), _) => NOTHING_IN_COMMON.to_owned(),
        (Some(rustls::Error::AlertReceived(alert)), _) => alert_of_server(*alert),
        (Some(other), _) => handshake(other),
        (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            "it closed the connection in the TLS handshake: see whether that port is for wss://"
                .to_owned()
        }
        (None, _) => net::plain(error),
    }
}

/// Why a server's TLS handshake failed.
pub fn server_tls(error: &io::Error) -> String {
    match rustls_error(error) {
        Some(rustls::Error::InvalidMessage(_)) => {
            "it speaks no TLS: it has to connect with wss://".to_owned()
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            format!(
                "it does not believe the certificate of --cert ({})",
                name_of(*alert)
            )
        }
        Some(rustls::Error::PeerIncompatible(_)) => NOTHING_IN_COMMON.to_owned(),
        Some(rustls::Error::NoApplicationProtocol) => "it does not want HTTP/1.1".to_owned(),
        Some(other) => handshake(other),
        None => net::plain(error),
    }
}

/// What is left of the errors of a handshake.
fn handshake(error: &rustls::Error) -> String {
    tracing::debug!("the TLS handshake failed: {error}");
    match error {
        rustls::Error::InappropriateMessage { .. }
        | rustls::Error::InappropriateHandshakeMessage { .. }
        | rustls::Error::PeerMisbehaved(_)
        | rustls::Error::PeerSentOversizedRecord
        | rustls::Error::DecryptError => "it breaks the rules of TLS".to_owned(),
        _ => "the TLS handshake failed".to_owned(),
    }
}

/// An error of an established TLS connection.
pub fn connection(error: io::Error) -> io::Error {
    let kind = error.kind();
    if kind == io::ErrorKind::UnexpectedEof {
        return io::Error::new(kind, "the connection was closed without notice");
    }
    match rustls_error(&error) {
        Some(rustls::Error::AlertReceived(alert)) => io::Error::new(kind, alert_of_server(*alert)),
        Some(other) => {
            tracing::debug!("the TLS connection is damaged: {other}");
            io::Error::new(kind, "the TLS connection is damaged")
        }
        None => error,
    }
}

/// Why a tunnel or its WebSocket ended.
pub fn tunnel(error: &TunnelError) -> String {
    net::without_number(error.to_string())
}

/// Why no HTTP answer came.
pub fn http(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        return "the head of its answer is too large".to_owned();
    }
    if error.is_parse() {
        return "its answer is no HTTP: see whether that port is the right one".to_owned();
    }
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(inner) = inner.downcast_ref::<io::Error>() {
            return net::plain(inner);
        }
        source = inner.source();
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return "it closed the connection without an answer".to_owned();
    }
    tracing::debug!("no HTTP answer: {error}");
    "its HTTP connection failed".to_owned()
}

/// Whether HTTP may have been sent to a TLS server.
pub fn may_be_tls(error: &hyper::Error) -> bool {
    let is_other = error.is_parse() && !error.is_parse_too_large();
    let broken = is_other || error.is_incomplete_message() || error.is_canceled();
    let reset = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>());
    broken || reset.is_some_and(|error| !net::is_answer(error))
}

/// Why a PEM file cannot be used.
pub fn pem(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => {
            "there is none in it: it has to be PEM (-----BEGIN …)".to_owned()
        }
        pem::Error::Io(error) => net::plain(error),
        pem::Error::SectionTooLarge => "it is too large".to_owned(),
        _ => "it is damaged: it has to be PEM (-----BEGIN …)".to_owned(),
    }
}

/// Why certificate and key cannot be used together.
pub fn identity(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            "the key is not that of the certificate, which has to be the first of its file"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(wrong) if is_version_1(wrong) => {
            format!("the certificate is {VERSION_1}")
        }
        rustls::Error::InvalidCertificate(wrong) if is_named(wrong, EXTENSION) => {
            format!("the certificate {CRITICAL}")
        }
        rustls::Error::InvalidCertificate(_) => "the certificate is damaged".to_owned(),
        other => {
            tracing::debug!("unusable certificate and key: {other}");
            format!("the key has to be {KEYS}")
        }
    }
}

fn certificate(wrong: &CertificateError, trust: Trust) -> String {
    match wrong {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate expired {} ago: it has to be renewed, unless the clock here is wrong",
            between(*not_after, *time)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is valid only in {}: see whether the clock here is right",
            between(*time, *not_before)
        ),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let expected = expected.to_str();
            let presented = presented.iter().take(NAMES_SHOWN);
            let names: Vec<String> = presented.map(|presented| name(presented)).collect();
            if names.is_empty() {
                format!(
                    "its certificate is for no name at all: it has to have {expected} \
                     as a subjectAltName"
                )
            } else {
                format!(
                    "its certificate is for {} and not for {expected}: \
                     use that name, or a certificate with this one",
                    names.join(", ")
                )
            }
        }
        CertificateError::Expired => {
            "its certificate ends before it begins: issue it again".to_owned()
        }
        CertificateError::UnknownIssuer => match trust {
            Trust::File => "its certificate is not from an issuer in the file of --ca".to_owned(),
            Trust::Known => NO_ISSUER.to_owned(),
        },
        CertificateError::BadSignature => match trust {
            Trust::File => "its certificate is not from an issuer in the file of --ca, where one \
                            has the same name and another key"
                .to_owned(),
            Trust::Known => NO_ISSUER.to_owned(),
        },
        CertificateError::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id: id,
            ..
        } if SHA_1.iter().any(|sha_1| id.starts_with(sha_1)) => {
            "its certificate is signed with SHA-1: issue it again with SHA-256".to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => format!(
            "the signature of its certificate is of a kind that is not known here: \
             issue it with SHA-256 and a key that is {KEYS}"
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate or that of an issuer is not for servers: issue it with \
             extendedKeyUsage=serverAuth or without extendedKeyUsage"
                .to_owned()
        }
        other if is_authority(other) => match trust {
            Trust::File => "its certificate is self-signed and not in the file of --ca".to_owned(),
            Trust::Known => "its certificate is self-signed: give it with --ca FILE".to_owned(),
        },
        other if is_version_1(other) => format!("its certificate is {VERSION_1}"),
        other if is_named(other, EXTENSION) => format!("its certificate {CRITICAL}"),
        CertificateError::BadEncoding => "its certificate is damaged".to_owned(),
        CertificateError::Other(other) => match other.0.downcast_ref::<Unproven>() {
            Some(why) => why.to_string(),
            None => by_name(&other.0.to_string()).to_owned(),
        },
        other => by_name(&other.to_string()).to_owned(),
    }
}

/// What is wrong with a certificate, by the name that WebPKI has for it.
fn by_name(name: &str) -> &'static str {
    tracing::debug!("unusable certificate: {name}");
    match name {
        "EndEntityUsedAsCa" => {
            "an issuer of its certificate is no authority: issue the certificate of that issuer \
             with basicConstraints=CA:TRUE"
        }
        "NameConstraintViolation" => "an issuer of its certificate may not issue it for that name",
        "PathLenConstraintViolated" => {
            "its certificate has more issuers in between than one of them allows (pathlen)"
        }
        _ => "its certificate or that of an issuer cannot be used here: issue another",
    }
}

/// Whether a server presented the certificate of an authority, as `openssl req -x509` makes it.
pub fn is_authority(wrong: &CertificateError) -> bool {
    is_named(wrong, "CaUsedAsEndEntity")
}

fn is_version_1(wrong: &CertificateError) -> bool {
    is_named(wrong, "UnsupportedCertVersion")
}

/// Whether WebPKI has this name for an error, for which rustls has none.
fn is_named(wrong: &CertificateError, name: &str) -> bool {
    matches!(wrong, CertificateError::Other(other) if other.0.to_string() == name)
}

fn alert_of_server(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::AccessDenied => {
            "it wants a certificate of this side: give --cert FILE and --key FILE".to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnknownCA
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateExpired
        | AlertDescription::UnsupportedCertificate => {
            format!(
                "it does not accept the certificate of --cert ({})",
                name_of(alert)
            )
        }
        AlertDescription::ProtocolVersion => {
            "it has no version of TLS in common with this side, which speaks 1.2 and 1.3".to_owned()
        }
        AlertDescription::UnrecognisedName => {
            "it has no certificate for that name: see whether the host is the right one".to_owned()
        }
        AlertDescription::NoApplicationProtocol => "it serves no HTTP/1.1 there".to_owned(),
        AlertDescription::HandshakeFailure => format!(
            "it has no cipher of TLS in common with this side, or its certificate has a key that \
             is not {KEYS}"
        ),
        other => format!("it broke off the TLS connection ({})", name_of(other)),
    }
}

/// The name of an alert in RFC 8446, or its number.
fn name_of(alert: AlertDescription) -> String {
    let name = match alert {
        AlertDescription::BadCertificate => "bad_certificate",
        AlertDescription::UnsupportedCertificate => "unsupported_certificate",
        AlertDescription::CertificateExpired => "certificate_expired",
        AlertDescription::CertificateUnknown => "certificate_unknown",
        AlertDescription::UnknownCA => "unknown_ca",
        AlertDescription::HandshakeFailure => "handshake_failure",
        AlertDescription::DecryptError => "decrypt_error",
        AlertDescription::InternalError => "internal_error",
        other => return format!("TLS alert {}", u8::from(other)),
    };
    name.to_owned()
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The name in a text such as `DnsName("a.example")`.
fn name(presented: &str) -> String {
    let inner = presented
        .split_once('"')
        .and_then(|(_, rest)| rest.rsplit_once('"'));
    let name = match (inner, presented.split_once('(')) {
        (Some((name, _)), _) => name,
        (None, Some((_, rest))) => rest.trim_end_matches(')'),
        (None, None) => presented,
    };
    clean_text(name.as_bytes())
}

fn between(earlier: UnixTime, later: UnixTime) -> String {
    const HOUR: u64 = 3600;
    let time = Duration::from_secs(later.as_secs().saturating_sub(earlier.as_secs()));
    match time.as_secs() / HOUR {
        0 => "less than an hour".to_owned(),
        hours @ 1..48 => format!("{hours} h"),
        hours => format!("{} days", hours / 24),
    }
}
