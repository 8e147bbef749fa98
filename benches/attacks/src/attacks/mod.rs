//! The attacks. Each is a row of this table and a few lines in the file of its family.

mod agent;
mod http;
mod server;
mod tunnel;
mod websocket;

use std::sync::Arc;

use tokio::net::TcpStream;

use crate::swarm::{Field, Work};

/// Client sessions of the container that the runner dials itself, and of the one with an agent.
pub const DIRECT: &str = "kohakuriver-vps-1";
pub const INSIDE: &str = "kohakuriver-vps-2";
/// The container whose agent is the attacker. Its name is chosen so that a runner with two to eight
/// threads serves it on the thread of [`INSIDE`].
pub const ROGUE: &str = "kohakuriver-vps-2476";

/// How the programs are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    Plain,
    /// The host serves TLS.
    Tls,
    /// The host asks an interface of a cluster about each caller.
    Api,
    /// Nobody reads what the host writes to stderr.
    Unread,
}

/// The role that the attacker replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Client,
    /// Towards `forward`, whose good host turns hostile and back.
    Host,
    /// Towards the agent, in the same way.
    RunnerOfAgent,
    /// Towards the host, as one runner of several.
    RunnerOfHost,
    Agent,
}

pub struct Attack {
    pub name: &'static str,
    pub what: &'static str,
    pub place: Place,
    pub flavour: Flavour,
    /// One of many connections; ends when the other side ends it, and is then made again.
    pub client: Option<fn(Arc<Field>, usize) -> Work>,
    pub server: Option<fn(TcpStream) -> Work>,
    pub agent: Option<fn(Arc<Field>, usize) -> Work>,
}

macro_rules! work {
    ($path:path) => {
        |field, number| Box::pin(async move { $path(&field, number).await })
    };
}

macro_rules! serve {
    ($path:path) => {
        |stream| Box::pin($path(stream))
    };
}

const fn client(
    name: &'static str,
    what: &'static str,
    client: fn(Arc<Field>, usize) -> Work,
) -> Attack {
    Attack {
        name,
        what,
        place: Place::Client,
        flavour: Flavour::Plain,
        client: Some(client),
        server: None,
        agent: None,
    }
}

const fn with(flavour: Flavour, attack: Attack) -> Attack {
    Attack { flavour, ..attack }
}

const fn server(
    place: Place,
    name: &'static str,
    what: &'static str,
    server: fn(TcpStream) -> Work,
) -> Attack {
    Attack {
        name,
        what,
        place,
        flavour: Flavour::Plain,
        client: None,
        server: Some(server),
        agent: None,
    }
}

/// A hostile runner behind the host, with as many sessions through the host to it.
const fn behind(name: &'static str, what: &'static str, serve: fn(TcpStream) -> Work) -> Attack {
    let attack = server(Place::RunnerOfHost, name, what, serve);
    Attack {
        client: Some(work!(websocket::session_of_rogue)),
        ..attack
    }
}

/// A hostile agent, with as many sessions to its container.
const fn rogue(
    name: &'static str,
    what: &'static str,
    agent: fn(Arc<Field>, usize) -> Work,
) -> Attack {
    Attack {
        name,
        what,
        place: Place::Agent,
        flavour: Flavour::Plain,
        client: Some(work!(tunnel::sessions_to_rogue)),
        server: None,
        agent: Some(agent),
    }
}

