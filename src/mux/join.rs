use core::future::{Future, poll_fn};
use core::task::{Context, Poll, ready};

use super::grace::Grace;
use super::relay::Relayed;
use super::stream::{ReadHalf, TunnelStream, WriteHalf, send_reset};
use crate::session::{Reason, Reset, SendError};
use crate::wire::Chunk;

impl TunnelStream {
    /// Joins the stream with one of another tunnel until both directions have ended. Each direction
    /// ends separately.
    ///
    /// The join copies no payload: it passes on what one session received. The other writes the
    /// header of its own message over the one received, so a message goes on without a copy if
    /// nobody else holds its memory. If the transport returns slices of one read buffer, the
    /// payload is copied once, behind a header.
    ///
    /// Each stream keeps its credit. While one stream takes nothing, at most one message is read
    /// from the other. If one is reset, earlier data still reaches the other, followed by the reset
    /// with its reason and text. Data that was not sent on yet is lost if the stream was reset here
    /// because memory was short. If the future is dropped before its end, both streams are reset:
    /// bytes in between are lost, and a part must not look like the whole.
    ///
    /// [`Relayed::received`] counts bytes from this stream, [`Relayed::sent`] bytes from `other`.
    ///
    /// ```
    /// use kohakuriver_tunnel::mux::{Incoming, Mux};
    ///
    /// /// Passes what one tunnel asks for on to another.
    /// async fn pass_on(incoming: Incoming, to: Mux) {
    ///     let Incoming::Tcp(incoming) = incoming else { return };
    ///     let Ok(stream) = to.open_tcp(incoming.port()) else { return };
    ///     match stream.established().await {
    ///         Ok(()) => _ = incoming.accept().join(stream).await,
    ///         Err(reset) => incoming.reject(reset.reason, &reset.text),
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// The [`Reset`] of either stream. The other stream was reset with it.
    pub fn join(self, other: Self) -> impl Future<Output = Result<Relayed, Reset>> {
        self.join_with_grace(other, core::future::pending)
    }

    /// As [`join`](Self::join), with a time limit for a stream that does not accept data from
    /// before a reset of the other.
    ///
    /// `grace` makes the timer. It is called again after each progress, so that a slow stream gets
    /// everything. Without the limit, a service that has stopped reading would keep the streams of
    /// all clients that gave up on it.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn join_with_grace<F>(
        self,
        other: Self,
        grace: impl FnMut() -> F,
    ) -> impl Future<Output = Result<Relayed, Reset>>
    where
        F: Future<Output = ()>,
    {
        // Not in the future's body: it may be dropped before its first poll.
        let mut join = Join {
            one: self,
            other,
            there: Direction::default(),
            back: Direction::default(),
            detached: (false, false),
        };
        let mut grace = Grace::new(grace);
        poll_fn(move |cx| {
            if let Poll::Ready(outcome) = join.poll(cx) {
                return Poll::Ready(outcome);
            }
            let undelivered = join.poll_undelivered(cx);
            // It may have changed before this task left its wakers.
            join.note_detached();
            let (reset, progress) = ready!(undelivered);
            ready!(grace.poll(cx, progress));
            Poll::Ready(Err(join.pass_on(reset)))
        })
    }
}

struct Join {
    one: TunnelStream,
    other: TunnelStream,
    /// From `one` to `other`.
    there: Direction,
    back: Direction,
    /// Whether the tunnel of `one`, or of `other`, waits for a transport.
    detached: (bool, bool),
}

/// One direction.
#[derive(Debug, Default)]
struct Direction {
    /// Read, and not yet accepted by the other stream.
    rest: Chunk,
    carried: u64,
    state: Progress,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Open,
    /// The other stream has no room.
    Blocked,
    /// Everything was carried, including the end.
    Finished,
    /// The source was reset; earlier data is in flight.
    Failing(Reset),
    /// The destination was reset. The other direction passes that on, after its data.
    Cut,
}

