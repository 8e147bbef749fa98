use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;

use super::budget::Account;
use super::closing::{CLOSE_TIMEOUT, Closing};
use super::patience::Patience;
use super::turn::Turn;
use super::{Timer, TokioTimer, Tunnel, TunnelError};
use crate::session::{Instant, Transmit, clean_text};
use crate::transport::{Carrier, Received};

/// Runs a tunnel: a future that owns the transport, for any executor. It completes when the tunnel
/// ends.
///
/// Dropping it ends the tunnel at once.
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
#[derive(Debug)]
#[must_use = "nothing moves unless the driver is polled"]
pub struct Driver<T, C: Carrier, R = TokioTimer> {
    pub(super) transport: T,
    pub(super) carrier: C,
    pub(super) timer: R,
    pub(super) tunnel: Tunnel,
    pub(super) phase: Phase,
    /// Messages read and not yet handled. Reused.
    inbox: Vec<Bytes>,
    /// Messages to write next.
    outbox: VecDeque<Transmit>,
    /// Useless messages in the last read of the transport.
    skipped: usize,
    /// What the last read could take.
    turn: Turn,
    /// Tasks to wake after the lock is released. Reused.
    wake: Vec<Waker>,
    patience: Patience,
    /// The transport was not read in this round, and is to be read again then.
    resume: Option<Instant>,
    /// The transport was read since its messages were last handled.
    looked: bool,
    /// Whether anything was written since the last flush.
    dirty: bool,
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

/// Result of one read of the transport.
enum Inflow {
    /// The transport has nothing more now.
    Pending,
    /// Read as much as is handled at once; there may be more.
    More,
    Over(TunnelError),
}

impl<T, C, R, E> Driver<T, C, R>
where
    T: Stream<Item = Result<C::Message, E>> + Sink<C::Message, Error = E> + Unpin,
    C: Carrier,
    R: Timer,
    E: Display,
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
        for _ in 0..Self::ROUNDS {
            let inflow = self.read(cx);
            let now = self.tunnel.shared.now();
            let more = matches!(inflow, Inflow::More);
            let finished = self.handle_inbox(cx, now, more);
            if let Inflow::Over(error) = inflow {
                return Poll::Ready(Err(error));
            }
            if let Some(closed) = finished {
                return Poll::Ready(closed);
            }
            let written = match self.write(cx, now) {
                Ok(written) => written,
                Err(error) => return Poll::Ready(Err(TunnelError::Transport(error.to_string()))),
            };
            if let Some(closed) = self.wait(cx, now) {
                return Poll::Ready(closed);
            }
            let (finished, work) = self.survey();
            if finished && !self.dirty {
                return Poll::Ready(Ok(()));
            }
            if more {
                // Yield, so that the tasks that read these messages run first.
                break;
            }
            if !written && !work {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads a bounded amount of received messages, without the lock.
    fn read(&mut self, cx: &mut Context<'_>) -> Inflow {
        self.looked = false;
        self.resume = self.patience.pause(self.tunnel.shared.now());
        if self.resume.is_some() {
            return Inflow::Pending;
        }
        let turn = {
            let mut state = self.tunnel.shared.lock();
            state.driver_stalled = !state.session.can_receive();
            if state.driver_stalled {
                return Inflow::Pending;
            }
            Turn::among(state.account.as_ref().map_or(0, Account::busy))
        };
        self.turn = turn;
        self.looked = true;
        let mut bytes = 0;
        let mut skipped = 0;
        let inflow = loop {
            if bytes >= turn.bytes || self.inbox.len() + skipped >= turn.messages {
                break Inflow::More;
            }
            match Pin::new(&mut self.transport).poll_next(cx) {
                Poll::Pending => break Inflow::Pending,
                Poll::Ready(None) => break Inflow::Over(TunnelError::Ended(None)),
                Poll::Ready(Some(Err(error))) => {
                    break Inflow::Over(TunnelError::Transport(error.to_string()));
                }
                Poll::Ready(Some(Ok(message))) => match self.carrier.classify(message) {
                    Received::Message(message) => {
                        bytes += message.len();
                        self.inbox.push(message);
                    }
                    Received::Skip => skipped += 1,
                    Received::End(reason) => break Inflow::Over(TunnelError::ended(reason)),
                    Received::Text(text) => {
                        let text = clean_text(text.as_bytes());
                        break Inflow::Over(TunnelError::Unexpected(text));
                    }
                    Received::Other(_) => {
                        break Inflow::Over(TunnelError::Unexpected(String::new()));
                    }
                },
            }
        };
        self.skipped = skipped;
        inflow
    }

    /// Passes received messages and the time to the session, and wakes tasks.
    fn handle_inbox(
        &mut self,
        cx: &Context<'_>,
        now: Instant,
        more: bool,
    ) -> Option<Result<(), TunnelError>> {
        let mut state = self.tunnel.shared.lock();
        let heard = self.skipped > 0 || !self.inbox.is_empty();
        if self.skipped > 0 {
            state.session.handle_activity(now);
        }
        let useless = state.useless();
        for message in self.inbox.drain(..) {
            // The session has counted and handled a violation.
            let _ = state.session.handle_message(now, message);
        }
        if core::mem::take(&mut self.looked) {
            let useless = (state.useless() - useless) as usize + core::mem::take(&mut self.skipped);
            let flood = self.turn.is_flood(useless) || (heard && state.pressed);
            self.patience.note(now, flood, state.account.as_mut());
            if let Some(account) = &mut state.account {
                account.note_busy(more && !flood);
            }
        }
        let due = state.session.poll_timeout().is_some_and(|at| at <= now);
        if due {
            state.session.handle_timeout(now);
        }
        if state.handles == 0 && !state.session.is_draining() {
            state.drain(&mut self.wake);
        }
        state.settle();
        super::shared::register(&mut state.driver, cx);
        state.dispatch(now, &mut self.wake);
        let closed = state.closed.clone();
        drop(state);
        for waker in self.wake.drain(..) {
            waker.wake();
        }
        closed
    }

    /// Writes messages of the session while the transport accepts them. Returns whether anything
    /// was written.
    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, E> {
        let mut written = false;
        let mut batches = 0;
        loop {
            if Pin::new(&mut self.transport).poll_ready(cx)?.is_pending() {
                return Ok(written);
            }
            if self.outbox.is_empty() {
                if batches == Self::BATCHES {
                    break;
                }
                batches += 1;
                self.fill_outbox(now);
            }
            let message = match self.outbox.pop_front() {
                Some(Transmit::Message(message)) => self.carrier.binary(message),
                Some(Transmit::Ping) => match self.carrier.ping() {
                    Some(probe) => probe,
                    None => {
                        // The peer was not probed, so silence does not mean that it is dead.
                        self.tunnel.shared.lock().session.handle_activity(now);
                        continue;
                    }
                },
                None => break,
            };
            Pin::new(&mut self.transport).start_send(message)?;
            self.dirty = true;
            written = true;
        }
        if self.dirty {
            let flushed = Pin::new(&mut self.transport).poll_flush(cx)?;
            self.dirty = flushed.is_pending();
        }
        Ok(written)
    }

    /// Takes a batch of messages from the session.
    fn fill_outbox(&mut self, now: Instant) {
        let mut state = self.tunnel.shared.lock();
        let mut bytes = 0;
        while bytes < Self::OUTBOX_BYTES && self.outbox.len() < Self::OUTBOX_MESSAGES {
            let Some(transmit) = state.session.poll_transmit(now) else {
                break;
            };
            if let Transmit::Message(message) = &transmit {
                bytes += message.len();
                state.note_transmitted(message, &mut self.wake);
            }
            self.outbox.push_back(transmit);
        }
        state.settle();
        state.dispatch(now, &mut self.wake);
        drop(state);
        for waker in self.wake.drain(..) {
            waker.wake();
        }
    }

    /// Arms the timer for the session's next timeout.
    fn wait(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Result<(), TunnelError>> {
        let (shutdown, mut due) = {
            let mut state = self.tunnel.shared.lock();
            (state.shutdown, state.arm())
        };
        if shutdown {
            let until = *self.give_up.get_or_insert(now + CLOSE_TIMEOUT);
            let late = self.timer.poll_deadline(cx, until).is_ready();
            return late.then_some(Ok(()));
        }
        loop {
            let deadline = due.into_iter().chain(self.resume).min()?;
            if self.timer.poll_deadline(cx, deadline).is_pending() {
                return None;
            }
            self.tunnel.shared.lock().armed = None;
            let now = self.tunnel.shared.now();
            self.resume = self.resume.filter(|resume| *resume > now);
            if let Some(closed) = self.handle_inbox(cx, now, false) {
                return Some(closed);
            }
            due = self.tunnel.shared.lock().arm();
            // Output of the timeout, for instance a ping, is written in the next round. This also
            // prevents a timer that fires early from blocking everything else.
            cx.waker().wake_by_ref();
            if now < deadline {
                return None;
            }
        }
    }

    /// Whether no handle needs the tunnel and everything was sent, and whether there is work
    /// besides writing.
    fn survey(&self) -> (bool, bool) {
        let state = self.tunnel.shared.lock();
        let session = &state.session;
        let done = state.shutdown || (state.is_unwanted() && session.is_idle());
        let finished = done && self.outbox.is_empty() && !session.has_transmit();
        let receive = state.driver_stalled && session.can_receive();
        (finished, receive || session.has_event())
    }
}

impl<T, C: Carrier, R> Driver<T, C, R> {
    pub(super) fn new(transport: T, carrier: C, timer: R, tunnel: Tunnel) -> Self {
        Self {
            transport,
            carrier,
            timer,
            tunnel,
            phase: Phase::Running,
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            skipped: 0,
            turn: Turn::LONGEST,
            wake: Vec::new(),
            patience: Patience::default(),
            resume: None,
            looked: false,
            dirty: false,
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
        for waker in self.wake.drain(..) {
            waker.wake();
        }
    }
}

impl<T, C, R, E> Future for Driver<T, C, R>
where
    T: Stream<Item = Result<C::Message, E>> + Sink<C::Message, Error = E> + Unpin,
    C: Carrier + Unpin,
    R: Timer,
    E: Display,
{
    /// `Ok` if this end finished: all handles were dropped, or the tunnel was closed or shut down.
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let this = &mut *self;
        if this.phase == Phase::Running {
            let Poll::Ready(closed) = this.run(cx) else {
                return Poll::Pending;
            };
            let now = this.tunnel.shared.now();
            this.phase = Phase::Closing(Closing::begin(now, closed.is_err()));
            this.end(closed);
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

impl<T, C: Carrier, R> Drop for Driver<T, C, R> {
    fn drop(&mut self) {
        self.end(Err(TunnelError::Dropped));
    }
}
