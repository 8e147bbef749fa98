use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::ops::ControlFlow;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::budget::Account;
use super::closing::{CLOSE_TIMEOUT, Closing};
use super::flood::{FloodControl, Inrush, Useless};
use super::path::{Inward, Path, is_end};
use super::read_turn::ReadTurn;
use super::resuming::{Finish, MaybeResuming, Resuming};
use super::shared::{TunnelState, register, wake_all};
use super::source::{Once, Source};
use super::stoppable::Now;
use super::{Timer, TokioTimer, Tunnel, TunnelError};
use crate::resume::{EndReason, Kind};
use crate::session::{Allowance, Instant, Transmit};
use crate::transport::{Carrier, Transport};

/// The close code of an agent's tunnel whose place another one took (PROTOCOL.md section 4.1).
const REPLACED: u16 = 4001;

/// Runs a tunnel: a future that owns the transport, for any executor. It completes when the tunnel
/// ends.
///
/// Dropping it ends the tunnel at once, without a word to the peer.
///
/// ```
/// use kohakuriver_tunnel::mux::{self, TunnelError};
/// use kohakuriver_tunnel::transport::Plain;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (socket, far) = tokio::io::duplex(1 << 16);
/// let (mux, driver) = mux::builder().opener(mux::length_prefixed(socket), Plain);
/// let driver = tokio::spawn(driver);
/// drop(far); // the other side goes away
/// assert_eq!(driver.await.unwrap(), Err(TunnelError::Ended(None)));
/// # drop(mux);
/// # }
/// ```
///
/// `S` is where the next transport comes from when one is lost: by default nowhere, with
/// [`Redial`](super::Redial) at a client and [`Kept`](super::Kept) at a server the tunnel goes on.
/// Handles and streams stay as they are meanwhile. Without a transport, a
/// [`shutdown`](Tunnel::shutdown) ends such a tunnel at once. Dropping its driver ends this end
/// alone: the peer keeps its own for as long as it waits for a transport.
/// [`Connect`](super::Connect) and [`Keeper`](super::Keeper) have examples.
#[must_use = "nothing moves unless the driver is polled"]
pub struct Driver<T, C, R = TokioTimer, S = Once<T>> {
    pub(super) path: Path<T, C>,
    resuming: MaybeResuming<S>,
    pub(super) timer: R,
    pub(super) tunnel: Tunnel,
    pub(super) phase: Phase,
    /// The last message of the tunnel, until the transport accepts it.
    pub(super) farewell: Option<Bytes>,
    /// Messages read and not yet handled. Reused.
    inbox: Vec<Bytes>,
    /// Messages to write next.
    outbox: VecDeque<Transmit>,
    /// The session had nothing for the outbox when received messages were handled.
    at_rest: bool,
    /// Tasks to wake after the lock is released. Reused.
    wake: Vec<Waker>,
    flood_control: FloodControl,
    /// The counts of useless messages at the last read.
    useless: Useless,
    /// The transport was not read in this round, and is to be read again then.
    reread: Option<Instant>,
    /// Writers were woken since this task last yielded.
    woke_writers: bool,
    /// This task has just yielded to writers, so it writes now.
    yielded: bool,
    /// Whether anything was written since the last flush.
    dirty: bool,
    /// The transport has ended.
    over: bool,
    /// The transport accepts no message now.
    blocked: bool,
    /// When to give up a shutdown that the transport does not accept.
    give_up: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// The transport is being closed.
    Closing(Closing),
    Done,
}

/// Without the messages under way.
impl<T: fmt::Debug, C: fmt::Debug, R, S: fmt::Debug> fmt::Debug for Driver<T, C, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("path", &self.path)
            .field("resuming", &self.resuming)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// Goes on, unless the tunnel has ended.
pub(super) type Flow<N = ()> = ControlFlow<Result<(), TunnelError>, N>;

/// What follows a round.
enum Next {
    Round,
    /// First other tasks run.
    Yield,
    /// This task is woken when there is something to do.
    Sleep,
}

/// One read of the transport. Its messages are in the inbox.
struct Read {
    /// How much it could take.
    turn: ReadTurn,
    /// Signs of life without content.
    skipped: usize,
    inflow: Inflow,
}

/// How a read ended.
enum Inflow {
    /// The transport has nothing more now.
    Pending,
    /// Read as much as is handled at once; there may be more.
    More,
    Over(TunnelError),
}

