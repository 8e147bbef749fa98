//! The handshake before the first message of a tunnel: the version, and whether there is a session.

use alloc::format;
use alloc::string::{String, ToString};

use thiserror::Error;

use super::{Version, clean_text};

impl Version {
    /// The value that a client which speaks v2 offers in `Sec-WebSocket-Protocol` (PROTOCOL.md
    /// section 5.1).
    ///
    /// A server that does not know it selects nothing, and the tunnel is v1. **tungstenite and
    /// browsers refuse such an answer:** they treat a server that selects nothing, although
    /// something was offered, as faulty (`SecWebSocketSubProtocolError(NoSubProtocol)`). A client
    /// with such a stack that offers v2 therefore cannot reach a deployed v1 host. It can try again
    /// without the header and pass `None` to [`answered`](Self::answered), or use another stack,
    /// such as tokio-websockets, which leaves the decision to the caller.
    ///
    /// ```
    /// use kohakuriver_tunnel::session::Version;
    ///
    /// let offer = ("Sec-WebSocket-Protocol", Version::OFFER);
    /// assert_eq!(offer.1, "kohakuriver-tunnel.v2");
    /// ```
    pub const OFFER: &'static str = "kohakuriver-tunnel.v2";

    /// The version that the server selected, for a client that offered [`OFFER`](Self::OFFER).
    /// `chosen` is the value of `Sec-WebSocket-Protocol` in the answer, `None` if there is none.
    ///
    /// # Errors
    /// [`NotOffered`] if the server selected something else. It speaks another protocol, and the
    /// client must drop the WebSocket.
    ///
    /// ```
    /// use kohakuriver_tunnel::session::Version;
    ///
    /// assert_eq!(Version::answered(Some("kohakuriver-tunnel.v2")), Ok(Version::V2));
    /// assert_eq!(Version::answered(None), Ok(Version::V1));
    /// assert!(Version::answered(Some("chat")).is_err());
    /// ```
    pub fn answered(chosen: Option<&str>) -> Result<Self, NotOffered> {
        match chosen.map(str::trim) {
            None | Some("") => Ok(Self::V1),
            Some(Self::OFFER) => Ok(Self::V2),
            Some(other) => Err(NotOffered(clean_text(other.as_bytes()))),
        }
    }

    /// What a server selects from a client's offer: the version, and the value of
    /// `Sec-WebSocket-Protocol` for the answer, or `None` to leave the header out.
    ///
    /// `offered` is the value of the client's header: names separated by commas, empty if there is
    /// no header. If the client sent the header several times, join the values with commas.
    ///
    /// ```
    /// use kohakuriver_tunnel::session::Version;
    ///
    /// let (version, answer) = Version::choose("chat, kohakuriver-tunnel.v2");
    /// assert_eq!((version, answer), (Version::V2, Some("kohakuriver-tunnel.v2")));
    /// assert_eq!(Version::choose(""), (Version::V1, None));
    /// ```
    #[must_use]
    pub fn choose(offered: &str) -> (Self, Option<&'static str>) {
        let mut names = offered.split(',').map(str::trim);
        if names.any(|name| name == Self::OFFER) {
            (Self::V2, Some(Self::OFFER))
        } else {
            (Self::V1, None)
        }
    }
}

/// The server selected a subprotocol that was not offered. Contains its name, cleaned and at most 1
/// KiB.
///
/// ```
/// use kohakuriver_tunnel::session::Version;
///
/// let error = Version::answered(Some("chat")).unwrap_err();
/// let told = error.to_string();
/// assert_eq!(told, r#"the server chose the subprotocol "chat", which was not offered"#);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the server chose the subprotocol {0:?}, which was not offered")]
pub struct NotOffered(pub String);

/// The text with which a server begins a forwarding session or refuses it (PROTOCOL.md section
/// 4.1).
///
/// It is the only text of a session. `mux::Builder` sends it and waits for it. Code that drives a
/// session directly uses this type.
///
/// ```
/// use kohakuriver_tunnel::session::Greeting;
///
/// assert_eq!(Greeting::parse("CONNECTED"), Greeting::Connected);
/// let refused = Greeting::parse("Error: task 7 is not running");
/// assert_eq!(refused, Greeting::Refused("task 7 is not running".into()));
/// assert_eq!(refused.to_text(), "Error: task 7 is not running");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Greeting {
    /// The session is established: both sides may send messages.
    Connected,
    /// The server refuses and closes the WebSocket. Contains the reason for a person. A peer's text
    /// is cut to 1 KiB and cleaned by [`clean_text`].
    Refused(String),
}

impl Greeting {
    const CONNECTED: &'static str = "CONNECTED";
    const REFUSED: &'static str = "Error: ";

    /// Parses a peer's text. Any text but the welcome is a refusal.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text == Self::CONNECTED {
            return Self::Connected;
        }
        let reason = text.strip_prefix(Self::REFUSED).unwrap_or(text);
        Self::Refused(clean_text(reason.as_bytes()))
    }

    /// The text to send.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Connected => Self::CONNECTED.to_string(),
            Self::Refused(reason) => format!("{}{reason}", Self::REFUSED),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned;

    use super::super::Reset;
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for reason in ["", "unknown task", "Error: twice", "two: colons", "木"] {
            let refused = Greeting::Refused(reason.to_owned());
            assert_eq!(Greeting::parse(&refused.to_text()), refused);
        }
        let connected = Greeting::Connected;
        assert_eq!(Greeting::parse(&connected.to_text()), connected);
    }

    #[test]
    fn only_the_exact_word_is_a_welcome() {
        for text in [
            "",
            "connected",
            "CONNECTED ",
            " CONNECTED",
            "CONNECTED\n",
            "Error: ",
        ] {
            assert!(
                matches!(Greeting::parse(text), Greeting::Refused(_)),
                "{text:?}"
            );
        }
        let json = r#"{"detail":"no agent"}"#;
        assert_eq!(Greeting::parse(json), Greeting::Refused(json.to_owned()));
    }

    #[test]
    fn a_peers_words_are_cleaned_and_cut() {
        let text = alloc::format!("Error: \u{1b}[2J{}", "x".repeat(1 << 20));
        let Greeting::Refused(reason) = Greeting::parse(&text) else {
            panic!("not refused")
        };
        assert!(reason.starts_with(" [2Jxx"));
        assert_eq!(reason.len(), Reset::MAX_TEXT);
        let error = Version::answered(Some(&text)).unwrap_err();
        assert!(error.0.len() <= Reset::MAX_TEXT);
    }

    #[test]
    fn only_the_exact_name_is_the_offer() {
        for offered in [
            "kohakuriver-tunnel.v1",
            "kohakuriver-tunnel.v22",
            "Kohakuriver-Tunnel.V2",
        ] {
            assert_eq!(Version::choose(offered), (Version::V1, None));
            assert!(Version::answered(Some(offered)).is_err());
        }
        for offered in [
            Version::OFFER,
            " kohakuriver-tunnel.v2 ",
            "a,,kohakuriver-tunnel.v2,b",
        ] {
            assert_eq!(
                Version::choose(offered),
                (Version::V2, Some(Version::OFFER))
            );
        }
        assert_eq!(Version::answered(Some("  ")), Ok(Version::V1));
    }
}
