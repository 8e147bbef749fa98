use super::Version;
use crate::wire::{Kind, Proto};

/// Where a stream is between CONNECT and its end (PROTOCOL.md sections 4.2 and 5.3).
///
/// ```text
///          opener                                        acceptor
///      CONNECT sent                                  CONNECT received
///           |                                               |
///      Connecting ---CLOSE sent--> ConnectingFinished    Pending --CLOSE received--> PendingFinished
///           |                             |                 |                              |
///       CONNECTED received            CONNECTED         accepted                       accepted
///           |                             |                 |                              |
///           '--------> Open <-------------+-----------------'                              |
///                     |    |              |                                                |
///             CLOSE sent  CLOSE received  |                                                |
///                     |    |              |                                                |
///         LocalFinished    RemoteFinished-+------------------------------------------------'
///           ^         |    |              |
///           '---------+----+--------------'   (ConnectingFinished leads to LocalFinished)
///            CLOSE received / CLOSE sent
///                     |    |
///                     Closed  <--- ERROR either way, from every state; any CLOSE of a datagram flow
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Opener: CONNECT sent, no answer yet. This end may send.
    Connecting,
    /// Opener: no answer yet, and this end has finished.
    ConnectingFinished,
    /// Acceptor: CONNECT received, not answered. The peer may send.
    Pending,
    /// Acceptor: not answered, and the peer has finished.
    PendingFinished,
    /// Both directions are open.
    Open,
    /// This end has finished; the peer still sends.
    LocalFinished,
    /// The peer has finished; this end still sends.
    RemoteFinished,
    /// Over.
    Closed,
}

/// What a message does to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Goes to this state.
    Become(State),
    /// Is taken; the state stays.
    Take,
    /// Is late but normal: nothing happens.
    Ignore,
    /// Ends the stream at once, as the peer asked.
    Abort,
    /// Breaks the protocol: counted, otherwise ignored.
    Violation,
    /// Breaks the protocol in a way that would lose bytes: the stream is reset.
    Fatal,
}

impl State {
    /// What a message of `kind` does in this state.
    pub(super) fn on_message(self, kind: Kind, proto: Proto, version: Version) -> Verdict {
        use State::{
            Closed, Connecting, ConnectingFinished, LocalFinished, Open, Pending, PendingFinished,
            RemoteFinished,
        };
        let v2 = version == Version::V2;
        match (kind, self) {
            (Kind::Ping | Kind::Pong | Kind::GoAway, _) => Verdict::Take,
            (Kind::Connect, Closed) => Verdict::Take,
            (_, Closed) => Verdict::Ignore,

            (Kind::Connect, _) => Verdict::Violation,

            (Kind::Connected, Connecting) => Verdict::Become(Open),
            (Kind::Connected, ConnectingFinished) => Verdict::Become(LocalFinished),
            (Kind::Connected, _) => Verdict::Violation,

            (Kind::Error, _) => Verdict::Abort,

            (Kind::Data, Open | LocalFinished | Pending) => Verdict::Take,
            (Kind::Data, Connecting | ConnectingFinished) => Verdict::Fatal,
            (Kind::Data, PendingFinished | RemoteFinished) if v2 => Verdict::Fatal,
            (Kind::Data, PendingFinished | RemoteFinished) => Verdict::Ignore,

            // A datagram flow has no directions to end apart.
            (Kind::Close, _) if proto == Proto::Udp => Verdict::Abort,
            (Kind::Close, Connecting | ConnectingFinished) => Verdict::Abort,
            (Kind::Close, Pending) => Verdict::Become(PendingFinished),
            (Kind::Close, Open) => Verdict::Become(RemoteFinished),
            (Kind::Close, LocalFinished) => Verdict::Become(Closed),
            (Kind::Close, PendingFinished | RemoteFinished) if v2 => Verdict::Violation,
            // v1 has no reset: the second CLOSE says that nobody listens any more.
            (Kind::Close, PendingFinished | RemoteFinished) => Verdict::Abort,

            (Kind::Window, _) if proto == Proto::Udp || !v2 => Verdict::Violation,
            (Kind::Window, LocalFinished | ConnectingFinished) => Verdict::Ignore,
            (Kind::Window, _) => Verdict::Take,
        }
    }

    /// After CLOSE was sent.
    pub(super) fn after_finish(self) -> Self {
        match self {
            Self::Connecting => Self::ConnectingFinished,
            Self::Open => Self::LocalFinished,
            Self::RemoteFinished => Self::Closed,
            other => other,
        }
    }

