use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::hash::BuildHasher;
use core::task::{Context, Poll, Waker};
use std::hash::RandomState;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant as Clock;

use super::budget::Account;
use super::{Budget, Closed, TunnelDatagram, TunnelStream};
use crate::session::{
    Config, Event, Instant, OpenError, Reason, Role, Session, Stats, StreamId, Version,
};
use crate::wire::Proto;

/// What the driver and all handles share. The lock is never held while the transport or a socket is polled.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    origin: Clock,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) session: Session,
    pub(super) account: Option<Account>,
    /// The tunnel holds more than its share of a budget that is used up.
    pub(super) pressed: bool,
    /// By [`StreamId::slot`].
    wakers: Vec<StreamWakers>,
    pub(super) incoming: VecDeque<(StreamId, Proto, u16)>,
    pub(super) acceptor: Option<Waker>,
    pub(super) accepting: bool,
    /// Those who wait for the end of the tunnel.
    watchers: BTreeMap<u64, Waker>,
    next_watcher: u64,
    pub(super) driver: Option<Waker>,
    /// What the driver's timer is set to.
    pub(super) armed: Option<Instant>,
    /// The driver has read what `can_receive` was before it went to sleep.
    pub(super) driver_stalled: bool,
    /// Handles that keep the tunnel up.
    pub(super) handles: usize,
    pub(super) shutdown: bool,
    pub(super) closed: Option<Closed>,
}

#[derive(Debug, Default)]
pub(super) struct StreamWakers {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
    pub(super) established: Option<Waker>,
    pub(super) is_established: bool,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics under the lock; if it did, the session is still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// tokio's clock, which the driver's timer reads too unless the caller brought another.
    pub(super) fn now(&self) -> Instant {
        self.at(tokio::time::Instant::now().into_std())
    }

    pub(super) fn at(&self, clock: Clock) -> Instant {
        Instant::default() + clock.saturating_duration_since(self.origin)
    }

    pub(super) fn clock(&self, instant: Instant) -> Clock {
        self.origin + (instant - Instant::default())
    }

    /// Does something to the session, and wakes the driver if that gave it work.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let outcome = act(&mut state);
        state.settle();
        let driver = state.driver_if_needed();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        outcome
    }
}

impl State {
    fn driver_if_needed(&mut self) -> Option<Waker> {
        let session = &self.session;
        let due = session.poll_timeout();
        let needed = session.has_transmit()
            || session.has_event()
            || due.is_some_and(|due| self.armed.is_none_or(|armed| due < armed))
            || (self.driver_stalled && session.can_receive())
            || self.shutdown
            || self.handles == 0;
        if needed { self.driver.take() } else { None }
    }

    /// Messages of the peer that were of no use to anybody.
    pub(super) fn useless(&self) -> u64 {
        let stats = self.session.stats();
        stats.violations + stats.refused
    }

    /// Keeps the tunnel within the budget it has joined.
    pub(super) fn settle(&mut self) {
        let Some(account) = &mut self.account else {
            return;
        };
        let session = &self.session;
        let share = account.settle(session.memory(), session.parties());
        self.session.set_thrifty(account.is_scarce());
        self.pressed = share.is_some();
        self.session.set_pressed(self.pressed);
        if let Some(share) = share {
            self.session.shed(share);
            account.charge(self.session.memory());
        }
    }

    pub(super) fn wakers(&mut self, stream: StreamId) -> &mut StreamWakers {
        let slot = stream.slot();
        if self.wakers.len() <= slot {
            self.wakers.resize_with(slot + 1, StreamWakers::default);
        }
        // Just made long enough.
        #[allow(clippy::indexing_slicing)]
        &mut self.wakers[slot]
    }

