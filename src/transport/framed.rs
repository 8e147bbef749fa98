use alloc::string::String;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::{FusedStream, Stream};
use futures_sink::Sink;
use thiserror::Error;

use super::carrier::{SKIP_MAX, poll_received};
use super::{Carrier, CloseReason, Received};
use crate::wire::{DecodeError, Frame};

/// A `Stream` and `Sink` of frames over a transport's `Stream` and `Sink` of messages.
///
/// **Receiving.** A malformed message is an item and not the end: see [`ReceiveError`]. Messages
/// that the carrier skips are passed over, at most 32 before the task yields, so a flood of pings
/// delays no other task. The stream ends where the transport ends, or at [`Received::End`], and
/// stays ended. At `End` the transport is polled once more, so that the stack can answer a closing
/// handshake; [`close`](Self::close) makes sure that the answer is sent.
///
/// **Sending.** A [`Frame`] costs a copy of its payload, because the header is put in front of it.
/// An encoded message as [`Bytes`] costs no copy: see [`HeadroomBuf`](crate::wire::HeadroomBuf). It
/// is sent unchanged and not checked. The length of neither is: no message may be longer than 1 MiB
/// (PROTOCOL.md section 3.1).
///
/// Because this is a sink of both, `SinkExt::close` and `SinkExt::flush` would be ambiguous. Use
/// the methods [`close`](Self::close) and [`flush`](Self::flush) instead.
///
/// Most stacks answer pings and the closing handshake only while they are polled for reading. A
/// task that sends must therefore receive too, or another task must, after `StreamExt::split`,
/// which costs a lock.
///
/// The transport has to be [`Unpin`], as WebSockets are. Pass another one as `Box::pin(transport)`.
/// The [module](super) has an example over WebSockets. Other messages work too:
///
/// ```
/// use bytes::Bytes;
/// use futures_util::{StreamExt, stream};
/// use kohakuriver_tunnel::transport::{FrameTransport, Plain};
/// use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let close: Frame = Frame::Close { proto: Proto::Tcp, id: ClientId(1) };
/// let messages = stream::iter([Ok::<_, std::io::Error>(close.to_bytes())]);
/// let mut frames = FrameTransport::new(messages, Plain);
/// assert_eq!(frames.next().await.ok_or("end")??, close);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FrameTransport<T, C> {
    transport: T,
    carrier: C,
    ended: bool,
    close_reason: Option<CloseReason>,
}

// The carrier is never pinned.
impl<T: Unpin, C> Unpin for FrameTransport<T, C> {}

impl<T, C: Carrier> FrameTransport<T, C> {
    /// Makes frames of the messages of `transport`, which `carrier` classifies.
    pub const fn new(transport: T, carrier: C) -> Self {
        Self {
            transport,
            carrier,
            ended: false,
            close_reason: None,
        }
    }

    /// Sends buffered messages.
    ///
    /// # Errors
    /// The transport's errors.
    pub async fn flush(&mut self) -> Result<(), T::Error>
    where
        T: Sink<C::Message> + Unpin,
    {
        poll_fn(|cx| Pin::new(&mut self.transport).poll_flush(cx)).await
    }

    /// Sends buffered messages and then the end: over a WebSocket, the closing handshake.
    ///
    /// Receiving continues: messages that the peer had sent before it saw the end still arrive, and
    /// then the end.
    ///
    /// # Errors
    /// The transport's errors.
    pub async fn close(&mut self) -> Result<(), T::Error>
    where
        T: Sink<C::Message> + Unpin,
    {
        poll_fn(|cx| Pin::new(&mut self.transport).poll_close(cx)).await
    }

    /// The transport, for instance to send a message such as the text of the handshake.
    pub const fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }

    /// The transport.
    pub const fn transport(&self) -> &T {
        &self.transport
    }

    /// The code and reason of the peer's close, once the stream has ended, if the peer gave any.
    /// Unchanged: [`clean_text`](crate::session::clean_text) makes a reason safe to show.
    pub const fn close_reason(&self) -> Option<&CloseReason> {
        self.close_reason.as_ref()
    }

    /// Returns the transport and the carrier. Nothing is buffered here, so nothing is lost.
    pub fn into_parts(self) -> (T, C) {
        (self.transport, self.carrier)
    }
}

