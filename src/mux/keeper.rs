use alloc::boxed::Box;
use alloc::collections::{BTreeMap, btree_map};
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::{Context, Poll};
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Tunnel;
use super::handovers::Handovers;
use super::shared::Shared;
use super::source::{Answer, Arrival, Handover, Need, News, Source};
use super::waiting::{Detached, Rank, Waiter};
use crate::resume::{Config, EndReason, Identity, Open, Secret};
use crate::session::{Instant, Role};

/// The tunnels of a server that outlive their transports (PROTOCOL.md section 5.10).
///
/// [`Builder::admit`](super::Builder::admit) finds the tunnel of each new transport here. Cheap to
/// clone. One keeper serves all routes of a server; a [`Binding`] keeps them apart.
///
/// ```
/// use kohakuriver_tunnel::mux::{
///     self, Acceptor, Admission, Binding, Keeper, KeeperLimits, LengthPrefixed, length_prefixed,
/// };
/// use kohakuriver_tunnel::resume::Config;
/// use kohakuriver_tunnel::transport::Plain;
/// use tokio::net::{TcpListener, TcpStream};
///
/// # async fn serve(_: Acceptor) {}
/// async fn listen(listener: TcpListener) -> std::io::Result<()> {
///     let limits = KeeperLimits::default().with_per_peer(8);
///     let random = |secret: &mut [u8]| getrandom::fill(secret).expect("the system is random");
///     let keeper: Keeper<LengthPrefixed<TcpStream>> =
///         Keeper::new(Config::default(), limits, random);
///     loop {
///         let (socket, peer) = listener.accept().await?;
///         let keeper = keeper.clone();
///         tokio::spawn(async move {
///             let binding = Binding::new("/tunnel", "everybody", peer.ip().to_string());
///             let socket = length_prefixed(socket);
///             match mux::builder().admit(&keeper, socket, Plain, binding).await {
///                 Ok(Admission::New(opening)) => {
///                     let (acceptor, driver) = opening.acceptor();
///                     tokio::spawn(driver);
///                     serve(acceptor).await;
///                 }
///                 Ok(Admission::Resumed) => println!("{} went on", keeper.stats().resumed),
///                 Ok(Admission::Refused(reason)) => println!("{peer} cannot go on: {reason}"),
///                 Ok(_) => {}
///                 Err(error) => println!("{peer}: {error}"),
///             }
///         });
///     }
/// }
/// ```
pub struct Keeper<T> {
    registry: Arc<Registry<T>>,
}

/// What a tunnel is bound to: a transport takes it over only if it came on the same route, whatever
/// secret it shows. Also says whom to count it for.
///
/// ```
/// use kohakuriver_tunnel::mux::Binding;
///
/// let binding = |container: &str, peer: &str| {
///     Binding::new(format!("/api/tunnel/{container} token"), container, peer)
/// };
/// let (home, train) = (binding("vps-7", "192.0.2.1"), binding("vps-7", "198.51.100.2"));
/// assert_eq!(home.route, train.route); // may be the same tunnel
/// assert_ne!(home.route, binding("vps-8", "192.0.2.1").route); // never
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Binding {
    /// Route, target, and class of credential, in any form. Must be equal.
    pub route: String,
    /// What tunnels without a transport are counted for together, for instance a container.
    pub group: String,
    /// The address of the peer, or the like; may change with each transport.
    pub peer: String,
}

impl Binding {
    /// A binding of these names.
    pub fn new(
        route: impl Into<String>,
        group: impl Into<String>,
        peer: impl Into<String>,
    ) -> Self {
        Self {
            route: route.into(),
            group: group.into(),
            peer: peer.into(),
        }
    }
}

/// Limits on tunnels without a transport. Beyond one of them, the one that has been without for
/// longest ends: [`EndReason::Evicted`]. Tunnels whose peer has not
/// [answered](Tunnel::confirmed) go before others. Of the others, tunnels of openers, such as those
/// to agents, go last, because they carry streams of many users.
///
/// ```
/// use kohakuriver_tunnel::mux::KeeperLimits;
///
/// let limits = KeeperLimits::default().with_detached(100).with_per_group(25);
/// assert_eq!((limits.detached, limits.per_group, limits.per_peer), (100, 25, 64));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeeperLimits {
    /// In total. Default 1,024.
    pub detached: usize,
    /// For one [group](Binding::group). Default 128.
    pub per_group: usize,
    /// For one [peer](Binding::peer). Default 64.
    pub per_peer: usize,
}

