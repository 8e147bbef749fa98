//! The tunnels of a session, spread over the threads: when they are opened and closed, and which of
//! them a new connection takes.
//!
//! When all tunnels are busy or taken, another one is opened, as far as `--tunnels` allows. A
//! tunnel other than the first is closed when it was without connections for [`IDLE`], unless
//! another would be opened in its place. [`load`] has the rules.

mod load;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_tunnel::mux::Mux;
use kohakuriver_tunnel::wire::Proto;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::client::access::is_sound;
use crate::client::connector::{Connected, Connector};
use crate::common::threads::{Thread, Threads};
use load::{Load, choose, is_spare, wanted};

/// Time between two looks at the tunnels, while something moves or is new.
const TICK: Duration = Duration::from_millis(50);

/// The same otherwise.
const CALM_TICK: Duration = Duration::from_secs(1);

/// How long the short ticks go on.
const LIVELY: Duration = Duration::from_secs(2);

const IDLE: Duration = Duration::from_secs(10);

/// Between two attempts to open another tunnel, after one failed or the tunnel was lost.
const PAUSE: Duration = Duration::from_secs(30);

/// Shared by the ports of a session.
pub struct Lanes {
    /// The first tunnel runs on the main one.
    threads: Threads,
    state: Mutex<State>,
    used: Notify,
}

struct State {
    /// The place of the first tunnel is always there, up or down.
    lanes: Vec<Lane>,
    /// In version 1 there is only one tunnel, and before the first and after the last one none.
    v2: bool,
    opening: bool,
    /// Tunnels opened so far, without the first.
    opened: u64,
    /// No tunnel is opened before this.
    not_before: Instant,
}

/// A tunnel, or the place for one.
#[derive(Default)]
struct Lane {
    mux: Option<Mux>,
    /// Distinguishes it from others that had this place before.
    number: u64,
    load: Load,
    /// Bytes that it had moved when they were last counted.
    total: u64,
    /// Time without connections.
    idle: Duration,
}

/// The place of a connection. It counts until it is dropped.
pub struct Seat {
    lanes: Arc<Lanes>,
    proto: Proto,
    /// The position of its tunnel.
    pub index: usize,
    /// Its tunnel, unless that is the first one.
    pub mux: Option<Mux>,
}

impl Lanes {
    /// Without a tunnel yet. `most` bounds their number; by default there may be one for each
    /// thread, and one that is not busy.
    pub fn on(threads: &Threads, most: Option<usize>) -> Arc<Self> {
        let most = most.unwrap_or_else(|| threads.count() + 1);
        let lanes = (0..most).map(|_| Lane::default()).collect();
        Arc::new(Self {
            threads: threads.clone(),
            state: Mutex::new(State {
                lanes,
                v2: false,
                opening: false,
                opened: 0,
                not_before: Instant::now(),
            }),
            used: Notify::new(),
        })
    }

    /// Those of another session.
    pub fn of_another(&self) -> Arc<Self> {
        let most = self.state.lock().lanes.len();
        Self::on(&self.threads, Some(most))
    }

    /// The first tunnel was connected.
    pub fn first(&self, connected: &Connected) {
        let mut state = self.state.lock();
        state.v2 = connected.v2;
        if let Some(lane) = state.lanes.first_mut() {
            lane.mux = Some(connected.mux.clone());
            lane.total = 0;
        }
    }

    /// Whether the first tunnel speaks version 2.
    pub fn is_v2(&self) -> bool {
        self.state.lock().v2
    }

    /// The place of a new connection, or flow.
    pub fn choose(self: &Arc<Self>, proto: Proto) -> Seat {
        let mut state = self.state.lock();
        let open = state.lanes.iter().enumerate();
        let loads = open.map(|(index, lane)| (index == 0 || lane.is_up()).then_some(lane.load));
        let index = choose(&loads.collect::<Vec<_>>(), proto);
        let mut mux = None;
        if let Some(lane) = state.lanes.get_mut(index) {
            lane.load.entered(proto);
            lane.idle = Duration::ZERO;
            mux = lane.mux.clone().filter(|_| index > 0);
        }
        drop(state);
        self.used.notify_one();
        Seat {
            lanes: Arc::clone(self),
            proto,
            index,
            mux,
        }
    }

    /// Opens and closes tunnels, until [`close`](Self::close).
    pub async fn tend(self: &Arc<Self>, connector: Connector) -> Infallible {
        if self.state.lock().lanes.len() == 1 {
            return std::future::pending().await;
        }
        let mut seen = Instant::now();
        let mut lively_until = seen;
        loop {
            if seen >= lively_until {
                let calm = if self.is_unused() {
                    Duration::MAX
                } else {
                    CALM_TICK
                };
                if timeout(calm, self.used.notified()).await.is_ok() {
                    lively_until = Instant::now() + LIVELY;
                }
            }
            if seen < lively_until {
                sleep(TICK).await;
            }
            let now = Instant::now();
            if self.look(now - seen) {
                lively_until = now + LIVELY;
            }
            seen = now;
            if let Some(index) = self.opens() {
                let lanes = Arc::clone(self);
                self.thread(index)
                    .spawn(lanes.run(index, connector.clone()));
            }
        }
    }

