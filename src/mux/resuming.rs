use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::ops::ControlFlow;
use core::task::{Context, Poll};
use core::time::Duration;

use bytes::Bytes;

use super::budget::Account;
use super::driver::Flow;
use super::shared::{Shared, TunnelState};
use super::source::{Arrival, Handover, Need, News, Source};
use super::stoppable::Now;
use super::unacknowledged::Unacknowledged;
use super::{Attachment, TunnelError};
use crate::resume::{Accepts, Due, EndReason, Ended, Link, Received, State, Takeover};
use crate::session::{Instant, Session, Transmit};
use crate::transport::CloseReason;

/// The [`Resuming`] of a tunnel that outlives its transports. For other tunnels `get` is a constant
/// `None`, and the compiler removes the branches that follow it.
#[derive(Debug)]
pub(super) struct MaybeResuming<S>(Option<Box<Resuming<S>>>);

impl<S> MaybeResuming<S> {
    pub(super) fn new(resuming: Option<Resuming<S>>) -> Self {
        Self(resuming.map(Box::new))
    }
}

impl<S: Source> MaybeResuming<S> {
    #[inline]
    pub(super) fn get(&self) -> Option<&Resuming<S>> {
        if S::RESUMES { self.0.as_deref() } else { None }
    }

    #[inline]
    pub(super) fn get_mut(&mut self) -> Option<&mut Resuming<S>> {
        if S::RESUMES {
            self.0.as_deref_mut()
        } else {
            None
        }
    }
}

/// How a tunnel outlives its transports (PROTOCOL.md section 5.10). It ends when its link does.
#[derive(Debug)]
pub(super) struct Resuming<S> {
    link: Link,
    source: S,
    /// The peer was silent for too long.
    silent: bool,
    /// What the source knows of the bytes in the ring.
    ring: usize,
    unacknowledged: Unacknowledged,
    /// Messages acknowledged, after the last ACK.
    acked: u64,
    /// Why the last transport was lost, until there is another.
    loss: Option<String>,
    /// What is wrong with the transport, found in its messages.
    fault: Option<TunnelError>,
    /// Whether the handles believe that the tunnel has a transport.
    told_attached: bool,
    /// Whether they know that the peer has answered.
    told_confirmed: bool,
    /// Whether the session's clock runs.
    is_running: bool,
    /// Resumptions that the handles know of.
    resumptions: u64,
    /// Messages and bytes sent again that the source knows of.
    replayed: (u64, u64),
    /// The peer ended the tunnel in good order. Its reason in the transport's close is awaited
    /// until then.
    close_by: Option<Instant>,
    /// This end has asked for the end of the tunnel.
    is_finishing: bool,
}

/// Progress of telling the peer of the end.
pub(super) enum Finish {
    /// There is output now.
    Begun,
    Waiting,
    Done,
}

/// How long the close after END is awaited.
const CLOSE_AFTER_END: Duration = Duration::from_secs(1);

impl<S: Source> Resuming<S> {
    pub(super) fn new(link: Link, source: S) -> Self {
        Self {
            link,
            source,
            silent: false,
            ring: 0,
            unacknowledged: Unacknowledged::default(),
            acked: 0,
            loss: None,
            fault: None,
            told_attached: true,
            told_confirmed: false,
            is_running: true,
            resumptions: 0,
            replayed: (0, 0),
            close_by: None,
            is_finishing: false,
        }
    }

    /// Drops the transport. What it has not delivered is in the ring.
    fn detach(&mut self, transport: &mut Option<S::Transport>, now: Instant) {
        self.drop_transport(transport);
        self.link.detach(now);
    }

    fn drop_transport(&mut self, transport: &mut Option<S::Transport>) {
        *transport = None;
        self.fault = None;
        self.silent = false;
    }

    /// Whether there is another transport now.
    fn take(
        &mut self,
        transport: &mut Option<S::Transport>,
        now: Instant,
        arrival: Arrival<S::Transport>,
    ) -> Result<bool, TunnelError> {
        match arrival {
            Arrival::Dialled(next) => {
                self.detach(transport, now);
                self.link.attach(now);
                *transport = Some(next);
                Ok(true)
            }
            Arrival::Opened(handover) => Ok(self.take_over(transport, now, handover)),
            Arrival::Over(error) => Err(error),
        }
    }

    fn take_over(
        &mut self,
        transport: &mut Option<S::Transport>,
        now: Instant,
        handover: Handover<S::Transport>,
    ) -> bool {
        if let Err(refusal) = self.link.check(&handover.open) {
            handover.refuse(refusal.reason());
            return false;
        }
        // First the old one goes. Then the count of what was received on it is final. The link does
        // the rest: if the tunnel ends without it, END goes to the new one.
        self.drop_transport(transport);
        let next = self.source.next_secret();
        match self.link.takeover(&handover.open, next, now) {
            Ok(()) => {
                self.source.note(now, &News::Peer(&handover.peer));
                *transport = handover.accept();
            }
            // END goes to the new transport.
            Err(Takeover::Ended(_)) => *transport = handover.accept(),
            Err(Takeover::Refused(refusal)) => handover.refuse(refusal.reason()),
        }
        true
    }

