//! Accepts connections for host and runner, and bounds what they can use before a session exists.
//!
//! A connection serves one request. Until that is answered or upgraded to a WebSocket, its time is
//! limited and it holds one of the handshake places.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
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
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsStream;

use super::accept::Accepting;
use super::addresses::{Source, Sources, parse_network};
use super::args::parse_count;
use super::handshakes::{Handshake, Handshakes};
use super::http::{Answer, BadRequest, HEAD_MAX};
use super::metrics::{Counter, Numbers, Page};
use super::net::{self, MaybeTls};
use super::program::Failure;
use super::route::Target;
use super::sessions::Sessions;
use super::threads::Threads;
use super::tls::{self, Acceptor, IdentityArgs};
use super::token::TokenArgs;
use super::words;

/// Time for everything the client does on a connection: the TLS handshake, the request, reading the
/// answer. Nothing restarts it, so a byte per second gains nothing.
const HTTP_PHASE: Duration = Duration::from_secs(10);

/// Connections accepted before other tasks run. With more, sessions would wait behind a flood. With
/// fewer, a flood would fill the listener's backlog.
const AT_ONCE: usize = 8;

/// Longest wait for displaced connections of other threads to close before the next are accepted.
const CLOSING: Duration = Duration::from_millis(10);

/// Flags of a program that clients connect to.
#[derive(Args, Debug, Clone)]
pub struct FrontArgs {
    /// Maximum number of client sessions; further ones are answered with 503 [default: 4096, or
    /// fewer if the limit of open files or --memory is low].
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub max_sessions: Option<usize>,

    /// Maximum number of sessions of one source address (IPv6: of one /64), and of its unfinished
    /// handshakes, also those of agents. By default a host allows an address as many sessions as it
    /// leaves free for others. A runner has no such bound, because its clients come from its host.
    /// Set it if clients connect directly, with --proxy for the host and for addresses with many
    /// agents.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    max_per_address: Option<usize>,

    /// Address of a proxy or host with many clients: ADDRESS[/PREFIX]; may be repeated. Each of its
    /// connections counts by itself.
    #[arg(long = "proxy", value_name = "ADDRESS", value_parser = parse_network)]
    proxies: Vec<IpNet>,

    #[command(flatten)]
    pub token: TokenArgs,

    #[command(flatten)]
    identity: IdentityArgs,
}

/// Who may connect, and how.
#[derive(Clone)]
pub struct FrontSettings {
    /// If given, only TLS is served.
    tls: Option<Acceptor>,
    /// Most sessions, and most handshakes, of one address.
    pub max_per_address: Option<usize>,
    /// Addresses with many clients behind them.
    pub proxies: Vec<IpNet>,
}

impl FrontArgs {
    /// # Errors
    /// A file with a certificate or a key cannot be used.
    pub fn settings(&self) -> Result<FrontSettings, Failure> {
        Ok(FrontSettings {
            tls: self.identity.acceptor()?,
            max_per_address: self.max_per_address,
            proxies: self.proxies.clone(),
        })
    }
}

/// The peer of a request.
#[derive(Debug, Clone)]
pub struct Caller {
    pub address: SocketAddr,
    pub source: Source,
    /// The connection's place until it has a session.
    pub handshake: Arc<Handshake>,
}

pub struct Front {
    tls: Option<Acceptor>,
    handshakes: Arc<Handshakes>,
    sources: Sources,
    /// The server's own time to answer a request, in addition to [`HTTP_PHASE`].
    answering: Duration,
    /// Each has its connections, the upgraded ones too unless they are moved.
    threads: Threads,
    turned_away: TurnedAway,
}

/// Connections that were dropped before they had an answer, and requests that were not let in.
#[derive(Debug, Default)]
struct TurnedAway {
    /// A newer connection needed the place.
    displaced: Counter,
    /// Not finished in time.
    late: Counter,
    /// Without the right token.
    token: Counter,
    /// From web pages that may not connect.
    origin: Counter,
}

impl Front {
    /// Allows this many connections in their HTTP phase at once. Without the bound, silent
    /// connections would use up the file descriptors.
    ///
    /// Connections are spread over `threads`.
    pub fn new(
        handshakes: usize,
        settings: &FrontSettings,
        answering: Duration,
        threads: Threads,
    ) -> Self {
        let each = settings.max_per_address.unwrap_or(usize::MAX);
        Self {
            tls: settings.tls.clone(),
            handshakes: Arc::new(Handshakes::new(handshakes, each)),
            sources: Sources::new(settings.proxies.clone()),
            answering,
            threads,
            turned_away: TurnedAway::default(),
        }
    }

