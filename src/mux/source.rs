//! Where a resumed tunnel's transports come from.

use core::convert::Infallible;
use core::marker::PhantomData;
use core::task::{Context, Poll};
use core::time::Duration;

use tokio::sync::oneshot;

use super::TunnelError;
use crate::resume::{EndReason, Open, Secret};
use crate::session::Instant;

/// Where the next transport of a tunnel comes from: [`Redial`](super::Redial),
/// [`Kept`](super::Kept), or, if there is none, [`Once`]. Cannot be implemented elsewhere.
/// [`Connect`](super::Connect) and [`Keeper`](super::Keeper) have examples.
pub trait Source: Unpin {
    #[doc(hidden)]
    type Transport;

    /// Whether tunnels with this source outlive their transports.
    #[doc(hidden)]
    const RESUMES: bool;

    /// The next transport, or why none can come any more. `keep` is how long the tunnel waits.
    #[doc(hidden)]
    fn poll_arrival(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        need: Need,
        keep: Duration,
    ) -> Poll<Arrival<Self::Transport>>;

    /// When to poll it again at the latest.
    #[doc(hidden)]
    fn poll_timeout(&self) -> Option<Instant>;

    /// The secret for the client's next OPEN.
    #[doc(hidden)]
    fn next_secret(&mut self) -> Secret;

    /// What became of the tunnel.
    #[doc(hidden)]
    fn note(&mut self, now: Instant, news: &News<'_>);
}

/// No further transport: the tunnel ends with the one that it has. Only the type of a
/// [`Driver`](super::Driver), which has an example, names it. No value of it exists.
#[derive(Debug)]
pub struct Once<T> {
    never: Infallible,
    transport: PhantomData<fn() -> T>,
}

impl<T> Source for Once<T> {
    type Transport = T;

    const RESUMES: bool = false;

    fn poll_arrival(
        &mut self,
        _: &mut Context<'_>,
        _: Instant,
        _: Need,
        _: Duration,
    ) -> Poll<Arrival<T>> {
        match self.never {}
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self.never {}
    }

    fn next_secret(&mut self) -> Secret {
        match self.never {}
    }

    fn note(&mut self, _: Instant, _: &News<'_>) {
        match self.never {}
    }
}

/// How much the tunnel needs another transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It has one, and the peer was heard.
    None,
    /// It has one whose OPEN is not answered.
    Wait,
    /// It has one, but there is doubt whether the peer still hears.
    Doubt,
    /// It has none.
    Lost,
}

/// What a source has.
pub enum Arrival<T> {
    /// A client's new transport.
    Dialled(T),
    /// A transport on which OPEN came to a server.
    Opened(Handover<T>),
    /// There will be none.
    Over(TunnelError),
}

/// What a source is told of its tunnel.
#[derive(Debug)]
pub enum News<'a> {
    /// The tunnel goes on.
    Attached,
    /// The transport is lost.
    Detached {
        /// The peer has answered.
        confirmed: bool,
    },
    /// The tunnel has ended. `None`: in good order.
    Ended(Option<EndReason>),
    /// Bytes kept now; messages and bytes sent again since the last time.
    Moved {
        /// Bytes kept now.
        ring: usize,
        /// Messages and bytes.
        replayed: (u64, u64),
    },
    /// The name of the peer's address, or the like.
    Peer(&'a str),
}

/// A transport for the task that owns the tunnel.
#[derive(Debug)]
pub struct Handover<T> {
    pub(super) open: Open,
    pub(super) peer: alloc::string::String,
    transport: Option<T>,
    answer: Option<oneshot::Sender<Answer<T>>>,
}

/// The refused transport, and why.
pub(super) type Answer<T> = Result<(), (T, EndReason)>;

impl<T> Handover<T> {
    pub(super) fn new(
        open: Open,
        peer: alloc::string::String,
        transport: T,
    ) -> (Self, oneshot::Receiver<Answer<T>>) {
        let (answer, answered) = oneshot::channel();
        let handover = Self {
            open,
            peer,
            transport: Some(transport),
            answer: Some(answer),
        };
        (handover, answered)
    }

    /// The transport is the tunnel's now.
    pub(super) fn accept(mut self) -> Option<T> {
        if let Some(answer) = self.answer.take() {
            // Whoever asked may be gone.
            let _ = answer.send(Ok(()));
        }
        self.transport.take()
    }

    /// Gives the transport back.
    pub(super) fn refuse(mut self, reason: EndReason) {
        self.give_back(reason);
    }

    fn give_back(&mut self, reason: EndReason) {
        if let (Some(transport), Some(answer)) = (self.transport.take(), self.answer.take()) {
            let _ = answer.send(Err((transport, reason)));
        }
    }
}

impl<T> Drop for Handover<T> {
    /// The task that owned the tunnel has ended.
    fn drop(&mut self) {
        self.give_back(EndReason::Unknown);
    }
}