    /// How the tunnel ended, if it has. `lost`: why the transport ended just now.
    fn outcome(
        &mut self,
        now: Instant,
        has_transport: bool,
        lost: Option<&TunnelError>,
    ) -> Option<Result<(), TunnelError>> {
        let ended = self.link.ended()?;
        if !is_orderly(ended.reason) {
            let mut ended = ended.clone();
            let loss = lost.map(ToString::to_string).or(self.loss.take());
            if let Some(loss) = loss.filter(|_| !ended.by_peer) {
                let colon = if ended.text.is_empty() { "" } else { ": " };
                ended.text = format!("{}{colon}{loss}", ended.text);
            }
            return Some(Err(TunnelError::NotResumed(ended)));
        }
        let is_gone = lost.is_some() || !has_transport;
        if !ended.by_peer {
            // Otherwise END may still have to be written.
            return is_gone.then_some(Ok(()));
        }
        let until = *self.close_by.get_or_insert(now + CLOSE_AFTER_END);
        if !is_gone && now < until {
            return None;
        }
        Some(Err(match lost {
            Some(TunnelError::Ended(Some(reason))) => TunnelError::Ended(Some(reason.clone())),
            // The close that says so too is lost.
            _ if ended.reason == EndReason::Replaced => TunnelError::NotResumed(ended.clone()),
            _ => TunnelError::Ended(said(ended)),
        }))
    }

    /// Tells clock, source and handles what has changed.
    fn publish(
        &mut self,
        shared: &Shared,
        now: Instant,
        has_transport: bool,
        lost: Option<TunnelError>,
    ) -> Flow {
        if self.is_published() {
            return ControlFlow::Continue(());
        }
        if let Some(outcome) = self.outcome(now, has_transport, lost.as_ref()) {
            return ControlFlow::Break(outcome);
        }
        if !self.told_confirmed && self.link.is_confirmed() {
            self.told_confirmed = true;
            shared.confirm();
        }
        let resumptions = self.link.stats().resumed;
        let is_new = self.link.identity().is_none();
        let (is_running, is_attached) = match self.link.state() {
            State::Attached => (true, true),
            State::Detached => (false, false),
            // A new tunnel does not wait for the answer to OPEN.
            State::Opening => (is_new, is_new || self.told_attached),
            State::Ended => (self.is_running, self.told_attached),
        };
        if is_running != self.is_running {
            self.is_running = is_running;
            match is_running {
                true => shared.clock.go_on(),
                false => shared.clock.stop(),
            }
        }
        let resumed = resumptions != self.resumptions || (is_attached && !self.told_attached);
        let change = match (is_attached, resumed) {
            (false, _) if !self.told_attached => None,
            (false, _) => {
                let confirmed = self.link.is_confirmed();
                self.source.note(now, &News::Detached { confirmed });
                let cause = lost.unwrap_or(TunnelError::Ended(None));
                self.loss = Some(cause.to_string());
                Some(Attachment::Detached(cause))
            }
            (true, true) => {
                self.source.note(now, &News::Attached);
                self.loss = None;
                let resumption = self.link.resumption();
                Some(resumption.map_or(Attachment::First, Attachment::Resumed))
            }
            (true, false) => None,
        };
        self.told_attached = is_attached;
        self.resumptions = resumptions;
        if let Some(change) = change {
            let session_now = shared.now();
            self.silent = false;
            shared.waking(|state, wake| {
                if is_attached {
                    state.session.handle_activity(session_now);
                }
                state.silent = false;
                state.attached.change(change);
                state.watchers.wake(wake);
                let detached = state.attached.is_detached();
                if let Some(account) = state.account.as_mut().filter(|_| detached) {
                    // Nothing more comes that could end the flood.
                    account.note_flood(false);
                }
                if shared.is_detached() != detached {
                    shared.set_detached(detached);
                    // Joins tell the other tunnel.
                    state.wake_readers(wake);
                }
            });
        }
        ControlFlow::Continue(())
    }

    /// Whether the tunnel goes on as clock, source and handles know it.
    fn is_published(&self) -> bool {
        self.link.state() == State::Attached
            && self.is_running
            && self.told_attached
            && self.told_confirmed
            && self.resumptions == self.link.stats().resumed
    }