impl<T, C, E> Stream for FrameTransport<T, C>
where
    T: Stream<Item = Result<C::Message, E>> + Unpin,
    C: Carrier,
{
    type Item = Result<Frame, ReceiveError<E, C::Message>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        for _ in 0..SKIP_MAX {
            let received = ready!(poll_received(cx, &mut this.transport, &mut this.carrier));
            let item = match received {
                Some(Ok(Received::Message(message))) => {
                    Frame::decode(message).map_err(ReceiveError::Decode)
                }
                Some(Ok(Received::Text(text))) => Err(ReceiveError::Text(text)),
                Some(Ok(Received::Other(message))) => Err(ReceiveError::Unexpected(message)),
                Some(Ok(Received::Skip)) => continue,
                Some(Ok(Received::End(reason))) => {
                    this.ended = true;
                    this.close_reason = reason;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => Err(ReceiveError::Transport(error)),
                None => {
                    this.ended = true;
                    return Poll::Ready(None);
                }
            };
            return Poll::Ready(Some(item));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T, C, E> FusedStream for FrameTransport<T, C>
where
    T: Stream<Item = Result<C::Message, E>> + Unpin,
    C: Carrier,
{
    fn is_terminated(&self) -> bool {
        self.ended
    }
}

impl<T, C> Sink<Bytes> for FrameTransport<T, C>
where
    T: Sink<C::Message> + Unpin,
    C: Carrier,
{
    type Error = T::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        Pin::new(&mut self.get_mut().transport).poll_ready(cx)
    }

    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), T::Error> {
        let this = self.get_mut();
        let message = this.carrier.binary(message);
        Pin::new(&mut this.transport).start_send(message)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        Pin::new(&mut self.get_mut().transport).poll_close(cx)
    }
}

impl<T, C> Sink<Frame> for FrameTransport<T, C>
where
    T: Sink<C::Message> + Unpin,
    C: Carrier,
{
    type Error = T::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        Sink::<Bytes>::poll_ready(self, cx)
    }

    fn start_send(self: Pin<&mut Self>, frame: Frame) -> Result<(), T::Error> {
        Sink::<Bytes>::start_send(self, frame.to_bytes())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        Sink::<Bytes>::poll_flush(self, cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        Sink::<Bytes>::poll_close(self, cx)
    }
}

/// What a [`FrameTransport`] received instead of a frame. The variant says who is at fault.
///
/// ```
/// use bytes::Bytes;
/// use futures_util::{StreamExt, stream};
/// use kohakuriver_tunnel::transport::{FrameTransport, Plain, ReceiveError};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let messages = stream::iter([Ok::<_, std::io::Error>(Bytes::from("short"))]);
/// let mut frames = FrameTransport::new(messages, Plain);
/// let error = frames.next().await.unwrap().unwrap_err();
/// assert!(matches!(error, ReceiveError::Decode(_)), "the peer's fault, and not the end");
/// assert!(frames.next().await.is_none());
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReceiveError<E, M> {
    /// The peer sent a tunnel message that is malformed. The next one may not be.
    #[error(transparent)]
    Decode(DecodeError),
    /// The transport failed. The transport decides whether anything follows; after an error of a
    /// WebSocket nothing does.
    #[error(transparent)]
    Transport(E),
    /// The peer sent a text, such as the greeting of a session (PROTOCOL.md section 4.1), which
    /// [`Greeting::parse`](crate::session::Greeting::parse) parses. Frames may follow.
    #[error("a text that carries no tunnel message")]
    Text(String),
    /// The peer sent a message that carries no tunnel message: [`Received::Other`]. Frames may
    /// follow.
    #[error("message of the transport that carries no tunnel message")]
    Unexpected(M),
}

#[cfg(test)]
mod tests {
    use core::convert::Infallible;
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;
    use crate::wire::ClientId;

    /// A transport that is never pending: its contents, then `last` forever.
    struct Always {
        first: VecDeque<Received<&'static str>>,
        last: Option<Received<&'static str>>,
        polls: usize,
    }

    impl Stream for Always {
        type Item = Result<Received<&'static str>, Infallible>;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.polls += 1;
            let next = self.first.pop_front().or_else(|| self.last.clone());
            Poll::Ready(next.map(Ok))
        }
    }

    /// Messages that are their own classification.
    struct AsTold;

    impl Carrier for AsTold {
        type Message = Received<&'static str>;

        fn binary(&mut self, message: Bytes) -> Self::Message {
            Received::Message(message)
        }

        fn classify(&mut self, message: Self::Message) -> Received<Self::Message> {
            match message {
                Received::Other(text) => Received::Other(Received::Other(text)),
                Received::Message(message) => Received::Message(message),
                Received::Text(text) => Received::Text(text),
                Received::Skip => Received::Skip,
                Received::End(reason) => Received::End(reason),
            }
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    type Item = Result<Frame, ReceiveError<Infallible, Received<&'static str>>>;

    fn poll(frames: &mut FrameTransport<Always, AsTold>, wakes: &Arc<Wakes>) -> Poll<Option<Item>> {
        let waker = Waker::from(Arc::clone(wakes));
        Pin::new(frames).poll_next(&mut Context::from_waker(&waker))
    }

    fn frames(
        first: impl IntoIterator<Item = Received<&'static str>>,
        last: Option<Received<&'static str>>,
    ) -> FrameTransport<Always, AsTold> {
        let first = first.into_iter().collect();
        let transport = Always {
            first,
            last,
            polls: 0,
        };
        FrameTransport::new(transport, AsTold)
    }

    fn ping() -> Frame {
        Frame::Ping {
            id: ClientId::KEEPALIVE,
            payload: Bytes::new(),
        }
    }

    #[test]
    fn an_endless_flood_of_pings_yields_to_other_tasks() {
        let mut frames = frames([], Some(Received::Skip));
        let wakes = Arc::default();
        for round in 1..4 {
            assert_eq!(poll(&mut frames, &wakes), Poll::Pending);
            assert_eq!(frames.transport().polls, round * SKIP_MAX);
            assert_eq!(wakes.0.load(Ordering::Relaxed), round);
        }
    }

    #[test]
    fn a_frame_behind_pings_arrives() {
        for pings in [1, SKIP_MAX - 1, SKIP_MAX, 3 * SKIP_MAX + 1] {
            let skips = core::iter::repeat_n(Received::Skip, pings);
            let frame = Received::Message(ping().to_bytes());
            let mut frames = frames(skips.chain([frame]), None);
            let wakes = Arc::default();
            for _ in 0..pings / SKIP_MAX {
                assert_eq!(poll(&mut frames, &wakes), Poll::Pending);
            }
            assert_eq!(poll(&mut frames, &wakes), Poll::Ready(Some(Ok(ping()))));
            assert_eq!(wakes.0.load(Ordering::Relaxed), pings / SKIP_MAX);
            assert_eq!(poll(&mut frames, &wakes), Poll::Ready(None));
        }
    }

    #[test]
    fn what_is_no_frame_is_an_item_and_not_the_end() {
        let messages = [
            Received::Message(Bytes::from_static(b"short")),
            Received::Other("a raw frame"),
            Received::Text("CONNECTED".into()),
            Received::Message(ping().to_bytes()),
        ];
        let mut frames = frames(messages, None);
        let wakes = Arc::default();
        let items = [
            Err(ReceiveError::Decode(DecodeError::Truncated { len: 5 })),
            Err(ReceiveError::Unexpected(Received::Other("a raw frame"))),
            Err(ReceiveError::Text("CONNECTED".into())),
            Ok(ping()),
        ];
        for item in items {
            assert_eq!(poll(&mut frames, &wakes), Poll::Ready(Some(item)));
        }
        assert_eq!(poll(&mut frames, &wakes), Poll::Ready(None));
    }

    #[test]
    fn the_end_is_final_and_polls_the_stack_once_more_for_its_closing_handshake() {
        let after = Some(Received::Message(ping().to_bytes()));
        let reason = CloseReason::new(1008, "no");
        let mut frames = frames([Received::End(Some(reason.clone()))], after);
        let wakes = Arc::default();
        assert!(!frames.is_terminated());
        assert_eq!(frames.close_reason(), None);
        for _ in 0..3 {
            assert_eq!(poll(&mut frames, &wakes), Poll::Ready(None));
            assert!(frames.is_terminated());
        }
        assert_eq!(frames.close_reason(), Some(&reason));
        assert_eq!(frames.transport().polls, 2);
    }
}
