use alloc::string::String;
use core::fmt;

use thiserror::Error;

use super::State;
use crate::wire::{Chunk, ClientId, DecodeError, Kind};

/// Why a stream was reset: the code of a v2 ERROR (PROTOCOL.md section 5.4).
///
/// ```
/// use kohakuriver_tunnel::session::Reason;
///
/// assert_eq!((Reason::Refused.code(), Reason::from_code(1)), (1, Reason::Refused));
/// assert_eq!(Reason::from_code(1000), Reason::Unspecified);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum Reason {
    /// No code given: every v1 ERROR.
    Unspecified = 0,
    /// The target refused the connection.
    Refused = 1,
    /// The target's host or network cannot be reached.
    Unreachable = 2,
    /// The target, or the peer, did not answer in time.
    TimedOut = 3,
    /// The policy of the acceptor forbids it.
    Denied = 4,
    /// No agent is connected for the container.
    NoAgent = 5,
    /// A configured bound on connections is reached.
    Limit = 6,
    /// A v1 reader was too slow, a budget was exceeded, or credit was overrun.
    Overflow = 7,
    /// The application or the service reset the connection, or the protocol was broken on it.
    Reset = 8,
    /// The end that served it is gone, or the tunnel takes no new connections.
    Gone = 9,
}

impl Reason {
    /// The code in the port field of a v2 ERROR.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The reason for a code. Unknown codes are [`Unspecified`](Self::Unspecified).
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Refused,
            2 => Self::Unreachable,
            3 => Self::TimedOut,
            4 => Self::Denied,
            5 => Self::NoAgent,
            6 => Self::Limit,
            7 => Self::Overflow,
            8 => Self::Reset,
            9 => Self::Gone,
            _ => Self::Unspecified,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "failed",
            Self::Refused => "connection refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed out",
            Self::Denied => "denied",
            Self::NoAgent => "no agent",
            Self::Limit => "limit reached",
            Self::Overflow => "reader too slow",
            Self::Reset => "connection reset",
            Self::Gone => "gone",
        })
    }
}

/// How a stream was reset, by either side.
///
/// ```
/// use kohakuriver_tunnel::session::{Reason, Reset};
///
/// let reset = Reset::new(Reason::Refused, "port 8080");
/// assert_eq!(reset.to_string(), "connection refused: port 8080");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}{}{text}", if .text.is_empty() { "" } else { ": " })]
pub struct Reset {
    /// The class of the failure.
    pub reason: Reason,
    /// The text of the end that reset it. The peer's text was cleaned by [`clean_text`].
    pub text: String,
}

impl Reset {
    /// Longest text kept of a peer, in bytes.
    pub const MAX_TEXT: usize = 1024;

    /// A reset by this end.
    #[must_use]
    pub fn new(reason: Reason, text: &str) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }

    /// A reset by the peer. Its text is made safe to show.
    pub(super) fn from_peer(reason: Reason, text: &[u8]) -> Self {
        let text = clean_text(text);
        Self { reason, text }
    }
}

/// Makes a peer's text safe for one line of a log or a terminal (PROTOCOL.md section 7).
///
/// Replaces control characters, line breaks and characters that change the writing direction by
/// blanks, and invalid UTF-8 by U+FFFD. Keeps at most [`Reset::MAX_TEXT`] bytes. The text of a
/// [`Reset`] from a peer is already safe. Pass other text of a peer through this function before
/// showing it: the body of an answer, a reason for closing.
///
/// ```
/// use kohakuriver_tunnel::session::clean_text;
///
/// assert_eq!(clean_text(b"not\nfound \x1b[31m"), "not found  [31m");
/// ```
#[must_use]
pub fn clean_text(text: &[u8]) -> String {
    let harmful = |c: char| {
        let marks = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}');
        let turns = marks || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}');
        let breaks = matches!(c, '\u{2028}' | '\u{2029}');
        c.is_control() || turns || breaks
    };
    let words = text.get(..Reset::MAX_TEXT).unwrap_or(text);
    let mut clean = String::new();
    for c in String::from_utf8_lossy(words).chars() {
        if clean.len() + c.len_utf8() > Reset::MAX_TEXT {
            break;
        }
        clean.push(if harmful(c) { ' ' } else { c });
    }
    clean
}