    /// Tells the source what the ring holds, and what was sent again.
    fn account(&mut self, now: Instant) {
        let ring = self.link.ring_bytes();
        let stats = self.link.stats();
        let (messages, bytes) = self.replayed;
        self.replayed = (stats.replayed, stats.replayed_bytes);
        let moved = core::mem::replace(&mut self.ring, ring) != ring;
        if moved || self.replayed != (messages, bytes) {
            let replayed = (stats.replayed - messages, stats.replayed_bytes - bytes);
            self.source.note(now, &News::Moved { ring, replayed });
        }
    }

    /// Looks for a better transport, and at the time, before the transport is read. Returns whether
    /// it is lost, or another one took its place: what was to be written is obsolete.
    pub(super) fn begin_round(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut Option<S::Transport>,
        shared: &Shared,
        now: Instant,
    ) -> Flow<bool> {
        let (is_idle, is_unwanted, is_probing, evicted, shutdown) = {
            let mut state = shared.lock();
            let evicted = core::mem::take(&mut state.evicted);
            let is_idle = state.is_idle();
            state.attached.idle = is_idle;
            let is_probing = state.session.is_probing();
            let is_unwanted = state.is_unwanted();
            (is_idle, is_unwanted, is_probing, evicted, state.shutdown)
        };
        self.link.set_idle(is_idle);
        self.link.set_unneeded(is_unwanted);
        if self.link.state() != State::Attached {
            self.unacknowledged.pause();
        } else if self.unacknowledged.is_overdue(now, &self.link) {
            self.link
                .abort(EndReason::Overflow, "while memory is short");
        }
        let mut lost = None;
        if let Some(Due::NotOpened) = self.link.handle_timeout(now) {
            self.detach(transport, now);
            lost = Some(TunnelError::PeerDead);
        }
        let mut changed = lost.is_some();
        self.publish(shared, now, transport.is_some(), lost)?;
        let need = match self.link.state() {
            State::Detached => Need::Lost,
            State::Attached if is_probing || self.silent => Need::Doubt,
            State::Attached => Need::None,
            State::Opening | State::Ended => Need::Wait,
        };
        if need == Need::Lost && shutdown {
            return ControlFlow::Break(Ok(()));
        }
        if need == Need::Lost && evicted {
            let (reason, text) = (EndReason::Evicted, "its place was needed".to_string());
            let by_peer = false;
            let ended = Ended {
                reason,
                text,
                by_peer,
            };
            return ControlFlow::Break(Err(TunnelError::NotResumed(ended)));
        }
        if let Poll::Ready(arrival) = self.source.poll_arrival(cx, now, need, self.link.keep()) {
            match self.take(transport, now, arrival) {
                Ok(taken) => changed |= taken,
                Err(error) => return ControlFlow::Break(Err(error)),
            }
            // There may be another.
            cx.waker().wake_by_ref();
            self.publish(shared, now, transport.is_some(), None)?;
        }
        ControlFlow::Continue(changed)
    }

    /// Received messages were handled. Exchanges with the handles what both need, under the lock.
    pub(super) fn exchange(&mut self, state: &mut TunnelState) {
        state.attached.ring = self.link.ring_bytes();
        state.attached.stats = self.link.stats();
        self.silent |= core::mem::take(&mut state.silent);
        let account = state.account.as_ref();
        let is_scarce = account.is_some_and(Account::is_scarce);
        self.link.set_ring_limit(match is_scarce {
            true => 0,
            false => usize::MAX,
        });
        let kept_max = account.and_then(Account::kept_max);
        self.unacknowledged.limit(&mut self.link, kept_max);
        self.unacknowledged.set_deaf(state.driver.stalled);
    }

    /// As [`exchange`](Self::exchange), without the lock. `lost`: the transport is over. Returns
    /// whether it is gone.
    pub(super) fn end_of_inbox(
        &mut self,
        transport: &mut Option<S::Transport>,
        shared: &Shared,
        now: Instant,
        lost: Option<TunnelError>,
    ) -> Flow<bool> {
        self.account(now);
        // The silence of one that was replaced may be found when OPEN is under way on the next.
        let silent = core::mem::take(&mut self.silent) && self.is_running;
        let silence = silent.then_some(TunnelError::PeerDead);
        let lost = self.fault.take().or(lost).or(silence);
        let is_lost = lost.is_some();
        if is_lost && self.link.ended().is_none() {
            self.detach(transport, now);
        }
        self.publish(shared, now, transport.is_some(), lost)?;
        ControlFlow::Continue(is_lost)
    }

