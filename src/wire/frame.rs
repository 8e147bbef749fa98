use bytes::{Buf, Bytes};

use super::{ClientId, DecodeError, HEADER_LEN, Header, Kind, Proto};

/// A message as an endpoint sees it (PROTOCOL.md section 2.2), generic over its payload.
///
/// `Frame<&[u8]>` borrows and never allocates. `Frame<Bytes>` shares the message's allocation and
/// never copies. A frame cannot hold reserved fields: encoding sets them to zero.
///
/// ```
/// use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
///
/// let frame = Frame::decode(&[3, 1, 0xde, 0xad, 0xbe, 0xef, 0, 0, b'h', b'i'][..])?;
/// let id = ClientId(0xdead_beef);
/// assert_eq!(frame, Frame::Data { proto: Proto::Udp, id, payload: &b"hi"[..] });
/// # Ok::<(), kohakuriver_tunnel::wire::DecodeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Frame<P = Bytes> {
    /// Open a connection to `port`. Opener to acceptor.
    Connect {
        /// Byte stream or datagrams.
        proto: Proto,
        /// Name of the new connection.
        id: ClientId,
        /// Target port.
        port: u16,
    },
    /// The connection is open. Acceptor to opener.
    Connected {
        /// Byte stream or datagrams.
        proto: Proto,
        /// The connection.
        id: ClientId,
    },
    /// Bytes of a stream, or exactly one datagram, which may be empty.
    Data {
        /// Byte stream or datagrams.
        proto: Proto,
        /// The connection.
        id: ClientId,
        /// The bytes.
        payload: P,
    },
    /// The sender sends no more DATA.
    Close {
        /// Byte stream or datagrams.
        proto: Proto,
        /// The connection.
        id: ClientId,
    },
    /// The connection failed.
    Error {
        /// Byte stream or datagrams.
        proto: Proto,
        /// The connection.
        id: ClientId,
        /// The port field: a reason code in v2 (PROTOCOL.md section 5.4), any value in v1.
        code: u16,
        /// The reason as text; UTF-8 if the peer conforms to the protocol.
        text: P,
    },
    /// Keepalive.
    Ping {
        /// Usually [`ClientId::KEEPALIVE`]. The answer repeats the id.
        id: ClientId,
        /// Empty in v1. In v2 at most 125 bytes, which the answer repeats.
        payload: P,
    },
    /// Answer to a PING.
    Pong {
        /// The id of the PING.
        id: ClientId,
        /// The payload of the PING in v2.
        payload: P,
    },
    /// Grants the other side of a stream more bytes. v2 only.
    Window {
        /// The stream.
        id: ClientId,
        /// Bytes granted in addition to what was granted before.
        credit: u32,
    },
    /// The sender takes no new connections. v2 only.
    GoAway,
}

/// Types that a frame can be decoded from without a copy: `&[u8]` and [`Bytes`].
pub trait Payload: AsRef<[u8]> + Sized + sealed::Sealed {
    #[doc(hidden)]
    fn skip_header(self) -> Self;
}

impl Payload for &[u8] {
    #[inline]
    fn skip_header(self) -> Self {
        self.get(HEADER_LEN..).unwrap_or_default()
    }
}

impl Payload for Bytes {
    #[inline]
    fn skip_header(mut self) -> Self {
        self.advance(HEADER_LEN.min(self.len()));
        self
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for &[u8] {}
    impl Sealed for bytes::Bytes {}
}

impl<P: Payload> Frame<P> {
    /// Decodes one whole message (PROTOCOL.md section 2.4, lenient).
    ///
    /// Ignores reserved fields, because some deployed peers do not send zero there.
    ///
    /// # Errors
    /// [`DecodeError`], for the first of the five checks that fails.
    #[inline]
    pub fn decode(message: P) -> Result<Self, DecodeError> {
        let bytes = message.as_ref();
        let Some(&header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(DecodeError::Truncated { len: bytes.len() });
        };
        Self::from_parts(Header::from_bytes(header)?, message.skip_header())
    }

