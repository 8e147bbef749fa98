//! One client's session. Each connection that it requests is dialled or joined to the agent.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_tunnel::mux::{
    self, Acceptor, Admission, Binding, Incoming, IncomingTcp, IncomingUdp, Mux, Opening, Tunnel,
    TunnelDatagram, TunnelStream,
};
use kohakuriver_tunnel::resume::EndReason;
use kohakuriver_tunnel::session::{OpenError, Reason, Reset};
use kohakuriver_tunnel::wire::Proto;
use tokio::time::Instant;

use super::agents::AgentTunnel;
use super::{Runner, flows};
use crate::common::addresses::Source;
use crate::common::dials::{self, Party};
use crate::common::flow;
use crate::common::front::Caller;
use crate::common::places::Place;
use crate::common::route::Session;
use crate::common::serve::{self, LAST_WORDS, flow_idle, unless_abandoned};
use crate::common::tunnel::{self, Driving, Upgraded};
use crate::common::turns::Turns;
use crate::common::ws::{self, Socket, TRY_AGAIN, WebSocketCarrier};
use crate::common::{resume, retry};

/// How long to wait for an agent that is reconnecting, well within the client's 10 s.
const AGENT_WITHIN: Duration = Duration::from_secs(6);

/// Time for an agent to say whether it could connect: its own limit and a little more.
const AGENT_ANSWER: Duration = Duration::from_secs(12);

/// Serves a client until its tunnel ends, unless another task has its tunnel. Without a place the
/// client may have a tunnel that goes on, also while its agent is away.
pub async fn serve(
    runner: &Arc<Runner>,
    upgraded: Upgraded,
    session: Session,
    binding: Binding,
    caller: Caller,
    place: Option<Place<Source>>,
) {
    let peer = caller.address;
    let v2 = upgraded.is_v2();
    // In memory of its own: what the beginning needs would be kept for as long as the session.
    let began = Box::pin(begin(runner, upgraded, &session, binding, &caller, place));
    let (mut acceptor, driver, place) = match began.await {
        Ok(Some(began)) => began,
        Ok(None) => return tracing::debug!(%peer, container = %session, "another WebSocket"),
        Err(reason) => {
            return tracing::debug!(%peer, container = %session, "no session began: {reason}");
        }
    };
    let _open = runner.counters.sessions_open.enter();
    runner.counters.sessions.add(1);
    tracing::debug!(%peer, container = %session, v2, "session begins");
    let tunnel = acceptor.tunnel().clone();
    let turns = Turns::session();
    let driver = tokio::spawn(turns.run(driver));
    let party = runner.served.parties.party();
    let accepting = pin!(async {
        while let Some(incoming) = acceptor.accept().await {
            if let Err(reason) = permitted(&session, &incoming) {
                runner.counters.denied.add(1);
                tracing::trace!(%peer, container = %session, "denied: {reason}");
                incoming.reject(Reason::Denied, &reason);
                continue;
            }
            let (runner, tunnel) = (Arc::clone(runner), tunnel.clone());
            let container = session.name.clone();
            let connection = async move {
                connection(&runner, &tunnel, &container, party, incoming, v2).await;
            };
            tokio::spawn(turns.run(Box::pin(connection)));
        }
    });
    let mut attachments = tunnel.attachments();
    let watching = async {
        while let Some(changed) = attachments.changed().await {
            tracing::debug!(%peer, container = %session, "session {}", resume::told(&changed));
        }
    };
    tokio::select! {
        () = turns.run(accepting) => {}
        () = watching => {}
    }
    if let Ok(ended) = driver.await {
        let ended = tunnel::told(&ended);
        tracing::debug!(%peer, container = %session, "session ended: {ended}");
    }
    drop(place);
}

/// A session's end of its tunnel.
type Began = (Acceptor, Driving, Option<Place<Source>>);

/// Begins a session; `None` if the WebSocket went to the session that it belongs to.
///
/// # Errors
/// Why there is none.
async fn begin(
    runner: &Runner,
    upgraded: Upgraded,
    session: &Session,
    binding: Binding,
    caller: &Caller,
    place: Option<Place<Source>>,
) -> Result<Option<Began>, String> {
    let tunnels = runner.tunnels.here();
    if !upgraded.resumable {
        if let Err((reason, code)) = ready(runner, session, caller.address).await {
            let told = Box::pin(ws::refuse(upgraded.socket, code, &reason));
            refuse(runner, caller, place, told).await;
            return Err(reason);
        }
        let welcomed = upgraded.welcome(tunnels).await;
        let (acceptor, driver) = welcomed.map_err(|error| error.to_string())?;
        return Ok(Some((acceptor, driver, place)));
    }
    // First of all: a client whose tunnel is gone is told so, whatever stands in the way of a new
    // one.
    let admitting = Box::pin(upgraded.admit(tunnels, &runner.kept.clients, binding, true));
    let entered = match place {
        Some(place) => {
            let admitted = Turns::newcomer().run(admitting).await;
            enter(runner, admitted, session, caller, Some(place)).await?
        }
        // It has only the place of a handshake.
        None => {
            let entering = async { enter(runner, admitting.await, session, caller, None).await };
            let entered = caller.handshake.unless_displaced(entering).await;
            entered.ok_or("displaced by a newer one")??
        }
    };
    Ok(entered.map(|(opening, place)| {
        let (acceptor, driver) = tunnels.tunnels.drive(opening.acceptor());
        (acceptor, driver, Some(place))
    }))
}

