//! The message format: one 8-byte header and a payload (PROTOCOL.md section 2).
//!
//! [`Frame`] is for endpoints, [`RawFrame`] for relays, [`HeadroomBuf`] for senders that read from
//! a socket. This module does not know what a connection is.
//!
//! ```
//! use kohakuriver_tunnel::wire::{ClientId, Frame, Proto, RawFrame};
//!
//! let frame: Frame<&[u8]> = Frame::Connect { proto: Proto::Tcp, id: ClientId(1), port: 8080 };
//! let mut buffer = [0; 32];
//! let len = frame.encode_to_slice(&mut buffer)?;
//! assert_eq!(Frame::decode(&buffer[..len])?, frame);
//!
//! // A relay changes the id and nothing else.
//! let mut raw = RawFrame::new(&mut buffer[..len])?;
//! raw.set_id(ClientId(7));
//! assert_eq!(Frame::decode(&buffer[..len])?.header().id, ClientId(7));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Laws, each a property test and a fuzz oracle:
//! 1. For any bytes of at least a header, `RawFrame::new(b)?.into_inner() == b`.
//! 2. `Header::from_bytes(h.to_bytes()) == h`. For a frame that conforms to the protocol,
//!    `Frame::decode(f.to_bytes()) == f`.
//! 3. Strict decoding is a bijection on what it accepts. Lenient decoding has a fixed point:
//!    encoding its result and decoding again changes nothing more.
//! 4. No input makes decoding panic, allocate more than the message, or read past it.
//! 5. Decoding [`Bytes`](bytes::Bytes) shares the allocation, and a payload read behind headroom is
//!    never moved.

mod encode;
mod error;
mod frame;
mod header;
mod headroom;
mod raw;

pub use error::{BufferTooSmall, DecodeError, UnknownProtoName};
pub use frame::{Frame, Payload};
pub use header::{ClientId, HEADER_LEN, Header, Kind, Proto};
pub use headroom::{Chunk, HeadroomBuf};
pub use raw::RawFrame;