impl Default for KeeperLimits {
    fn default() -> Self {
        Self {
            detached: 1_024,
            per_group: 128,
            per_peer: 64,
        }
    }
}

impl KeeperLimits {
    setters! {
        with_detached => detached: usize,
        with_per_group => per_group: usize,
        with_per_peer => per_peer: usize,
    }
}

/// Counters of a [`Keeper`], from [`Keeper::stats`].
///
/// ```
/// use kohakuriver_tunnel::mux::KeeperStats;
///
/// fn share_resumed(stats: KeeperStats) -> f64 {
///     let lost = stats.expired + stats.evicted + stats.gaps + stats.failed;
///     stats.resumed as f64 / (stats.resumed + lost).max(1) as f64
/// }
/// assert_eq!(share_resumed(KeeperStats::default()), 0.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct KeeperStats {
    /// Tunnels now, with and without a transport.
    pub tunnels: usize,
    /// Tunnels without a transport.
    pub detached: usize,
    /// Bytes kept now until peers acknowledge them, each message with 64 bytes for its place.
    pub ring_bytes: usize,
    /// How often a tunnel went on with another transport.
    pub resumed: u64,
    /// Messages sent again.
    pub replayed: u64,
    /// Bytes of the messages sent again.
    pub replayed_bytes: u64,
    /// Tunnels for which no transport came in time.
    pub expired: u64,
    /// Tunnels without a transport whose place was needed.
    pub evicted: u64,
    /// Tunnels that ended because messages are missing.
    pub gaps: u64,
    /// Tunnels that ended because the peer broke the protocol, or too much would have to be kept.
    pub failed: u64,
    /// Transports refused because there is no such tunnel on that route, or the secret is wrong.
    pub refused_unknown: u64,
    /// Transports refused because a later one was seen.
    pub refused_stale: u64,
}

struct Registry<T> {
    config: Config,
    limits: KeeperLimits,
    instance: u64,
    /// Foreign code, so never called under the lock of the state.
    random: Mutex<Random>,
    state: Mutex<KeptTunnels<T>>,
}

struct Random(Box<Fill>);

/// Fills a slice.
type Fill = dyn FnMut(&mut [u8]) + Send;

struct KeptTunnels<T> {
    tunnels: BTreeMap<u64, Entry<T>>,
    /// How many tunnels each route has.
    routes: BTreeMap<String, usize>,
    /// Those without a transport.
    detached: Detached,
    stats: KeeperStats,
}

struct Entry<T> {
    binding: Binding,
    handovers: Handovers<T>,
    shared: Weak<Shared>,
    /// Bytes that the tunnel keeps.
    ring: Arc<AtomicUsize>,
}

impl<T> Keeper<T> {
    /// A keeper without tunnels. `config` is for the server's end of each.
    ///
    /// `random` fills a slice from a cryptographic source of randomness, such as the operating
    /// system's. The secrets come from it, so the tunnels are as safe as it is.
    pub fn new(
        config: Config,
        limits: KeeperLimits,
        random: impl FnMut(&mut [u8]) + Send + 'static,
    ) -> Self {
        let state = KeptTunnels {
            tunnels: BTreeMap::new(),
            routes: BTreeMap::new(),
            detached: Detached::default(),
            stats: KeeperStats::default(),
        };
        let mut random = Random(Box::new(random));
        let instance = random.number();
        let registry = Registry {
            config,
            limits,
            instance,
            random: Mutex::new(random),
            state: Mutex::new(state),
        };
        Self {
            registry: Arc::new(registry),
        }
    }

    /// Whether a tunnel of this [route](Binding::route) is kept, with or without a transport.
    #[must_use]
    pub fn has(&self, route: &str) -> bool {
        self.registry.lock().routes.contains_key(route)
    }