type NewTunnel = Opening<Socket, WebSocketCarrier>;

/// Lets a new tunnel in; `None` if one goes on.
///
/// # Errors
/// Why not. The client was told.
async fn enter(
    runner: &Runner,
    admitted: Result<Admission<Socket, WebSocketCarrier>, mux::ConnectError>,
    session: &Session,
    caller: &Caller,
    place: Option<Place<Source>>,
) -> Result<Option<(NewTunnel, Place<Source>)>, String> {
    let opening = match admitted.map_err(|error| error.to_string())? {
        Admission::New(opening) => opening,
        Admission::Refused(reason) => return Err(reason.to_string()),
        _ => return Ok(None),
    };
    let ready = ready(runner, session, caller.address).await;
    let (end, code, reason) = match (ready, &place) {
        (Ok(()), Some(_)) => return Ok(place.map(|place| (opening, place))),
        (Ok(()), None) => match runner.place(caller).await {
            Ok(place) => return Ok(Some((opening, place))),
            Err(full) => (EndReason::Limit, TRY_AGAIN, full.line().to_owned()),
        },
        (Err((reason, code)), _) => (EndReason::Unspecified, code, reason),
    };
    let told = Box::pin(opening.refuse(end, code, &reason));
    refuse(runner, caller, place, told).await;
    Err(reason)
}

/// Tells a client that it gets no session.
async fn refuse(
    runner: &Runner,
    caller: &Caller,
    place: Option<Place<Source>>,
    told: impl Future<Output = ()>,
) {
    match place {
        Some(place) => {
            // It needs no session's place for that.
            let farewell = runner.front.farewell(caller.source);
            drop(place);
            farewell.unless_displaced(told).await;
        }
        // It has the place of a handshake.
        None => told.await,
    }
}

/// Whether the session can be served; the reason and the close code if not.
async fn ready(runner: &Runner, session: &Session, peer: SocketAddr) -> Result<(), (String, u16)> {
    let container = &session.name;
    let (reason, code) = if !runner.settings.enabled {
        ("tunnels are turned off on this runner".to_owned(), 1008)
    } else if runner.settings.targets.contains_key(container) {
        return Ok(());
    } else {
        let deadline = Instant::now() + AGENT_WITHIN;
        if runner.agents.find(container, deadline).await.is_some() {
            return Ok(());
        }
        (format!("no agent is connected for {container}"), 1011)
    };
    runner.counters.refused.add(1);
    tracing::info!(%peer, %container, "refused: {reason}");
    Err((reason, code))
}

fn permitted(session: &Session, incoming: &Incoming) -> Result<(), String> {
    let (port, proto) = (incoming.port(), incoming.proto());
    match session.only {
        Some(only) if only != (port, proto) => Err(format!(
            "port {port}/{proto}: this session is for port {}/{} only",
            only.0, only.1
        )),
        _ => Ok(()),
    }
}

async fn connection(
    runner: &Runner,
    tunnel: &Tunnel,
    container: &str,
    party: Party,
    incoming: Incoming,
    v2: bool,
) {
    let port = incoming.port();
    if let Some(address) = runner.settings.targets.get(container) {
        return serve::incoming(incoming, tunnel, address, v2, &runner.served, party).await;
    }
    let at = At {
        runner,
        container,
        party,
        port,
    };
    let joined = match incoming {
        Incoming::Tcp(incoming) => Box::pin(at.join_stream(incoming)).await,
        Incoming::Udp(incoming) => Box::pin(at.join_flow(incoming, v2)).await,
        other => Err((other, serve::unknown_kind())),
    };
    if let Err((incoming, reset)) = joined {
        tracing::debug!(container, port, "not joined: {reset}");
        let counter = match reset.reason {
            Reason::NoAgent => &runner.counters.no_agent,
            _ => &runner.served.refused,
        };
        counter.add(1);
        incoming.reject(reset.reason, &reset.text);
    }
}

/// A connection that a session opens at a container's agent.
struct At<'a> {
    runner: &'a Runner,
    container: &'a str,
    party: Party,
    port: u16,
}