    /// After CONNECTED was sent.
    pub(super) fn after_accept(self) -> Option<Self> {
        match self {
            Self::Pending => Some(Self::Open),
            Self::PendingFinished => Some(Self::RemoteFinished),
            _ => None,
        }
    }

    /// Whether the acceptor has not answered yet.
    pub(super) const fn is_pending(self) -> bool {
        matches!(self, Self::Pending | Self::PendingFinished)
    }

    /// Whether this end may send bytes.
    #[must_use]
    pub const fn can_send(self) -> bool {
        matches!(self, Self::Connecting | Self::Open | Self::RemoteFinished)
    }

    /// Whether the peer may still send bytes.
    #[must_use]
    pub const fn can_receive(self) -> bool {
        matches!(
            self,
            Self::Connecting
                | Self::ConnectingFinished
                | Self::Pending
                | Self::Open
                | Self::LocalFinished
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every message kind x every state, for a byte stream: v1 and v2 side by side.
    #[test]
    fn every_kind_in_every_state_has_a_row() {
        use State::*;
        use Verdict::*;
        let states = [
            Connecting,
            ConnectingFinished,
            Pending,
            PendingFinished,
            Open,
            LocalFinished,
            RemoteFinished,
            Closed,
        ];
        let tunnel = [Take; 8];
        let table: [(Kind, [Verdict; 8], [Verdict; 8]); 9] = [
            (
                Kind::Connect,
                [
                    Violation, Violation, Violation, Violation, Violation, Violation, Violation,
                    Take,
                ],
                [
                    Violation, Violation, Violation, Violation, Violation, Violation, Violation,
                    Take,
                ],
            ),
            (
                Kind::Connected,
                [
                    Become(Open),
                    Become(LocalFinished),
                    Violation,
                    Violation,
                    Violation,
                    Violation,
                    Violation,
                    Ignore,
                ],
                [
                    Become(Open),
                    Become(LocalFinished),
                    Violation,
                    Violation,
                    Violation,
                    Violation,
                    Violation,
                    Ignore,
                ],
            ),
            (
                Kind::Data,
                [Fatal, Fatal, Take, Ignore, Take, Take, Ignore, Ignore],
                [Fatal, Fatal, Take, Fatal, Take, Take, Fatal, Ignore],
            ),
            (
                Kind::Close,
                [
                    Abort,
                    Abort,
                    Become(PendingFinished),
                    Abort,
                    Become(RemoteFinished),
                    Become(Closed),
                    Abort,
                    Ignore,
                ],
                [
                    Abort,
                    Abort,
                    Become(PendingFinished),
                    Violation,
                    Become(RemoteFinished),
                    Become(Closed),
                    Violation,
                    Ignore,
                ],
            ),
            (
                Kind::Error,
                [Abort, Abort, Abort, Abort, Abort, Abort, Abort, Ignore],
                [Abort, Abort, Abort, Abort, Abort, Abort, Abort, Ignore],
            ),
            (Kind::Ping, tunnel, tunnel),
            (Kind::Pong, tunnel, tunnel),
            (
                Kind::Window,
                [
                    Violation, Violation, Violation, Violation, Violation, Violation, Violation,
                    Ignore,
                ],
                [Take, Ignore, Take, Take, Take, Ignore, Take, Ignore],
            ),
            (Kind::GoAway, tunnel, tunnel),
        ];
        for (kind, v1, v2) in table {
            for (i, state) in states.into_iter().enumerate() {
                let verdict = |version| state.on_message(kind, Proto::Tcp, version);
                assert_eq!(verdict(Version::V1), v1[i], "v1 {kind} in {state:?}");
                assert_eq!(verdict(Version::V2), v2[i], "v2 {kind} in {state:?}");
            }
        }
    }

    #[test]
    fn a_flow_ends_with_the_first_close() {
        for state in [State::Pending, State::Open, State::Connecting] {
            for version in [Version::V1, Version::V2] {
                let verdict = state.on_message(Kind::Close, Proto::Udp, version);
                assert_eq!(verdict, Verdict::Abort);
            }
        }
    }

    #[test]
    fn sending_close_ends_only_this_direction() {
        assert_eq!(State::Open.after_finish(), State::LocalFinished);
        assert_eq!(State::Connecting.after_finish(), State::ConnectingFinished);
        assert_eq!(State::RemoteFinished.after_finish(), State::Closed);
        assert!(State::LocalFinished.can_receive() && !State::LocalFinished.can_send());
        assert!(State::RemoteFinished.can_send() && !State::RemoteFinished.can_receive());
    }
}
