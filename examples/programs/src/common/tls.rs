//! TLS: `wss://` for a client, a certificate for a server.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, ConnectionCommon, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::files;
use super::http;
use super::names::Names;
use super::net::{self, MaybeTls};
use super::program::Failure;
use super::proxies::Proxies;
use super::reread::Reread;
use super::secret;
use super::trust::Verifier;
use super::url::Url;
use super::words::{self, Trust};

#[derive(Args, Debug, Clone, PartialEq)]
pub struct ClientTlsArgs {
    /// Certificates (PEM) to check wss:// servers against, instead of the usual ones (an agent has
    /// none and needs this): those of their issuers, or self-signed ones themselves.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// The certificate of a server, or of a client if the server asks for one.
#[derive(Args, Debug, Clone, Default, PartialEq)]
pub struct IdentityArgs {
    /// Certificate chain (PEM). A host or runner serves only TLS with it, demands no certificate of
    /// its clients, and does not use it as a client. Programs that only connect present it to
    /// servers that ask for one.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,

    /// Private key (PEM) of the certificate.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

/// Time for a server to show whether it speaks TLS.
const TLS_ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Most bytes that wait in a TLS stream while its peer reads nothing. They are two records, so that
/// one write to the socket takes more than one.
pub const UNSENT_MAX: usize = 32 << 10;

/// Types of TLS records.
const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;

/// A minimal ClientHello, which a TLS server answers with an alert. After the random bytes and the
/// empty session come one cipher suite, no compression, and no extension.
fn client_hello() -> Vec<u8> {
    let mut hello = vec![HANDSHAKE, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    hello.extend([0; 32]);
    hello.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    hello
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The TLS side of a server, with the current certificate.
pub type Acceptor = Reread<TlsAcceptor>;

/// Connects to servers, with TLS if the URL says so.
#[derive(Clone)]
pub struct Dialer {
    /// `None` if no certificate is trusted.
    tls: Option<Reread<TlsConnector>>,
    trust: Trust,
    proxies: Proxies,
    names: Names,
}

impl Dialer {
    /// Trusts `--ca`, else `roots`.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn new(
        args: &ClientTlsArgs,
        identity: Option<&IdentityArgs>,
        roots: Option<fn() -> RootCertStore>,
        proxies: Proxies,
        names: Names,
    ) -> Result<Self, Failure> {
        let identity = identity.cloned().unwrap_or_default();
        let trust = match args.ca {
            Some(_) => Trust::File,
            None => Trust::Known,
        };
        let files = [&args.ca, &identity.cert, &identity.key];
        let files = files.into_iter().flatten().cloned().collect();
        let tls = match (args.ca.clone(), roots) {
            (Some(ca), _) => Some(Reread::new(files, move || {
                let given = read_certificates(&ca)?;
                identity.connector(roots_of(&given, &ca)?, given)
            })?),
            (None, Some(roots)) => Some(Reread::new(files, move || {
                identity.connector(roots(), Vec::new())
            })?),
            (None, None) => None,
        };
        Ok(Self {
            tls,
            trust,
            proxies,
            names,
        })
    }

    /// Connects to the server of a URL.
    ///
    /// # Errors
    /// Says what to do.
    pub async fn connect(&self, url: &Url) -> io::Result<MaybeTls> {
        let stream = self.reach(url).await?;
        if !url.tls {
            return Ok(stream.into());
        }
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
        let Some(tls) = &self.tls else {
            return Err(invalid("no certificate is trusted: give --ca FILE"));
        };
        let name = ServerName::try_from(url.host.clone());
        let name = name.map_err(|_| invalid("its name cannot be in a certificate"))?;
        let tls = tls.current().await;
        let stream = tls
            .connect_with(name, stream, |tls| bound(tls))
            .await
            .map_err(|error| io::Error::new(error.kind(), words::client_tls(&error, self.trust)))?;
        Ok(TlsStream::from(stream).into())
    }

    /// Connects to the server of a URL and sends one request, within `limit`. The answer may be a
    /// 101.
    ///
    /// # Errors
    /// Says why there is no answer, and what to do.
    pub async fn send(
        &self,
        url: &Url,
        limit: Duration,
        request: Request<Empty<Bytes>>,
    ) -> io::Result<Response<Incoming>> {
        net::within(limit, async {
            let stream = self.connect(url).await?;
            self.ask(url, stream, request).await
        })
        .await
    }

    /// Sends one request over a new connection to the server of a URL. The answer may be a 101.
    ///
    /// # Errors
    /// Says why there is no answer, and what to do.
    pub async fn ask(
        &self,
        url: &Url,
        stream: MaybeTls,
        request: Request<Empty<Bytes>>,
    ) -> io::Result<Response<Incoming>> {
        let error = match http::ask(stream, request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        if !url.tls && words::may_be_tls(&error) && self.meets_tls(url).await {
            return Err(net::answer("it speaks TLS: use wss:// or https://"));
        }
        match error.is_parse() {
            true => Err(net::answer(words::http(&error))),
            false => Err(io::Error::other(words::http(&error))),
        }
    }

    async fn reach(&self, url: &Url) -> io::Result<TcpStream> {
        let stream = match self.proxies.before(url).map_err(io::Error::other)? {
            Some(proxy) => proxy.connect(&self.names, url).await?,
            None => net::connect(&self.names, &url.host, url.port).await?,
        };
        net::tune_link(&stream);
        Ok(stream)
    }

    /// Whether a server that does not answer HTTP speaks TLS. Used only to say what is wrong.
    async fn meets_tls(&self, url: &Url) -> bool {
        let asked = async {
            let mut stream = self.reach(url).await?;
            stream.write_all(&client_hello()).await?;
            let kind = stream.read_u8().await?;
            Ok(matches!(kind, HANDSHAKE | ALERT))
        };
        net::within(TLS_ANSWER_WITHIN, asked).await.unwrap_or(false)
    }
}

impl IdentityArgs {
    /// The TLS side of a server; `None` without a certificate.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn acceptor(&self) -> Result<Option<Acceptor>, Failure> {
        let (Some(cert), Some(key)) = (self.cert.clone(), self.key.clone()) else {
            return Ok(None);
        };
        let files = vec![cert.clone(), key.clone()];
        let read = move || {
            let (chain, secret) = identity(&cert, &key)?;
            let mut config = ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .map_err(|error| Failure::failed(error.to_string()))?
                .with_no_client_auth()
                .with_single_cert(chain, secret)
                .map_err(|error| mismatch(&cert, &key, &error))?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(TlsAcceptor::from(Arc::new(config)))
        };
        Reread::new(files, read).map(Some)
    }

    /// The TLS side of a client.
    fn connector(
        &self,
        roots: RootCertStore,
        given: Vec<CertificateDer<'static>>,
    ) -> Result<TlsConnector, Failure> {
        let verifier = Verifier::new(roots, given, provider())?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::failed(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let (chain, secret) = identity(cert, key)?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| mismatch(cert, key, &error))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Bounds what waits in a TLS stream: nothing counts it.
pub fn bound<Side>(tls: &mut ConnectionCommon<Side>) {
    tls.set_buffer_limit(Some(UNSENT_MAX));
}

fn identity(cert: &Path, key: &Path) -> Result<Identity, Failure> {
    let chain = read_certificates(cert)?;
    let what = format!("key {}", key.display());
    let unreadable = |error: io::Error| unusable(&what, &net::plain(&error));
    let file = File::open(key).map_err(unreadable)?;
    secret::check_mode(&file, "key", key)?;
    let pem = files::read_open(file).map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_slice(&pem);
    let key = key.map_err(|error| unusable(&what, &words::pem(&error)))?;
    Ok((chain, key))
}

/// The roots that browsers trust, and those of the system.
pub fn public_roots() -> RootCertStore {
    let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!("certificates of this system: {error}");
    }
    roots.add_parsable_certificates(system.certs);
    roots
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots_of(
    certificates: &[CertificateDer<'static>],
    path: &Path,
) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|_| {
            let what = format!("certificate {}", path.display());
            unusable(&what, &"it is damaged")
        })?;
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let what = format!("certificate {}", path.display());
    let pem = files::read(path).map_err(|error| unusable(&what, &net::plain(&error)))?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(&what, &words::pem(&error)))?;
    if certificates.is_empty() {
        return Err(unusable(&what, &words::pem(&pem::Error::NoItemsFound)));
    }
    Ok(certificates)
}

fn mismatch(cert: &Path, key: &Path, error: &rustls::Error) -> Failure {
    let what = format!("certificate {} and key {}", cert.display(), key.display());
    unusable(&what, &words::identity(error))
}

fn unusable(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("cannot use the {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio_rustls::rustls::ClientConnection;

    use super::*;

    #[test]
    fn little_waits_in_a_tls_stream() {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        bound(&mut tls);
        // The same limit holds for records.
        let taken = tls.writer().write(&[0; 1 << 20]).unwrap();
        assert_eq!(taken, UNSENT_MAX);
    }
}
