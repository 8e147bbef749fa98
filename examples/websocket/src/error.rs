//! How a WebSocket fails, by whose fault, and what the peer is told.

use std::io;

use crate::limits::{CONTROL_MAX, FRAGMENTS_MAX};

/// Why a connection ended, or why a message cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer does not keep to RFC 6455.
    #[error("the other side broke the WebSocket protocol: {0}")]
    Violation(#[from] Violation),
    /// The peer sent a text, or a close reason, that is none.
    #[error("the other side sent a text that is not UTF-8")]
    Utf8,
    /// The peer sent an empty fragment that is not the last: it says nothing and may go on for ever.
    #[error("the other side sent an empty fragment that is not the last")]
    EmptyFragment,
    /// The peer sent a message in too many fragments.
    #[error("the other side sent a message in more than {FRAGMENTS_MAX} fragments")]
    TooManyFragments,
    /// The peer sent too long a message.
    #[error("the other side sent a message of {size} bytes, too long: {max} are taken")]
    TooLong {
        /// Bytes of the message, as far as is known.
        size: usize,
        /// The most that are taken.
        max: usize,
    },
    /// The account has no more for a message that is still under way.
    #[error("no memory is left for the rest of a message")]
    NoMemory,
    /// The end came in the middle of a frame or a message.
    #[error("the connection ended without a closing handshake")]
    Cut,
    /// A mistake of the caller.
    #[error("a control frame of {0} bytes cannot be sent, {CONTROL_MAX} are the most")]
    ControlTooLong(usize),
    /// A mistake of the caller.
    #[error("a bare frame cannot be sent")]
    BareFrame,
}

/// What a peer must not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A bit of an extension that nobody negotiated.
    #[error("reserved bits are set")]
    ReservedBits,
    /// An opcode without meaning.
    #[error("reserved opcode {0:#x}")]
    ReservedOpcode(u8),
    /// A client must mask.
    #[error("an unmasked frame from a client")]
    Unmasked,
    /// A server must not.
    #[error("a masked frame from a server")]
    Masked,
    /// A length in more bytes than it needs.
    #[error("a length of {0} that is not minimal")]
    LongLength(u64),
    /// Control frames come whole.
    #[error("a fragmented control frame")]
    FragmentedControl,
    /// Control frames are short.
    #[error("a control frame of {0} bytes")]
    LongControl(u64),
    /// A continuation of nothing.
    #[error("a continuation without a beginning")]
    UnexpectedContinuation,
    /// A message in the middle of another.
    #[error("a new message before the end of the last")]
    ExpectedContinuation,
    /// Half a close code.
    #[error("a close frame of one byte")]
    ShortClose,
    /// A close code that must not be sent.
    #[error("close code {0}")]
    CloseCode(u16),
}

impl Error {
    /// The close code that tells the peer, where it is the peer who is to be told.
    #[must_use]
    pub fn close_code(&self) -> Option<u16> {
        match self {
            Self::Violation(_) => Some(1002),
            Self::Utf8 => Some(1007),
            Self::EmptyFragment | Self::TooManyFragments => Some(1008),
            Self::TooLong { .. } => Some(1009),
            Self::NoMemory => Some(1013),
            Self::Io(_) | Self::Cut | Self::ControlTooLong(_) | Self::BareFrame => None,
        }
    }
}
