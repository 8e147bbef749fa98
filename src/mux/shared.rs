use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::attachment::Attached;
use super::budget::Account;
use super::flood::Useless;
use super::stoppable::TunnelClock;
use super::watchers::Watchers;
use super::{Budget, TunnelError};
use crate::session::{Allowance, Event, Instant, Reason, Session, StreamId, StreamStats};
use crate::wire::{Proto, RawFrame};

/// What the driver and all handles share. The lock is never held while the transport or a
/// socket is polled.
pub(super) struct Shared {
    state: Mutex<TunnelState>,
    pub(super) clock: TunnelClock,
    /// As the state says, for readers without the lock.
    detached: AtomicBool,
}

pub(super) struct TunnelState {
    pub(super) session: Session,
    pub(super) account: Option<Account>,
    /// When the account was settled last.
    pub(super) allowance: Allowance,
    /// Indexed by [`StreamId::slot`].
    wakers: Vec<StreamWakers>,
    /// Tasks that wait until a stream's queued data is transmitted, by the stream's client id. If
    /// the stream ends before that, its reader is woken, and they are of one task.
    transmitted: BTreeMap<u32, (StreamId, Waker)>,
    pub(super) requests: Requests,
    pub(super) watchers: Watchers,
    pub(super) driver: DriverState,
    /// Handles that keep the tunnel up.
    pub(super) handles: usize,
    /// The tunnel ends as soon as it has no streams.
    pub(super) closing: bool,
    pub(super) shutdown: bool,
    /// Code and reason for closing the transport.
    pub(super) goodbye: Option<(u16, String)>,
    pub(super) closed: Option<Result<(), TunnelError>>,
    pub(super) attached: Attached,
    /// The peer was silent for too long on this transport.
    pub(super) silent: bool,
    /// The place of this tunnel, which had no transport, was needed.
    pub(super) evicted: bool,
}

/// Connections that the peer requests, for the acceptor.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) queue: VecDeque<(StreamId, Proto, u16)>,
    pub(super) acceptor: Option<Waker>,
    /// There is an acceptor.
    pub(super) accepting: bool,
}

/// What the driver waits for.
#[derive(Debug, Default)]
pub(super) struct DriverState {
    /// None while it runs, or will.
    pub(super) waker: Option<Waker>,
    /// When its timer fires.
    pub(super) armed: Option<Instant>,
    /// `can_receive` was false when it last looked.
    pub(super) stalled: bool,
    /// The transport accepted nothing when it last wrote. It wakes the driver itself.
    pub(super) blocked: bool,
}

#[derive(Debug, Default)]
pub(super) struct StreamWakers {
    read: Option<Waker>,
    write: Option<Waker>,
    established: Option<Waker>,
    pub(super) is_established: bool,
}

/// What a task waits for on a stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum Awaited {
    Readable,
    Writable,
    Established,
}

