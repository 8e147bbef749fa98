//! The tunnel server itself, without a command line: the demo of `forward` runs it too.

mod access;
mod agent_tunnel;
mod agents;
mod join;
mod session;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::protocol::Role;

pub use self::access::AgentKey;
use self::agents::Agents;
use crate::common::addresses::Network;
use crate::common::ceilings::RunnerCeilings;
use crate::common::front::{Caller, Front, Limits};
use crate::common::http::{self, Answer, BadRequest};
use crate::common::metrics::{Counter, Gauge, Page};
use crate::common::route::Route;
use crate::common::serve::Served;
use crate::common::sessions::{Sessions, Sharing};
use crate::common::ws::{self, Socket};
use crate::common::{net, tunnel};

/// What the server needs to know.
pub struct Settings {
    /// Containers and VMs that are dialled directly: name to address.
    pub targets: HashMap<String, String>,
    /// Whether tunnels are served at all.
    pub enabled: bool,
    /// Demanded from clients, and from agents that have none of their own.
    pub token: Option<HeaderValue>,
    /// Accepted from agents of every container instead. They run where strangers are root: what they know opens no session.
    pub agent_token: Option<HeaderValue>,
    /// What the tokens of single containers are derived from: accepted from that container's agent.
    pub agent_key: Option<AgentKey>,
    /// Served with TLS alone, if given.
    pub tls: Option<TlsAcceptor>,
    pub tunnels: tunnel::Settings,
    pub ceilings: RunnerCeilings,
    /// Most client sessions, and most handshakes, of one address.
    pub max_per_address: Option<usize>,
    /// Addresses behind which many clients are.
    pub proxies: Vec<Network>,
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
    /// Agents for which there was no place.
    agents_full: Counter,
    /// Connections joined to an agent.
    joined: Counter,
    /// Connections that a session asked for and is not for.
    denied: Counter,
    no_agent: Counter,
    /// Whose turn to ask the agent did not come.
    agent_dials: Counter,
    /// For which the session had its share of the agent's streams.
    agent_streams: Counter,
}

impl Runner {
    pub fn new(settings: Settings) -> Self {
        let ceilings = settings.ceilings;
        let front = Front::new(Limits {
            handshakes: ceilings.handshakes,
            per_source: settings.max_per_address.unwrap_or(usize::MAX),
            answering: Duration::ZERO,
            proxies: settings.proxies.clone(),
        });
        let sharing = match settings.max_per_address {
            Some(each) => Sharing::ByAddress {
                each,
                proxies: settings.proxies.clone(),
            },
            None => Sharing::Freely,
        };
        Self {
            agents: Agents::new(ceilings.agents),
            front: Arc::new(front),
            sessions: Sessions::new(ceilings.sessions, sharing),
            settings,
            counters: Counters::default(),
            served: Served::new(ceilings.serving),
        }
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let tls = self.settings.tls.clone();
        let front = Arc::clone(&self.front);
        let answer = move |request, caller| {
            let runner = Arc::clone(&self);
            async move { runner.answer(request, caller).unwrap_or_else(Answer::from) }
        };
        front.serve(listener, tls, answer).await;
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
        let v2 = http::has_token(
            request.headers(),
            &header::SEC_WEBSOCKET_PROTOCOL,
            kohakuriver_tunnel::session::Version::OFFER,
        );
        let upgrade = hyper::upgrade::on(&mut request);
        match route {
            Route::Forward(session) => {
                let place = self.sessions.take(&caller)?;
                tokio::spawn(async move {
                    if let Some(socket) = upgraded(upgrade, peer).await {
                        session::serve(&self, socket, v2, session, caller, place).await;
                    }
                });
            }
            Route::Agent(name) => {
                if !self.settings.enabled {
                    let off = "tunnels are turned off on this runner";
                    return Err(BadRequest::new(StatusCode::SERVICE_UNAVAILABLE, off));
                }
                let place = self.agents.place(&name, caller.source).map_err(|_| {
                    self.counters.agents_full.add(1);
                    let full = "this runner has as many agents as it may: try again later";
                    BadRequest::new(StatusCode::SERVICE_UNAVAILABLE, full)
                })?;
                let yields = request.headers().contains_key(ws::IF_FREE);
                if yields && self.agents.is_taken(&name) {
                    let taken = "another agent is registered for this container";
                    return Err(BadRequest::new(StatusCode::CONFLICT, taken));
                }
                self.counters.agents.add(1);
                let mut answer = ws::accept_answer(&key, v2.then_some(ws::V2));
                let agents = HeaderValue::from(self.agents.count() + 1);
                answer.headers_mut().insert(ws::AGENTS, agents);
                tokio::spawn(async move {
                    let upgraded = upgraded(upgrade, peer).await;
                    caller.handshake.settle();
                    if let Some(socket) = upgraded {
                        let tunnels = &self.settings.tunnels;
                        let agent = (peer, place);
                        self.agents.serve(socket, v2, name, agent, tunnels).await;
                    }
                });
                return Ok(answer);
            }
            Route::Health | Route::Metrics => {}
        }
        Ok(ws::accept_answer(&key, v2.then_some(ws::V2)))
    }

