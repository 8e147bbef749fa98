//! Tunnels that go on over their next WebSocket.

use kohakuriver_tunnel::mux::{Binding, Keeper, KeeperLimits, KeeperStats};
use kohakuriver_tunnel::resume::Config;
use tokio_rustls::rustls::crypto::ring::default_provider;

use super::access::Class;
use crate::common::addresses::Source;
use crate::common::metrics::{Page, metrics};
use crate::common::route::Target;
use crate::common::tunnel;
use crate::common::ws::Socket;

pub struct Kept {
    pub clients: Keeper<Socket>,
    /// Apart, so that no client displaces an agent.
    pub agents: Keeper<Socket>,
}

impl Kept {
    /// `clients` are the limits of clients' tunnels. Those of agents are bounded as agents are.
    pub fn new(tunnels: &tunnel::Settings, clients: KeeperLimits, agents: usize) -> Self {
        let config = tunnels.resume.clone().unwrap_or_default();
        // An agent's group is its container.
        let agents = KeeperLimits::default()
            .with_detached(agents)
            .with_per_peer(agents);
        Self {
            clients: keeper(config.clone(), clients),
            agents: keeper(config, agents),
        }
    }

    /// Adds what became of these tunnels.
    pub fn show(&self, page: &mut Page) {
        let (clients, agents) = (self.clients.stats(), self.agents.stats());
        let both = |of: fn(&KeeperStats) -> u64| of(&clients) + of(&agents);
        metrics! { page:
            runner_tunnels_detached "Tunnels without a WebSocket now, which may go on."
                = clients.detached + agents.detached;
            runner_tunnels_ring_bytes "Bytes kept now until the other side confirms them."
                = clients.ring_bytes + agents.ring_bytes;
            runner_tunnels_resumed_total
                "Times that a tunnel went on over another WebSocket, by the other side."
                by of { client: clients.resumed, agent: agents.resumed };
            runner_tunnels_not_resumed_total
                "Tunnels that ended because they could not go on, by cause."
                by cause {
                    expired: both(|stats| stats.expired),
                    evicted: both(|stats| stats.evicted),
                    gap: both(|stats| stats.gaps),
                    failed: both(|stats| stats.failed),
                };
            runner_resume_refused_total
                "WebSockets that were refused because no tunnel goes on over them, by reason."
                by reason {
                    unknown: both(|stats| stats.refused_unknown),
                    stale: both(|stats| stats.refused_stale),
                };
            runner_replayed_messages_total "Messages sent again when tunnels went on."
                = both(|stats| stats.replayed);
            runner_replayed_bytes_total "Bytes of the messages sent again."
                = both(|stats| stats.replayed_bytes);
        }
    }
}

/// What a tunnel of this request is bound to.
pub fn binding(target: &Target, class: Class, source: Source) -> Binding {
    let (route, group) = match target {
        Target::Client(session) => (format!("client {session} {class:?}"), session.name.clone()),
        Target::Agent(name) => (format!("agent {name} {class:?}"), name.clone()),
    };
    Binding::new(route, group, format!("{source:?}"))
}

fn keeper(config: Config, limits: KeeperLimits) -> Keeper<Socket> {
    let random = default_provider().secure_random;
    Keeper::new(config, limits, move |bytes| {
        let filled = random.fill(bytes);
        // Secrets that can be guessed are worse than none.
        filled.expect("the system has no randomness");
    })
}

#[cfg(test)]
mod tests {
    use kohakuriver_tunnel::wire::Proto;

    use super::*;
    use crate::common::route::Session;

    #[test]
    fn a_tunnel_is_bound_to_its_route_and_to_what_let_it_in_but_to_no_address() {
        let session = |port| {
            let (name, only) = ("box".to_owned(), Some((port, Proto::Tcp)));
            Target::Client(Session { name, only })
        };
        let agent = |name: &str| Target::Agent(name.to_owned());
        let [here, there] = [1, 2].map(|last| Source::Address([10, 0, 0, last].into()));
        for (own, other) in [
            (session(80), session(81)),
            (agent("box"), agent("other")),
            (agent("box"), session(80)),
        ] {
            let of = |route, class, source| binding(route, class, source).route;
            let bound = of(&own, Class::Clients, here);
            assert_eq!(bound, of(&own, Class::Clients, there));
            assert_ne!(bound, of(&other, Class::Clients, here));
            for class in [Class::Anybody, Class::Agents, Class::Container] {
                assert_ne!(bound, of(&own, class, here), "{class:?}");
            }
        }
    }
}
