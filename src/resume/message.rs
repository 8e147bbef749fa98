//! The four messages of the layer and their codec, below that of `wire` (PROTOCOL.md section 5.10).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;
use thiserror::Error;

use super::Secret;
use crate::session::clean_text;
use crate::wire::HEADER_LEN;

/// Offsets in a message of the layer.
mod field {
    use core::ops::Range;

    pub(super) const PORT: Range<usize> = 6..8;
}

/// The type byte of a message of the layer.
///
/// These types are unknown to [`wire`](crate::wire) and never reach a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Kind {
    /// A client asks for a tunnel, new or not.
    Open = 0x0a,
    /// The server's answer.
    Opened = 0x0b,
    /// How many messages were received.
    Ack = 0x0c,
    /// The end of the tunnel, or the refusal of this transport.
    End = 0x0d,
}

impl Kind {
    /// The type of a message; `None` if it is not of the layer. Looks at the first byte alone.
    #[inline]
    #[must_use]
    pub const fn of(message: &[u8]) -> Option<Self> {
        Some(match message.first() {
            Some(0x0a) => Self::Open,
            Some(0x0b) => Self::Opened,
            Some(0x0c) => Self::Ack,
            Some(0x0d) => Self::End,
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "OPEN",
            Self::Opened => "OPENED",
            Self::Ack => "ACK",
            Self::End => "END",
        })
    }
}

/// Whether a message is of the layer, well formed or not.
#[inline]
#[must_use]
pub const fn is_layer(message: &[u8]) -> bool {
    Kind::of(message).is_some()
}

/// Whether a message is counted, kept and sent again: all but those of the layer and datagrams.
///
/// A function of the first two bytes, so both ends always agree. Malformed messages count too.
///
/// ```
/// use kohakuriver_tunnel::resume::counts;
///
/// assert!(counts(&[3, 0, 0, 0, 0, 1, 0, 0, b'x'])); // DATA of a stream
/// assert!(!counts(&[3, 1, 0, 0, 0, 1, 0, 0, b'x'])); // a datagram
/// assert!(counts(&[0xff]) && counts(&[]));
/// ```
#[inline]
#[must_use]
pub const fn counts(message: &[u8]) -> bool {
    !is_layer(message) && !matches!(message, [0x03, 0x01, ..])
}

/// Whether a message ends a connection, or a direction of one: CLOSE and ERROR.
#[inline]
pub(super) const fn is_end_of_connection(message: &[u8]) -> bool {
    matches!(message.first(), Some(0x04 | 0x05))
}

/// A message of the layer.
///
/// ```
/// use kohakuriver_tunnel::resume::Message;
///
/// let ack = Message::Ack { received: 258 };
/// assert_eq!(ack.to_bytes()[..], [12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
/// assert_eq!(Message::decode(&ack.to_bytes()), Ok(ack));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// The first message of a client on a transport.
    Open(Open),
    /// The server's answer to OPEN.
    Opened(Opened),
    /// Messages received so far.
    Ack {
        /// Counted messages that were handed to the session since the tunnel began.
        received: u64,
    },
    /// The end of the tunnel, or the refusal of a transport.
    End {
        /// The class of the end.
        reason: EndReason,
        /// For a person. Decoded text was cleaned by [`clean_text`]. At most 1 KiB is sent.
        text: String,
    },
}

/// Asks for a tunnel on this transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The tunnel's name at the server. 0 asks for a new tunnel.
    pub tunnel: u64,
    /// The last secret that the server gave. Of no meaning for a new tunnel.
    pub secret: Secret,
    /// Higher with each transport of the tunnel: of competing ones the highest wins.
    pub attempt: u32,
    /// Counted messages received. Of no meaning for a new tunnel.
    pub received: u64,
    /// How long the client wants the tunnel to be kept without a transport, in seconds.
    pub keep: u32,
    /// Bytes that the client's ring holds at least.
    pub ring: u32,
}

/// The tunnel is on this transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Names the server's process.
    pub instance: u64,
    /// The tunnel's name, not 0.
    pub tunnel: u64,
    /// The secret for the next OPEN.
    pub secret: Secret,
    /// Counted messages received.
    pub received: u64,
    /// How long the tunnel is kept without a transport, in seconds.
    pub keep: u32,
    /// Bytes that the server's ring holds at least.
    pub ring: u32,
}

/// Why a tunnel ended or a transport was refused: the port field of END.
///
/// ```
/// use kohakuriver_tunnel::resume::EndReason;
///
/// assert_eq!((EndReason::Stale.code(), EndReason::from_code(2)), (2, EndReason::Stale));
/// assert_eq!(EndReason::from_code(1000), EndReason::Unspecified);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum EndReason {
    /// The end's program has ended the tunnel in good order. Nothing is missing.
    Closed = 0,
    /// The server has no such tunnel, or the proof is wrong.
    Unknown = 1,
    /// A later attempt was seen. The client tries again.
    Stale = 2,
    /// Messages are missing that cannot be sent again.
    Gap = 3,
    /// A message broke the protocol.
    Protocol = 4,
    /// More would have to be kept than allowed.
    Overflow = 5,
    /// No transport came in time.
    Expired = 6,
    /// The place of the tunnel, which had no transport, was needed.
    Evicted = 7,
    /// Another tunnel took its place.
    Replaced = 8,
    /// A configured bound on tunnels is reached.
    Limit = 9,
    /// The program ends.
    Gone = 10,
    /// No known code.
    Unspecified = 0xffff,
}