    /// Turns the session's events into wake-ups, to be done after the lock is gone.
    pub(super) fn dispatch(&mut self, now: Instant, wake: &mut Vec<Waker>) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Readable(stream) => {
                    let wakers = self.wakers(stream);
                    wake.extend(wakers.read.take());
                    if let Some(waiting) = wakers.established.take() {
                        wake.push(waiting);
                    }
                }
                Event::Writable(stream) => wake.extend(self.wakers(stream).write.take()),
                Event::Established(stream) => {
                    let wakers = self.wakers(stream);
                    wakers.is_established = true;
                    wake.extend(wakers.established.take());
                }
                Event::Incoming {
                    stream,
                    proto,
                    port,
                } if self.accepting => {
                    self.incoming.push_back((stream, proto, port));
                    wake.extend(self.acceptor.take());
                }
                Event::Incoming { stream, .. } => {
                    let text = "nobody accepts connections here";
                    self.session.reject(stream, Reason::Denied, text);
                }
                Event::GoAway => self.wake_watchers(wake),
                Event::PeerDead => self.close(Closed::PeerDead, now, wake),
            }
        }
    }

    /// The tunnel has ended: everybody is told.
    pub(super) fn close(&mut self, closed: Closed, now: Instant, wake: &mut Vec<Waker>) {
        if self.closed.is_none() {
            self.session
                .handle_closed(now, Reason::Gone, &closed.text());
            self.settle();
            self.closed = Some(closed);
        }
        self.wake_watchers(wake);
        wake.extend(self.acceptor.take());
        self.dispatch(now, wake);
    }

    /// What the timer is to be set to.
    pub(super) fn arm(&mut self) -> Option<Instant> {
        let next = self.session.poll_timeout()?;
        // A deadline that moved away is left as it is: it fires early, and nothing is due then.
        let at = self.armed.map_or(next, |armed| armed.min(next));
        self.armed = Some(at);
        self.armed
    }

    fn wake_watchers(&mut self, wake: &mut Vec<Waker>) {
        wake.extend(core::mem::take(&mut self.watchers).into_values());
    }
}

/// One who waits for the end of the tunnel. When it stops waiting, nothing of it stays.
struct Watch<'a> {
    shared: &'a Shared,
    key: Option<u64>,
}

impl Watch<'_> {
    fn poll<R>(&mut self, cx: &Context<'_>, outcome: impl FnOnce(&State) -> Option<R>) -> Poll<R> {
        let mut state = self.shared.lock();
        if let Some(outcome) = outcome(&state) {
            return Poll::Ready(outcome);
        }
        let key = *self.key.get_or_insert(state.next_watcher);
        state.next_watcher = state.next_watcher.max(key + 1);
        state.watchers.insert(key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let watcher = self.shared.lock().watchers.remove(&key);
        // Only now, without the lock: it may be the last thing that holds its task.
        drop(watcher);
    }
}

/// Opens connections through a tunnel. Cheap to clone.
///
/// The tunnel ends gracefully when every handle is dropped: all clones of this, all streams, and at an
/// accepting end the [`Acceptor`](super::Acceptor).
#[derive(Debug)]
pub struct Mux {
    pub(super) shared: Arc<Shared>,
}

impl Mux {
    pub(super) fn new(role: Role, version: Version, mut config: Config, origin: Clock) -> Self {
        config.first_id.get_or_insert_with(random_id);
        let session = Session::new(role, version, config, Instant::default());
        let state = State {
            session,
            account: None,
            pressed: false,
            wakers: Vec::new(),
            incoming: VecDeque::new(),
            acceptor: None,
            accepting: true,
            watchers: BTreeMap::new(),
            next_watcher: 0,
            driver: None,
            armed: None,
            driver_stalled: false,
            handles: 0,
            shutdown: false,
            closed: None,
        };
        let state = Mutex::new(state);
        Self::of(&Arc::new(Shared { state, origin }))
    }

    pub(super) fn of(shared: &Arc<Shared>) -> Self {
        shared.lock().handles += 1;
        let shared = Arc::clone(shared);
        Self { shared }
    }

