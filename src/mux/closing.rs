//! How the driver ends its transport.

use core::task::{Context, Poll, ready};
use core::time::Duration;

use super::driver::Phase;
use super::path::{Inward, is_end};
use super::read_turn::ReadTurn;
use super::source::Source;
use super::{Driver, Timer};
use crate::session::Instant;
use crate::transport::{Carrier, Transport};

/// How long the peer may be silent while the transport closes, and how long closing may take in
/// total.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Progress of closing the transport, and its time limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closing {
    /// Closed by this end; the peer may still be reading.
    pub(super) sent: bool,
    /// The peer's end is not awaited, or has come.
    pub(super) ended: bool,
    /// Closing is given up if nothing happens until then.
    pub(super) until: Instant,
    /// Closing is given up then in any case.
    pub(super) deadline: Instant,
}

impl Closing {
    /// Begins now. `ended`: the other side has ended it, or cannot.
    pub(super) fn begin(now: Instant, ended: bool) -> Self {
        Self {
            sent: false,
            ended,
            until: now + CLOSE_TIMEOUT,
            deadline: now + CLOSE_DEADLINE,
        }
    }
}

impl<T, C, R, S> Driver<T, C, R, S>
where
    C: Carrier,
    T: Transport<C::Message>,
    R: Timer,
    S: Source<Transport = T>,
{
    /// Tells the peer of the end, and why.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.farewell.is_some() {
            let ready = ready!(self.path.poll_ready(cx));
            if let (Ok(()), Some(farewell)) = (ready, self.farewell.take()) {
                // A transport that fails here is closed next anyway.
                let _ = self.path.send(farewell);
            }
        }
        let Some((code, why)) = self.tunnel.shared.lock().goodbye.clone() else {
            return Poll::Ready(());
        };
        let ready = ready!(self.path.poll_ready(cx));
        self.tunnel.shared.lock().goodbye = None;
        if ready.is_ok() {
            self.path.send_close(code, &why);
        }
        Poll::Ready(())
    }

    /// Closes the transport, then reads until the peer ends it. Dropping a TCP socket with unread
    /// input sends RST, which can discard data in flight.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>, mut closing: Closing) -> Poll<()> {
        if !closing.sent {
            closing.sent = self.poll_goodbye(cx).is_ready() && self.path.poll_close(cx).is_ready();
        }
        if closing.sent && closing.ended {
            return Poll::Ready(());
        }
        let mut skipped = 0;
        while !closing.ended {
            match self.path.poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(Inward::Over(error)) => {
                    closing.ended = is_end(&error);
                    skipped += 1;
                }
                Poll::Ready(Inward::Message(_) | Inward::Skip) => skipped += 1,
            }
            if skipped == ReadTurn::LONGEST.messages {
                cx.waker().wake_by_ref();
                break;
            }
        }
        if closing.sent && closing.ended {
            return Poll::Ready(());
        }
        if skipped > 0 {
            closing.until = self.tunnel.shared.clock.timer_now() + CLOSE_TIMEOUT;
        }
        self.phase = Phase::Closing(closing);
        let until = closing.until.min(closing.deadline);
        self.timer.poll_deadline(cx, until)
    }
}
