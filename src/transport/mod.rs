//! Frames over any WebSocket stack's `Stream` and `Sink` of messages (PROTOCOL.md section 3.1).
//!
//! One binary message is one tunnel message. [`FrameTransport`] only needs a [`Carrier`], which
//! says how the stack's message type carries tunnel messages. No WebSocket crate, and no version of
//! one, is part of this crate's interface. The macro [`carrier!`](crate::carrier!) writes the
//! carrier for tungstenite, axum and tokio-websockets. Anything else that keeps message boundaries
//! works too: a channel, a data channel, a message queue.
//!
//! # Examples
//!
//! A carrier for tungstenite, and frames both ways over a socket:
//!
//! ```
//! use bytes::Bytes;
//! use futures_util::{SinkExt, StreamExt};
//! use kohakuriver_tunnel::carrier;
//! use kohakuriver_tunnel::transport::FrameTransport;
//! use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
//! use tokio::net::{TcpListener, TcpStream};
//! use tokio_tungstenite::tungstenite;
//!
//! carrier!(Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame);
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let url = format!("ws://{}/", listener.local_addr()?);
//! let server = tokio::spawn(async move {
//!     let (socket, _) = listener.accept().await.unwrap();
//!     let socket = tokio_tungstenite::accept_async(socket).await.unwrap();
//!     let mut frames = FrameTransport::new(socket, Ws);
//!     while let Some(frame) = frames.next().await {
//!         frames.send(frame.unwrap()).await.unwrap(); // an echo
//!     }
//! });
//!
//! let (socket, _) = tokio_tungstenite::connect_async(url).await?;
//! let mut frames = FrameTransport::new(socket, Ws);
//! let ping = Frame::Ping { id: ClientId::KEEPALIVE, payload: Bytes::new() };
//! frames.send(ping.clone()).await?; // a frame,
//! frames.send(ping.to_bytes()).await?; // or a ready-made message
//! assert_eq!(frames.next().await.ok_or("end")??, ping);
//! assert_eq!(frames.next().await.ok_or("end")??, ping);
//! frames.close().await?;
//! # server.await?;
//! # Ok(())
//! # }
//! ```

mod carrier;
mod framed;
mod stacks;

pub use carrier::{Carrier, CloseReason, Plain, Received};
#[cfg(feature = "mux")]
pub(crate) use carrier::{SKIP_MAX, poll_received};
pub use framed::{FrameTransport, ReceiveError};
#[doc(hidden)]
pub use stacks::carrier_types;

use core::fmt::Display;

use futures_core::Stream;
use futures_sink::Sink;

/// Messages in both directions, as a WebSocket stack has them. Not to be implemented: every
/// `Stream` of results that is a `Sink` of the same messages and error is one.
///
/// ```
/// use bytes::Bytes;
/// use futures_util::SinkExt;
/// use kohakuriver_tunnel::transport::{Carrier, Transport};
///
/// /// Sends a tunnel message on the WebSocket of any stack.
/// async fn send<T, C>(socket: &mut T, carrier: &mut C, message: Bytes) -> Result<(), T::Failure>
/// where
///     C: Carrier,
///     T: Transport<C::Message>,
/// {
///     socket.send(carrier.binary(message)).await
/// }
/// ```
pub trait Transport<M>:
    Stream<Item = Result<M, <Self as Transport<M>>::Failure>>
    + Sink<M, Error = <Self as Transport<M>>::Failure>
    + Unpin
{
    /// The error of both directions.
    type Failure: Display;
}

impl<T, M, E> Transport<M> for T
where
    T: Stream<Item = Result<M, E>> + Sink<M, Error = E> + Unpin,
    E: Display,
{
    type Failure = E;
}
