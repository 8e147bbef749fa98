//! The front door of host and runner: what a stranger can take before any session exists.
//!
//! A connection serves one request. Until that is answered or has become a WebSocket, its time is
//! limited, and it holds one of the handshake places.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::accept::Accepting;
use super::addresses::{Source, Sources, parse_network};
use super::handshakes::{Handshake, Handshakes};
use super::http::{Answer, HEAD_MAX};
use super::metrics::Counter;
use super::net::{self, Link};
use super::program::Failure;
use super::tls::IdentityArgs;
use super::token::TokenArgs;
use super::words;

/// Time for all that is the client's to do on a connection: the TLS handshake, the request, taking
/// the answer. Nothing restarts it, so one byte a second gains nothing.
const HTTP_PHASE: Duration = Duration::from_secs(10);

/// Connections accepted in one go. More would make sessions wait behind a flood; fewer would make
/// newcomers wait for every busy session before each of them.
const AT_ONCE: u64 = 8;

/// Flags of a program that strangers connect to.
#[derive(Args, Debug, Clone)]
pub struct FrontArgs {
    /// Most client sessions at once; more are answered with 503. Without it 4096, or as many as the
    /// limit of open files allows.
    #[arg(long, value_name = "N")]
    pub max_sessions: Option<NonZeroUsize>,

    /// Most sessions of one source address (IPv6: of one /64). Without it, a host lets an address
    /// have as many as it leaves to others, and a runner, whose clients all come from its host,
    /// lets it have any number. Where clients come to a runner by themselves, give it, and --proxy
    /// for the host.
    #[arg(long, value_name = "N")]
    max_per_address: Option<NonZeroUsize>,

    /// Address of a proxy or host, behind which many clients are: ADDRESS[/PREFIX]; may be given
    /// many times. Each of its connections counts by itself.
    #[arg(long = "proxy", value_name = "ADDRESS", value_parser = parse_network)]
    proxies: Vec<IpNet>,

    #[command(flatten)]
    token: TokenArgs,

    #[command(flatten)]
    identity: IdentityArgs,
}

/// Who may come in, and how.
#[derive(Clone, Default)]
pub struct FrontSettings {
    /// Demanded from clients.
    pub token: Option<HeaderValue>,
    /// Served with TLS alone, if given.
    tls: Option<TlsAcceptor>,
    /// Most sessions, and most handshakes, of one address.
    pub max_per_address: Option<usize>,
    /// Addresses behind which many clients are.
    pub proxies: Vec<IpNet>,
}

impl FrontArgs {
    /// # Errors
    /// A file with a token, a certificate or a key cannot be used.
    pub fn settings(&self) -> Result<FrontSettings, Failure> {
        Ok(FrontSettings {
            token: self.token.header()?,
            tls: self.identity.acceptor()?,
            max_per_address: self.max_per_address.map(NonZeroUsize::get),
            proxies: self.proxies.clone(),
        })
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    pub address: SocketAddr,
    pub source: Source,
    /// The connection's place for as long as it is no session.
    pub handshake: Arc<Handshake>,
}

pub struct Front {
    tls: Option<TlsAcceptor>,
    handshakes: Arc<Handshakes>,
    sources: Sources,
    /// How much longer than [`HTTP_PHASE`] it may take if the request came: the server's own time.
    answering: Duration,
    pub turned_away: TurnedAway,
}

/// Connections that came to nothing here.
#[derive(Debug, Default)]
pub struct TurnedAway {
    /// A newer one needed the place.
    pub displaced: Counter,
    /// Not through in time.
    pub late: Counter,
}

impl Front {
    /// With so many connections in their HTTP phase at once. Without the bound, connections that say
    /// nothing use up the file descriptors.
    pub fn new(handshakes: usize, settings: &FrontSettings, answering: Duration) -> Self {
        let each = settings.max_per_address.unwrap_or(usize::MAX);
        Self {
            tls: settings.tls.clone(),
            handshakes: Arc::new(Handshakes::new(handshakes, each)),
            sources: Sources::by_address(settings.proxies.clone()),
            answering,
            turned_away: TurnedAway::default(),
        }
    }

    /// Serves until dropped. Upgraded connections live on in tasks of their own.
    pub async fn serve<H, F>(self: Arc<Self>, listener: TcpListener, handler: H)
    where
        H: Fn(Request<Incoming>, Caller) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut accepting = Accepting::on(listener);
        let mut accepted = 0_u64;
        loop {
            let (stream, address) = accepting.next().await;
            let caller = self.caller(address);
            net::tune_link(&stream);
            let (front, handler) = (Arc::clone(&self), handler.clone());
            tokio::spawn(async move { front.connection(stream, caller, handler).await });
            accepted += 1;
            if accepted % AT_ONCE == 0 {
                // Sessions have their turn, and what was displaced closes its descriptors.
                tokio::task::yield_now().await;
            }
        }
    }

    /// A place for a connection that was to become a session and only has to be told why not.
    pub fn farewell(&self, source: Source) -> Handshake {
        self.handshakes.begin(source)
    }

    fn caller(&self, address: SocketAddr) -> Caller {
        let source = self.sources.of(address.ip());
        Caller {
            address,
            source,
            handshake: Arc::new(self.handshakes.begin(source)),
        }
    }

    async fn connection<H, F>(&self, stream: TcpStream, caller: Caller, handler: H)
    where
        H: Fn(Request<Incoming>, Caller) -> F,
        F: Future<Output = Answer>,
    {
        let until = Instant::now() + HTTP_PHASE;
        let (peer, handshake) = (caller.address, Arc::clone(&caller.handshake));
        let asked = AtomicBool::new(false);
        let mut http = pin!(speak_http(stream, self.tls.as_ref(), |request| {
            asked.store(true, Ordering::Relaxed);
            handler(request, caller.clone())
        }));
        let in_time = async {
            match timeout_at(until, &mut http).await {
                Err(_) if asked.load(Ordering::Relaxed) => {
                    timeout_at(until + self.answering, &mut http).await
                }
                ended => ended,
            }
        };
        tokio::select! {
            ended = in_time => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%peer, "connection ended in its HTTP phase: {error}");
                }
                Err(_) => {
                    self.turned_away.late.add(1);
                    tracing::debug!(%peer, "dropped: not through its HTTP phase in time");
                }
            },
            () = handshake.displaced() => {
                self.turned_away.displaced.add(1);
                tracing::debug!(%peer, "dropped in its HTTP phase: a newer one needs the place");
            }
        }
    }
}

/// One request and its answer; returns when the connection is closed or upgraded.
async fn speak_http<F>(
    stream: TcpStream,
    tls: Option<&TlsAcceptor>,
    handler: impl Fn(Request<Incoming>) -> F,
) -> io::Result<()>
where
    F: Future<Output = Answer>,
{
    let link = match tls {
        None => Link::Plain(stream),
        Some(tls) => {
            let stream = tls.accept(stream).await;
            let stream =
                stream.map_err(|error| io::Error::new(error.kind(), words::server_tls(&error)))?;
            Link::Tls(Box::new(stream.into()))
        }
    };
    let service = hyper::service::service_fn(|request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(one_answer(answer.await)) }
    });
    hyper::server::conn::http1::Builder::new()
        .max_header_size(HEAD_MAX)
        .serve_connection(TokioIo::new(link), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

/// An answer after which the connection ends, unless it becomes a WebSocket.
fn one_answer(mut answer: Answer) -> Answer {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
    }
    answer
}
