//! The tunnel server without its command line. The demo of `forward` runs it too.

mod access;
mod agents;
mod flows;
mod kept;
mod session;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, StatusCode};
use kohakuriver_tunnel::mux::{Admission, Binding, KeeperLimits, Mux};
use kohakuriver_tunnel::resume::Choice;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::protocol::Role;

pub use self::access::{AgentKey, Tokens};
use self::agents::{Agents, FULL_WHY, NewAgent};
use self::kept::Kept;
use crate::common::addresses::Source;
use crate::common::ceilings::RunnerCeilings;
use crate::common::front::{Caller, Front, FrontSettings};
use crate::common::http::{self, Answer, BadRequest};
use crate::common::log::Log;
use crate::common::metrics::{Counter, Gauge, Numbers, Page, metrics};
use crate::common::names::Names;
use crate::common::places::Place;
use crate::common::reread::Reread;
use crate::common::route::{Route, Session, Target};
use crate::common::serve::Served;
use crate::common::sessions::Sessions;
use crate::common::threads::{PerThread, Thread, Threads};
use crate::common::tunnel::{self, Driving, Upgraded};
use crate::common::{net, ws};

/// Settings of the server.
pub struct Settings {
    /// Containers and VMs that the runner dials itself: name to address.
    pub targets: HashMap<String, String>,
    /// Whether tunnels are served at all.
    pub enabled: bool,
    pub front: FrontSettings,
    pub tokens: Reread<Arc<Tokens>>,
    pub tunnels: tunnel::Settings,
    pub ceilings: RunnerCeilings,
    /// Most clients' tunnels without a WebSocket.
    pub detached: KeeperLimits,
    pub threads: Threads,
    pub names: Names,
    pub log: Log,
}

pub struct Runner {
    settings: Settings,
    agents: Agents,
    kept: Kept,
    front: Arc<Front>,
    sessions: Sessions,
    counters: Counters,
    served: Served,
    tunnels: PerThread<tunnel::Settings>,
}

#[derive(Default)]
struct Counters {
    sessions_open: Gauge,
    sessions: Counter,
    refused: Counter,
    /// Connections joined to an agent.
    joined: Counter,
    /// Connections that are not allowed in their session.
    denied: Counter,
    no_agent: Counter,
}