    /// Serves until dropped. Upgraded connections continue in tasks of their own.
    pub async fn serve<H, F>(self: Arc<Self>, listener: TcpListener, handler: H)
    where
        H: Fn(Request<Incoming>, Caller) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut accepting = Accepting::on(listener);
        let mut accepted = 0_usize;
        loop {
            let (stream, address) = accepting.next().await;
            let caller = self.caller(address);
            net::tune_link(&stream);
            // Here, and not in the task: this thread's runtime watches it so far.
            let stream = MaybeTls::from(stream);
            let (front, handler) = (Arc::clone(&self), handler.clone());
            let thread = self.threads.least_loaded();
            thread.spawn(async move { front.connection(stream, caller, handler).await });
            accepted += 1;
            if accepted % AT_ONCE == 0 {
                // Sessions have their turn, and displaced connections close their descriptors.
                tokio::task::yield_now().await;
                let closed = self.handshakes.leaving_below(AT_ONCE);
                let _ = timeout(CLOSING, closed).await;
            }
        }
    }

    /// A place for a connection that gets no session and is only told why.
    pub fn farewell(&self, source: Source) -> Handshake {
        self.handshakes.begin(source)
    }

    /// Counts and logs a request that is not let in, for what `bad` says.
    pub fn shut_out(&self, target: &Target, peer: SocketAddr, bad: BadRequest) -> BadRequest {
        let counter = match bad.status() {
            StatusCode::FORBIDDEN => &self.turned_away.origin,
            _ => &self.turned_away.token,
        };
        counter.add(1);
        tracing::info!(%peer, path = target.to_string(), "not let in: {}", bad.line());
        bad
    }

    /// Adds the connections turned away to the metrics of a `program`: here, by its `sessions`, and
    /// `more` causes.
    pub fn show(&self, page: &mut Page, program: &str, sessions: &Sessions, more: &Numbers<'_>) {
        let TurnedAway {
            displaced,
            late,
            token,
            origin,
        } = &self.turned_away;
        let causes: &Numbers<'_> = &[
            ("displaced", displaced),
            ("late", late),
            ("token", token),
            ("origin", origin),
            ("sessions", &sessions.full),
            ("address", &sessions.share),
        ];
        let name = format!("{program}_turned_away_total");
        let help = "Connections refused or dropped, by cause.";
        page.add(&name, help, "cause", &[causes, more].concat());
    }

    fn caller(&self, address: SocketAddr) -> Caller {
        let source = self.sources.of(address.ip());
        Caller {
            address,
            source,
            handshake: Arc::new(self.handshakes.begin(source)),
        }
    }

    async fn connection<H, F>(&self, stream: MaybeTls, caller: Caller, handler: H)
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
        match handshake.unless_displaced(in_time).await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => {
                tracing::debug!(%peer, "connection ended in its HTTP phase: {error}");
            }
            Some(Err(_)) => {
                self.turned_away.late.add(1);
                tracing::debug!(%peer, "dropped: not through its HTTP phase in time");
            }
            None => {
                self.turned_away.displaced.add(1);
                tracing::debug!(%peer, "dropped in its HTTP phase: a newer one needs the place");
            }
        }
    }
}

/// Serves one request. Returns when the connection is closed or upgraded.
async fn speak_http<F>(
    stream: MaybeTls,
    tls: Option<&Acceptor>,
    handler: impl Fn(Request<Incoming>) -> F,
) -> io::Result<()>
where
    F: Future<Output = Answer>,
{
    let stream = match tls {
        None => stream,
        Some(tls) => {
            let (tls, stream) = (tls.current().await, stream.into_tcp()?);
            let stream = tls.accept_with(stream, |tls| tls::bound(tls)).await;
            let stream =
                stream.map_err(|error| io::Error::new(error.kind(), words::server_tls(&error)))?;
            TlsStream::from(stream).into()
        }
    };
    let service = hyper::service::service_fn(|request| {
        // In memory of its own: a connection without a request needs little.
        let answer = Box::pin(handler(request));
        async move { Ok::<_, Infallible>(one_answer(answer.await)) }
    });
    hyper::server::conn::http1::Builder::new()
        .max_header_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

/// Makes an answer the last one of the connection, unless it is an upgrade.
fn one_answer(mut answer: Answer) -> Answer {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
    }
    answer
}
