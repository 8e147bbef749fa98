use alloc::format;
use alloc::string::String;
use std::io;

use thiserror::Error;

use crate::resume;
use crate::session::{OpenError, clean_text};
use crate::transport::CloseReason;

/// Why a tunnel ended before this end was finished. The variant says who is at fault, except for
/// [`Transport`](Self::Transport): its text alone tells what the peer sent against the rules of the
/// transport, such as a message that is too long, from a failure of the network.
///
/// ```
/// use kohakuriver_tunnel::mux::TunnelError;
///
/// fn again(error: &TunnelError) -> bool {
///     match error {
///         TunnelError::Ended(_) | TunnelError::Transport(_) | TunnelError::PeerDead => true,
///         // A new tunnel, without the connections of the old one.
///         TunnelError::NotResumed(_) => true,
///         // Not our protocol, or our own doing.
///         _ => false,
///     }
/// }
/// assert!(again(&TunnelError::PeerDead));
/// assert_eq!(TunnelError::PeerDead.to_string(), "the other side has gone silent");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The peer ended the transport. Contains the code and the reason if it gave any. The reason is
    /// cleaned ([`clean_text`]).
    #[error("ended by the other side{}", said(.0))]
    Ended(Option<CloseReason>),
    /// The transport failed. Contains the cause.
    #[error("{0}")]
    Transport(String),
    /// The peer sent something other than a tunnel message, for instance a text, so it does not
    /// speak this protocol. Contains its text, cleaned, or an empty string.
    #[error("the other side sent what is no tunnel message{colon}{0}", colon = colon(.0))]
    Unexpected(String),
    /// The peer, or the path to it, was silent for two keepalive intervals.
    #[error("the other side has gone silent")]
    PeerDead,
    /// The peer sent hardly anything but messages without use for 30 s.
    #[error("the other side sent a flood of messages without use")]
    Flooded,
    /// The tunnel was to be [resumed](super::Builder::resume), and could not be. Contains why, and
    /// which end found it (PROTOCOL.md section 5.10).
    #[error("{0}")]
    NotResumed(resume::Ended),
    /// The connector has given up. Contains its text.
    #[error("{0}")]
    NotConnected(String),
    /// The program dropped the driver.
    #[error("its driver was dropped")]
    Dropped,
}

impl TunnelError {
    /// A peer's close, safe to show.
    pub(super) fn ended(reason: Option<CloseReason>) -> Self {
        Self::Ended(reason.map(clean))
    }
}

/// Why [`connect`](super::Builder::connect), [`welcome`](super::Builder::welcome) or
/// [`admit`](super::Builder::admit) failed.
///
/// ```
/// use kohakuriver_tunnel::mux::ConnectError;
///
/// fn told(error: &ConnectError) -> String {
///     match error {
///         // 1008: asking again at once does not help.
///         ConnectError::Refused { reason, code: Some(1008) } => format!("refused: {reason}"),
///         other => format!("trying again: {other}"),
///     }
/// }
/// let refused = ConnectError::Refused { reason: "unknown task".into(), code: Some(1008) };
/// assert_eq!(told(&refused), "refused: unknown task");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The peer refused the session (PROTOCOL.md section 4.1).
    #[error("{reason}")]
    Refused {
        /// The peer's text for a person: cleaned, at most 1 KiB.
        reason: String,
        /// The close code: 1008 for a refusal by rule, 1011 for a failure. `None` if the peer gave
        /// none within 2 s.
        code: Option<u16>,
    },
    /// The peer closed the transport without a greeting. Contains the code and the reason if it
    /// gave any.
    #[error("closed before the session began{}", said(.0))]
    Closed(Option<CloseReason>),
    /// The peer sent no greeting, or read none, or after one sent no OPEN
    /// ([`admit`](super::Builder::admit)), within
    /// [`greeting_timeout`](super::Builder::greeting_timeout).
    #[error("the other side did not begin in time")]
    TimedOut,
    /// The peer sent something else before its greeting, or in place of OPEN.
    #[error("the other side began with something else than a session")]
    Unexpected,
    /// The transport failed. Contains the cause.
    #[error("{0}")]
    Transport(String),
    /// The carrier has no texts, so there is no greeting. Implement
    /// [`Carrier::text`](crate::transport::Carrier::text), or begin such a tunnel with
    /// [`opener`](super::Builder::opener) and [`acceptor`](super::Builder::acceptor).
    #[error("the carrier has no texts (Carrier::text), and so no greeting")]
    NoTexts,
}

