use core::fmt;
use core::str::FromStr;

use super::{DecodeError, UnknownProtoName};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;

/// Offsets of the fields in the header (PROTOCOL.md section 2.1).
pub(super) mod field {
    use core::ops::Range;

    pub(in crate::wire) const KIND: usize = 0;
    pub(in crate::wire) const PROTO: usize = 1;
    pub(in crate::wire) const ID: Range<usize> = 2..6;
}

/// The type byte of a message (PROTOCOL.md section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Kind {
    /// Open a connection to the port in the header.
    Connect = 0x01,
    /// The connection is open.
    Connected = 0x02,
    /// Bytes of a stream, or exactly one datagram.
    Data = 0x03,
    /// The end of the sender's direction.
    Close = 0x04,
    /// The connection failed; the payload says why. Ends both directions.
    Error = 0x05,
    /// Keepalive.
    Ping = 0x06,
    /// Answer to [`Ping`](Self::Ping).
    Pong = 0x07,
    /// Credit for the other side of a stream. Protocol v2 only.
    Window = 0x08,
    /// No new connections on this tunnel. Protocol v2 only.
    GoAway = 0x09,
}

impl Kind {
    /// Every type, in the order of the bytes.
    pub const ALL: &'static [Self] = &[
        Self::Connect,
        Self::Connected,
        Self::Data,
        Self::Close,
        Self::Error,
        Self::Ping,
        Self::Pong,
        Self::Window,
        Self::GoAway,
    ];

    /// Whether protocol v1 knows this type.
    #[must_use]
    pub const fn in_v1(self) -> bool {
        !matches!(self, Self::Window | Self::GoAway)
    }

    /// Whether client id 0 is allowed. A message with id 0 is about the whole tunnel.
    #[must_use]
    pub const fn allows_zero_id(self) -> bool {
        matches!(self, Self::Ping | Self::Pong | Self::GoAway)
    }
}

impl TryFrom<u8> for Kind {
    type Error = DecodeError;

    fn try_from(byte: u8) -> Result<Self, DecodeError> {
        Ok(match byte {
            0x01 => Self::Connect,
            0x02 => Self::Connected,
            0x03 => Self::Data,
            0x04 => Self::Close,
            0x05 => Self::Error,
            0x06 => Self::Ping,
            0x07 => Self::Pong,
            0x08 => Self::Window,
            0x09 => Self::GoAway,
            other => return Err(DecodeError::UnknownKind(other)),
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "CONNECT",
            Self::Connected => "CONNECTED",
            Self::Data => "DATA",
            Self::Close => "CLOSE",
            Self::Error => "ERROR",
            Self::Ping => "PING",
            Self::Pong => "PONG",
            Self::Window => "WINDOW",
            Self::GoAway => "GOAWAY",
        })
    }
}

/// What is forwarded: a byte stream or datagrams (PROTOCOL.md section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Proto {
    /// A byte stream.
    #[default]
    Tcp = 0x00,
    /// Datagrams.
    Udp = 0x01,
}

impl TryFrom<u8> for Proto {
    type Error = DecodeError;

    fn try_from(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            0x00 => Ok(Self::Tcp),
            0x01 => Ok(Self::Udp),
            other => Err(DecodeError::UnknownProto(other)),
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// The name as it stands in a URL's `proto=` (PROTOCOL.md section 4.1), in any case.
///
/// ```
/// use kohakuriver_tunnel::wire::Proto;
///
/// assert_eq!("UDP".parse(), Ok(Proto::Udp));
/// assert!("sctp".parse::<Proto>().is_err());
/// ```
impl FromStr for Proto {
    type Err = UnknownProtoName;

    fn from_str(name: &str) -> Result<Self, UnknownProtoName> {
        match name {
            name if name.eq_ignore_ascii_case("tcp") => Ok(Self::Tcp),
            name if name.eq_ignore_ascii_case("udp") => Ok(Self::Udp),
            _ => Err(UnknownProtoName),
        }
    }
}

/// Names one forwarded connection inside one tunnel (PROTOCOL.md section 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u32);

impl ClientId {
    /// The id of messages about the whole tunnel; never that of a connection.
    pub const KEEPALIVE: Self = Self(0);
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The eight bytes before every payload, big-endian (PROTOCOL.md section 2.1).
///
/// Every `Header` has a known type and protocol. Its reserved fields may be nonzero:
/// [`Frame::decode_strict`](super::Frame::decode_strict) checks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// Type of the message.
    pub kind: Kind,
    /// Byte stream or datagrams.
    pub proto: Proto,
    /// The connection that the message is about.
    pub id: ClientId,
    /// Target port in CONNECT, reason code in a v2 ERROR, otherwise reserved.
    pub port: u16,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// [`DecodeError::UnknownKind`] and [`DecodeError::UnknownProto`], in this order.
    // Without this attribute the compiler packs the result into a register and unpacks it again.
    #[inline(always)]
    pub fn from_bytes(bytes: [u8; HEADER_LEN]) -> Result<Self, DecodeError> {
        let [kind, proto, ..] = bytes;
        // One load and shifts take fewer instructions than assembling the fields byte by byte.
        let word = u64::from_be_bytes(bytes);
        Ok(Self {
            kind: Kind::try_from(kind)?,
            proto: Proto::try_from(proto)?,
            id: ClientId((word >> 16) as u32),
            port: word as u16,
        })
    }

    /// Writes a header.
    #[inline]
    #[must_use]
    pub const fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [i0, i1, i2, i3] = self.id.0.to_be_bytes();
        let [p0, p1] = self.port.to_be_bytes();
        [self.kind as u8, self.proto as u8, i0, i1, i2, i3, p0, p1]
    }
}