impl At<'_> {
    /// Joins a client's stream to one that the agent has connected to the service.
    async fn join_stream(&self, incoming: IncomingTcp) -> Result<(), (Incoming, Reset)> {
        match self.open_stream(incoming.abandoned()).await {
            Ok((agent, _place)) => {
                self.runner.counters.joined.add(1);
                let grace = || tokio::time::sleep(LAST_WORDS);
                let ended = incoming.accept().join_with_grace(agent, grace).await;
                tracing::debug!(port = self.port, ?ended, "stream ended");
                Ok(())
            }
            Err(reset) => Err((incoming.into(), reset)),
        }
    }

    async fn open_stream(
        &self,
        abandoned: impl Future<Output = ()>,
    ) -> Result<(TunnelStream, dials::Socket), Reset> {
        let mut abandoned = pin!(abandoned);
        let port = self.port;
        let deadline = Instant::now() + AGENT_WITHIN;
        loop {
            let opening = async {
                let agent = self.agent(deadline).await?;
                let until = Instant::now() + serve::CONNECT_TIMEOUT;
                let turn = agent.dials.turn(self.party, until).await?;
                let opened = self.open(Proto::Tcp, deadline, |mux| mux.open_tcp(port));
                Ok::<_, Reset>((turn, opened.await?))
            };
            let (turn, (agent, stream, place)) =
                unless_abandoned(abandoned.as_mut(), opening).await??;
            let answer = tokio::time::timeout(AGENT_ANSWER, stream.established());
            let answer = unless_abandoned(abandoned.as_mut(), answer)
                .await
                .inspect_err(|given_up| stream.reset(given_up.reason, &given_up.text))?;
            match answer {
                Ok(Ok(())) => {
                    turn.succeeded();
                    return Ok((stream, place));
                }
                // The agent has gone. No data is lost yet, so its successor is asked.
                Ok(Err(_)) if agent.mux.tunnel().close_reason().is_some() => {}
                Ok(Err(reset)) => return Err(reset),
                Err(_) => {
                    let text = format!("port {port}: the agent does not answer");
                    stream.reset(Reason::TimedOut, &text);
                    return Err(Reset::new(Reason::TimedOut, &text));
                }
            }
        }
    }

    /// Joins a client's flow to the agent's until it ends.
    ///
    /// The agent may end its flow if the port is refused. Clients of version 2 then open another
    /// flow. For those of version 1 this function does, with their next datagram.
    async fn join_flow(&self, incoming: IncomingUdp, v2: bool) -> Result<(), (Incoming, Reset)> {
        let opened = unless_abandoned(incoming.abandoned(), self.open_flow()).await;
        let (mut agent, mut flow, mut place) = match opened.and_then(|opened| opened) {
            Ok(opened) => opened,
            Err(reset) => return Err((incoming.into(), reset)),
        };
        self.runner.counters.joined.add(1);
        let client = incoming.accept();
        while let Some(ended) = flows::join(&client, &flow, v2).await {
            let reset = self.why(&agent, ended);
            if v2 || !matches!(reset.reason, Reason::Refused | Reason::Unreachable) {
                client.reset(reset.reason, &reset.text);
                break;
            }
            drop(place);
            let Ok(Ok(datagram)) = tokio::time::timeout(flow_idle(v2), client.recv()).await else {
                break;
            };
            (agent, flow, place) = match self.open_flow().await {
                Ok(opened) => opened,
                Err(reset) => {
                    client.reset(reset.reason, &reset.text);
                    break;
                }
            };
            // A failure shows once they are joined.
            let _ = flow.send(datagram);
        }
        Ok(())
    }

    /// Why an agent ended a flow. One of version 1 can only close it when the port is refused.
    fn why(&self, agent: &AgentTunnel, ended: flows::Ended) -> Reset {
        let closed = ended.unanswered && ended.reset.reason == Reason::Gone;
        if closed && !agent.v2 && agent.mux.tunnel().close_reason().is_none() {
            let text = format!("port {}/udp: {}", self.port, flow::REFUSED_BY_CLOSE);
            return Reset::new(Reason::Refused, &text);
        }
        ended.reset
    }

    async fn open_flow(&self) -> Result<(AgentTunnel, TunnelDatagram, dials::Socket), Reset> {
        let deadline = Instant::now() + AGENT_WITHIN;
        self.open(Proto::Udp, deadline, |mux| mux.open_udp(self.port))
            .await
    }

    /// Opens a stream or flow at the agent, with a place among its connections.
    async fn open<T>(
        &self,
        proto: Proto,
        deadline: Instant,
        open: impl Fn(&Mux) -> Result<T, OpenError>,
    ) -> Result<(AgentTunnel, T, dials::Socket), Reset> {
        loop {
            let agent = self.agent(deadline).await?;
            let place = agent.dials.socket(self.party, proto)?;
            match open(&agent.mux) {
                Ok(opened) => return Ok((agent, opened, place)),
                Err(error) => retry::await_successor(error, deadline)
                    .await
                    .map_err(not_opened)?,
            }
        }
    }

    /// The agent, which may have to come back first.
    async fn agent(&self, deadline: Instant) -> Result<AgentTunnel, Reset> {
        let found = self.runner.agents.find(self.container, deadline).await;
        found.ok_or_else(|| {
            let text = format!("no agent is connected for {}", self.container);
            Reset::new(Reason::NoAgent, &text)
        })
    }
}

fn not_opened(error: OpenError) -> Reset {
    let reason = match error {
        OpenError::Limit(_) => Reason::Limit,
        _ => Reason::Gone,
    };
    Reset::new(reason, &error.to_string())
}
