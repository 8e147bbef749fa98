//! Frames over any WebSocket stack's `Stream` and `Sink` of messages (PROTOCOL.md section 3.1).
//!
//! One binary message is one tunnel message. [`FrameTransport`] needs to be told only how the stack's
//! message type carries one, by a [`Carrier`] or by two closures in [`carrier_fn`], so no WebSocket
//! crate, and no version of one, is part of this crate's interface. Anything else that keeps message
//! boundaries will do as well: a channel, a data channel, a message queue.
//!
//! # Examples
//!
//! A carrier for tungstenite, and frames both ways over a socket:
//!
//! ```
//! use bytes::Bytes;
//! use futures_util::{SinkExt, StreamExt};
//! use kohakuriver_tunnel::transport::{Carrier, FrameTransport, Received};
//! use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
//! use tokio::net::{TcpListener, TcpStream};
//! use tokio_tungstenite::tungstenite::Message;
//!
//! struct Tungstenite;
//!
//! impl Carrier for Tungstenite {
//!     type Message = Message;
//!
//!     fn wrap(&mut self, message: Bytes) -> Message {
//!         Message::Binary(message)
//!     }
//!
//!     fn unwrap(&mut self, message: Message) -> Received<Message> {
//!         match message {
//!             Message::Binary(message) => Received::Message(message),
//!             Message::Ping(_) | Message::Pong(_) => Received::Skip,
//!             Message::Close(_) => Received::End,
//!             other => Received::Other(other),
//!         }
//!     }
//!
//!     fn probe(&mut self) -> Option<Message> {
//!         Some(Message::Ping(Bytes::new()))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let url = format!("ws://{}/", listener.local_addr()?);
//! let server = tokio::spawn(async move {
//!     let (socket, _) = listener.accept().await.unwrap();
//!     let socket = tokio_tungstenite::accept_async(socket).await.unwrap();
//!     let mut frames = FrameTransport::new(socket, Tungstenite);
//!     while let Some(frame) = frames.next().await {
//!         frames.send(frame.unwrap()).await.unwrap(); // an echo
//!     }
//! });
//!
//! let (socket, _) = tokio_tungstenite::connect_async(url).await?;
//! let mut frames = FrameTransport::new(socket, Tungstenite);
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
mod carrier_fn;
mod framed;

pub use carrier::{Carrier, Received};
pub use carrier_fn::{CarrierFn, carrier_fn};
pub use framed::{FrameTransport, ReceiveError};
