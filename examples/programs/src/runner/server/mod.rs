//! The tunnel server without its command line. The demo of `forward` runs it too.

mod access;
mod agents;
mod flows;
mod session;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, StatusCode};
use kohakuriver_tunnel::session::Version;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::protocol::Role;

pub use self::access::AgentKey;
use self::agents::Agents;
use crate::common::ceilings::RunnerCeilings;
use crate::common::front::{Caller, Front, FrontSettings};
use crate::common::http::{self, Answer, BadRequest};
use crate::common::log::Log;
use crate::common::metrics::{Counter, Gauge, Page};
use crate::common::route::Route;
use crate::common::serve::Served;
use crate::common::sessions::Sessions;
use crate::common::tunnel::{self, Upgraded};
use crate::common::{net, ws};

/// Settings of the server.
pub struct Settings {
    /// Containers and VMs that the runner dials itself: name to address.
    pub targets: HashMap<String, String>,
    /// Whether tunnels are served at all.
    pub enabled: bool,
    /// Its token is also demanded from agents if there is no other for them.
    pub front: FrontSettings,
    /// Accepted from the agent of any container instead. Agents run where strangers are root, so
    /// their tokens do not open sessions.
    pub agent_token: Option<HeaderValue>,
    /// The tokens of single containers are derived from it.
    pub agent_key: Option<AgentKey>,
    pub tunnels: tunnel::Settings,
    pub ceilings: RunnerCeilings,
    pub log: Log,
}

pub struct Runner {
    settings: Settings,
    agents: Agents,
    front: Arc<Front>,
    sessions: Sessions,
    counters: Counters,
    served: Served,
}

#[derive(Default)]
struct Counters {
    sessions_open: Gauge,
    sessions: Counter,
    refused: Counter,
    agents: Counter,
    /// Agents without a place.
    agents_full: Counter,
    /// Connections joined to an agent.
    joined: Counter,
    /// Connections that are not allowed in their session.
    denied: Counter,
    no_agent: Counter,
}

impl Runner {
    pub fn new(settings: Settings) -> Self {
        let ceilings = settings.ceilings;
        let sessions = match settings.front.max_per_address {
            Some(_) => Sessions::by_address(ceilings.sessions, &settings.front),
            None => Sessions::freely(ceilings.sessions),
        };
        let front = Front::new(ceilings.handshakes, &settings.front, Duration::ZERO);
        Self {
            agents: Agents::new(ceilings.agents),
            front: Arc::new(front),
            sessions,
            settings,
            counters: Counters::default(),
            served: Served::new(ceilings.serving),
        }
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let front = Arc::clone(&self.front);
        let answer = move |request, caller| {
            let runner = Arc::clone(&self);
            async move { runner.answer(request, caller).unwrap_or_else(Answer::from) }
        };
        front.serve(listener, answer).await;
    }

    fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        caller: Caller,
    ) -> Result<Answer, BadRequest> {
        let peer = caller.address;
        let route = Route::parse(request.uri())?;
        match route {
            Route::Health => return Ok(http::text(StatusCode::OK, "ok")),
            Route::Metrics => return Ok(self.page()),
            Route::Forward(_) | Route::Agent(_) => {}
        }
        let key = http::upgrade_key(&request)?;
        access::check(&self.settings, &route, request.headers(), peer)?;
        let version = ws::choose(request.headers());
        let upgrade = hyper::upgrade::on(&mut request);
        match route {
            Route::Forward(session) => {
                let place = self.sessions.take(&caller)?;
                tokio::spawn(async move {
                    if let Some(upgraded) = upgraded(upgrade, version, peer).await {
                        session::serve(&self, upgraded, session, caller, place).await;
                    }
                });
            }
            Route::Agent(name) => {
                if !self.settings.enabled {
                    let off = "tunnels are turned off on this runner";
                    return Err(BadRequest::busy(off));
                }
                let place = self.agents.place(&name, caller.source).map_err(|_| {
                    self.counters.agents_full.add(1);
                    let full = "this runner has as many agents as it may: try again later";
                    BadRequest::busy(full)
                })?;
                let yields = request.headers().contains_key(ws::IF_FREE);
                if yields && self.agents.is_taken(&name) {
                    let taken = "another agent is registered for this container";
                    return Err(BadRequest::new(StatusCode::CONFLICT, taken));
                }
                self.counters.agents.add(1);
                let mut answer = ws::accept_answer(&key, version);
                let agents = HeaderValue::from(self.agents.count() + 1);
                answer.headers_mut().insert(ws::AGENTS, agents);
                tokio::spawn(async move {
                    let upgraded = upgraded(upgrade, version, peer).await;
                    caller.handshake.settle();
                    if let Some(upgraded) = upgraded {
                        let tunnels = &self.settings.tunnels;
                        let agent = (peer, place);
                        self.agents.serve(upgraded, name, agent, tunnels).await;
                    }
                });
                return Ok(answer);
            }
            Route::Health | Route::Metrics => {}
        }
        Ok(ws::accept_answer(&key, version))
    }

    fn page(&self) -> Answer {
        let (counters, served) = (&self.counters, &self.served);
        let (refused, at_agents) = (&served.refused_dials, &self.agents.refused);
        Page::default()
            .gauge(
                "runner_sessions",
                "Client sessions open now.",
                counters.sessions_open.value(),
            )
            .counters(
                "runner_sessions_total",
                "Client sessions, by what became of them.",
                "outcome",
                &[
                    ("served", counters.sessions.value()),
                    ("refused", counters.refused.value()),
                ],
            )
            .gauge(
                "runner_agents",
                "Agents registered now.",
                self.agents.count(),
            )
            .counter(
                "runner_agents_total",
                "Registrations of agents.",
                &counters.agents,
            )
            .counters(
                "runner_connections_total",
                "Connections asked for, by what became of them.",
                "outcome",
                &[
                    ("agent", counters.joined.value()),
                    ("direct_tcp", served.streams.value()),
                    ("direct_udp", served.flows.value()),
                    ("refused", served.refused.value()),
                    ("denied", counters.denied.value()),
                    ("no_agent", counters.no_agent.value()),
                ],
            )
            .counters(
                "runner_datagrams_lost_total",
                "Datagrams to directly dialled targets that were not sent or were refused.",
                "cause",
                &[
                    ("refused", served.flow_refusals.value()),
                    ("failed", served.flow_failures.value()),
                ],
            )
            .counters(
                "runner_connections_over_share_total",
                "Connections refused because others of the session or of all were there, by cause.",
                "cause",
                &[
                    ("dials", refused.turn.value()),
                    ("sockets", refused.socket.value()),
                    ("agent_dials", at_agents.turn.value()),
                    ("agent_streams", at_agents.socket.value()),
                ],
            )
            .counters(
                "runner_turned_away_total",
                "Connections refused or dropped, by cause.",
                "cause",
                &[
                    ("displaced", self.front.turned_away.displaced.value()),
                    ("late", self.front.turned_away.late.value()),
                    ("sessions", self.sessions.full.value()),
                    ("address", self.sessions.share.value()),
                    ("agents", counters.agents_full.value()),
                ],
            )
            .log(&self.settings.log)
            .answer()
    }
}

/// The WebSocket after a 101.
async fn upgraded(upgrade: OnUpgrade, version: Version, peer: SocketAddr) -> Option<Upgraded> {
    match net::within(ws::HANDSHAKE_TIMEOUT, http::upgraded(upgrade)).await {
        Ok((link, read)) => {
            let socket = ws::over(link, read, Role::Server);
            Some(Upgraded { socket, version })
        }
        Err(error) => {
            tracing::debug!(%peer, "gone before its session began: {error}");
            None
        }
    }
}