/// Handles are shown in logs: without the lock, and without what the streams hold.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(session: Session, clock: TunnelClock, budget: Option<&Budget>) -> Self {
        let state = TunnelState {
            session,
            account: budget.map(Account::open),
            allowance: Allowance::Ample,
            wakers: Vec::new(),
            transmitted: BTreeMap::new(),
            requests: Requests::default(),
            watchers: Watchers::default(),
            driver: DriverState::default(),
            handles: 0,
            closing: false,
            shutdown: false,
            goodbye: None,
            closed: None,
            attached: Attached::default(),
            silent: false,
            evicted: false,
        };
        let state = Mutex::new(state);
        Self {
            state,
            clock,
            detached: AtomicBool::new(false),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, TunnelState> {
        // No code panics under the lock. If it did, using the session would still be the best
        // option.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session's time.
    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Whether the tunnel waits for a transport.
    #[inline]
    pub(super) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Relaxed)
    }

    pub(super) fn set_detached(&self, detached: bool) {
        self.detached.store(detached, Ordering::Relaxed);
    }

    /// The peer of a resumable tunnel has answered.
    pub(super) fn confirm(&self) {
        self.waking(|state, wake| {
            state.attached.confirmed = true;
            state.watchers.wake(wake);
        });
    }

    /// The place of the tunnel is needed. It ends, if it still has no transport.
    pub(super) fn evict(&self) {
        self.with(|state| state.evicted = true);
    }

    /// Calls `act` on the session, and wakes the driver if that produced work.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut TunnelState) -> R) -> R {
        self.waking(|state, _| act(state))
    }

    /// As [`with`](Self::with), and wakes the tasks whose wakers `act` collects.
    pub(super) fn waking<R>(&self, act: impl FnOnce(&mut TunnelState, &mut Vec<Waker>) -> R) -> R {
        let mut wake = Vec::new();
        let mut state = self.lock();
        let outcome = act(&mut state, &mut wake);
        Self::release(state);
        wake_all(&mut wake);
        outcome
    }

    /// Unlocks the state after a call of the session, and wakes the driver if that produced work.
    pub(super) fn release(mut state: MutexGuard<'_, TunnelState>) {
        state.settle();
        let driver = state.driver_if_needed();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl StreamWakers {
    fn waiting_for(&mut self, awaited: Awaited) -> &mut Option<Waker> {
        match awaited {
            Awaited::Readable => &mut self.read,
            Awaited::Writable => &mut self.write,
            Awaited::Established => &mut self.established,
        }
    }
}

impl TunnelState {
    fn driver_if_needed(&mut self) -> Option<Waker> {
        self.driver.waker.as_ref()?;
        let session = &self.session;
        let due = session.poll_timeout();
        let can_write = !self.driver.blocked && !self.attached.is_detached();
        let needed = (can_write && session.has_transmit())
            || session.has_event()
            || due.is_some_and(|due| self.driver.armed.is_none_or(|armed| due < armed))
            || (self.driver.stalled && session.can_receive())
            || self.shutdown
            || self.evicted
            || self.is_unwanted()
            || self.is_surprise();
        needed.then(|| self.driver.waker.take()).flatten()
    }

    /// Whether a tunnel without a transport is kept for a short time only: no connection is there,
    /// nor the message that ends one. Nobody waits long for the end of a tunnel that is not needed.
    pub(super) fn is_idle(&self) -> bool {
        let session = &self.session;
        !session.has_live_streams() && (self.is_unwanted() || !session.has_untold_end())
    }

    /// Whether the driver, which waits for a transport, does not know that the tunnel is idle, or
    /// is not any more.
    pub(super) fn is_surprise(&self) -> bool {
        self.attached.is_detached() && self.attached.idle != self.is_idle()
    }

    /// No handle needs the tunnel any more. After `close` those of ended streams do not.
    pub(super) fn is_unwanted(&self) -> bool {
        self.handles == 0 || (self.closing && !self.session.has_live_streams())
    }

    /// Nobody needs the tunnel, and no stream has to send anything more.
    pub(super) fn is_done(&self) -> bool {
        self.is_unwanted() && !self.session.has_live_streams()
    }

    /// Resets every stream and ends the tunnel.
    pub(super) fn shut_down(&mut self, goodbye: Option<(u16, String)>, wake: &mut Vec<Waker>) {
        if goodbye.is_some() {
            self.goodbye = goodbye;
        }
        self.drain(wake);
        self.session.shutdown();
        self.shutdown = true;
    }

    pub(super) fn useless(&self) -> Useless {
        let stats = self.session.stats();
        Useless {
            senseless: stats.violations + stats.empty,
            refused: stats.refused,
            stray: stats.stray_excess,
        }
    }

    /// Keeps the tunnel within its budget.
    pub(super) fn settle(&mut self) {
        let Some(account) = &mut self.account else {
            return;
        };
        let session = &self.session;
        let (held, kept, parties) = (session.memory(), self.attached.ring, session.parties());
        let is_ample = self.allowance == Allowance::Ample;
        if is_ample && account.stays_ample(held + kept, parties) {
            return;
        }
        self.allowance = account.settle(held, kept, parties);
        self.session.set_allowance(self.allowance);
        let left = self.session.memory();
        if left != held {
            account.charge(left + kept);
        }
    }

    pub(super) fn wakers(&mut self, stream: StreamId) -> &mut StreamWakers {
        let slot = stream.slot();
        if self.wakers.len() <= slot {
            self.wakers.resize_with(slot + 1, StreamWakers::default);
        }
        // The vector was just made long enough.
        #[allow(clippy::indexing_slicing)]
        &mut self.wakers[slot]
    }

    /// Collects the wakers for the session's events, to be called after the lock is released.
    /// Returns whether a writer is among them.
    pub(super) fn dispatch(&mut self, now: Instant, wake: &mut Vec<Waker>) -> bool {
        let mut writers = false;
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Readable(stream) => {
                    let wakers = self.wakers(stream);
                    wake.extend(wakers.read.take());
                    if let Some(waiting) = wakers.established.take() {
                        wake.push(waiting);
                    }
                }
                Event::Writable(stream) => {
                    let writer = self.wakers(stream).write.take();
                    writers |= writer.is_some();
                    wake.extend(writer);
                }
                Event::Established(stream) => {
                    let wakers = self.wakers(stream);
                    wakers.is_established = true;
                    wake.extend(wakers.established.take());
                }
                Event::Incoming {
                    stream,
                    proto,
                    port,
                } if self.requests.accepting => {
                    self.requests.queue.push_back((stream, proto, port));
                    wake.extend(self.requests.acceptor.take());
                }
                Event::Incoming { stream, .. } => {
                    let text = "nobody accepts connections here";
                    self.session.reject(stream, Reason::Denied, text);
                }
                Event::GoAway | Event::Violation => self.watchers.wake(wake),
                Event::PeerDead if !self.session.is_closed() => self.silent = true,
                Event::PeerDead => self.close(Err(TunnelError::PeerDead), now, wake),
            }
        }
        writers
    }

    /// As [`register`], for a task that waits for this on the stream.
    #[must_use]
    pub(super) fn register(
        &mut self,
        stream: StreamId,
        awaited: Awaited,
        cx: &Context<'_>,
    ) -> Option<Waker> {
        register(self.wakers(stream).waiting_for(awaited), cx)
    }

    /// Bytes queued on a stream.
    pub(super) fn unsent(&self, stream: StreamId) -> usize {
        let stats = self.session.stream_stats(stream);
        stats.map_or(0, |stats| stats.unsent)
    }

    /// As [`register`].
    pub(super) fn register_transmitted(
        &mut self,
        stream: StreamId,
        cx: &Context<'_>,
    ) -> Option<Waker> {
        let id = self.session.client_id(stream)?;
        let waiting = (stream, cx.waker().clone());
        let replaced = self.transmitted.insert(id.0, waiting);
        replaced.map(|(_, waker)| waker)
    }

    /// Wakes the task that waits for this message, if it is the last of its stream.
    pub(super) fn note_transmitted(&mut self, message: &[u8], wake: &mut Vec<Waker>) {
        if self.transmitted.is_empty() {
            return;
        }
        let Ok(message) = RawFrame::new(message) else {
            return;
        };
        if let Entry::Occupied(waiting) = self.transmitted.entry(message.id().0) {
            let stats = self.session.stream_stats(waiting.get().0);
            if stats.is_none_or(|stats| stats.unsent == 0) {
                wake.push(waiting.remove().1);
            }
        }
    }

    fn forget_transmitted(&mut self, stream: StreamId) -> Option<Waker> {
        if self.transmitted.is_empty() {
            return None;
        }
        let id = self.session.client_id(stream)?;
        match self.transmitted.entry(id.0) {
            // The id may belong to another stream by now.
            Entry::Occupied(waiting) if waiting.get().0 == stream => Some(waiting.remove().1),
            _ => None,
        }
    }

    /// The tunnel has ended: wakes every task.
    pub(super) fn close(
        &mut self,
        closed: Result<(), TunnelError>,
        now: Instant,
        wake: &mut Vec<Waker>,
    ) {
        if self.closed.is_none() {
            let text = match &closed {
                Ok(()) => "the tunnel ended: finished".to_string(),
                Err(error) => format!("the tunnel ended: {error}"),
            };
            self.session.handle_closed(now, Reason::Gone, &text);
            // The driver's ring is of no use any more.
            self.attached.ring = 0;
            self.settle();
            if let Some(account) = &mut self.account {
                account.charge(self.session.memory());
                account.note_flood(false);
                account.note_busy(false);
            }
            self.closed = Some(closed);
        }
        self.watchers.wake(wake);
        wake.extend(self.requests.acceptor.take());
        // Nothing wakes it any more, so it must not keep its task alive.
        wake.extend(self.driver.waker.take());
        self.dispatch(now, wake);
    }

    /// When the timer has to fire.
    pub(super) fn arm(&mut self) -> Option<Instant> {
        let Some(next) = self.session.poll_timeout() else {
            self.driver.armed = None;
            return None;
        };
        // A deadline that moved to later is not rearmed: the timer fires early, and nothing is due
        // then.
        let at = self.driver.armed.map_or(next, |armed| armed.min(next));
        self.driver.armed = Some(at);
        self.driver.armed
    }

    /// Takes no new connections any more.
    pub(super) fn drain(&mut self, wake: &mut Vec<Waker>) {
        self.session.drain();
        self.watchers.wake(wake);
    }

    /// Collects the wakers of all tasks that read.
    pub(super) fn wake_readers(&mut self, wake: &mut Vec<Waker>) {
        wake.extend(
            self.wakers
                .iter_mut()
                .filter_map(|wakers| wakers.read.take()),
        );
    }
}