    /// Decodes one whole message and refuses it if encoding would not give the same bytes.
    ///
    /// # Errors
    /// [`DecodeError`]: those of [`decode`](Self::decode) first, then those of the reserved fields.
    pub fn decode_strict(message: P) -> Result<Self, DecodeError> {
        let bytes = message.as_ref();
        let Some((&header, payload)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(DecodeError::Truncated { len: bytes.len() });
        };
        let header = Header::from_bytes(header)?;
        let reserved = check_reserved(header, payload);
        let frame = Self::from_parts(header, message.skip_header())?;
        reserved.map(|()| frame)
    }
}

impl<P: AsRef<[u8]>> Frame<P> {
    /// Makes a frame of a header and the bytes after it. Ignores reserved fields.
    ///
    /// # Errors
    /// [`DecodeError::ZeroId`] and [`DecodeError::WindowLength`].
    #[inline]
    pub fn from_parts(header: Header, payload: P) -> Result<Self, DecodeError> {
        let Header {
            kind,
            proto,
            id,
            port,
        } = header;
        if id == ClientId::KEEPALIVE && !kind.allows_zero_id() {
            return Err(DecodeError::ZeroId(kind));
        }
        Ok(match kind {
            Kind::Connect => Self::Connect { proto, id, port },
            Kind::Connected => Self::Connected { proto, id },
            Kind::Data => Self::Data { proto, id, payload },
            Kind::Close => Self::Close { proto, id },
            Kind::Error => Self::Error {
                proto,
                id,
                code: port,
                text: payload,
            },
            Kind::Ping => Self::Ping { id, payload },
            Kind::Pong => Self::Pong { id, payload },
            Kind::Window => match <[u8; 4]>::try_from(payload.as_ref()) {
                Ok(credit) => Self::Window {
                    id,
                    credit: u32::from_be_bytes(credit),
                },
                Err(_) => {
                    let len = payload.as_ref().len();
                    return Err(DecodeError::WindowLength { len });
                }
            },
            Kind::GoAway => Self::GoAway,
        })
    }

    /// The header with which this frame is encoded.
    #[inline]
    #[must_use]
    pub fn header(&self) -> Header {
        let (kind, proto, id, port) = match *self {
            Self::Connect { proto, id, port } => (Kind::Connect, proto, id, port),
            Self::Connected { proto, id } => (Kind::Connected, proto, id, 0),
            Self::Data { proto, id, .. } => (Kind::Data, proto, id, 0),
            Self::Close { proto, id } => (Kind::Close, proto, id, 0),
            Self::Error {
                proto, id, code, ..
            } => (Kind::Error, proto, id, code),
            Self::Ping { id, .. } => (Kind::Ping, Proto::Tcp, id, 0),
            Self::Pong { id, .. } => (Kind::Pong, Proto::Tcp, id, 0),
            Self::Window { id, .. } => (Kind::Window, Proto::Tcp, id, 0),
            Self::GoAway => (Kind::GoAway, Proto::Tcp, ClientId::KEEPALIVE, 0),
        };
        Header {
            kind,
            proto,
            id,
            port,
        }
    }

    /// The type of this frame.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.header().kind
    }

    /// The connection this frame is about, or [`ClientId::KEEPALIVE`].
    #[must_use]
    pub fn id(&self) -> ClientId {
        self.header().id
    }

    /// The payload of a DATA, ERROR, PING or PONG; empty for the other types.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        match self {
            Self::Data { payload, .. }
            | Self::Ping { payload, .. }
            | Self::Pong { payload, .. } => payload.as_ref(),
            Self::Error { text, .. } => text.as_ref(),
            _ => &[],
        }
    }

    /// The same frame with its payload converted, for instance into an owned type.
    pub fn map_payload<Q>(self, convert: impl FnOnce(P) -> Q) -> Frame<Q> {
        match self {
            Self::Connect { proto, id, port } => Frame::Connect { proto, id, port },
            Self::Connected { proto, id } => Frame::Connected { proto, id },
            Self::Data { proto, id, payload } => Frame::Data {
                proto,
                id,
                payload: convert(payload),
            },
            Self::Close { proto, id } => Frame::Close { proto, id },
            Self::Error {
                proto,
                id,
                code,
                text,
            } => Frame::Error {
                proto,
                id,
                code,
                text: convert(text),
            },
            Self::Ping { id, payload } => Frame::Ping {
                id,
                payload: convert(payload),
            },
            Self::Pong { id, payload } => Frame::Pong {
                id,
                payload: convert(payload),
            },
            Self::Window { id, credit } => Frame::Window { id, credit },
            Self::GoAway => Frame::GoAway,
        }
    }
}

/// Checks the fields that must be zero for the type (PROTOCOL.md section 2.4).
fn check_reserved(header: Header, payload: &[u8]) -> Result<(), DecodeError> {
    let Header {
        kind,
        proto,
        id,
        port,
    } = header;
    let about_tunnel = kind.allows_zero_id() || kind == Kind::Window;
    if about_tunnel && proto != Proto::Tcp {
        return Err(DecodeError::ReservedProto(kind));
    }
    if kind == Kind::GoAway && id != ClientId::KEEPALIVE {
        return Err(DecodeError::ReservedId { kind, id: id.0 });
    }
    if !matches!(kind, Kind::Connect | Kind::Error) && port != 0 {
        return Err(DecodeError::ReservedPort { kind, port });
    }
    let empty = matches!(
        kind,
        Kind::Connect | Kind::Connected | Kind::Close | Kind::GoAway
    );
    if empty && !payload.is_empty() {
        let len = payload.len();
        return Err(DecodeError::ReservedPayload { kind, len });
    }
    if kind == Kind::Error {
        core::str::from_utf8(payload).map_err(|error| DecodeError::InvalidUtf8 {
            valid_up_to: error.valid_up_to(),
        })?;
    }
    Ok(())
}
