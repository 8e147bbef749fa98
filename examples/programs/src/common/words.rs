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

/// Most names of a certificate that are shown.
const NAMES_SHOWN: usize = 3;

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
        (Some(rustls::Error::PeerIncompatible(_)), _) => {
            "it has no version or cipher of TLS in common with this side, which speaks 1.2 and 1.3"
                .to_owned()
        }
        (Some(rustls::Error::AlertReceived(alert)), _) => alert_of_server(*alert),
        (Some(other), _) => format!("the TLS handshake failed: {other:?}"),
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
            format!("it does not believe the certificate of --cert ({alert:?})")
        }
        Some(other) => format!("the TLS handshake failed: {other:?}"),
        None => net::plain(error),
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
        Some(other) => io::Error::new(kind, format!("the TLS connection is damaged: {other:?}")),
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
    clean_text(error.to_string().as_bytes())
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
        rustls::Error::InvalidCertificate(_) => "the certificate is damaged".to_owned(),
        other => clean_text(other.to_string().as_bytes()),
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
        CertificateError::UnknownIssuer | CertificateError::BadSignature => match trust {
            Trust::File => "its certificate is not from an issuer in the file of --ca".to_owned(),
            Trust::Known => "nobody known here issued its certificate: give that of its issuer, \
                             or itself if it is self-signed, with --ca FILE"
                .to_owned(),
        },
        other if is_authority(other) => match trust {
            Trust::File => "its certificate is self-signed and not in the file of --ca".to_owned(),
            Trust::Known => "its certificate is self-signed: give it with --ca FILE".to_owned(),
        },
        CertificateError::BadEncoding => "its certificate is damaged".to_owned(),
        other => format!("its certificate cannot be used: {other:?}"),
    }
}

/// Whether a server presented the certificate of an authority, as `openssl req -x509` makes it.
pub fn is_authority(wrong: &CertificateError) -> bool {
    matches!(wrong, CertificateError::Other(other) if other.0.to_string() == "CaUsedAsEndEntity")
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
            format!("it does not accept the certificate of --cert ({alert:?})")
        }
        AlertDescription::ProtocolVersion => {
            "it has no version of TLS in common with this side, which speaks 1.2 and 1.3".to_owned()
        }
        AlertDescription::UnrecognisedName => {
            "it has no certificate for that name: see whether the host is the right one".to_owned()
        }
        AlertDescription::NoApplicationProtocol => "it serves no HTTP/1.1 there".to_owned(),
        other => format!("it broke off the TLS connection ({other:?})"),
    }
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
