//! Frames over datagrams and over byte streams: two [`tokio_util::codec`]s (PROTOCOL.md section 3).
//!
//! A tunnel message has no length field: the boundary that the carrier keeps gives the length.
//! There are two codecs. Which one is right depends only on whether the carrier keeps boundaries:
//!
//! | carrier | codec | PROTOCOL.md |
//! |---|---|---|
//! | UDP, Unix datagrams: one datagram, one message | [`MessageCodec`] | 3.3 |
//! | TCP, Unix streams, vsock, pipes: bytes only | [`StreamCodec`]: a length first | 3.2 |
//!
//! One decoder for both would have to take all buffered bytes for one message. On a byte stream it
//! would merge messages that arrive together and cut messages that arrive in parts. Tests in which
//! reads happen to match writes would still pass. WebSockets keep boundaries too, but are a
//! `Stream` and a `Sink` of messages; the `transport` module is for them.
//!
//! # Malformed messages
//!
//! Both decoders yield `Result<Frame, DecodeError>` as their *item*. A malformed message is an item
//! like any other, and the next message follows it. An `Err` of the stream itself, a
//! [`CodecError`], says that the following bytes cannot be delimited or that the carrier failed;
//! [`FramedRead`] ends after it. A caller that wants to end at a malformed message too writes `??`,
//! as below.
//!
//! # Flushing and closing
//!
//! The codecs encode [`Frame`]s and encoded messages ([`Bytes`]), so the compiler has to be told
//! for which of them `SinkExt::flush` and `SinkExt::close` are called. They do the same for both.
//!
//! ```
//! use futures_util::SinkExt;
//! use kohakuriver_tunnel::codec::{CodecError, StreamCodec};
//! use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
//! use tokio::net::TcpStream;
//! use tokio_util::codec::Framed;
//!
//! async fn end(mut frames: Framed<TcpStream, StreamCodec>) -> Result<(), CodecError> {
//!     let close: Frame = Frame::Close { proto: Proto::Tcp, id: ClientId(1) };
//!     frames.feed(close).await?;
//!     SinkExt::<Frame>::close(&mut frames).await
//! }
//! ```
//!
//! # Memory
//!
//! Frames without a payload never keep the read buffer alive. Payloads of up to 4 KiB are copied
//! out of it, so that a small frame in a queue does not keep a large buffer alive. Larger payloads
//! share it.
//!
//! # Examples
//!
//! Datagrams, with the address of the sender beside each frame:
//!
//! ```
//! use futures_util::{SinkExt, StreamExt};
//! use kohakuriver_tunnel::codec::MessageCodec;
//! use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
//! use tokio::net::UdpSocket;
//! use tokio_util::udp::UdpFramed;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = UdpSocket::bind("127.0.0.1:0").await?;
//! let server_addr = server.local_addr()?;
//! let client = UdpSocket::bind("127.0.0.1:0").await?;
//! let client_addr = client.local_addr()?;
//!
//! let mut client = UdpFramed::new(client, MessageCodec::new());
//! let mut server = UdpFramed::new(server, MessageCodec::new());
//!
//! let frame = Frame::Connect { proto: Proto::Tcp, id: ClientId(1), port: 8080 };
//! client.send((frame.clone(), server_addr)).await?;
//! let (received, from) = server.next().await.ok_or("no datagram")??;
//! assert_eq!((received?, from), (frame, client_addr));
//! # Ok(())
//! # }
//! ```
//!
//! TCP:
//!
//! ```
//! use futures_util::{SinkExt, StreamExt};
//! use kohakuriver_tunnel::codec::StreamCodec;
//! use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
//! use tokio::net::{TcpListener, TcpStream};
//! use tokio_util::codec::{FramedRead, FramedWrite};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let client = TcpStream::connect(listener.local_addr()?).await?;
//! let (server, _) = listener.accept().await?;
//!
//! let mut client = FramedWrite::new(client, StreamCodec::new());
//! let mut server = FramedRead::new(server, StreamCodec::new());
//!
//! let frame = Frame::Data { proto: Proto::Tcp, id: ClientId(1), payload: "hi".into() };
//! client.send(frame.clone()).await?;
//! assert_eq!(server.next().await.ok_or("end of stream")???, frame);
//! # Ok(())
//! # }
//! ```
//!
//! A Unix socket, where a peer that sends a malformed message is dropped (`??`):
//!
//! ```
//! # #[cfg(unix)] {
//! use futures_util::{SinkExt, StreamExt};
//! use kohakuriver_tunnel::codec::{CodecError, StreamCodec};
//! use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
//! use tokio::net::{UnixListener, UnixStream};
//! use tokio_util::codec::{FramedRead, FramedWrite};
//!
//! async fn first(socket: UnixStream) -> Result<Option<Frame>, CodecError> {
//!     let mut frames = FramedRead::new(socket, StreamCodec::new());
//!     let Some(item) = frames.next().await else { return Ok(None) };
//!     Ok(Some(item??))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let path = std::env::temp_dir().join(format!("tunnel-doc-{}.sock", std::process::id()));
//! let listener = UnixListener::bind(&path)?;
//! let mut client = FramedWrite::new(UnixStream::connect(&path).await?, StreamCodec::new());
//! let (server, _) = listener.accept().await?;
//!
//! let frame = Frame::Close { proto: Proto::Tcp, id: ClientId(7) };
//! client.send(frame.clone()).await?;
//! assert_eq!(first(server).await?, Some(frame));
//! # std::fs::remove_file(&path)?;
//! # Ok(())
//! # }
//! # main().unwrap();
//! # }
//! ```
//!
//! [`FramedRead`]: tokio_util::codec::FramedRead

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use crate::wire::{DecodeError, Frame, HEADER_LEN};

