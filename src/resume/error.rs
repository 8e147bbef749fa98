use alloc::string::String;

use bytes::Bytes;
use thiserror::Error;

use super::{EndReason, Kind, Malformed, Message, State};

/// A breach of the protocol by the peer. The transport must be dropped; the tunnel goes on with the
/// next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// A message of the layer that cannot be decoded.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A message of the layer that this end does not expect.
    #[error("{kind} in state {state}")]
    Unexpected {
        /// Type of the message.
        kind: Kind,
        /// State of the link.
        state: State,
    },
    /// A message of the session before OPENED.
    #[error("a message before OPENED")]
    BeforeOpened,
}

/// Why a tunnel has ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}{}{text}", if .text.is_empty() { "" } else { ": " })]
#[non_exhaustive]
pub struct Ended {
    /// The class of the end.
    pub reason: EndReason,
    /// For a person; the peer's text was cleaned.
    pub text: String,
    /// Whether the peer ended it.
    pub by_peer: bool,
}

impl Ended {
    pub(super) fn here(reason: EndReason, text: &str) -> Self {
        Self {
            reason,
            text: text.into(),
            by_peer: false,
        }
    }

    /// END, for the peer.
    #[must_use]
    pub fn to_message(&self) -> Bytes {
        let (reason, text) = (self.reason, self.text.clone());
        Message::End { reason, text }.to_bytes()
    }
}

/// Why an OPEN does not take a tunnel over. The transport is refused alone; the tunnel is as it
/// was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The secret is wrong, or there is no such tunnel. The peer is not told which.
    #[error("unknown tunnel")]
    Unknown,
    /// This attempt, or a later one, was seen.
    #[error("attempt {attempt} after {last}")]
    Stale {
        /// The attempt of this OPEN.
        attempt: u32,
        /// The last one that took the tunnel over.
        last: u32,
    },
}

impl Refusal {
    /// The reason in END.
    #[must_use]
    pub const fn reason(self) -> EndReason {
        match self {
            Self::Unknown => EndReason::Unknown,
            Self::Stale { .. } => EndReason::Stale,
        }
    }

    /// END, for the transport that is refused.
    #[must_use]
    pub fn to_message(self) -> Bytes {
        let (reason, text) = (self.reason(), String::new());
        Message::End { reason, text }.to_bytes()
    }
}

/// Why a tunnel was not taken over.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Takeover {
    /// The transport is refused alone.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The tunnel ends. END is the next output, for the new transport.
    ///
    /// - The peer received less than it acknowledged, or more than was sent
    ///   ([`EndReason::Gap`](super::EndReason::Gap)).
    /// - This end was to [end](super::Link::end) it, and the peer has acknowledged everything.
    /// - Nothing got through for as long as the tunnel is kept
    ///   ([`EndReason::Expired`](super::EndReason::Expired)).
    #[error(transparent)]
    Ended(#[from] Ended),
}