    /// Ends the first of the tunnels without a transport, in the order of [`KeeperLimits`]. False
    /// if there is none.
    pub fn evict_first(&self) -> bool {
        let victim = self.registry.lock().first();
        evict(victim.as_slice());
        victim.is_some()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> KeeperStats {
        let state = self.registry.lock();
        let rings = state.tunnels.values();
        KeeperStats {
            tunnels: state.tunnels.len(),
            detached: state.detached.len(),
            ring_bytes: rings.map(|entry| entry.ring.load(Ordering::Relaxed)).sum(),
            ..state.stats
        }
    }

    pub(super) fn config(&self) -> Config {
        self.registry.config.clone()
    }

    /// Passes a transport to the tunnel that `open` names. `Err`: the transport, and why it is
    /// refused.
    pub(super) async fn hand_over(&self, open: Open, binding: &Binding, transport: T) -> Answer<T> {
        let (handover, answered) = Handover::new(open, binding.peer.clone(), transport);
        let known = match self.registry.lock().tunnels.get(&open.tunnel) {
            Some(entry) if entry.binding.route == binding.route => Some(entry.handovers.clone()),
            _ => None,
        };
        match known {
            Some(handovers) => handovers.push(handover),
            None => handover.refuse(EndReason::Unknown),
        }
        // A handover answers when it is dropped, so there is an answer.
        let answer = answered.await.unwrap_or(Ok(()));
        if let Err((_, reason)) = &answer {
            let stats = &mut self.registry.lock().stats;
            match reason {
                EndReason::Stale => stats.refused_stale += 1,
                _ => stats.refused_unknown += 1,
            }
        }
        answer
    }

    pub(super) fn identity(&self) -> (Identity, Secret) {
        let (mut tunnel, secret) = {
            let mut random = self.registry.random();
            (random.number(), random.secret())
        };
        let state = self.registry.lock();
        while tunnel == 0 || state.tunnels.contains_key(&tunnel) {
            tunnel = tunnel.wrapping_add(1);
        }
        let instance = self.registry.instance;
        (Identity { instance, tunnel }, secret)
    }

    pub(super) fn keep(
        &self,
        identity: Identity,
        binding: Binding,
        tunnel: &Tunnel,
        role: Role,
    ) -> Kept<T> {
        let arrivals = Handovers::new();
        let ring = Arc::<AtomicUsize>::default();
        let shared = Arc::downgrade(&tunnel.shared);
        let entry = Entry {
            binding,
            handovers: arrivals.clone(),
            shared: Weak::clone(&shared),
            ring: Arc::clone(&ring),
        };
        self.registry.lock().insert(identity.tunnel, entry);
        Kept {
            registry: Arc::clone(&self.registry),
            tunnel: identity.tunnel,
            shared,
            role,
            arrivals,
            ring,
            rank: None,
            waits: None,
        }
    }
}

impl<T> Clone for Keeper<T> {
    fn clone(&self) -> Self {
        let registry = Arc::clone(&self.registry);
        Self { registry }
    }
}

impl<T> fmt::Debug for Keeper<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats();
        f.debug_struct("Keeper")
            .field("instance", &self.registry.instance)
            .field("stats", &stats)
            .finish_non_exhaustive()
    }
}

impl<T> Registry<T> {
    fn lock(&self) -> MutexGuard<'_, KeptTunnels<T>> {
        // No code panics under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn random(&self) -> MutexGuard<'_, Random> {
        // A source that has panicked is asked again.
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Random {
    fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        (self.0)(&mut bytes);
        u64::from_be_bytes(bytes)
    }

    fn secret(&mut self) -> Secret {
        let mut bytes = [0; Secret::LEN];
        (self.0)(&mut bytes);
        Secret::new(bytes)
    }
}

impl<T> KeptTunnels<T> {
    fn insert(&mut self, tunnel: u64, entry: Entry<T>) {
        let route = entry.binding.route.clone();
        *self.routes.entry(route).or_default() += 1;
        self.tunnels.insert(tunnel, entry);
    }

    /// Whether it was there.
    fn remove(&mut self, tunnel: u64) -> bool {
        let Some(entry) = self.tunnels.remove(&tunnel) else {
            return false;
        };
        if let btree_map::Entry::Occupied(mut others) = self.routes.entry(entry.binding.route) {
            *others.get_mut() -= 1;
            if *others.get() == 0 {
                others.remove();
            }
        }
        true
    }