impl EndReason {
    /// Every reason that has a code, in the order of the codes.
    pub const ALL: &'static [Self] = &[
        Self::Closed,
        Self::Unknown,
        Self::Stale,
        Self::Gap,
        Self::Protocol,
        Self::Overflow,
        Self::Expired,
        Self::Evicted,
        Self::Replaced,
        Self::Limit,
        Self::Gone,
    ];

    /// The code in the port field.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The reason for a code. Unknown codes are [`Unspecified`](Self::Unspecified).
    #[must_use]
    pub fn from_code(code: u16) -> Self {
        let known = Self::ALL.get(usize::from(code));
        known.copied().unwrap_or(Self::Unspecified)
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Unknown => "unknown tunnel",
            Self::Stale => "a later attempt was seen",
            Self::Gap => "messages are missing",
            Self::Protocol => "the protocol was broken",
            Self::Overflow => "too much is not acknowledged",
            Self::Expired => "no transport came in time",
            Self::Evicted => "its place was needed",
            Self::Replaced => "replaced by another tunnel",
            Self::Limit => "limit reached",
            Self::Gone => "the program ends",
            Self::Unspecified => "ended",
        })
    }
}

/// A message that is not one of the layer's, or not well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The type is not of the layer.
    #[error("not a message of the resumption layer")]
    OtherKind,
    /// The message is too short or too long.
    #[error("{kind} of {len} bytes")]
    Length {
        /// Type of the message.
        kind: Kind,
        /// Its length with the header.
        len: usize,
    },
}

impl Message {
    /// Decodes one whole message. Ignores reserved fields, as lenient decoding does (PROTOCOL.md
    /// section 2.4).
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let kind = Kind::of(message).ok_or(Malformed::OtherKind)?;
        let len = message.len();
        Self::parse(kind, message).ok_or(Malformed::Length { kind, len })
    }

    fn parse(kind: Kind, message: &[u8]) -> Option<Self> {
        let port = message.get(field::PORT)?;
        let mut reader = Reader(message.get(HEADER_LEN..)?);
        let message = match kind {
            Kind::Open => Self::Open(Open {
                tunnel: reader.u64()?,
                secret: Secret::new(reader.take()?),
                attempt: reader.u32()?,
                received: reader.u64()?,
                keep: reader.u32()?,
                ring: reader.u32()?,
            }),
            Kind::Opened => Self::Opened(Opened {
                instance: reader.u64()?,
                tunnel: reader.u64()?,
                secret: Secret::new(reader.take()?),
                received: reader.u64()?,
                keep: reader.u32()?,
                ring: reader.u32()?,
            }),
            Kind::Ack => Self::Ack {
                received: reader.u64()?,
            },
            Kind::End => {
                let code = u16::from_be_bytes(port.try_into().ok()?);
                return Some(Self::End {
                    reason: EndReason::from_code(code),
                    text: clean_text(reader.0),
                });
            }
        };
        reader.0.is_empty().then_some(message)
    }

    /// The type of this message.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Open(_) => Kind::Open,
            Self::Opened(_) => Kind::Opened,
            Self::Ack { .. } => Kind::Ack,
            Self::End { .. } => Kind::End,
        }
    }

    /// Encodes the message.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        let port = match self {
            Self::End { reason, .. } => reason.code(),
            _ => 0,
        };
        out.extend([self.kind() as u8, 0, 0, 0, 0, 0]);
        out.extend(port.to_be_bytes());
        match self {
            Self::Open(open) => {
                out.extend(open.tunnel.to_be_bytes());
                out.extend(open.secret.to_bytes());
                out.extend(open.attempt.to_be_bytes());
                out.extend(open.received.to_be_bytes());
                out.extend(open.keep.to_be_bytes());
                out.extend(open.ring.to_be_bytes());
            }
            Self::Opened(opened) => {
                out.extend(opened.instance.to_be_bytes());
                out.extend(opened.tunnel.to_be_bytes());
                out.extend(opened.secret.to_bytes());
                out.extend(opened.received.to_be_bytes());
                out.extend(opened.keep.to_be_bytes());
                out.extend(opened.ring.to_be_bytes());
            }
            Self::Ack { received } => out.extend(received.to_be_bytes()),
            Self::End { text, .. } => out.extend(clean_text(text.as_bytes()).as_bytes()),
        }
        out.into()
    }
}

/// What is left of a payload.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}
