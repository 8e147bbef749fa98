//! The agents that are registered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_tunnel::mux::Mux;
use kohakuriver_tunnel::session::Config;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::common::addresses::Source;
use crate::common::ceilings::{DIALS, ServingCeilings};
use crate::common::dials::{Dials, LASTING, Refused};
use crate::common::handshakes::Handshake;
use crate::common::metrics::Counter;
use crate::common::places::{Full, Place, Places, Sizes};
use crate::common::resume;
use crate::common::tunnel::{self, Driving};
use crate::common::turns::Turns;
use crate::common::ws::{REPLACED, TRY_AGAIN};

/// How long an agent counts as reconnecting after its loss, or after the start of this server.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(30);

/// Time for a new agent to answer. Until then it takes nobody's place: its request may have been
/// held on the way and be of an agent that is long gone.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Most containers remembered after the loss of their agents. For the others nobody waits.
const REMEMBERED: usize = 16_384;

pub const FULL_WHY: &str = "this runner has as many agents as it may: try again later";

const REPLACED_WHY: &str = "replaced by a newer registration";

/// Time between two warnings of agents that replace each other. Two agents of one name may do that
/// forever; deployed ones do it every few seconds.
const WARN_AGAIN_AFTER: Duration = Duration::from_secs(600);

pub struct Agents {
    state: Mutex<State>,
    started: Instant,
    places: Places<Source>,
    /// Agents that were registered.
    pub registrations: Counter,
    /// Agents without a place.
    pub full: Counter,
    /// Connections that no agent was asked for because of others.
    pub refused: Arc<Refused>,
}

#[derive(Default)]
struct State {
    live: HashMap<String, Agent>,
    lost: HashMap<String, Instant>,
    /// For those who wait for an agent of the name.
    waiting: HashMap<String, watch::Sender<()>>,
    connections: u64,
}

/// The tunnel to an agent, shared by the sessions of its container.
#[derive(Clone)]
pub struct AgentTunnel {
    pub mux: Mux,
    pub v2: bool,
    /// As many attempts as an agent makes at once, and as many connections as the tunnel has
    /// streams.
    pub dials: Dials,
}

/// An agent that registers.
pub struct NewAgent {
    pub name: String,
    pub mux: Mux,
    pub peer: SocketAddr,
    pub source: Source,
    /// `None` if it takes over that of an older one.
    pub place: Option<Place<Source>>,
    pub v2: bool,
    /// Replaces no other agent.
    pub yields: bool,
}

struct Agent {
    /// Number of the connection: the late end of an old one must not remove a newer one.
    connection: u64,
    tunnel: AgentTunnel,
    peer: SocketAddr,
    /// Passed on to its replacement, and `None` from then on.
    place: Option<Place<Source>>,
    /// When a replacement of this name was last warned about.
    warned: Option<Instant>,
}

impl Agent {
    /// True also while its tunnel waits for a WebSocket.
    fn is_open(&self) -> bool {
        self.tunnel.mux.tunnel().close_reason().is_none()
    }
}

impl Agents {
    pub fn new(places: usize) -> Self {
        Self {
            state: Mutex::default(),
            started: Instant::now(),
            places: Places::new(Sizes {
                times_free: LASTING,
                // Each that waits has evicted an agent.
                queue: usize::MAX,
                ..Sizes::of(places)
            }),
            registrations: Counter::default(),
            full: Counter::default(),
            refused: Arc::default(),
        }
    }

    /// A place for an agent of this name; `None` if it will take over that of an older one, unless
    /// that one ends before. If all places are taken, `evict` may end an agent's tunnel.
    ///
    /// # Errors
    /// All places are taken, or this source has its share.
    pub async fn place(
        &self,
        name: &str,
        source: Source,
        evict: impl FnOnce() -> bool,
    ) -> Result<Option<Place<Source>>, Full> {
        let is_taken_over = || self.state.lock().live.contains_key(name);
        let evict = || !is_taken_over() && evict();
        match self.places.take_or(source, evict).await {
            Ok(place) => Ok(Some(place)),
            Err(_) if is_taken_over() => Ok(None),
            Err(full) => {
                self.full.add(1);
                Err(full)
            }
        }
    }

    /// Whether an agent of this name is registered, also while its tunnel waits for a WebSocket.
    pub fn is_taken(&self, name: &str) -> bool {
        self.state.lock().live.get(name).is_some_and(Agent::is_open)
    }

    pub fn count(&self) -> u64 {
        self.state.lock().live.len() as u64
    }