    /// The tunnel has lost its transport. Returns its rank, and those that have to end for it.
    fn wait(
        &mut self,
        tunnel: u64,
        role: Role,
        confirmed: bool,
        limits: KeeperLimits,
    ) -> Option<(Rank, Vec<Weak<Shared>>)> {
        let binding = &self.tunnels.get(&tunnel)?.binding;
        let (group, peer) = (&binding.group, &binding.peer);
        let detached = &mut self.detached;
        let (rank, victims) = detached.join(tunnel, group, peer, role, confirmed, limits);
        let victims = victims.into_iter();
        let victims = victims.filter_map(|victim| self.shared(victim)).collect();
        Some((rank, victims))
    }

    /// Takes the first from those that wait.
    fn first(&mut self) -> Option<Weak<Shared>> {
        let tunnel = self.detached.pop_first()?;
        self.shared(tunnel)
    }

    fn shared(&self, tunnel: u64) -> Option<Weak<Shared>> {
        let entry = self.tunnels.get(&tunnel)?;
        Some(Weak::clone(&entry.shared))
    }
}

/// Asks drivers to end their tunnels. Without the registry's lock, because it locks each tunnel.
fn evict(victims: &[Weak<Shared>]) {
    for victim in victims.iter().filter_map(Weak::upgrade) {
        victim.evict();
    }
}

/// Transports that a [`Keeper`] hands over: where a server's tunnel gets the next one. Only the
/// type of a [`Driver`](super::Driver) names it. [`Keeper`] has an example.
pub struct Kept<T> {
    registry: Arc<Registry<T>>,
    tunnel: u64,
    shared: Weak<Shared>,
    role: Role,
    arrivals: Handovers<T>,
    /// Bytes that the tunnel keeps. They change with every message, so the registry's lock, which
    /// all tunnels share, is not taken for them.
    ring: Arc<AtomicUsize>,
    /// Its rank among those without a transport.
    rank: Option<Rank>,
    /// The same in its budget.
    waits: Option<Waiter>,
}

impl<T> Kept<T> {
    fn end(&mut self, reason: Option<EndReason>) {
        let mut state = self.registry.lock();
        if let Some(rank) = self.rank.take() {
            state.detached.leave(rank);
        }
        if state.remove(self.tunnel) {
            let stats = &mut state.stats;
            match reason {
                Some(EndReason::Expired) => stats.expired += 1,
                Some(EndReason::Evicted) => stats.evicted += 1,
                Some(EndReason::Gap) => stats.gaps += 1,
                Some(_) => stats.failed += 1,
                None => {}
            }
        }
        drop(state);
        self.waits = None;
        self.arrivals.close();
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl<T> Source for Kept<T> {
    type Transport = T;

    const RESUMES: bool = true;

    fn poll_arrival(
        &mut self,
        cx: &mut Context<'_>,
        _: Instant,
        _: Need,
        _: Duration,
    ) -> Poll<Arrival<T>> {
        self.arrivals.poll_next(cx).map(Arrival::Opened)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn next_secret(&mut self) -> Secret {
        self.registry.random().secret()
    }

    fn note(&mut self, _: Instant, news: &News<'_>) {
        match *news {
            News::Attached => {
                let mut state = self.registry.lock();
                state.stats.resumed += 1;
                if let Some(rank) = self.rank.take() {
                    state.detached.leave(rank);
                }
                drop(state);
                self.waits = None;
            }
            News::Detached { confirmed } => {
                self.waits = Waiter::begin(&self.shared, self.role, confirmed);
                let limits = self.registry.limits;
                let mut state = self.registry.lock();
                let waits = state.wait(self.tunnel, self.role, confirmed, limits);
                drop(state);
                if let Some((rank, victims)) = waits {
                    self.rank = Some(rank);
                    evict(&victims);
                }
            }
            News::Ended(reason) => self.end(reason),
            News::Moved { ring, replayed } => {
                self.ring.store(ring, Ordering::Relaxed);
                if replayed != (0, 0) {
                    let stats = &mut self.registry.lock().stats;
                    stats.replayed += replayed.0;
                    stats.replayed_bytes += replayed.1;
                }
            }
            News::Peer(peer) => {
                let mut state = self.registry.lock();
                if let Some(entry) = state.tunnels.get_mut(&self.tunnel) {
                    entry.binding.peer = peer.into();
                }
            }
        }
    }
}

impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("tunnel", &self.tunnel)
            .finish_non_exhaustive()
    }
}
