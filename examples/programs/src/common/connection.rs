//! Settings of a program that connects to another: its identity, whom it trusts, and the way there.

use clap::Args;
use kohakuriver_tunnel::resume::Config;
use tokio::sync::watch;
use tokio_rustls::rustls::RootCertStore;

use super::args::Within;
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

    /// Seconds for the answer whether a tunnel begins or goes on. Then the WebSocket counts as
    /// lost.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "10",
        conflicts_with = "no_resume"
    )]
    resume_timeout: Within<1, 86_400>,

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
        let mut tunnels = self.tunnels.settings(process)?;
        tunnels.resume = tunnels.resume.map(|config| self.opening(config));
        Ok(Connection {
            token: self.token.token()?,
            dialer: Dialer::new(&self.tls, Some(&self.identity), roots, proxies)?,
            tunnels,
            wake: wake::watched(),
        })
    }

    fn opening(&self, config: Config) -> Config {
        config.with_opening_timeout(self.resume_timeout.seconds())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        connection: ConnectionArgs,
    }

    #[test]
    fn the_timeout_has_its_setting() {
        let config = |flags: &[&str]| {
            let line = Line::parse_from(["program"].iter().chain(flags));
            line.connection.opening(Config::default())
        };
        assert_eq!(config(&[]), Config::default());
        let expected = Config::default().with_opening_timeout(Duration::from_secs(6));
        assert_eq!(config(&["--resume-timeout", "6"]), expected);
    }
}
