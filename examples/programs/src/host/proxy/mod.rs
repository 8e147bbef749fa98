//! The proxy itself, without a command line: the demo of `forward` runs it too.

mod questions;
pub mod registry;
mod relay;
mod session;

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, StatusCode};
use kohakuriver_tunnel::mux::Budget;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use self::questions::Questions;
pub use self::registry::{FixedTasks, Registry, TaskPlace};

use crate::common::addresses::Network;
use crate::common::ceilings::HostCeilings;
use crate::common::front::{Caller, Front, Limits};
use crate::common::http::{self, Answer};
use crate::common::metrics::{Counter, Gauge, Page};
use crate::common::route::Route;
use crate::common::sessions::{Sessions, Sharing};
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
    /// For what is read and waits to be written.
    pub memory: Budget,
    pub ceilings: HostCeilings,
    /// Most sessions, and most handshakes, of one address.
    pub max_per_address: Option<usize>,
    /// Addresses behind which many clients are.
    pub proxies: Vec<Network>,
}

pub struct Host {
    settings: Settings,
    front: Arc<Front>,
    sessions: Sessions,
    questions: Questions,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    open: Gauge,
    joined: Counter,
    refused: Counter,
    unreachable: Counter,
    /// Without a header for a registry that wants one.
    nameless: Counter,
    to_runner: Counter,
    to_client: Counter,
}

impl Host {
    pub fn new(settings: Settings) -> Self {
        let each = settings.max_per_address.unwrap_or(usize::MAX);
        let front = Front::new(Limits {
            handshakes: settings.ceilings.handshakes,
            per_source: each,
            answering: session::ANSWERING,
            proxies: settings.proxies.clone(),
        });
        let proxies = settings.proxies.clone();
        let sharing = Sharing::ByAddress { each, proxies };
        Self {
            front: Arc::new(front),
            questions: Questions::new(settings.ceilings.questions, settings.ceilings.waiting),
            sessions: Sessions::new(settings.ceilings.sessions, sharing),
            settings,
            counters: Counters::default(),
        }
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let tls = self.settings.tls.clone();
        let front = Arc::clone(&self.front);
        let answer = move |request, caller| Arc::clone(&self).answer(request, caller);
        front.serve(listener, tls, answer).await;
    }

    /// Whether tokens of callers are for a registry.
    fn checks_callers(&self) -> bool {
        let mut registries = self.settings.registries.iter();
        registries.any(|registry| registry.checks_callers())
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, caller: Caller) -> Answer {
        match Route::parse(request.uri()) {
            Err(bad) => bad.into(),
            Ok(Route::Health) => http::text(StatusCode::OK, "ok"),
            Ok(Route::Metrics) => self.page(),
            Ok(Route::Forward(session)) => session::join(self, request, session, caller).await,
            Ok(Route::Agent(_)) => http::text(
                StatusCode::NOT_FOUND,
                "agents register at a runner, and this is a host",
            ),
        }
    }

    fn page(&self) -> Answer {
        let counters = &self.counters;
        let ended = [
            (r#"{outcome="joined"}"#, counters.joined.value()),
            (r#"{outcome="refused"}"#, counters.refused.value()),
            (r#"{outcome="unreachable"}"#, counters.unreachable.value()),
        ];
        let bytes = [
            (r#"{to="runner"}"#, counters.to_runner.value()),
            (r#"{to="client"}"#, counters.to_client.value()),
        ];
        let (front, sessions) = (&self.front.turned_away, &self.sessions);
        let turned_away = [
            (r#"{cause="displaced"}"#, front.displaced.value()),
            (r#"{cause="late"}"#, front.late.value()),
            (r#"{cause="sessions"}"#, sessions.full.value()),
            (r#"{cause="address"}"#, sessions.share.value()),
            (r#"{cause="questions"}"#, self.questions.refused.value()),
            (r#"{cause="no_header"}"#, counters.nameless.value()),
        ];
        Page::default()
            .metric(
                "gauge",
                "host_sessions",
                "Sessions open now.",
                &[("", counters.open.value())],
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
            .metric(
                "counter",
                "host_turned_away_total",
                "Connections that came to nothing for want of time, place or token, by cause.",
                &turned_away,
            )
            .log()
            .answer()
    }
}
