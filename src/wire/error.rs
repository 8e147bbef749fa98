use thiserror::Error;

use super::{HEADER_LEN, Kind};

/// Why a message is not a frame. Every variant carries the offending value.
///
/// Both ways of decoding return the first five (PROTOCOL.md section 2.4). Only
/// [`Frame::decode_strict`](super::Frame::decode_strict) returns the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Fewer bytes than a header.
    #[error("message of {len} bytes is shorter than the {HEADER_LEN}-byte header")]
    Truncated {
        /// Bytes the message has.
        len: usize,
    },
    /// The first byte names no message type.
    #[error("unknown message type 0x{0:02x}")]
    UnknownKind(u8),
    /// The second byte names no protocol.
    #[error("unknown protocol 0x{0:02x}")]
    UnknownProto(u8),
    /// Client id 0, which stands for the whole tunnel, on a message about a connection.
    #[error("{0} with client id 0, which only PING, PONG and GOAWAY may carry")]
    ZeroId(Kind),
    /// A WINDOW whose payload is not a 4-byte credit.
    #[error("WINDOW payload of {len} bytes, expected 4")]
    WindowLength {
        /// Bytes the payload has.
        len: usize,
    },
    /// A nonzero port where the field is reserved.
    #[error("{kind} with port 0x{port:04x}, expected 0")]
    ReservedPort {
        /// Type of the message.
        kind: Kind,
        /// Value of the field.
        port: u16,
    },
    /// A protocol other than 0 where the field is reserved.
    #[error("{0} with protocol 0x01, expected 0x00")]
    ReservedProto(Kind),
    /// A nonzero client id where the field is reserved.
    #[error("{kind} with client id 0x{id:08x}, expected 0")]
    ReservedId {
        /// Type of the message.
        kind: Kind,
        /// Value of the field.
        id: u32,
    },
    /// A payload on a type that has none.
    #[error("{kind} with a payload of {len} bytes, expected none")]
    ReservedPayload {
        /// Type of the message.
        kind: Kind,
        /// Bytes the payload has.
        len: usize,
    },
    /// ERROR text that is not UTF-8.
    #[error("ERROR text is not UTF-8 after byte {valid_up_to}")]
    InvalidUtf8 {
        /// Length of the valid prefix in bytes.
        valid_up_to: usize,
    },
}

/// The destination of an encoder is too small. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("buffer has room for {available} bytes, the frame needs {needed}")]
pub struct BufferTooSmall {
    /// Bytes the frame takes.
    pub needed: usize,
    /// Bytes that the destination has room for.
    pub available: usize,
}

/// A name that is neither `tcp` nor `udp`, read as a [`Proto`](super::Proto).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the protocol is neither tcp nor udp")]
pub struct UnknownProtoName;
