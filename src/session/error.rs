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
    /// The reader was too slow where the protocol knows no credit, or credit was overrun.
    Overflow = 7,
    /// The connection was reset by the application or the service.
    Reset = 8,
    /// The end that served it is gone.
    Gone = 9,
}

impl Reason {
    /// The code in the port field of a v2 ERROR.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The reason for a code; [`Unspecified`](Self::Unspecified) for unknown ones.
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
    /// The words of the end that reset it. Those of the peer went through [`clean_text`].
    pub text: String,
}

impl Reset {
    /// Longest text kept of what a peer sends, in bytes.
    pub const MAX_TEXT: usize = 1024;

    /// A reset by this end.
    #[must_use]
    pub fn new(reason: Reason, text: &str) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }

    /// A reset by the peer, with its words in a form that can be shown.
    pub(super) fn from_peer(reason: Reason, text: &[u8]) -> Self {
        let text = clean_text(text);
        Self { reason, text }
    }
}

/// A peer's words in a form that fits one line of a log or a terminal (PROTOCOL.md section 7).
///
/// Control characters, line breaks and changes of the writing direction become blanks, and what is
/// not UTF-8 becomes U+FFFD. At most [`Reset::MAX_TEXT`] bytes are kept. The text of a [`Reset`]
/// that a peer has sent went through this. What else a program shows of a peer should too: an
/// answer's body, the reason of a close.
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

/// How the peer broke the protocol. The session counted it, reset at most one stream for it, and
/// goes on.
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
    /// A type that only the other role sends.
    #[error("{0} from the wrong side")]
    WrongRole(Kind),
    /// A message the stream's state has no place for.
    #[error("{kind} for client id {id} in state {state:?}")]
    Unexpected {
        /// Type of the message.
        kind: Kind,
        /// The stream's id.
        id: ClientId,
        /// The state it was in.
        state: State,
    },
    /// A protocol that is not the stream's.
    #[error("{kind} for client id {id} with the wrong protocol")]
    WrongProto {
        /// Type of the message.
        kind: Kind,
        /// The stream's id.
        id: ClientId,
    },
    /// A message about a stream that is not, or no longer, known.
    #[error("{kind} for unknown client id {id}")]
    UnknownStream {
        /// Type of the message.
        kind: Kind,
        /// The id.
        id: ClientId,
    },
    /// More bytes than were granted.
    #[error("client id {id} sent {excess} bytes more than its window")]
    CreditOverrun {
        /// The stream's id.
        id: ClientId,
        /// Bytes beyond the window.
        excess: u64,
    },
    /// Credit beyond 2^63 bytes in all.
    #[error("client id {id} was granted more credit than can be counted")]
    CreditOverflow {
        /// The stream's id.
        id: ClientId,
    },
    /// The peer asks and does not read the answers.
    #[error("more than {0} answers wait to be read")]
    TooManyRequests(usize),
}

/// Why no stream was opened.
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
    /// This end of the tunnel accepts; only the other end opens.
    #[error("this end of the tunnel only accepts connections")]
    NotOpener,
    /// [`Config::max_streams`](super::Config::max_streams) is reached.
    #[error("{0} connections are open already")]
    Limit(usize),
    /// The transport does not take the messages that wait: opening and resetting does not help.
    #[error("the tunnel is congested")]
    Congested,
    /// This end drains, or the peer sent GOAWAY.
    #[error("the tunnel takes no new connections")]
    Draining,
    /// The tunnel has ended.
    #[error("the tunnel has ended")]
    Closed,
}

/// Why nothing was sent.
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
    /// No credit or no room now; [`Event::Writable`](super::Event::Writable) follows. Holds the
    /// chunk.
    #[error("no credit or no room now")]
    Blocked(Chunk),
    /// A datagram beyond [`MAX_DATAGRAM`](super::MAX_DATAGRAM). Counted as dropped.
    #[error("datagram of {0} bytes is longer than {max}", max = super::MAX_DATAGRAM)]
    TooLong(usize),
    /// This direction was finished before.
    #[error("this direction was finished before")]
    Finished,
    /// The stream was reset.
    #[error(transparent)]
    Reset(Reset),
    /// No such stream, or a flow where a stream is wanted, or the reverse.
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
