//! The proxy without its command line. The demo of `forward` runs it too.

mod api;
mod place;
mod questions;
mod relay;
mod session;
mod splice;
mod tasks;

use std::collections::HashMap;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use kohakuriver_tunnel::mux::Budget;
use tokio::net::TcpListener;

pub use self::api::ClusterApi;
pub use self::place::TaskPlace;
use self::questions::Questions;
use self::relay::Relays;
pub use self::tasks::TaskFile;

use crate::common::ceilings::HostCeilings;
use crate::common::front::{Caller, Front, FrontSettings};
use crate::common::http::{self, Answer};
use crate::common::log::Log;
use crate::common::metrics::{Counter, Gauge, Numbers, Page, metrics};
use crate::common::route::{Route, Target};
use crate::common::sessions::Sessions;
use crate::common::threads::{PerThread, Threads};
use crate::common::tls::Dialer;
use crate::common::token::Token;

/// Settings of the proxy.
pub struct Settings {
    /// Tasks of the command line, then those of a file, then those of a cluster, which checks the
    /// callers itself.
    pub tasks: HashMap<String, TaskPlace>,
    pub file: Option<TaskFile>,
    pub api: Option<ClusterApi>,
    pub front: FrontSettings,
    /// Required from clients, and sent to the runner. Without one, the caller's own token is sent,
    /// unless it is for a cluster. Callers that a cluster checks do not need the host's token.
    pub token: Token,
    /// Connects to runners.
    pub dialer: Dialer,
    /// For data that was read and waits to be written.
    pub memory: Budget,
    pub ceilings: HostCeilings,
    pub threads: Threads,
    pub log: Log,
}

pub struct Host {
    settings: Settings,
    front: Arc<Front>,
    sessions: Sessions,
    questions: Questions,
    counters: Counters,
    relays: PerThread<Relays>,
}

#[derive(Default)]
struct Counters {
    open: Gauge,
    joined: Counter,
    refused: Counter,
    unreachable: Counter,
    /// Callers without the header that the cluster needs.
    nameless: Counter,
}

impl Host {
    pub fn new(settings: Settings) -> Self {
        let ceilings = settings.ceilings;
        Self {
            front: Arc::new(Front::new(
                ceilings.handshakes,
                &settings.front,
                session::ANSWERING,
                settings.threads.clone(),
            )),
            questions: Questions::new(ceilings.questions, ceilings.waiting),
            sessions: Sessions::new(ceilings.sessions, 1, settings.front.max_per_address),
            relays: settings
                .threads
                .each(|| Relays::new(settings.memory.clone(), ceilings.pipes)),
            settings,
            counters: Counters::default(),
        }
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let front = Arc::clone(&self.front);
        let answer = move |request, caller| Arc::clone(&self).answer(request, caller);
        front.serve(listener, answer).await;
    }

    /// Whether the tokens of callers are for a cluster.
    fn checks_callers(&self) -> bool {
        self.settings.api.is_some()
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, caller: Caller) -> Answer {
        match Route::parse(request.uri()) {
            Err(bad) => bad.into(),
            Ok(Route::Health) => http::text(StatusCode::OK, "ok"),
            Ok(Route::Metrics) => self.page(),
            Ok(Route::Tunnel(Target::Client(session))) => {
                session::join(self, request, session, caller).await
            }
            Ok(Route::Tunnel(Target::Agent(_))) => http::text(
                StatusCode::NOT_FOUND,
                "agents register at a runner, and this is a host",
            ),
        }
    }

    fn page(&self) -> Answer {
        let counters = &self.counters;
        let relayed = |to: fn(&Relays) -> &Counter| -> u64 {
            self.relays.iter().map(|one| to(one).value()).sum()
        };
        let mut page = Page::default();
        metrics! { page:
            host_sessions "Sessions open now." = counters.open;
            host_sessions_total "Sessions asked for, by what became of them." by outcome {
                joined: counters.joined,
                refused: counters.refused,
                unreachable: counters.unreachable,
            };
            host_bytes_total "Bytes relayed, WebSocket framing included." by to {
                runner: relayed(|relays| &relays.to_runner),
                client: relayed(|relays| &relays.to_client),
            };
        }
        let more: &Numbers<'_> = &[
            ("questions", &self.questions.refused),
            ("no_header", &counters.nameless),
        ];
        self.front.show(&mut page, "host", &self.sessions, more);
        page.answer(&self.settings.log)
    }
}
