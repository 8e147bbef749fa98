//! The greeting of a session over any transport. Every wait is bounded.

use alloc::string::{String, ToString};
use core::future::{Future, poll_fn};
use core::mem;
use core::pin::{Pin, pin};
use core::task::{Poll, ready};
use core::time::Duration;

use futures_sink::Sink;

use super::Timer;
use super::error::{ConnectError, clean};
use crate::session::{Greeting, Instant};
use crate::transport::{Carrier, Received, SKIP_MAX, Transport, poll_received};

/// Time for the greeting, as deployed parts wait.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for the close frame after a refusal.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for the peer to read and answer a refusal.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How much is read from a peer that was refused or told the end, and one more message. A peer that
/// sends more does not close.
#[derive(Debug, Clone, Copy)]
pub(super) struct Discard {
    messages: usize,
    bytes: usize,
}

impl Discard {
    /// For a peer that sends nothing before it is answered.
    pub(super) const LITTLE: Self = Self {
        messages: SKIP_MAX,
        bytes: 256 << 10,
    };

    /// For a client that may send before the answer (PROTOCOL.md section 5.10): as much as its ring
    /// holds, where each message counts 64 bytes more, and the message that fills it.
    pub(super) fn ring(bytes: u32) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Self {
            messages: 16 << 10,
            bytes: bytes.clamp(1 << 20, 8 << 20) + (256 << 10),
        }
    }
}

/// Waits for the greeting.
pub(super) async fn hear<T, C>(
    transport: &mut T,
    carrier: &mut C,
    timer: &mut impl Timer,
    limit: Duration,
) -> Result<(), ConnectError>
where
    C: Carrier,
    T: Transport<C::Message>,
{
    if carrier.text(String::new()).is_none() {
        return Err(ConnectError::NoTexts);
    }
    let Received::Text(text) = first(transport, carrier, timer, limit).await? else {
        return Err(ConnectError::Unexpected);
    };
    match Greeting::parse(&text) {
        Greeting::Connected => Ok(()),
        Greeting::Refused(reason) => {
            let code = within(timer, CLOSE_TIMEOUT, close_code(transport, carrier)).await;
            let code = code.flatten();
            Err(ConnectError::Refused { reason, code })
        }
    }
}

/// The first message of the peer, unless it ends the transport.
pub(super) async fn first<T, C>(
    transport: &mut T,
    carrier: &mut C,
    timer: &mut impl Timer,
    limit: Duration,
) -> Result<Received<C::Message>, ConnectError>
where
    C: Carrier,
    T: Transport<C::Message>,
{
    let first = within(timer, limit, next(transport, carrier)).await;
    match first.ok_or(ConnectError::TimedOut)? {
        None => Err(ConnectError::Closed(None)),
        Some(Err(error)) => Err(ConnectError::Transport(error.to_string())),
        Some(Ok(Received::End(reason))) => Err(ConnectError::Closed(reason.map(clean))),
        Some(Ok(received)) => Ok(received),
    }
}

/// Sends the greeting.
pub(super) async fn say<T, C>(
    transport: &mut T,
    carrier: &mut C,
    timer: &mut impl Timer,
    limit: Duration,
) -> Result<(), ConnectError>
where
    C: Carrier,
    T: Transport<C::Message>,
{
    let greeting = Greeting::Connected.to_text();
    let greeting = carrier.text(greeting).ok_or(ConnectError::NoTexts)?;
    let said = within(timer, limit, send(transport, greeting)).await;
    said.ok_or(ConnectError::TimedOut)?
        .map_err(|error| ConnectError::Transport(error.to_string()))
}

/// Sends a refusal with its reason.
pub(super) async fn refuse<T, C>(
    transport: T,
    mut carrier: C,
    timer: &mut impl Timer,
    code: u16,
    why: &str,
) where
    C: Carrier,
    T: Transport<C::Message>,
{
    let text = carrier.text(Greeting::Refused(why.into()).to_text());
    let close = carrier.close(code, why);
    let last = text.into_iter().chain(close);
    part(transport, carrier, timer, last, Discard::LITTLE).await;
}

/// Sends the last messages, closes the transport, and waits for the peer's close unless it goes on
/// sending.
pub(super) async fn part<T, C>(
    mut transport: T,
    mut carrier: C,
    timer: &mut impl Timer,
    last: impl IntoIterator<Item = C::Message>,
    most: Discard,
) where
    C: Carrier,
    T: Transport<C::Message>,
{
    let goodbye = async {
        for message in last {
            send(&mut transport, message).await?;
        }
        poll_fn(|cx| Pin::new(&mut transport).poll_close(cx)).await?;
        let mut bytes = 0;
        for read in 1..=most.messages {
            bytes += match poll_fn(|cx| poll_received(cx, &mut transport, &mut carrier)).await {
                None | Some(Err(_) | Ok(Received::End(_))) => break,
                Some(Ok(Received::Message(message))) => message.len(),
                Some(Ok(Received::Text(text))) => text.len(),
                Some(Ok(_)) => 0,
            };
            if bytes > most.bytes {
                break;
            }
            if read % SKIP_MAX == 0 {
                yield_now().await;
            }
        }
        Ok::<_, T::Failure>(())
    };
    // The result does not matter here.
    let _ = within(timer, REFUSE_TIMEOUT, goodbye).await;
}

/// Sends a message. False if the transport does not take it in time, or fails.
pub(super) async fn send_by<T, M>(
    transport: &mut T,
    timer: &mut impl Timer,
    message: M,
    until: Instant,
) -> bool
where
    T: Sink<M> + Unpin,
{
    let limit = until - timer.clock().now();
    matches!(
        within(timer, limit, send(transport, message)).await,
        Some(Ok(()))
    )
}

/// What comes of `work`, unless that takes too long.
pub(super) async fn within<F: Future>(
    timer: &mut impl Timer,
    limit: Duration,
    work: F,
) -> Option<F::Output> {
    let deadline = timer.clock().now() + limit;
    let mut work = pin!(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => timer.poll_deadline(cx, deadline).map(|()| None),
    })
    .await
}

/// The next message other than a ping.
async fn next<T, C>(
    transport: &mut T,
    carrier: &mut C,
) -> Option<Result<Received<C::Message>, T::Failure>>
where
    C: Carrier,
    T: Transport<C::Message>,
{
    poll_fn(|cx| {
        for _ in 0..SKIP_MAX {
            let message = ready!(poll_received(cx, transport, carrier));
            if !matches!(message, Some(Ok(Received::Skip))) {
                return Poll::Ready(message);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// The code of the close frame after a refusal.
async fn close_code<T, C>(transport: &mut T, carrier: &mut C) -> Option<u16>
where
    C: Carrier,
    T: Transport<C::Message>,
{
    for _ in 0..SKIP_MAX {
        match next(transport, carrier).await? {
            Ok(Received::End(reason)) => return reason.map(|reason| reason.code),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Lets other tasks run.
async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn send<T, M>(transport: &mut T, message: M) -> Result<(), T::Error>
where
    T: Sink<M> + Unpin,
{
    poll_fn(|cx| Pin::new(&mut *transport).poll_ready(cx)).await?;
    Pin::new(&mut *transport).start_send(message)?;
    poll_fn(|cx| Pin::new(&mut *transport).poll_flush(cx)).await
}