impl<T, C, R, S> Driver<T, C, R, S>
where
    C: Carrier,
    T: Transport<C::Message>,
    R: Timer,
    S: Source<Transport = T>,
{
    /// Most bytes taken from the session at once: enough to fill a write, but not so many that a
    /// keystroke waits.
    const OUTBOX_BYTES: usize = 64 << 10;
    const OUTBOX_MESSAGES: usize = 64;
    /// Most rounds before the task yields.
    const ROUNDS: usize = 16;
    /// Most batches written before received messages are handled.
    const BATCHES: usize = 16;

    fn run(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        self.yielded = core::mem::take(&mut self.woke_writers);
        for _ in 0..Self::ROUNDS {
            match self.round(cx) {
                ControlFlow::Break(closed) => return Poll::Ready(closed),
                ControlFlow::Continue(Next::Round) => {}
                ControlFlow::Continue(Next::Yield) => break,
                ControlFlow::Continue(Next::Sleep) => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads, handles what was read, writes, and arms the timer.
    fn round(&mut self, cx: &mut Context<'_>) -> Flow<Next> {
        let began = self.tunnel.shared.clock.timer_now();
        if self.begin_round(cx, began)? {
            self.forget_transport();
        }
        let read = self.read(cx, began);
        let clock = &self.tunnel.shared.clock;
        let now = match self.inbox.is_empty() {
            true => clock.at(began),
            false => clock.read(),
        };
        let handled = self.handle_inbox(cx, now, read.as_ref());
        let (more, lost) = match read.map(|read| read.inflow) {
            Some(Inflow::Over(error)) => (false, Some(error)),
            Some(Inflow::More) => (true, None),
            Some(Inflow::Pending) | None => (false, None),
        };
        // If the transport was lost, that error takes precedence.
        let changed = self.end_of_inbox(now.timer, lost)?;
        handled?;
        if changed {
            self.forget_transport();
            return ControlFlow::Continue(Next::Round);
        }
        let unwritten = match self.write(cx, now.session) {
            Ok(unwritten) => unwritten,
            Err(error) => {
                self.end_of_inbox(now.timer, Some(error))?;
                self.forget_transport();
                return ControlFlow::Continue(Next::Round);
            }
        };
        self.wait(cx, now)?;
        let (finished, work) = self.survey();
        if finished && !self.dirty {
            return ControlFlow::Break(Ok(()));
        }
        ControlFlow::Continue(if more || self.woke_writers {
            // So that the tasks that read these messages run first, and those that were told to
            // write.
            Next::Yield
        } else if unwritten || work {
            Next::Round
        } else {
            Next::Sleep
        })
    }

    /// Looks for a better transport before the transport is read. Returns whether it has changed.
    fn begin_round(&mut self, cx: &mut Context<'_>, now: Instant) -> Flow<bool> {
        let (transport, shared) = (&mut self.path.transport, &self.tunnel.shared);
        match self.resuming.get_mut() {
            Some(resuming) => resuming.begin_round(cx, transport, shared, now),
            None => ControlFlow::Continue(false),
        }
    }

    /// Received messages were handled. `lost`: the transport is over. Returns whether it is gone.
    fn end_of_inbox(&mut self, now: Instant, lost: Option<TunnelError>) -> Flow<bool> {
        let (transport, shared) = (&mut self.path.transport, &self.tunnel.shared);
        match (self.resuming.get_mut(), lost) {
            (Some(resuming), lost) => resuming.end_of_inbox(transport, shared, now, lost),
            (None, Some(error)) => ControlFlow::Break(Err(error)),
            (None, None) => ControlFlow::Continue(false),
        }
    }

    /// Reads a bounded amount of received messages, without the lock. `None` if the transport must
    /// not be read now.
    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Read> {
        self.reread = self.flood_control.pause(now);
        if self.reread.is_some() {
            return None;
        }
        let (turn, most) = {
            let mut state = self.tunnel.shared.lock();
            // Before a resumed tunnel is open, the session gets nothing.
            let is_opening = self.resuming.get().is_some_and(Resuming::is_opening);
            let is_stalled = !state.session.can_receive() && !is_opening;
            state.driver.stalled = is_stalled;
            if state.driver.stalled {
                return None;
            }
            let turn = ReadTurn::among(state.account.as_ref().map_or(0, Account::busy));
            let most = match state.allowance {
                Allowance::Share(_) | Allowance::Exceeded(_) => ReadTurn::SHORT_BYTES,
                _ => turn.bytes,
            };
            (turn, most)
        };
        let mut bytes = 0;
        let mut skipped = 0;
        let inflow = loop {
            if bytes >= most || self.inbox.len() + skipped >= turn.messages {
                break Inflow::More;
            }
            match self.path.poll_next(cx) {
                Poll::Pending => break Inflow::Pending,
                Poll::Ready(Inward::Message(message)) => {
                    bytes += message.len();
                    self.inbox.push(message);
                }
                Poll::Ready(Inward::Skip) => skipped += 1,
                Poll::Ready(Inward::Over(error)) => {
                    self.over = is_end(&error);
                    break Inflow::Over(error);
                }
            }
        };
        Some(Read {
            turn,
            skipped,
            inflow,
        })
    }

    /// Passes received messages and the time to the session, and wakes tasks.
    fn handle_inbox(&mut self, cx: &Context<'_>, now: Now, read: Option<&Read>) -> Flow {
        let mut state = self.tunnel.shared.lock();
        let skipped = read.map_or(0, |read| read.skipped);
        let heard = skipped > 0 || !self.inbox.is_empty();
        if skipped > 0 {
            state.session.handle_activity(now.session);
        }
        for message in self.inbox.drain(..) {
            match self.resuming.get_mut() {
                Some(resuming) => resuming.handle_message(&mut state.session, now, message),
                None => {
                    // The session has counted and handled a violation.
                    let _ = state.session.handle_message(now.session, message);
                }
            }
        }
        let mut busy = false;
        if let Some(read) = read {
            // With what was refused since the last read.
            let before = core::mem::replace(&mut self.useless, state.useless());
            let useless = self.useless.since(before);
            let is_exceeded = matches!(state.allowance, Allowance::Exceeded(_));
            let inrush = read.turn.inrush(skipped, useless, heard && is_exceeded);
            // A read may have got nothing only because the transport yielded.
            if heard {
                let flood_control = &mut self.flood_control;
                flood_control.judge(now.timer, inrush, &mut state, &mut self.wake);
                if self.outbox.is_empty() && flood_control.take_probe(now.timer) {
                    self.outbox.push_back(Transmit::Ping);
                }
            }
            busy = matches!(read.inflow, Inflow::More) && inrush == Inrush::Fair;
        }
        if let Some(account) = &mut state.account {
            account.note_busy(busy);
        }
        let due = state
            .session
            .poll_timeout()
            .is_some_and(|at| at <= now.session);
        if due {
            state.session.handle_timeout(now.session);
        }
        // Without a transport there is nobody to tell, and the tunnel may end at once.
        let is_told = state.session.is_draining() || state.attached.is_detached();
        if state.handles == 0 && !is_told {
            state.drain(&mut self.wake);
        }
        state.settle();
        // Until it has tried to write.
        state.driver.blocked = false;
        let replaced = register(&mut state.driver.waker, cx);
        self.woke_writers |= state.dispatch(now.session, &mut self.wake);
        if let Some(resuming) = self.resuming.get_mut() {
            resuming.exchange(&mut state);
        }
        let resuming = self.resuming.get_mut();
        self.at_rest = state.session.is_at_rest()
            && resuming.is_none_or(|resuming| resuming.is_at_rest(&state.session));
        let closed = state.closed.clone();
        let tight = state.account.as_ref().and_then(Account::tight).cloned();
        drop(state);
        drop(replaced);
        if let Some(budget) = tight {
            budget.relieve();
        }
        wake_all(&mut self.wake);
        closed.map_or(ControlFlow::Continue(()), ControlFlow::Break)
    }

    /// Writes messages of the session while the transport accepts them. Returns whether it stopped
    /// while there may be more.
    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, TunnelError> {
        let mut batches = 0;
        // A handle that queues something from now on wakes this task.
        let mut may_have_more = !self.at_rest;
        let unwritten = loop {
            self.blocked = self.path.poll_ready(cx)?.is_pending();
            if self.blocked {
                return Ok(false);
            }
            if self.outbox.is_empty() {
                if !may_have_more {
                    break false;
                }
                if batches == Self::BATCHES || (self.woke_writers && !self.yielded) {
                    break true;
                }
                batches += 1;
                may_have_more = self.fill_outbox(now);
            }
            match self.outbox.pop_front() {
                Some(Transmit::Message(message)) => self.path.send(message)?,
                Some(Transmit::Ping) => {
                    if !self.path.send_ping()? {
                        // The peer was not probed, so silence does not mean that it is dead.
                        self.tunnel.shared.lock().session.handle_activity(now);
                        continue;
                    }
                }
                None => break false,
            }
            self.dirty = true;
        };
        if self.dirty {
            let flushed = self.path.poll_flush(cx)?;
            self.dirty = flushed.is_pending();
        }
        Ok(unwritten)
    }

    /// Takes a batch of messages from the session. Returns whether there may be more.
    fn fill_outbox(&mut self, now: Instant) -> bool {
        let mut state = self.tunnel.shared.lock();
        state.session.keep_room(self.woke_writers);
        let mut bytes = 0;
        let mut rests = false;
        let may_have_more = loop {
            if bytes >= Self::OUTBOX_BYTES || self.outbox.len() >= Self::OUTBOX_MESSAGES {
                break true;
            }
            let transmit = match self.resuming.get_mut() {
                Some(resuming) if rests => resuming.poll_last(&state.session),
                Some(resuming) => resuming.poll_transmit(&mut state.session, now),
                None if rests => None,
                None => state.session.poll_transmit(now),
            };
            let Some(transmit) = transmit else {
                break false;
            };
            rests = self.resuming.get().is_none_or(Resuming::accepts_all) && state.session.rest();
            if let Transmit::Message(message) = &transmit {
                bytes += message.len();
                state.note_transmitted(message, &mut self.wake);
            }
            self.outbox.push_back(transmit);
        };
        if let Some(resuming) = self.resuming.get_mut() {
            resuming.exchange(&mut state);
        }
        state.settle();
        // After events there may be more: resets to tell, or room for others.
        let changed = state.session.has_event();
        self.woke_writers |= state.dispatch(now, &mut self.wake);
        drop(state);
        wake_all(&mut self.wake);
        may_have_more || changed
    }

    /// Arms the timer for the session's next timeout.
    fn wait(&mut self, cx: &mut Context<'_>, now: Now) -> Flow {
        let (shutdown, mut due) = {
            let mut state = self.tunnel.shared.lock();
            state.driver.blocked = self.blocked;
            let shutdown = state.shutdown.then(|| end_reason(&state));
            (shutdown, state.arm())
        };
        if let Some(reason) = shutdown {
            let until = *self.give_up.get_or_insert(now.timer + CLOSE_TIMEOUT);
            if self.timer.poll_deadline(cx, until).is_pending() {
                return ControlFlow::Continue(());
            }
            if let Some(resuming) = self.resuming.get_mut() {
                resuming.give_up(reason);
            }
            return ControlFlow::Break(Ok(()));
        }
        loop {
            let due_at = due.and_then(|due| self.tunnel.shared.clock.timer_time(due));
            let resume_at = self.resuming.get().and_then(Resuming::poll_timeout);
            let times = [due_at, resume_at, self.reread];
            let Some(deadline) = times.into_iter().flatten().min() else {
                return ControlFlow::Continue(());
            };
            if self.timer.poll_deadline(cx, deadline).is_pending() {
                return ControlFlow::Continue(());
            }
            self.tunnel.shared.lock().driver.armed = None;
            let now = self.tunnel.shared.clock.read();
            self.reread = self.reread.filter(|reread| *reread > now.timer);
            self.handle_inbox(cx, now, None)?;
            due = self.tunnel.shared.lock().arm();
            // Output of the timeout, for instance a ping, is written in the next round. This also
            // prevents a timer that fires early from blocking everything else.
            cx.waker().wake_by_ref();
            if now.timer < deadline || resume_at.is_some_and(|at| at <= now.timer) {
                return ControlFlow::Continue(());
            }
        }
    }

    /// Whether no handle needs the tunnel and everything was sent, and whether there is work
    /// besides writing.
    fn survey(&mut self) -> (bool, bool) {
        let state = self.tunnel.shared.lock();
        let session = &state.session;
        let done = state.shutdown || state.is_done();
        let finished = done && self.outbox.is_empty() && !session.has_transmit();
        let receive = state.driver.stalled && session.can_receive();
        // Others may have acted since this task was registered.
        let unseen = state.evicted || state.is_surprise();
        let work = receive || session.has_event() || unseen || self.has_failed();
        let finishing = done && self.resuming.get().is_some_and(Resuming::is_finishing);
        if !finished && !finishing {
            return (false, work);
        }
        let reason = end_reason(&state);
        drop(state);
        let progress = match self.resuming.get_mut() {
            Some(resuming) => resuming.finish(reason),
            None => Finish::Done,
        };
        match progress {
            Finish::Done => (self.outbox.is_empty(), work),
            Finish::Begun => (false, true),
            Finish::Waiting => (false, work),
        }
    }

    /// Whether the next round will be the last.
    fn has_failed(&self) -> bool {
        self.resuming.get().is_some_and(Resuming::has_failed)
    }

    /// What was to be written is obsolete.
    fn forget_transport(&mut self) {
        self.inbox.clear();
        self.outbox.clear();
        self.dirty = false;
        self.over = false;
    }
}

impl<T, C, R, S> Driver<T, C, R, S> {
    pub(super) fn new(
        transport: T,
        carrier: C,
        resuming: Option<Resuming<S>>,
        timer: R,
        tunnel: Tunnel,
    ) -> Self {
        Self {
            path: Path::new(transport, carrier),
            resuming: MaybeResuming::new(resuming),
            timer,
            tunnel,
            phase: Phase::Running,
            farewell: None,
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            at_rest: false,
            wake: Vec::new(),
            flood_control: FloodControl::default(),
            useless: Useless::default(),
            reread: None,
            woke_writers: false,
            yielded: false,
            dirty: false,
            over: false,
            blocked: false,
            give_up: None,
        }
    }

    /// The tunnel, for code that watches or ends it.
    #[must_use]
    pub const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    fn end(&mut self, closed: Result<(), TunnelError>) {
        let now = self.tunnel.shared.now();
        self.tunnel.shared.lock().close(closed, now, &mut self.wake);
        wake_all(&mut self.wake);
    }
}

/// END, if it waits there: nothing follows it.
fn end_of(outbox: &mut VecDeque<Transmit>) -> Option<Bytes> {
    match outbox.pop_back()? {
        Transmit::Message(message) if Kind::of(&message) == Some(Kind::End) => Some(message),
        _ => None,
    }
}

/// What END says when this end ends the tunnel.
const fn end_reason(state: &TunnelState) -> EndReason {
    match &state.goodbye {
        Some((REPLACED, _)) => EndReason::Replaced,
        _ if state.shutdown => EndReason::Gone,
        _ => EndReason::Closed,
    }
}

// Nothing here is ever pinned.
impl<T, C, R, S> Unpin for Driver<T, C, R, S> {}

impl<T, C, R, S> Future for Driver<T, C, R, S>
where
    C: Carrier,
    T: Transport<C::Message>,
    R: Timer,
    S: Source<Transport = T>,
{
    /// `Ok` if this end finished: all handles were dropped, or the tunnel was closed or shut down.
    ///
    /// [`TunnelError::NotResumed`] and [`TunnelError::NotConnected`]: a transport was lost, and
    /// there was no other in time.
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let this = &mut *self;
        if this.phase == Phase::Running {
            let Poll::Ready(closed) = this.run(cx) else {
                return Poll::Pending;
            };
            let now = this.tunnel.shared.clock.timer_now();
            if let Some(resuming) = this.resuming.get_mut() {
                let told = resuming.over(now, &closed);
                // Or END is the last of what the transport has not accepted.
                this.farewell = told.or_else(|| end_of(&mut this.outbox));
            }
            let ends = closed.is_ok() || this.has_failed();
            // What a flood has left unread could take as long as there is time.
            let flooded = this.flood_control.has_ended_tunnel();
            let awaits_end = ends && !this.over && !flooded;
            this.phase = match this.path.transport.is_some() {
                true => Phase::Closing(Closing::begin(now, !awaits_end)),
                false => Phase::Done,
            };
            this.end(match flooded {
                true => closed.and(Err(TunnelError::Flooded)),
                false => closed,
            });
        }
        if let Phase::Closing(closing) = this.phase {
            if this.poll_close(cx, closing).is_pending() {
                return Poll::Pending;
            }
            this.phase = Phase::Done;
        }
        let closed = this.tunnel.shared.lock().closed.clone();
        Poll::Ready(closed.unwrap_or(Ok(())))
    }
}

impl<T, C, R, S> Drop for Driver<T, C, R, S> {
    fn drop(&mut self) {
        self.end(Err(TunnelError::Dropped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mux::Kept;
    use crate::transport::Plain;

    /// A driver is part of a task's future, which is moved at its start.
    #[test]
    fn a_driver_is_small() {
        let plain = size_of::<Driver<(), Plain>>();
        let resuming = size_of::<Driver<(), Plain, TokioTimer, Kept<()>>>();
        assert!(plain <= 320, "{plain} bytes");
        assert!(resuming <= 320, "{resuming} bytes");
        let boxed = size_of::<Resuming<Kept<()>>>();
        assert!(boxed <= 1024, "{boxed} bytes");
    }
}
