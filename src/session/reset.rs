//! Resets: why, what the ends tell each other, and what a reset keeps.

use alloc::string::String;
use core::fmt;

use thiserror::Error;

use super::StreamId;
use super::ending::Ending;
use super::endpoint::Session;

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
            Self::Overflow => "too much data",
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
    /// The text of the end that reset it. The peer's text was cleaned by [`clean_text`]. The
    /// session sends at most [`MAX_TEXT`](Self::MAX_TEXT) bytes.
    pub text: String,
}

impl Reset {
    /// Longest text sent to a peer or kept of one, in bytes (PROTOCOL.md section 5.4).
    pub const MAX_TEXT: usize = 1024;

    /// A reset by this end. Keeps at most [`MAX_TEXT`](Self::MAX_TEXT) bytes of `text`, in whole
    /// characters.
    #[must_use]
    pub fn new(reason: Reason, text: &str) -> Self {
        Self {
            reason,
            text: cut(text).into(),
        }
    }

    /// A reset by the peer. Its text is made safe to show.
    pub(super) fn from_peer(reason: Reason, text: &[u8]) -> Self {
        let text = clean_text(text);
        Self { reason, text }
    }
}

/// As much of `text` as an ERROR carries, in whole characters.
pub(super) fn cut(text: &str) -> &str {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=Reset::MAX_TEXT.min(text.len())).rev().find(fits);
    end.and_then(|end| text.get(..end)).unwrap_or_default()
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

impl Session {
    /// Ends both directions of a stream at once. Queued data is dropped. Received data can still be
    /// read.
    ///
    /// The peer receives `reason` and `text` in v2, and the text alone in v1 if this end is the
    /// acceptor. At most [`Reset::MAX_TEXT`] bytes of the text are sent.
    pub fn reset(&mut self, stream: StreamId, reason: Reason, text: &str) {
        self.end(stream, Ending::Here(Reset::new(reason, text)));
    }

    /// Resets a stream and drops what it holds. What the application has taken does not count any
    /// more, so it has to drop that, too.
    pub(super) fn overflow(&mut self, stream: StreamId, text: &str) {
        self.reset(stream, Reason::Overflow, text);
        if let Some(s) = self.streams.get_mut(stream) {
            self.receiving.drop_unread(s);
            // The stream may have ended in order before. The lost data must not look like an
            // orderly end.
            s.life.lose(Reset::new(Reason::Overflow, text));
            self.events.readable(s);
        }
    }
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