    /// Closes all tunnels other than the first. No other is opened.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.v2 = false;
        state.lanes.iter_mut().skip(1).for_each(Lane::close);
    }

    /// Whether there is nothing to look at until the next connection.
    fn is_unused(&self) -> bool {
        let state = self.state.lock();
        let mut lanes = state.lanes.iter().enumerate();
        lanes
            .all(|(index, lane)| lane.load.connections() == 0 && (index == 0 || lane.mux.is_none()))
    }

    /// Measures the loads since the last look and closes what is idle. Returns whether anything
    /// moves.
    fn look(&self, elapsed: Duration) -> bool {
        let mut state = self.state.lock();
        let mut moves = false;
        for lane in &mut state.lanes {
            moves |= lane.look(elapsed);
        }
        for index in 1..state.lanes.len() {
            let is_idle = state.lanes.get(index).is_some_and(Lane::is_idle);
            if is_idle && !is_spare(&state.loads(), index) {
                if let Some(lane) = state.lanes.get_mut(index) {
                    lane.close();
                }
            }
        }
        moves
    }

    fn thread(&self, index: usize) -> &Thread {
        self.threads.at(self.position(index))
    }

    /// The position of a tunnel's thread. Several share one if there are fewer threads.
    fn position(&self, index: usize) -> usize {
        index % self.threads.count()
    }

    /// The place of a tunnel that is to be opened now, if any.
    fn opens(&self) -> Option<usize> {
        let mut state = self.state.lock();
        let may = state.v2 && !state.opening && state.not_before <= Instant::now();
        let index = wanted(&state.loads()).filter(|index| may && *index > 0)?;
        state.opening = true;
        Some(index)
    }

    /// A tunnel other than the first, from its connection to its end.
    async fn run(self: Arc<Self>, index: usize, connector: Connector) {
        let mut connector = match self.position(index) {
            0 => connector,
            _ => connector.for_thread(),
        };
        let mux = match connector.connect().await {
            Ok(connected) => connected.mux,
            Err(refusal) => {
                tracing::debug!("no other tunnel: {refusal:?}");
                let mut state = self.state.lock();
                state.opening = false;
                state.not_before = Instant::now() + PAUSE;
                return;
            }
        };
        let tunnel = mux.tunnel().clone();
        let Some(number) = self.opened(index, mux) else {
            return;
        };
        tracing::debug!(index, "another tunnel");
        let since = Instant::now();
        let over = connector.outlast(&tunnel, |_| ()).await;
        let was_used = self.ended(index, number, since);
        let lost = was_used && matches!(tunnel.close_reason(), Some(Err(_)));
        connector.outage.leaves(&over.cause, over.down, lost);
    }

    /// `None` if it is not wanted any more.
    fn opened(&self, index: usize, mux: Mux) -> Option<u64> {
        let mut state = self.state.lock();
        state.opening = false;
        state.opened += 1;
        let (number, wanted) = (state.opened, state.v2);
        let lane = state.lanes.get_mut(index).filter(|_| wanted)?;
        *lane = Lane {
            mux: Some(mux),
            number,
            load: lane.load,
            ..Lane::default()
        };
        Some(number)
    }

    /// Returns whether it may have had connections.
    fn ended(&self, index: usize, number: u64, since: Instant) -> bool {
        let mut state = self.state.lock();
        let lane = state.lanes.get_mut(index);
        // Not if another one is there already.
        let Some(lane) = lane.filter(|lane| lane.number == number) else {
            return true;
        };
        // They may have ended since the last look.
        let was_used = lane.idle.is_zero();
        // One that was closed here is not there any more.
        if lane.mux.take().is_some() {
            state.not_before = state.not_before.max(since + PAUSE);
        }
        was_used
    }
}

impl State {
    /// Those of the tunnels that are there.
    fn loads(&self) -> Vec<Option<Load>> {
        let load = |lane: &Lane| lane.mux.is_some().then_some(lane.load);
        self.lanes.iter().map(load).collect()
    }
}

impl Lane {
    fn is_up(&self) -> bool {
        self.mux.as_ref().is_some_and(is_sound)
    }

    /// Bytes moved since the last call.
    fn moved(&mut self) -> u64 {
        let stats = self.mux.as_ref().map(|mux| mux.tunnel().stats());
        let total = stats.map_or(0, |stats| stats.bytes_sent + stats.bytes_received);
        total.saturating_sub(std::mem::replace(&mut self.total, total))
    }

    /// Returns whether it has moved more than keepalives do.
    fn look(&mut self, elapsed: Duration) -> bool {
        let moved = self.moved();
        self.load.moved(moved, elapsed);
        self.idle = match self.load.connections() {
            0 => self.idle.saturating_add(elapsed),
            _ => Duration::ZERO,
        };
        moved > 0
    }

    fn leave(&mut self, proto: Proto) {
        self.load.left(proto);
        if self.load.connections() == 0 {
            self.moved();
        }
    }

    fn is_idle(&self) -> bool {
        self.mux.is_some() && self.idle >= IDLE
    }

    /// The tunnel ends with its last connection.
    fn close(&mut self) {
        if let Some(mux) = self.mux.take() {
            mux.tunnel().drain();
        }
    }
}

impl Seat {
    /// Runs a task on the thread of its tunnel.
    pub fn spawn<F>(self, task: impl FnOnce(Self) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let lanes = Arc::clone(&self.lanes);
        lanes.thread(self.index).spawn(task(self));
    }

    /// The thread of its tunnel.
    pub fn thread(&self) -> &Thread {
        self.lanes.thread(self.index)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(lane) = self.lanes.state.lock().lanes.get_mut(self.index) {
            lane.leave(self.proto);
        }
    }
}
