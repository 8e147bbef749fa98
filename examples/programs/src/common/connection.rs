//! Settings of a program that connects to another: its identity, whom it trusts, and the way there.

use clap::Args;
use tokio::sync::watch;
use tokio_rustls::rustls::RootCertStore;

use super::program::{Failure, Process};
use super::proxies::ProxyArgs;
use super::tls::{ClientTlsArgs, Dialer, IdentityArgs};
use super::token::{Token, TokenArgs};
use super::tunnel::{self, TunnelArgs};
use super::url::Url;
use super::wake;

/// Flags of a program that opens tunnels.
#[derive(Args, Debug, Clone, PartialEq)]
pub struct ConnectionArgs {
    #[command(flatten)]
    tunnels: TunnelArgs,

    #[command(flatten)]
    token: TokenArgs,

    #[command(flatten)]
    tls: ClientTlsArgs,

    #[command(flatten)]
    proxy: ProxyArgs,

    #[command(flatten)]
    identity: IdentityArgs,
}

/// How to connect.
#[derive(Clone)]
pub struct Connection {
    pub token: Token,
    pub dialer: Dialer,
    pub tunnels: tunnel::Settings,
    /// Hints that connections may be dead.
    pub wake: watch::Sender<()>,
}

impl ConnectionArgs {
    /// How to connect to `url`. `roots` are trusted unless `--ca` is given.
    ///
    /// # Errors
    /// A file cannot be used, a proxy URL is malformed, certificates are given for a connection
    /// without TLS, none are trusted for one with it, or flags contradict each other.
    pub fn connection(
        &self,
        url: &Url,
        roots: Option<fn() -> RootCertStore>,
        process: &Process,
    ) -> Result<Connection, Failure> {
        if !url.tls && (self.tls.ca.is_some() || self.identity.cert.is_some()) {
            return Err(Failure::usage(
                "--ca and --cert are for TLS, and the URL is not: write wss://, or leave them out",
            ));
        }
        if url.tls && roots.is_none() && self.tls.ca.is_none() {
            return Err(Failure::usage(
                "wss:// needs --ca FILE, with the certificate of the server or of its issuer: \
                 no other is trusted",
            ));
        }
        let proxies = self.proxy.proxies()?;
        proxies.before(url).map_err(Failure::usage)?;
        Ok(Connection {
            token: self.token.token()?,
            dialer: Dialer::new(
                &self.tls,
                Some(&self.identity),
                roots,
                proxies,
                process.names.clone(),
            )?,
            tunnels: self.tunnels.settings(process)?,
            wake: wake::watched(),
        })
    }
}