impl Runner {
    pub fn new(settings: Settings) -> Self {
        let ceilings = settings.ceilings;
        let each = settings.front.max_per_address;
        // Without a flag no address has a share: all sessions of a runner come from its host.
        let times_free = if each.is_some() { 1 } else { usize::MAX };
        // Its connections move to other threads once they have said which container they are for.
        let single = Threads::single();
        let front = Front::new(ceilings.handshakes, &settings.front, Duration::ZERO, single);
        Self {
            agents: Agents::new(ceilings.agents),
            kept: Kept::new(&settings.tunnels, settings.detached, ceilings.agents),
            front: Arc::new(front),
            sessions: Sessions::new(ceilings.sessions, times_free, each),
            tunnels: settings.threads.each(|| settings.tunnels.for_thread()),
            served: Served::new(ceilings.serving, true, settings.names.clone()),
            settings,
            counters: Counters::default(),
        }
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let front = Arc::clone(&self.front);
        let answer = move |request, caller| {
            let runner = Arc::clone(&self);
            async move {
                let answer = runner.answer(request, caller).await;
                answer.unwrap_or_else(Answer::from)
            }
        };
        front.serve(listener, answer).await;
    }

    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        caller: Caller,
    ) -> Result<Answer, BadRequest> {
        let peer = caller.address;
        let target = match Route::parse(request.uri())? {
            Route::Health => return Ok(http::text(StatusCode::OK, "ok")),
            Route::Metrics => return Ok(self.page()),
            Route::Tunnel(target) => target,
        };
        let key = http::upgrade_key(&request)?;
        let tokens = self.settings.tokens.current().await;
        let class = access::check(&tokens, &target, request.headers());
        let class = class.map_err(|bad| self.front.shut_out(&target, peer, bad))?;
        let choice = ws::choose(request.headers(), self.settings.tunnels.resume.is_some());
        let binding = kept::binding(&target, class, caller.source);
        let upgrade = hyper::upgrade::on(&mut request);
        let mut answer = ws::accept_answer(&key, choice.answer);
        match target {
            Target::Client(session) => {
                let may_go_on = choice.resumable && self.kept.clients.has(&binding.route);
                let place = match may_go_on {
                    // Its tunnel has its place already.
                    true => None,
                    false => Some(self.place(&caller).await?),
                };
                let runner = Arc::clone(&self);
                runner.thread_of(&session).spawn(async move {
                    if let Some(upgraded) = upgraded(upgrade, choice, peer).await {
                        session::serve(&self, upgraded, session, binding, caller, place).await;
                    }
                });
            }
            Target::Agent(name) if self.settings.targets.contains_key(&name) => {
                tracing::info!(
                    container = name, %peer,
                    "agent not registered: --target says where its container is"
                );
                return Err(BadRequest::busy(
                    "this runner dials this container itself (--target): end the agent, or start \
                     the runner without that --target",
                ));
            }
            Target::Agent(name) => {
                let yields = request.headers().contains_key(ws::IF_FREE);
                let may_go_on = choice.resumable && self.kept.agents.has(&binding.route);
                let place = self.agent_place(&name, caller.source, yields, may_go_on);
                let place = place.await?;
                let agents = HeaderValue::from(self.agents.count() + 1);
                answer.headers_mut().insert(ws::AGENTS, agents);
                let runner = Arc::clone(&self);
                runner.settings.threads.of(&name).spawn(async move {
                    if let Some(upgraded) = upgraded(upgrade, choice, peer).await {
                        let agent = (caller, place, yields);
                        self.serve_agent(upgraded, name, binding, agent).await;
                    }
                });
            }
        }
        Ok(answer)
    }

    /// Where to serve a session: beside the agent of its container, or anywhere if the runner dials
    /// the container itself.
    fn thread_of(&self, session: &Session) -> &Thread {
        let Settings {
            targets, threads, ..
        } = &self.settings;
        match targets.contains_key(&session.name) {
            true => threads.least_loaded(),
            false => threads.of(&session.name),
        }
    }

    /// A place for a new session. If there is none, a tunnel without a WebSocket gives up its own.
    pub async fn place(&self, caller: &Caller) -> Result<Place<Source>, BadRequest> {
        let evict = || self.kept.clients.evict_first();
        self.sessions.take(caller, evict).await
    }

    /// A place for an agent; `None` if it goes on or takes over the place of an older one. With
    /// `yields` it does not take over a place.
    async fn agent_place(
        &self,
        name: &str,
        source: Source,
        yields: bool,
        may_go_on: bool,
    ) -> Result<Option<Place<Source>>, BadRequest> {
        if !self.settings.enabled {
            return Err(BadRequest::busy("tunnels are turned off on this runner"));
        }
        if yields && self.agents.is_taken(name) {
            let taken = "another agent is registered for this container";
            return Err(BadRequest::new(StatusCode::CONFLICT, taken));
        }
        if may_go_on {
            return Ok(None);
        }
        let evict = || self.kept.agents.evict_first();
        let place = self.agents.place(name, source, evict).await;
        place.map_err(|_| BadRequest::busy(FULL_WHY))
    }

    /// Serves an agent until its tunnel ends, unless another task has its tunnel.
    async fn serve_agent(
        &self,
        upgraded: Upgraded,
        name: String,
        binding: Binding,
        (caller, place, yields): (Caller, Option<Place<Source>>, bool),
    ) {
        let (peer, v2) = (caller.address, upgraded.is_v2());
        // In memory of its own, as the beginning of a session.
        let beginning = Box::pin(self.begin_agent(upgraded, &name, binding, &caller));
        let Some((mux, driver)) = beginning.await else {
            return;
        };
        let agent = NewAgent {
            name,
            mux,
            peer,
            source: caller.source,
            place,
            v2,
            yields,
        };
        self.agents.serve(agent, driver, &caller.handshake).await;
    }

    /// An agent's new tunnel; `None` if there is none.
    async fn begin_agent(
        &self,
        upgraded: Upgraded,
        name: &str,
        binding: Binding,
        caller: &Caller,
    ) -> Option<(Mux, Driving)> {
        let tunnels = self.tunnels.here();
        if !upgraded.resumable {
            return Some(upgraded.opener(tunnels));
        }
        let peer = caller.address;
        let admitting = upgraded.admit(tunnels, &self.kept.agents, binding, false);
        match caller.handshake.unless_displaced(admitting).await? {
            Ok(Admission::New(opening)) => return Some(tunnels.tunnels.drive(opening.opener())),
            Ok(Admission::Refused(reason)) => {
                tracing::info!(container = name, %peer, "agent cannot go on: {reason}");
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(container = name, %peer, "no agent: {error}"),
        }
        None
    }

    fn page(&self) -> Answer {
        let (counters, served) = (&self.counters, &self.served);
        let (refused, at_agents) = (&served.dials.refused, &self.agents.refused);
        let mut page = Page::default();
        metrics! { page:
            runner_sessions "Client sessions open now." = counters.sessions_open;
            runner_sessions_total "Client sessions, by what became of them." by outcome {
                served: counters.sessions,
                refused: counters.refused,
            };
            runner_agents "Agents registered now." = self.agents.count();
            runner_agents_total "Registrations of agents." = self.agents.registrations;
            runner_connections_total "Connections asked for, by what became of them." by outcome {
                agent: counters.joined,
                direct_tcp: served.streams,
                direct_udp: served.flows,
                refused: served.refused,
                denied: counters.denied,
                no_agent: counters.no_agent,
            };
            runner_datagrams_lost_total
                "Datagrams to directly dialled targets that were not sent or were refused."
                by cause { refused: served.flow_refusals, failed: served.flow_failures };
            runner_connections_over_share_total
                "Connections refused because others of the session or of all were there, by cause."
                by cause {
                    dials: refused.turn,
                    sockets: refused.socket,
                    agent_dials: at_agents.turn,
                    agent_streams: at_agents.socket,
                };
        }
        self.kept.show(&mut page);
        let more: &Numbers<'_> = &[("agents", &self.agents.full)];
        self.front.show(&mut page, "runner", &self.sessions, more);
        page.answer(&self.settings.log)
    }
}

/// The WebSocket after a 101.
async fn upgraded(upgrade: OnUpgrade, choice: Choice, peer: SocketAddr) -> Option<Upgraded> {
    match net::within(ws::HANDSHAKE_TIMEOUT, http::upgraded(upgrade)).await {
        Ok((stream, read)) => Some(Upgraded {
            socket: ws::over(stream, read, Role::Server),
            version: choice.version,
            resumable: choice.resumable,
        }),
        Err(error) => {
            tracing::debug!(%peer, "gone before its session began: {error}");
            None
        }
    }
}