/// A reference to one stream of the tunnel. Dropping it releases the stream.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) id: StreamId,
}

impl Handle {
    pub(super) fn new(shared: &Arc<Shared>, state: &mut TunnelState, id: StreamId) -> Self {
        *state.wakers(id) = StreamWakers::default();
        state.handles += 1;
        let shared = Arc::clone(shared);
        Self { shared, id }
    }

    pub(super) fn stats(&self) -> Option<StreamStats> {
        self.shared.lock().session.stream_stats(self.id)
    }

    /// Calls `act` on the session and the stream.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut TunnelState, StreamId) -> R) -> R {
        self.shared.with(|state| act(state, self.id))
    }

    /// As [`with`](Self::with). While the result is pending, the task is woken for this event.
    pub(super) fn poll<R>(
        &self,
        cx: &Context<'_>,
        awaited: Awaited,
        act: impl FnOnce(&mut TunnelState, StreamId) -> Poll<R>,
    ) -> Poll<R> {
        let (outcome, replaced) = self.with(|state, id| {
            let outcome = act(state, id);
            let replaced = match outcome {
                Poll::Pending => state.register(id, awaited, cx),
                Poll::Ready(_) => None,
            };
            (outcome, replaced)
        });
        drop(replaced);
        outcome
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let now = self.shared.now();
        let wakers = self.shared.waking(|state, wake| {
            let id = self.id;
            let transmitted = state.forget_transmitted(id);
            state.session.release(id, now);
            state.handles -= 1;
            let mut wakers = core::mem::take(state.wakers(id));
            // Its future does not borrow the stream.
            wake.extend(wakers.established.take());
            let slots = state.session.slots();
            if state.wakers.len() > 64.max(4 * slots) {
                state.wakers.truncate(slots);
                state.wakers.shrink_to_fit();
            }
            (wakers, transmitted)
        });
        // As with `register`.
        drop(wakers);
    }
}

/// Stores the waker of the waiting task, unless it is there already. Returns the one that it
/// replaces, to be dropped without the lock: it may be the last reference to its task.
#[must_use]
pub(super) fn register(place: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match place {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        _ => place.replace(cx.waker().clone()),
    }
}

/// To be called without the lock.
pub(super) fn wake_all(wake: &mut Vec<Waker>) {
    if !wake.is_empty() {
        wake.drain(..).for_each(Waker::wake);
    }
}