/// A breach of the protocol by the peer. The session counts it, resets at most one stream because
/// of it, and continues.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, Role, Session, Version, Violation};
/// use kohakuriver_tunnel::wire::{Frame, Kind};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V1, Config::default(), now);
/// let outcome = session.handle_message(now, Frame::<&[u8]>::GoAway.to_bytes());
/// assert_eq!(outcome, Err(Violation::NotInVersion(Kind::GoAway)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// A message that is not a frame.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// A type that this version of the protocol does not have.
    #[error("{0} on a v1 tunnel")]
    NotInVersion(Kind),
    /// A type that only the opener sends.
    #[error("{0} from the wrong side")]
    WrongRole(Kind),
    /// A message that the stream's state does not allow.
    #[error("{kind} for client id {id} in state {state:?}")]
    Unexpected {
        /// Type of the message.
        kind: Kind,
        /// The stream's id.
        id: ClientId,
        /// The state of the stream.
        state: State,
    },
    /// DATA with a protocol other than the stream's.
    #[error("{kind} for client id {id} with the wrong protocol")]
    WrongProto {
        /// Type of the message.
        kind: Kind,
        /// The stream's id.
        id: ClientId,
    },
    /// A message about an unknown stream.
    #[error("{kind} for unknown client id {id}")]
    UnknownStream {
        /// Type of the message.
        kind: Kind,
        /// The id.
        id: ClientId,
    },
    /// More bytes than the credit granted.
    #[error("client id {id} sent {excess} bytes more than its window")]
    CreditOverrun {
        /// The stream's id.
        id: ClientId,
        /// Bytes beyond the credit.
        excess: u64,
    },
    /// Credit of 2^63 bytes or more in total.
    #[error("client id {id} was granted more credit than can be counted")]
    CreditOverflow {
        /// The stream's id.
        id: ClientId,
    },
    /// The peer sends requests and does not read the answers.
    #[error("more than {0} answers wait to be read")]
    TooManyRequests(usize),
}

/// Why a stream was not opened.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, OpenError, Role, Session, Version};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Acceptor, Version::V2, Config::default(), now);
/// assert_eq!(session.open_tcp(80, now), Err(OpenError::NotOpener));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// This end is the acceptor; only the opener opens streams.
    #[error("this end of the tunnel only accepts connections")]
    NotOpener,
    /// [`Config::max_streams`](super::Config::max_streams) is reached.
    #[error("{0} connections are open already")]
    Limit(usize),
    /// Too many control messages wait for the transport.
    #[error("the tunnel is congested")]
    Congested,
    /// This end is draining, or the peer sent GOAWAY.
    #[error("the tunnel takes no new connections")]
    Draining,
    /// The tunnel has ended.
    #[error("the tunnel has ended")]
    Closed,
}

/// Why data was not sent.
///
/// ```
/// use kohakuriver_tunnel::session::{
///     Config, EARLY_DATA, Instant, Role, SendError, Session, Version,
/// };
/// use kohakuriver_tunnel::wire::Chunk;
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
/// let stream = session.open_tcp(80, now)?;
/// let chunk = Chunk::copied(&vec![0; EARLY_DATA as usize + 1]);
/// let Err(SendError::Blocked(chunk)) = session.send(stream, chunk) else { panic!() };
/// assert_eq!(chunk.len(), EARLY_DATA as usize + 1);
/// # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SendError {
    /// No credit or no room now; [`Event::Writable`](super::Event::Writable) follows. Contains the
    /// chunk.
    #[error("no credit or no room now")]
    Blocked(Chunk),
    /// A datagram beyond [`MAX_DATAGRAM`](super::MAX_DATAGRAM). Counted as dropped.
    #[error("datagram of {0} bytes is longer than {max}", max = super::MAX_DATAGRAM)]
    TooLong(usize),
    /// This direction was already finished.
    #[error("this direction was finished before")]
    Finished,
    /// The stream was reset.
    #[error(transparent)]
    Reset(Reset),
    /// No such stream, or the call does not fit its kind (stream or flow).
    #[error("no such stream")]
    Unknown,
}

/// Why a call on a stream failed.
///
/// ```
/// use kohakuriver_tunnel::session::{
///     Config, Instant, Reason, Role, Session, StreamError, Version,
/// };
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
/// let stream = session.open_tcp(80, now)?;
/// session.reset(stream, Reason::Reset, "");
/// assert!(matches!(session.recv(stream, now), Err(StreamError::Reset(_))));
/// session.release(stream, now);
/// assert_eq!(session.recv(stream, now), Err(StreamError::Unknown));
/// # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The stream was reset.
    #[error(transparent)]
    Reset(Reset),
    /// No such stream, or it was released.
    #[error("no such stream")]
    Unknown,
    /// The call does not fit the stream's state or kind.
    #[error("not possible in this state of the stream")]
    WrongState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drives_a_terminal_or_turns_the_writing_is_blanked() {
        let harmful =
            "\u{1b}[2J\r\n\0\u{7f}\u{9b}\u{61c}\u{200e}\u{200f}\u{2028}\u{202e}\u{2066}\u{206f}";
        let clean = clean_text(harmful.as_bytes());
        assert_eq!(clean.trim(), "[2J");
        assert_eq!(clean.chars().count(), harmful.chars().count());
        assert_eq!(clean_text("naïve – 木 😀".as_bytes()), "naïve – 木 😀");
        assert_eq!(clean_text(b"a\xffb"), "a\u{fffd}b");
        assert!(clean_text("木".repeat(1000).as_bytes()).len() <= Reset::MAX_TEXT);
    }
}