impl From<OpenError> for io::Error {
    /// "Connection aborted" if the tunnel has ended or takes no new connections, "resource busy" if
    /// there may be room later.
    fn from(error: OpenError) -> Self {
        let kind = match error {
            OpenError::NotOpener => io::ErrorKind::Unsupported,
            OpenError::Limit(_) | OpenError::Congested => io::ErrorKind::ResourceBusy,
            OpenError::Draining | OpenError::Closed => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

impl From<TunnelError> for io::Error {
    /// The error has a matching kind and contains the [`TunnelError`]
    /// ([`get_ref`](io::Error::get_ref), [`into_inner`](io::Error::into_inner)).
    fn from(error: TunnelError) -> Self {
        let kind = match error {
            TunnelError::Ended(_) | TunnelError::Flooded => io::ErrorKind::ConnectionAborted,
            TunnelError::Transport(_) => io::ErrorKind::ConnectionReset,
            TunnelError::Unexpected(_) => io::ErrorKind::InvalidData,
            TunnelError::PeerDead => io::ErrorKind::TimedOut,
            TunnelError::NotResumed(_) => io::ErrorKind::ConnectionReset,
            TunnelError::NotConnected(_) | TunnelError::Dropped => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

impl From<ConnectError> for io::Error {
    /// The error has a matching kind and contains the [`ConnectError`].
    fn from(error: ConnectError) -> Self {
        let kind = match error {
            ConnectError::Refused { .. } => io::ErrorKind::ConnectionRefused,
            ConnectError::Closed(_) => io::ErrorKind::ConnectionAborted,
            ConnectError::TimedOut => io::ErrorKind::TimedOut,
            ConnectError::Unexpected => io::ErrorKind::InvalidData,
            ConnectError::Transport(_) => io::ErrorKind::ConnectionReset,
            ConnectError::NoTexts => io::ErrorKind::Unsupported,
        };
        Self::new(kind, error)
    }
}

/// A peer's reason for closing, safe to show.
pub(super) fn clean(reason: CloseReason) -> CloseReason {
    CloseReason::new(reason.code, clean_text(reason.text.as_bytes()))
}

fn colon(words: &str) -> &'static str {
    if words.is_empty() { "" } else { ": " }
}

fn said(reason: &Option<CloseReason>) -> String {
    reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(": {reason}"))
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use std::error::Error;

    use super::*;
    use crate::codec::CodecError;
    use crate::mux::RelayError;
    use crate::session::{Reason, Reset, SendError};
    use crate::wire::{Chunk, DecodeError};

    #[test]
    fn an_io_error_has_a_kind_and_contains_the_error() {
        fn check(error: impl Into<io::Error> + Error + 'static, kind: io::ErrorKind) {
            let text = error.to_string();
            let error: io::Error = error.into();
            assert_eq!((error.kind(), error.to_string()), (kind, text));
            assert!(error.get_ref().is_some());
        }
        check(OpenError::Limit(7), io::ErrorKind::ResourceBusy);
        check(OpenError::Closed, io::ErrorKind::ConnectionAborted);
        check(TunnelError::PeerDead, io::ErrorKind::TimedOut);
        check(
            TunnelError::Unexpected("hi".into()),
            io::ErrorKind::InvalidData,
        );
        let refused = ConnectError::Refused {
            reason: "full".into(),
            code: Some(1013),
        };
        check(refused, io::ErrorKind::ConnectionRefused);
        check(ConnectError::TimedOut, io::ErrorKind::TimedOut);
        let denied = || Reset::new(Reason::Denied, "no");
        check(
            RelayError::Tunnel(denied()),
            io::ErrorKind::PermissionDenied,
        );
        let local = io::Error::from(io::ErrorKind::BrokenPipe);
        check(RelayError::Local(local), io::ErrorKind::BrokenPipe);
        check(SendError::Reset(denied()), io::ErrorKind::PermissionDenied);
        check(SendError::Finished, io::ErrorKind::BrokenPipe);
        check(
            SendError::Blocked(Chunk::copied(b"x")),
            io::ErrorKind::WouldBlock,
        );
        check(SendError::TooLong(70_000), io::ErrorKind::InvalidInput);
        let local = io::Error::new(io::ErrorKind::BrokenPipe, "the socket's");
        check(CodecError::Io(local), io::ErrorKind::BrokenPipe);
        let truncated = CodecError::Truncated { missing: 7 };
        check(truncated, io::ErrorKind::UnexpectedEof);
        let too_long = CodecError::TooLong { len: 8, max: 7 };
        check(too_long, io::ErrorKind::InvalidData);
        let malformed = DecodeError::UnknownKind(99);
        check(CodecError::Decode(malformed), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_reason_is_said_only_if_there_is_one() {
        let ended = TunnelError::Ended(None);
        assert_eq!(ended.to_string(), "ended by the other side");
        let reason = CloseReason::new(4001, "replaced\n");
        let ended = TunnelError::ended(Some(reason));
        assert_eq!(
            ended.to_string(),
            "ended by the other side: replaced  (4001)"
        );
        let unexpected = TunnelError::Unexpected(String::new());
        let text = "the other side sent what is no tunnel message";
        assert_eq!(unexpected.to_string(), text);
        let unexpected = TunnelError::Unexpected("hi".into());
        assert_eq!(unexpected.to_string(), format!("{text}: hi"));
    }
}
