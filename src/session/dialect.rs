use alloc::format;

use bytes::Bytes;

use super::reset::cut;
use super::state::Verdict;
use super::stream::Stream;
use super::{EARLY_DATA, INITIAL_WINDOW, Reason, Role, Version, Violation};
use crate::wire::{ClientId, Frame, Kind, Proto};

/// The differences between v1 and v2, asked by capability. Only the state table names the versions
/// ([`State::on_message`](super::State)).
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    version: Version,
    role: Role,
}

impl Dialect {
    pub(super) const fn new(version: Version, role: Role) -> Self {
        Self { version, role }
    }

    pub(super) const fn role(self) -> Role {
        self.role
    }

    const fn is_v2(self) -> bool {
        matches!(self.version, Version::V2)
    }

    /// Whether messages of this type exist.
    pub(super) const fn knows(self, kind: Kind) -> bool {
        self.is_v2() || kind.in_v1()
    }

    /// Whether streams have credit. Without it, a full stream stalls the transport.
    pub(super) const fn has_credit(self) -> bool {
        self.is_v2()
    }

    /// Whether PONG returns the payload of PING. Then a round trip can be measured, and a PING
    /// proves that the peer lives. Otherwise the transport's own ping has to.
    pub(super) const fn has_echo(self) -> bool {
        self.is_v2()
    }

    /// Whether draining is announced with GOAWAY.
    pub(super) const fn has_goaway(self) -> bool {
        self.is_v2()
    }

    /// Whether the peer may treat the first CLOSE of a stream, from either end, as final.
    pub(super) const fn peer_may_forget(self) -> bool {
        !self.is_v2()
    }

    /// Whether the peer is an opener that may do so.
    pub(super) const fn opener_may_forget(self) -> bool {
        self.peer_may_forget() && matches!(self.role, Role::Acceptor)
    }

    /// The effect of a message on a stream, by its state.
    ///
    /// # Errors
    /// [`Violation`], if the message has no other effect.
    pub(super) const fn verdict(self, s: &Stream, kind: Kind) -> Result<Verdict, Violation> {
        let state = s.life.state();
        match state.on_message(kind, s.proto(), self.version) {
            Verdict::Violation => {
                let id = s.wire_id();
                Err(Violation::Unexpected { kind, id, state })
            }
            verdict => Ok(verdict),
        }
    }

    /// Bytes that this end may send on a connection before the first WINDOW.
    pub(super) const fn initial_credit(self, proto: Proto) -> u64 {
        match (self.version, proto) {
            (Version::V2, Proto::Tcp) => INITIAL_WINDOW as u64,
            _ => u64::MAX,
        }
    }

    /// Most bytes that this end may send on a connection before it is accepted, whatever WINDOW
    /// has granted.
    pub(super) const fn early_data(self, proto: Proto) -> Option<u64> {
        match (self.version, proto, self.role) {
            (Version::V2, Proto::Tcp, Role::Opener) => Some(EARLY_DATA as u64),
            _ => None,
        }
    }

    /// Bytes that the peer may have under way for a connection that does not exist. Without credit
    /// an opener is expected to stop once it is told; a deployed acceptor does not.
    pub(super) const fn stray_credit(self) -> u64 {
        const UNDER_WAY: u64 = 4 << 20;
        match (self.version, self.role) {
            (Version::V2, _) => 0,
            (Version::V1, Role::Acceptor) => UNDER_WAY,
            (Version::V1, Role::Opener) => u64::MAX,
        }
    }

    /// The reason for the code of an ERROR.
    pub(super) const fn reason(self, code: u16) -> Reason {
        match self.version {
            // Deployed runners put the target port in this field.
            Version::V1 => Reason::Unspecified,
            Version::V2 => Reason::from_code(code),
        }
    }

    /// The message that ends a connection at once.
    pub(super) fn reset(self, proto: Proto, id: ClientId, reason: Reason, text: &str) -> Frame {
        let (code, words) = match (self.version, self.role) {
            (Version::V1, Role::Opener) => return Frame::Close { proto, id },
            (Version::V1, Role::Acceptor) if text.is_empty() => (0, format!("{reason}")),
            (Version::V1, Role::Acceptor) => (0, cut(&format!("{reason}: {text}")).into()),
            (Version::V2, _) => (reason.code(), cut(text).into()),
        };
        let text = Bytes::from(words);
        Frame::Error {
            proto,
            id,
            code,
            text,
        }
    }

    /// The answer to DATA for an id that is not live.
    pub(super) const fn stray_answer(self, proto: Proto, id: ClientId) -> Frame {
        match self.version {
            Version::V1 => Frame::Close { proto, id },
            Version::V2 => Frame::Error {
                proto,
                id,
                code: Reason::Gone.code(),
                text: Bytes::from_static(b"no such connection"),
            },
        }
    }
}