mod message;
mod stream;

pub use message::MessageCodec;
pub use stream::StreamCodec;
#[cfg(feature = "mux")]
pub(crate) use stream::{Found, PREFIX_LEN};

/// Payloads of at most this many bytes are copied out of the read buffer.
pub(crate) const COPY_MAX: usize = 4 * 1024;

/// Why a codec cannot continue.
///
/// A malformed message is not among the reasons: see the [module](self#malformed-messages).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The socket or file below failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A message is longer than the cap of the codec.
    ///
    /// While decoding it is a violation by the peer, or the bytes are not the start of a message;
    /// the bytes after it cannot be delimited. While encoding it is the caller's mistake: nothing
    /// was written, and shorter messages can still be sent.
    #[error("message of {len} bytes is longer than the {max} bytes allowed")]
    TooLong {
        /// Bytes of the message, header included.
        len: usize,
        /// The cap in bytes.
        max: usize,
    },
    /// The byte stream ended inside a message.
    #[error("stream ended inside a message, {missing} bytes short")]
    Truncated {
        /// Bytes that are missing. When the stream ended inside a length prefix, the missing bytes
        /// of that prefix only, because the length of the message is not known then.
        missing: usize,
    },
    /// A message that is not a frame.
    ///
    /// No codec returns this. `?` converts the item of a decoder to it, for callers that end at a
    /// malformed message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl From<CodecError> for std::io::Error {
    /// The error of the socket itself. Others are contained: "unexpected end of file" if the stream
    /// ended inside a message, else "invalid data".
    fn from(error: CodecError) -> Self {
        let kind = match error {
            CodecError::Io(error) => return error,
            CodecError::Truncated { .. } => std::io::ErrorKind::UnexpectedEof,
            CodecError::TooLong { .. } | CodecError::Decode(_) => std::io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Takes one whole message off the front of `buffer`, also if it is not a frame.
fn take_message(buffer: &mut BytesMut, len: usize) -> Result<Frame, DecodeError> {
    if len > HEADER_LEN + COPY_MAX {
        return Frame::decode(buffer.split_to(len).freeze());
    }
    let message = buffer.get(..len).unwrap_or_default();
    let frame = Frame::decode(message).map(|frame| frame.map_payload(Bytes::copy_from_slice));
    buffer.advance(len);
    frame
}