    /// Keeps an agent registered from its answer until its tunnel ends. Until then it has the place
    /// of a handshake.
    pub async fn serve(&self, agent: NewAgent, mut driver: Driving, handshake: &Handshake) {
        let (name, peer, v2) = (agent.name.clone(), agent.peer, agent.v2);
        let connection = self.arrive();
        let tunnel = agent.mux.tunnel().clone();
        let answers = tokio::time::timeout(ANSWERS_WITHIN, tunnel.confirmed());
        let answered = handshake.unless_displaced(async {
            tokio::select! {
                biased;
                answered = answers => answered == Ok(true),
                _ = &mut driver => false,
            }
        });
        if answered.await != Some(true) {
            return tracing::debug!(container = name, %peer, "a registration without an agent");
        }
        handshake.settle();
        let mut driver = Turns::session().run(driver);
        let mut attachments = tunnel.attachments();
        if let Err((code, why)) = self.register(agent, connection) {
            tunnel.shutdown_with(code, why);
            let _ = driver.await;
            return tracing::debug!(container = name, %peer, "not registered: {why}");
        }
        tracing::info!(container = name, %peer, v2, "agent registered");
        let ended = loop {
            tokio::select! {
                ended = &mut driver => break ended,
                Some(changed) = attachments.changed() => {
                    tracing::info!(container = name, %peer, "agent {}", resume::told(&changed));
                    // Sessions that wait for the agent look again.
                    self.tell(&name);
                }
            }
        };
        if self.remove(&name, connection) {
            let ended = tunnel::told(&ended);
            tracing::info!(container = name, %peer, "agent lost: {ended}");
        } else {
            tracing::debug!(container = name, %peer, "agent replaced by a newer one");
        }
    }

    /// The tunnel to a container's agent. Waits until `deadline` for one that was here lately.
    pub async fn find(&self, name: &str, deadline: Instant) -> Option<AgentTunnel> {
        let mut waiting: Option<Waiting<'_>> = None;
        loop {
            if let Some(agent) = self.live(name) {
                return Some(agent);
            }
            if !self.may_come_back(name) {
                return None;
            }
            let Some(waiting) = &mut waiting else {
                // It may have come meanwhile.
                waiting = Some(Waiting::new(&self.state, name));
                continue;
            };
            let changed = tokio::time::timeout_at(deadline, waiting.told.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return None;
            }
        }
    }

    /// Tells those who wait for an agent of this name to look again.
    fn tell(&self, name: &str) {
        let waiting = self.state.lock().waiting.get(name).cloned();
        if let Some(waiting) = waiting {
            waiting.send_replace(());
        }
    }

    fn live(&self, name: &str) -> Option<AgentTunnel> {
        let state = self.state.lock();
        let tunnel = &state.live.get(name)?.tunnel;
        tunnel.mux.tunnel().is_attached().then(|| tunnel.clone())
    }

    fn may_come_back(&self, name: &str) -> bool {
        let state = self.state.lock();
        let since = match (state.live.get(name), state.lost.get(name)) {
            // Its tunnel has just ended and will be removed.
            (Some(_), _) => return true,
            (None, Some(lost)) => *lost,
            (None, None) => self.started,
        };
        since.elapsed() < COMES_BACK_WITHIN
    }

    /// The number of a new connection.
    fn arrive(&self) -> u64 {
        let mut state = self.state.lock();
        state.connections += 1;
        state.connections
    }

    /// Puts an agent in the place of an older one of its name.
    ///
    /// # Errors
    /// A close code and why: the one that is registered came later, or this one yields to it, or
    /// the one whose place it was to take over has ended and there is no other.
    fn register(&self, new: NewAgent, connection: u64) -> Result<(), (u16, &'static str)> {
        let ceilings = ServingCeilings {
            dials: DIALS,
            connections: Config::default().max_streams,
        };
        let dials = Dials::new(ceilings, true, Arc::clone(&self.refused));
        let mut state = self.state.lock();
        let mut live = state.live.get_mut(&new.name);
        let stays = |live: &Agent| live.connection > connection || new.yields && live.is_open();
        if live.as_deref().is_some_and(stays) {
            return Err((REPLACED, REPLACED_WHY));
        }
        let place = new.place.or_else(|| live.as_mut()?.place.take());
        let Some(place) = place.or_else(|| self.places.try_take(new.source).ok()) else {
            self.full.add(1);
            return Err((TRY_AGAIN, FULL_WHY));
        };
        let warned = live.and_then(|old| {
            let recently = old.warned.filter(|at| at.elapsed() < WARN_AGAIN_AFTER);
            // One that had lost its connection may have been started again.
            if recently.is_some() || !old.tunnel.mux.tunnel().is_attached() {
                return recently;
            }
            tracing::warn!(
                container = new.name, older = %old.peer, newer = %new.peer,
                "an agent was replaced by a newer one of its name: unless it had lost its \
                 connection, two run with the same --container-id"
            );
            Some(Instant::now())
        });
        state.lost.remove(&new.name);
        let agent = Agent {
            connection,
            tunnel: AgentTunnel {
                mux: new.mux,
                v2: new.v2,
                dials,
            },
            peer: new.peer,
            place: Some(place),
            warned,
        };
        let replaced = state.live.insert(new.name.clone(), agent);
        drop(state);
        if let Some(old) = replaced {
            let old = old.tunnel.mux.tunnel();
            old.shutdown_with(REPLACED, REPLACED_WHY);
        }
        self.registrations.add(1);
        self.tell(&new.name);
        Ok(())
    }

