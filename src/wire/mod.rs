//! The message format: one 8-byte header and a payload (PROTOCOL.md section 2).
//!
//! [`Frame`] is for endpoints, [`RawFrame`] for relays, [`HeadroomBuf`] for senders that read from a
//! socket. Nothing here knows what a connection is.
//!
//! Laws, each a property test and a fuzz oracle:
//! 1. `RawFrame::new(b)?.into_inner() == b` for any bytes of at least a header;
//! 2. `Header::from_bytes(h.to_bytes()) == h`, `Frame::decode(f.to_bytes()) == f` for a frame that keeps to the
//!    protocol;
//! 3. strict decoding is a bijection on what it accepts, lenient decoding has a fixed point: decoding,
//!    encoding and decoding again changes nothing more;
//! 4. no input makes decoding panic, allocate more than the message, or read past it;
//! 5. decoding [`Bytes`](bytes::Bytes) shares the allocation, and a payload read behind headroom is never
//!    moved.

mod encode;
mod error;
mod frame;
mod header;
mod headroom;
mod raw;

pub use encode::EncodedFrame;
pub use error::{BufferTooSmall, DecodeError};
pub use frame::{Frame, Payload};
pub use header::{ClientId, HEADER_LEN, Header, Kind, Proto};
pub use headroom::{Chunk, HeadroomBuf};
pub use raw::RawFrame;