impl Join {
    /// While one tunnel waits for a transport, what the other stream holds has no reader.
    fn note_detached(&mut self) {
        let detached = (self.one.is_detached(), self.other.is_detached());
        if detached != self.detached {
            self.detached = detached;
            self.other.set_expendable(detached.0);
            self.one.set_expendable(detached.1);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Relayed, Reset>> {
        self.note_detached();
        let (one_read, one_write) = self.one.split();
        let (other_read, other_write) = self.other.split();
        let reset = self.there.poll(cx, one_read, other_write);
        let reset = match reset {
            Poll::Pending => self.back.poll(cx, other_read, one_write),
            reset => reset,
        };
        if let Poll::Ready(reset) = reset {
            return Poll::Ready(Err(self.pass_on(reset)));
        }
        if !self.is_finished() {
            return Poll::Pending;
        }
        Poll::Ready(Ok(Relayed {
            sent: self.back.carried,
            received: self.there.carried,
        }))
    }

    fn is_finished(&self) -> bool {
        self.there.state == Progress::Finished && self.back.state == Progress::Finished
    }

    /// Ready with a reset, and the progress so far, if earlier data is not accepted.
    fn poll_undelivered(&mut self, cx: &mut Context<'_>) -> Poll<(Reset, u64)> {
        let (one_read, one_write) = self.one.split();
        let (other_read, other_write) = self.other.split();
        match self.there.poll_undelivered(cx, one_read, other_write) {
            Poll::Pending => self.back.poll_undelivered(cx, other_read, one_write),
            undelivered => undelivered,
        }
    }

    /// Resets the stream that was not reset. The other one stays unchanged.
    fn pass_on(&self, reset: Reset) -> Reset {
        self.one.reset(reset.reason, &reset.text);
        self.other.reset(reset.reason, &reset.text);
        reset
    }
}

impl Drop for Join {
    /// Has no effect on streams that have ended.
    fn drop(&mut self) {
        if !self.is_finished() {
            self.pass_on(Reset::new(Reason::Reset, "the relay was dropped"));
        }
    }
}

impl Direction {
    /// Carries available data. Ready when the source was reset, after all earlier data.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf,
        to: &mut WriteHalf,
    ) -> Poll<Reset> {
        if matches!(self.state, Progress::Open | Progress::Blocked) {
            self.state = Progress::Open;
            if let Poll::Ready(state) = self.poll_carry(cx, from, to) {
                self.state = state;
            }
        }
        if matches!(self.state, Progress::Finished | Progress::Cut) {
            // Nothing else would report it.
            if let Poll::Ready(reset) = from.poll_reset(cx) {
                self.state = Progress::Failing(reset);
            }
        }
        match &self.state {
            Progress::Failing(reset) => to.poll_transmitted(cx).map(|()| reset.clone()),
            Progress::Open | Progress::Blocked | Progress::Finished | Progress::Cut => {
                Poll::Pending
            }
        }
    }

    /// Ready when there is nothing to wait for from the source.
    fn poll_carry(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf,
        to: &mut WriteHalf,
    ) -> Poll<Progress> {
        loop {
            if self.rest.is_empty() {
                match ready!(from.poll_headed(cx, 0)) {
                    Ok(Some(chunk)) => self.rest = chunk,
                    Ok(None) => {
                        to.finish();
                        return Poll::Ready(Progress::Finished);
                    }
                    Err(reset) => return Poll::Ready(Progress::Failing(reset)),
                }
            }
            match to.poll_send(cx, &mut self.rest) {
                Poll::Ready(Ok(sent)) => self.carried += sent as u64,
                Poll::Ready(Err(SendError::Reset(_))) => {
                    self.rest = Chunk::default();
                    return Poll::Ready(Progress::Cut);
                }
                // The caller had shut it down before.
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Progress::Failing(send_reset(error)));
                }
                Poll::Pending => return Poll::Ready(Progress::Blocked),
            }
        }
    }

    fn poll_undelivered(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf,
        to: &mut WriteHalf,
    ) -> Poll<(Reset, u64)> {
        let reset = match &self.state {
            Progress::Blocked => {
                let reset = ready!(from.poll_reset(cx));
                if from.has_lost() {
                    // It does not count as held any more.
                    self.rest = Chunk::default();
                    self.state = Progress::Failing(reset);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                reset
            }
            Progress::Failing(reset) => reset.clone(),
            Progress::Open | Progress::Finished | Progress::Cut => return Poll::Pending,
        };
        // Only compared, so it may wrap: bytes from before the join can be unsent too.
        Poll::Ready((reset, self.carried.wrapping_sub(to.unsent())))
    }
}
