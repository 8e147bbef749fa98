//! The proxy itself, without a command line: the demo of `forward` runs it too.

pub mod registry;
mod relay;
mod session;

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

pub use self::registry::{FixedTasks, Registry, TaskPlace};

use crate::common::http::{self, Answer, Limits};
use crate::common::metrics::{Counter, Gauge, Page};
use crate::common::route::Route;
use crate::common::tls::Dialer;

/// What the proxy needs to know.
pub struct Settings {
    /// Asked in this order; the first that knows the task decides.
    pub registries: Vec<Box<dyn Registry>>,
    /// Sent to the runner; without it the caller's own, unless that is for a registry. And demanded from callers unless a registry
    /// checks them.
    pub token: Option<HeaderValue>,
    /// Served with TLS alone, if given.
    pub tls: Option<TlsAcceptor>,
    /// Connects to runners.
    pub dialer: Dialer,
    /// Most sessions at once.
    pub max_sessions: usize,
}

pub struct Host {
    settings: Settings,
    places: Arc<Semaphore>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    open: Gauge,
    joined: Counter,
    refused: Counter,
    unreachable: Counter,
    to_runner: Counter,
    to_client: Counter,
}

impl Host {
    pub fn new(settings: Settings) -> Self {
        Self {
            places: Arc::new(Semaphore::new(settings.max_sessions)),
            settings,
            counters: Counters::default(),
        }
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let tls = self.settings.tls.clone();
        http::serve(listener, tls, Limits::default(), move |request, peer| {
            Arc::clone(&self).answer(request, peer)
        })
        .await;
    }

    /// Whether tokens of callers are for a registry.
    fn checks_callers(&self) -> bool {
        let mut registries = self.settings.registries.iter();
        registries.any(|registry| registry.checks_callers())
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Answer {
        match Route::parse(request.uri()) {
            Err(bad) => bad.into(),
            Ok(Route::Health) => http::text(StatusCode::OK, "ok"),
            Ok(Route::Metrics) => self.counters.page(),
            Ok(Route::Forward(session)) => session::join(self, request, session, peer).await,
            Ok(Route::Agent(_)) => http::text(
                StatusCode::NOT_FOUND,
                "agents register at a runner, and this is a host",
            ),
        }
    }
}

impl Counters {
    fn page(&self) -> Answer {
        let ended = [
            (r#"{outcome="joined"}"#, self.joined.value()),
            (r#"{outcome="refused"}"#, self.refused.value()),
            (r#"{outcome="unreachable"}"#, self.unreachable.value()),
        ];
        let bytes = [
            (r#"{to="runner"}"#, self.to_runner.value()),
            (r#"{to="client"}"#, self.to_client.value()),
        ];
        Page::default()
            .metric(
                "gauge",
                "host_sessions",
                "Sessions open now.",
                &[("", self.open.value())],
            )
            .metric(
                "counter",
                "host_sessions_total",
                "Sessions asked for, by what became of them.",
                &ended,
            )
            .metric(
                "counter",
                "host_bytes_total",
                "Bytes relayed, WebSocket framing included.",
                &bytes,
            )
            .log()
            .answer()
    }
}
