//! Errors of a WebSocket: whose fault they are, and the close code for the peer.

use std::io;

use crate::limits::CONTROL_MAX;

/// Why a connection ended, or why a message cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer violated RFC 6455.
    #[error("the other side broke the WebSocket protocol: {0}")]
    Violation(#[from] Violation),
    /// The peer sent a text, or a close reason, that is not UTF-8.
    #[error("the other side sent a text that is not UTF-8")]
    Utf8,
    /// The peer sent an empty fragment that is neither the first nor the last. Such fragments carry
    /// nothing and could continue forever.
    #[error("the other side sent an empty fragment within a message")]
    EmptyFragment,
    /// The peer sent a message in too many small fragments.
    #[error("the other side sent a message in too many small fragments")]
    TooManyFragments,
    /// The peer sent a message that is too long.
    #[error("the other side sent a message of {size} bytes, too long: {max} are taken")]
    TooLong {
        /// Bytes of the message, as far as known.
        size: usize,
        /// Bytes of the longest message that is accepted.
        max: usize,
    },
    /// The account has no memory left for a partial message.
    #[error("no memory is left for the rest of a message")]
    NoMemory,
    /// The input ended in the middle of a frame or a message.
    #[error("the connection ended without a closing handshake")]
    Cut,
    /// A mistake of the caller.
    #[error("a control frame of {0} bytes cannot be sent, {CONTROL_MAX} are the most")]
    ControlTooLong(usize),
    /// A mistake of the caller.
    #[error("a bare frame cannot be sent")]
    BareFrame,
}

/// Violations of RFC 6455.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A bit of an extension that was not negotiated.
    #[error("reserved bits are set")]
    ReservedBits,
    /// A reserved opcode.
    #[error("reserved opcode {0:#x}")]
    ReservedOpcode(u8),
    /// A client sent a frame without a mask.
    #[error("an unmasked frame from a client")]
    Unmasked,
    /// A server sent a frame with a mask.
    #[error("a masked frame from a server")]
    Masked,
    /// A length in more bytes than it needs.
    #[error("a length of {0} that is not minimal")]
    LongLength(u64),
    /// A fragmented control frame.
    #[error("a fragmented control frame")]
    FragmentedControl,
    /// A control frame of more than 125 bytes.
    #[error("a control frame of {0} bytes")]
    LongControl(u64),
    /// A continuation without a message.
    #[error("a continuation without a beginning")]
    UnexpectedContinuation,
    /// A new message inside another.
    #[error("a new message before the end of the last")]
    ExpectedContinuation,
    /// A close payload of one byte.
    #[error("a close frame of one byte")]
    ShortClose,
    /// A close code that must not be sent.
    #[error("close code {0}")]
    CloseCode(u16),
}

impl Error {
    /// The close code for the peer, if the peer should be informed.
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