pub static ATTACKS: &[Attack] = &[
    client(
        "pings-session",
        "pings without reading, sessions at the runner",
        work!(websocket::pings_session),
    ),
    client(
        "pings-agent",
        "pings without reading, as agents at the runner",
        work!(websocket::pings_agent),
    ),
    client(
        "pings-host",
        "pings without reading, through the host",
        work!(websocket::pings_host),
    ),
    client(
        "continuations",
        "empty continuation frames without end",
        work!(websocket::continuations),
    ),
    client(
        "fragments",
        "messages of one-byte fragments without end",
        work!(websocket::fragments),
    ),
    client(
        "partial",
        "messages of 1 MiB of which the last byte is held back",
        work!(websocket::partial),
    ),
    client(
        "partial-refused",
        "the same of clients that the host refuses",
        work!(websocket::partial_refused),
    ),
    client(
        "keep-alive",
        "idle HTTP connections at the host",
        work!(http::keep_alive),
    ),
    client(
        "slow-heads",
        "request heads of two bytes a second, at the host",
        work!(http::slow_heads),
    ),
    with(
        Flavour::Tls,
        client("tls", "TLS handshakes that stall", work!(http::stalled_tls)),
    ),
    with(
        Flavour::Api,
        client(
            "api",
            "strangers at a host that asks a slow cluster",
            work!(http::strangers),
        ),
    ),
    with(
        Flavour::Unread,
        client(
            "refusals",
            "refused requests; nobody reads the host's stderr",
            work!(http::refusals),
        ),
    ),
    client(
        "early-v1",
        "early data for a silent port, v1",
        work!(tunnel::early_v1),
    ),
    client(
        "early-v2",
        "early data for a silent port, v2",
        work!(tunnel::early_v2),
    ),
    client(
        "dials",
        "50 dials a session to a silent port, by the runner",
        work!(tunnel::dials_direct),
    ),
    client(
        "dials-agent",
        "50 dials a session to a silent port, by the agent",
        work!(tunnel::dials_inside),
    ),
    client(
        "ids",
        "messages for ids that are not there",
        work!(tunnel::stray_ids),
    ),
    client(
        "connects",
        "CONNECTs without end to a port that refuses",
        work!(tunnel::connects),
    ),
    client(
        "windows",
        "WINDOW messages without end",
        work!(tunnel::windows),
    ),
    client(
        "in-step",
        "one PING of all sessions at the same moments, through the host",
        work!(tunnel::in_step),
    ),
    client(
        "deaf",
        "big downloads whose session never reads",
        work!(tunnel::deaf),
    ),
    client(
        "no-acks",
        "resumable downloads that are read and never acknowledged",
        work!(tunnel::no_acks),
    ),
    server(
        Place::Host,
        "host-pings",
        "a host that pings `forward` and never reads",
        serve!(server::session_pings),
    ),
    server(
        Place::Host,
        "host-fragments",
        "a host that sends empty continuations",
        serve!(server::session_continuations),
    ),
    server(
        Place::Host,
        "host-garbage",
        "a host that sends random bytes",
        serve!(server::session_garbage),
    ),
    server(
        Place::Host,
        "host-giant",
        "a host that announces a message of 4 EiB",
        serve!(server::session_giant),
    ),
    server(
        Place::Host,
        "host-head",
        "a host whose response head has no end",
        serve!(server::endless_head),
    ),
    behind(
        "runner-continues",
        "a runner that sends interim answers without end",
        serve!(server::continues),
    ),
    server(
        Place::Host,
        "host-drip",
        "a host that sends one byte a second",
        serve!(server::drip),
    ),
    behind(
        "runner-pings",
        "a runner that pings through the host",
        serve!(server::session_pings),
    ),
    behind(
        "runner-silent",
        "a runner that never answers the host",
        serve!(server::silent),
    ),
    behind(
        "runner-head",
        "a runner whose response head has no end",
        serve!(server::endless_head),
    ),
    server(
        Place::RunnerOfAgent,
        "runner-agent-pings",
        "a runner that pings the agent and never reads",
        serve!(server::agent_pings),
    ),
    server(
        Place::RunnerOfAgent,
        "runner-agent-fragments",
        "a runner that sends the agent empty continuations",
        serve!(server::agent_continuations),
    ),
    server(
        Place::RunnerOfAgent,
        "runner-agent-garbage",
        "a runner that sends the agent random bytes",
        serve!(server::agent_garbage),
    ),
    server(
        Place::RunnerOfAgent,
        "runner-agent-connects",
        "a runner that opens streams without end",
        serve!(server::agent_connects),
    ),
    rogue(
        "agent-silent",
        "an agent that never answers a CONNECT",
        work!(agent::silent),
    ),
    rogue(
        "agent-deaf",
        "an agent that never reads",
        work!(agent::deaf),
    ),
    rogue(
        "agent-garbage",
        "an agent that answers with random messages",
        work!(agent::garbage),
    ),
    rogue(
        "agent-flood",
        "an agent that floods every stream with DATA",
        work!(agent::flood),
    ),
];