    fn page(&self) -> Answer {
        let (counters, served) = (&self.counters, &self.served);
        let sessions = [
            (r#"{outcome="served"}"#, counters.sessions.value()),
            (r#"{outcome="refused"}"#, counters.refused.value()),
        ];
        let connections = [
            (r#"{outcome="agent"}"#, counters.joined.value()),
            (r#"{outcome="direct_tcp"}"#, served.streams.value()),
            (r#"{outcome="direct_udp"}"#, served.flows.value()),
            (r#"{outcome="refused"}"#, served.refused.value()),
            (r#"{outcome="denied"}"#, counters.denied.value()),
            (r#"{outcome="no_agent"}"#, counters.no_agent.value()),
        ];
        let (front, places) = (&self.front.turned_away, &self.sessions);
        let turned_away = [
            (r#"{cause="displaced"}"#, front.displaced.value()),
            (r#"{cause="late"}"#, front.late.value()),
            (r#"{cause="sessions"}"#, places.full.value()),
            (r#"{cause="address"}"#, places.share.value()),
            (r#"{cause="agents"}"#, counters.agents_full.value()),
        ];
        let refused = &served.dials.refused;
        let bounds = [
            (r#"{cause="dials"}"#, refused.turn.value()),
            (r#"{cause="sockets"}"#, refused.socket.value()),
            (r#"{cause="agent_dials"}"#, counters.agent_dials.value()),
            (r#"{cause="agent_streams"}"#, counters.agent_streams.value()),
        ];
        let datagrams = [
            (r#"{cause="refused"}"#, served.flow_refusals.value()),
            (r#"{cause="failed"}"#, served.flow_failures.value()),
        ];
        Page::default()
            .metric(
                "gauge",
                "runner_sessions",
                "Client sessions open now.",
                &[("", counters.sessions_open.value())],
            )
            .metric(
                "counter",
                "runner_sessions_total",
                "Client sessions, by what became of them.",
                &sessions,
            )
            .metric(
                "gauge",
                "runner_agents",
                "Agents registered now.",
                &[("", self.agents.count())],
            )
            .metric(
                "counter",
                "runner_agents_total",
                "Registrations of agents.",
                &[("", counters.agents.value())],
            )
            .metric(
                "counter",
                "runner_connections_total",
                "Connections asked for, by what became of them.",
                &connections,
            )
            .metric(
                "counter",
                "runner_datagrams_lost_total",
                "Datagrams to directly dialled targets that came to nothing.",
                &datagrams,
            )
            .metric(
                "counter",
                "runner_connections_over_share_total",
                "Connections refused because others of the session or of all were there, by cause.",
                &bounds,
            )
            .metric(
                "counter",
                "runner_turned_away_total",
                "Connections that came to nothing for want of time or of a place, by cause.",
                &turned_away,
            )
            .log()
            .answer()
    }
}

/// The WebSocket on a connection that was promised one.
async fn upgraded(upgrade: OnUpgrade, peer: SocketAddr) -> Option<Socket> {
    match net::within(ws::HANDSHAKE_TIMEOUT, http::upgraded(upgrade)).await {
        Ok((link, read)) => Some(ws::over(link, read, Role::Server)),
        Err(error) => {
            tracing::debug!(%peer, "gone before its session began: {error}");
            None
        }
    }
}