    /// Opens a byte stream to `port` at the other side. Does not wait: data may be written at once.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_tcp(&self, port: u16) -> Result<TunnelStream, OpenError> {
        let stream = self.open(|session, now| session.open_tcp(port, now))?;
        Ok(TunnelStream::new(stream))
    }

    /// Opens a datagram flow to `port` at the other side. Does not wait.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_udp(&self, port: u16) -> Result<TunnelDatagram, OpenError> {
        let flow = self.open(|session, now| session.open_udp(port, now))?;
        Ok(TunnelDatagram::new(flow))
    }

    fn open(
        &self,
        open: impl FnOnce(&mut Session, Instant) -> Result<StreamId, OpenError>,
    ) -> Result<Handle, OpenError> {
        let now = self.shared.now();
        self.shared.with(|state| {
            let id = open(&mut state.session, now)?;
            Ok(Handle::new(&self.shared, state, id))
        })
    }

    /// Takes no new connections any more; open streams go on. The other side is told (v2).
    pub fn drain(&self) {
        let mut wake = Vec::new();
        self.shared.with(|state| {
            state.session.drain();
            state.wake_watchers(&mut wake);
        });
        for waker in wake {
            waker.wake();
        }
    }

    /// Resets every stream and ends the tunnel.
    pub fn shutdown(&self) {
        self.shared.with(|state| {
            state.session.shutdown();
            state.shutdown = true;
        });
    }

    /// Charges what this tunnel holds to a budget that it shares with others, from now on.
    pub fn join_budget(&self, budget: &Budget) {
        self.shared
            .with(|state| state.account = Some(Account::open(budget)));
    }

    /// Measures the round trip; see [`rtt`](Self::rtt). v2 only.
    pub fn ping(&self) {
        self.shared.with(|state| state.session.ping());
    }

    /// Waits for the end of the tunnel and says why it came.
    pub async fn closed(&self) -> Closed {
        let mut watch = self.watch();
        poll_fn(|cx| watch.poll(cx, |state| state.closed.clone())).await
    }

    /// Waits until this end or the other takes no new connections, or the tunnel has ended.
    pub async fn draining(&self) {
        let mut watch = self.watch();
        let over = |state: &State| state.session.is_draining() || state.closed.is_some();
        poll_fn(|cx| watch.poll(cx, |state| over(state).then_some(()))).await;
    }

    fn watch(&self) -> Watch<'_> {
        Watch {
            shared: &self.shared,
            key: None,
        }
    }

    /// Why the tunnel has ended, if it has.
    #[must_use]
    pub fn is_closed(&self) -> Option<Closed> {
        self.shared.lock().closed.clone()
    }

    /// Counters of the session.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.lock().session.stats()
    }

    /// The round trip to the other side, once measured. v2 only.
    #[must_use]
    pub fn rtt(&self) -> Option<core::time::Duration> {
        self.shared.lock().session.rtt()
    }
}

impl Clone for Mux {
    fn clone(&self) -> Self {
        Self::of(&self.shared)
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.shared.with(|state| state.handles -= 1);
    }
}

/// One stream's hold on the tunnel: dropping it releases the stream.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) id: StreamId,
}

impl Handle {
    pub(super) fn new(shared: &Arc<Shared>, state: &mut State, id: StreamId) -> Self {
        *state.wakers(id) = StreamWakers::default();
        state.handles += 1;
        let shared = Arc::clone(shared);
        Self { shared, id }
    }

    /// Does something to the stream.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut State, StreamId) -> R) -> R {
        self.shared.with(|state| act(state, self.id))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let now = self.shared.now();
        let wakers = self.with(|state, id| {
            state.session.release(id, now);
            state.handles -= 1;
            core::mem::take(state.wakers(id))
        });
        // Only now, without the lock: they may be the last that holds their tasks.
        drop(wakers);
    }
}

/// A first client id that other processes do not have (PROTOCOL.md section 2.3).
fn random_id() -> u32 {
    // Keyed by the operating system, once a process; each state after it has a key of its own.
    let random = RandomState::new().hash_one(());
    (random >> 32) as u32
}

/// Keeps the waker of the task that waits, without cloning one that is the same.
pub(super) fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}
