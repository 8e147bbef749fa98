//! TLS on any hop: `wss://` as a client, a certificate as a server.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::net::{self, Link};
use super::program::Failure;
use super::url::Url;

#[derive(Args, Debug, Clone, Default)]
pub struct ClientTlsArgs {
    /// Certificates (PEM) that wss:// servers are checked against, in place of the public ones.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// A certificate to show: a server's own, or a client's where a server asks for one.
#[derive(Args, Debug, Clone)]
pub struct IdentityArgs {
    /// Certificate chain (PEM) to show on TLS connections.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,

    /// Private key (PEM) of the certificate.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Connects to servers, with TLS where the URL says so.
#[derive(Clone)]
pub struct Dialer {
    tls: TlsConnector,
    /// Whether any server's certificate can be checked at all.
    trusts: bool,
}

impl Dialer {
    /// Trusts `--ca`, else `roots`.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn new(
        args: &ClientTlsArgs,
        identity: Option<&IdentityArgs>,
        roots: fn() -> RootCertStore,
    ) -> Result<Self, Failure> {
        let roots = match &args.ca {
            Some(path) => read_roots(path)?,
            None => roots(),
        };
        let trusts = !roots.is_empty();
        let identity = identity.map(IdentityArgs::read).transpose()?.flatten();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::failed(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match identity {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unusable("certificate and key", &error))?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        Ok(Self { tls, trusts })
    }

    /// Connects to the server of a URL.
    pub async fn connect(&self, url: &Url, limit: Duration) -> io::Result<Link> {
        let secure = async {
            let stream = net::connect(&url.host, url.port, limit).await?;
            net::tune_link(&stream);
            if !url.tls {
                return Ok(Link::Plain(stream));
            }
            let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
            if !self.trusts {
                return Err(invalid("no certificate is trusted: give --ca FILE"));
            }
            let name = ServerName::try_from(url.host.clone());
            let name = name.map_err(|_| invalid("its name cannot be in a certificate"))?;
            let stream = self.tls.connect(name, stream).await?;
            Ok(Link::Tls(Box::new(stream.into())))
        };
        net::within(limit, secure).await
    }
}

impl IdentityArgs {
    /// What a server needs to accept TLS; `None` without a certificate.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn acceptor(&self) -> Result<Option<TlsAcceptor>, Failure> {
        let Some((chain, key)) = self.read()? else {
            return Ok(None);
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::failed(error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| unusable("certificate and key", &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }

    fn read(&self) -> Result<Option<Identity>, Failure> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            return Ok(None);
        };
        let chain = read_certificates(cert)?;
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unusable(&format!("key {}", key.display()), &error))?;
        Ok(Some((chain, key)))
    }
}

/// The roots that browsers trust.
pub fn public_roots() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

/// None: where only `--ca` makes sense.
pub fn no_roots() -> RootCertStore {
    RootCertStore::empty()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read_roots(path: &Path) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(&format!("certificate {}", path.display()), &error))?;
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let what = format!("certificate {}", path.display());
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(&what, &error))?;
    if certificates.is_empty() {
        return Err(unusable(&what, &"there is none in the file"));
    }
    Ok(certificates)
}

fn unusable(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("cannot use the {what}: {error}"))
}
