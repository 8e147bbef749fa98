//! The agreement on resumption, in the WebSocket's handshake (PROTOCOL.md section 5.10).

use crate::session::{NotOffered, Version};

const NAME: &str = "kohakuriver-tunnel.v2.resume";

/// The value that a client which can resume tunnels offers in `Sec-WebSocket-Protocol`: resumption
/// first, v2 without it second. For a server, whose stack wants the one name that it selects, there
/// is [`choose`].
///
/// ```
/// use kohakuriver_tunnel::resume;
///
/// assert_eq!(resume::OFFER, "kohakuriver-tunnel.v2.resume, kohakuriver-tunnel.v2");
/// ```
pub const OFFER: &str = "kohakuriver-tunnel.v2.resume, kohakuriver-tunnel.v2";

/// What a server selects from an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The version of the session.
    pub version: Version,
    /// Whether the client's first message is OPEN.
    pub resumable: bool,
    /// The value of `Sec-WebSocket-Protocol` for the answer, `None` to leave the header out.
    pub answer: Option<&'static str>,
}

/// What a server that can resume tunnels selects. `offered` is as for [`Version::choose`], which is
/// the function for a server that does not resume.
///
/// ```
/// use kohakuriver_tunnel::resume;
/// use kohakuriver_tunnel::session::Version;
///
/// let choice = resume::choose(resume::OFFER);
/// assert_eq!(choice.answer, Some("kohakuriver-tunnel.v2.resume"));
/// assert!(choice.resumable && choice.version == Version::V2);
/// assert!(!resume::choose(Version::OFFER).resumable);
/// ```
#[must_use]
pub fn choose(offered: &str) -> Choice {
    if offered.split(',').any(|name| name.trim() == NAME) {
        return Choice {
            version: Version::V2,
            resumable: true,
            answer: Some(NAME),
        };
    }
    let (version, answer) = Version::choose(offered);
    Choice {
        version,
        resumable: false,
        answer,
    }
}

/// What the server selected, for a client that offered [`OFFER`]: the version, and whether the
/// client's first message is OPEN. `chosen` is as for [`Version::answered`].
///
/// # Errors
/// [`NotOffered`] if the server selected something else.
///
/// ```
/// use kohakuriver_tunnel::resume;
/// use kohakuriver_tunnel::session::Version;
///
/// assert_eq!(resume::answered(Some("kohakuriver-tunnel.v2.resume")), Ok((Version::V2, true)));
/// assert_eq!(resume::answered(Some("kohakuriver-tunnel.v2")), Ok((Version::V2, false)));
/// assert_eq!(resume::answered(None), Ok((Version::V1, false)));
/// assert!(resume::answered(Some("chat")).is_err());
/// ```
pub fn answered(chosen: Option<&str>) -> Result<(Version, bool), NotOffered> {
    match chosen.map(str::trim) {
        Some(NAME) => Ok((Version::V2, true)),
        _ => Version::answered(chosen).map(|version| (version, false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_name_is_resumption() {
        for offered in [OFFER, NAME, "a, kohakuriver-tunnel.v2.resume ,b"] {
            assert_eq!(choose(offered).answer, Some(NAME));
        }
        for offered in [
            "kohakuriver-tunnel.v2.resume2",
            "KOHAKURIVER-TUNNEL.V2.RESUME",
            "",
            ",",
        ] {
            assert_eq!(choose(offered).answer, None);
            assert!(!choose(offered).resumable);
        }
        // A server of today selects v2 from the offer.
        assert_eq!(Version::choose(OFFER), (Version::V2, Some(Version::OFFER)));
        assert!(answered(Some(OFFER)).is_err());
        assert_eq!(answered(Some("")), Ok((Version::V1, false)));
    }
}