    /// When to [begin a round](Self::begin_round) at the latest, by the timer's clock.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let times = [
            self.link.poll_timeout(),
            self.source.poll_timeout(),
            self.unacknowledged.poll_timeout(),
            self.close_by,
        ];
        times.into_iter().flatten().min()
    }

    /// Nothing more will be sent: tells the peer. Call it again after further output.
    pub(super) fn finish(&mut self, reason: EndReason) -> Finish {
        let asked = core::mem::replace(&mut self.is_finishing, true);
        if !asked {
            self.link.end(reason, "");
        }
        match (self.link.ended(), asked) {
            (Some(_), _) => Finish::Done,
            (None, false) => Finish::Begun,
            (None, true) => Finish::Waiting,
        }
    }

    /// As [`finish`](Self::finish), without what was not sent.
    pub(super) fn give_up(&mut self, reason: EndReason) {
        self.link.abort(reason, "");
    }

    /// Whether [`finish`](Self::finish) was called.
    pub(super) fn is_finishing(&self) -> bool {
        self.is_finishing
    }

    /// Whether the next round will be the last.
    pub(super) fn has_failed(&self) -> bool {
        let ended = self.link.ended();
        ended.is_some_and(|ended| !is_orderly(ended.reason))
    }

    /// Whether the transport only carries what opens the tunnel.
    pub(super) fn is_opening(&self) -> bool {
        self.link.state() == State::Opening
    }

    /// The tunnel has ended, and nobody waits for another transport any more. Returns what the peer
    /// is told, if it was not told yet.
    pub(super) fn over(
        &mut self,
        now: Instant,
        outcome: &Result<(), TunnelError>,
    ) -> Option<Bytes> {
        let reason = match outcome {
            Err(TunnelError::NotResumed(ended)) => Some(ended.reason),
            _ => None,
        };
        self.source.note(now, &News::Ended(reason));
        self.link.ended()?;
        self.link.poll_output()
    }

    /// Passes a received message to the session.
    pub(super) fn handle_message(&mut self, session: &mut Session, now: Now, message: Bytes) {
        if self.fault.is_some() {
            return;
        }
        match self.link.handle_message(now.timer, message) {
            Received::Deliver(message) => {
                // The session has counted and handled a violation.
                let _ = session.handle_message(now.session, message);
            }
            Received::Handled => {
                session.handle_activity(now.session);
                let acked = self.link.stats().acked;
                if core::mem::replace(&mut self.acked, acked) == acked {
                    session.note_empty();
                }
            }
            Received::Attached => session.handle_activity(now.session),
            Received::Violation(violation) => {
                self.fault = Some(TunnelError::Unexpected(violation.to_string()));
            }
            Received::Retry => self.fault = Some(TunnelError::Ended(None)),
            Received::Ended(_) => {}
        }
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) would return nothing and change nothing: the
    /// session is at rest, and so is the link.
    pub(super) fn is_at_rest(&mut self, session: &Session) -> bool {
        self.link.set_idle(!session.has_live_streams());
        self.link.is_at_rest()
    }

    /// The next message for the transport.
    pub(super) fn poll_transmit(
        &mut self,
        session: &mut Session,
        now: Instant,
    ) -> Option<Transmit> {
        if self
            .link
            .ended()
            .is_none_or(|ended| is_orderly(ended.reason))
        {
            if let Some(output) = self.link.poll_output() {
                return Some(Transmit::Message(output));
            }
        }
        match self.link.accepts() {
            Accepts::Nothing => return None,
            Accepts::Control => {
                session.hold_data(true);
                self.unacknowledged.ask(&self.link, session);
            }
            Accepts::All => session.hold_data(false),
        }
        let transmit = session.poll_transmit(now);
        let Some(Transmit::Message(message)) = &transmit else {
            return transmit.or_else(|| self.poll_last(session));
        };
        match self.link.sent(message) {
            Ok(()) => transmit,
            // The link has ended. Its END follows when the transport is closed.
            Err(_) => None,
        }
    }

    /// Whether everything of the session may be sent.
    pub(super) fn accepts_all(&self) -> bool {
        self.link.accepts() == Accepts::All
    }

    /// The session has nothing more: an acknowledgement may go along with what was taken before.
    pub(super) fn poll_last(&mut self, session: &Session) -> Option<Transmit> {
        self.link.set_idle(!session.has_live_streams());
        self.link.poll_output().map(Transmit::Message)
    }
}

/// Whether a tunnel that ends for this reason ends as one without resumption does when its
/// transport is closed.
const fn is_orderly(reason: EndReason) -> bool {
    matches!(
        reason,
        EndReason::Closed
            | EndReason::Gone
            | EndReason::Replaced
            | EndReason::Limit
            | EndReason::Unspecified
    )
}

/// The text of END, if there is any, as that of a normal close.
fn said(ended: &Ended) -> Option<CloseReason> {
    const NORMAL: u16 = 1000;
    let has_text = !ended.text.is_empty();
    has_text.then(|| CloseReason::new(NORMAL, ended.text.clone()))
}