    /// Removes this connection. Returns whether it was still the registered one.
    fn remove(&self, name: &str, connection: u64) -> bool {
        let mut state = self.state.lock();
        let current = state.live.get(name).map(|agent| agent.connection);
        if current != Some(connection) {
            return false;
        }
        state.live.remove(name);
        if state.lost.len() >= REMEMBERED {
            state
                .lost
                .retain(|_, lost| lost.elapsed() < COMES_BACK_WITHIN);
        }
        if state.lost.len() < REMEMBERED {
            state.lost.insert(name.to_owned(), Instant::now());
        }
        true
    }
}

/// Waits for an agent of a name. The last one takes the entry of the name away.
struct Waiting<'a> {
    state: &'a Mutex<State>,
    name: &'a str,
    told: watch::Receiver<()>,
}

impl<'a> Waiting<'a> {
    fn new(state: &'a Mutex<State>, name: &'a str) -> Self {
        let mut locked = state.lock();
        let sender = locked.waiting.entry(name.to_owned()).or_default();
        let told = sender.subscribe();
        Self { state, name, told }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        let sender = state.waiting.get(self.name);
        if sender.is_some_and(|sender| sender.receiver_count() == 1) {
            state.waiting.remove(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use kohakuriver_tunnel::mux;
    use kohakuriver_tunnel::transport::Plain;

    use super::*;

    fn agent(name: &str, source: Source, place: Option<Place<Source>>) -> NewAgent {
        let (io, _) = tokio::io::duplex(64);
        let (mux, _) = mux::builder().opener(mux::length_prefixed(io), Plain);
        NewAgent {
            name: name.to_owned(),
            mux,
            peer: SocketAddr::from(([10, 0, 0, 1], 1)),
            source,
            place,
            v2: true,
            yields: false,
        }
    }

    async fn place(agents: &Agents, name: &str, source: Source) -> Option<Place<Source>> {
        agents.place(name, source, || false).await.unwrap()
    }

    #[tokio::test]
    async fn whoever_counted_on_the_place_of_an_older_agent_finds_it_or_a_free_one() {
        let agents = Agents::new(1);
        let [first, second, other] = [1, 2, 3].map(|last| Source::Address([10, 0, 0, last].into()));
        let own = place(&agents, "box", first).await;
        let older = agents.arrive();
        assert!(agents.register(agent("box", first, own), older).is_ok());
        let taken_over = place(&agents, "box", second).await;
        let lost = place(&agents, "box", second).await;
        assert!(taken_over.is_none() && lost.is_none());

        let newer = agents.arrive();
        assert!(
            agents
                .register(agent("box", second, taken_over), newer)
                .is_ok()
        );
        agents.remove("box", newer);
        let own = place(&agents, "other", other).await;
        let it = agents.arrive();
        assert!(agents.register(agent("other", other, own), it).is_ok());
        // The one place is that of another container now.
        let late = agents.arrive();
        let refused = agents.register(agent("box", second, lost), late);
        assert_eq!(refused, Err((TRY_AGAIN, FULL_WHY)));
        assert_eq!((agents.count(), agents.registrations.value()), (1, 3));
        agents.remove("other", it);
        let late = agents.arrive();
        assert!(
            agents.register(agent("box", second, None), late).is_ok(),
            "a free one"
        );
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_registration_wakes_only_those_who_wait_for_it() {
        let agents = Agents::new(2);
        let source = Source::Address([10, 0, 0, 1].into());
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(Arc::clone(&wakes));
        {
            let deadline = Instant::now() + COMES_BACK_WITHIN;
            let mut finding = pin!(agents.find("box", deadline));
            assert!(
                finding
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            );
            for (name, woken) in [("other", 0), ("box", 1)] {
                let it = agents.arrive();
                assert!(agents.register(agent(name, source, None), it).is_ok());
                assert_eq!(wakes.0.load(Ordering::Relaxed), woken, "{name}");
            }
        }
        assert!(agents.state.lock().waiting.is_empty());
    }
}
