use alloc::boxed::Box;

use super::{Reason, Reset, StreamError, Version};
use crate::wire::{Kind, Proto};

/// The state of a stream between CONNECT and its end (PROTOCOL.md sections 4.2 and 5.3).
///
/// ```text
///     opener                                        acceptor
/// CONNECT sent                                  CONNECT received
///      |                                               |
/// Connecting ---CLOSE sent--> ConnectingFinished    Pending --CLOSE received--> PendingFinished
///      |                             |                 |                              |
///  CONNECTED received            CONNECTED         accepted                       accepted
///      |                             |                 |                              |
///      '--------> Open <-------------+-----------------'                              |
///                |    |              |                                                |
///        CLOSE sent  CLOSE received  |                                                |
///                |    |              |                                                |
///    LocalFinished    RemoteFinished-+------------------------------------------------'
///      ^         |    |              |
///      '---------+----+--------------'   (ConnectingFinished leads to LocalFinished)
///       CLOSE received / CLOSE sent
///                |    |
///                Closed  <--- ERROR either way, from every state; any CLOSE of a datagram flow
/// ```
///
/// ```
/// use kohakuriver_tunnel::session::State;
///
/// assert!(State::LocalFinished.can_receive() && !State::LocalFinished.can_send());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// Both directions have ended.
    Closed,
}

/// The effect of a message on a stream, in the terms of the tables in PROTOCOL.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The stream changes to this state. To [`Closed`](State::Closed), the table's "over", in good
    /// order.
    Become(State),
    /// "taken": the state stays.
    Take,
    /// "ignored": late but normal.
    Ignore,
    /// "ended": both directions end, as the peer requested.
    End,
    /// "violation": counted, otherwise ignored.
    Violation,
    /// "reset": the peer broke the protocol in a way that would lose bytes. This end resets the
    /// stream.
    Reset,
}

impl State {
    /// The effect of a message of `kind` in this state.
    pub(super) const fn on_message(self, kind: Kind, proto: Proto, version: Version) -> Verdict {
        use State::{
            Closed, Connecting, ConnectingFinished, LocalFinished, Open, Pending, PendingFinished,
            RemoteFinished,
        };
        use Version::{V1, V2};
        match (kind, self, version) {
            (Kind::Window | Kind::GoAway, _, V1) => Verdict::Violation,
            (Kind::Ping | Kind::Pong | Kind::GoAway, ..) => Verdict::Take,
            (Kind::Connect, Closed, _) => Verdict::Take,
            (_, Closed, _) => Verdict::Ignore,

            (Kind::Connect, ..) => Verdict::Violation,

            (Kind::Connected, Connecting, _) => Verdict::Become(Open),
            (Kind::Connected, ConnectingFinished, _) => Verdict::Become(LocalFinished),
            (Kind::Connected, ..) => Verdict::Violation,

            (Kind::Error, ..) => Verdict::End,

            (Kind::Data, Open | LocalFinished | Pending, _) => Verdict::Take,
            (Kind::Data, Connecting | ConnectingFinished, _) => Verdict::Reset,
            (Kind::Data, PendingFinished | RemoteFinished, V1) => Verdict::Ignore,
            (Kind::Data, PendingFinished | RemoteFinished, V2) => Verdict::Reset,

            // The directions of a datagram flow do not end separately.
            (Kind::Close, ..) if matches!(proto, Proto::Udp) => Verdict::End,
            (Kind::Close, Connecting | ConnectingFinished, _) => Verdict::End,
            (Kind::Close, Pending, _) => Verdict::Become(PendingFinished),
            (Kind::Close, Open, _) => Verdict::Become(RemoteFinished),
            (Kind::Close, LocalFinished, _) => Verdict::Become(Closed),
            // v1 has no reset: a second CLOSE means that nobody listens any more.
            (Kind::Close, PendingFinished | RemoteFinished, V1) => Verdict::End,
            (Kind::Close, PendingFinished | RemoteFinished, V2) => Verdict::Violation,

            (Kind::Window, ..) if matches!(proto, Proto::Udp) => Verdict::Violation,
            (Kind::Window, LocalFinished | ConnectingFinished, _) => Verdict::Ignore,
            (Kind::Window, ..) => Verdict::Take,
        }
    }

    /// The state after CLOSE was sent.
    const fn after_finish(self) -> Self {
        match self {
            Self::Connecting => Self::ConnectingFinished,
            Self::Open => Self::LocalFinished,
            Self::RemoteFinished => Self::Closed,
            other => other,
        }
    }

    /// The state after CONNECTED was sent.
    const fn after_accept(self) -> Option<Self> {
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

/// The state of one stream, its reset, and whether a handle exists.
#[derive(Debug)]
pub(super) struct Life {
    state: State,
    reset: Option<Box<Reset>>,
    /// Received bytes were lost.
    #[cfg(feature = "mux")]
    lost: bool,
    /// The peer asked for it, and the application has not answered.
    asked_for: bool,
    released: bool,
}

impl Life {
    pub(super) const fn new(state: State) -> Self {
        Self {
            state,
            reset: None,
            #[cfg(feature = "mux")]
            lost: false,
            asked_for: state.is_pending(),
            released: false,
        }
    }

    /// A message changed the state.
    pub(super) fn advance(&mut self, next: State) {
        self.state = next;
    }

    /// The application accepts the connection.
    pub(super) fn accept(&mut self) -> Result<(), StreamError> {
        match self.state.after_accept() {
            Some(next) => self.state = next,
            None if self.state == State::Closed => {
                let text = "closed by the other side";
                return Err(StreamError::Reset(Reset::new(Reason::Gone, text)));
            }
            None => return Err(StreamError::WrongState),
        }
        Ok(())
    }

    /// CLOSE was sent. Returns whether the stream has ended by that.
    pub(super) fn finish(&mut self, proto: Proto) -> bool {
        let next = match proto {
            Proto::Tcp => self.state.after_finish(),
            Proto::Udp => State::Closed,
        };
        if next == State::Closed {
            return true;
        }
        self.state = next;
        false
    }

    /// The stream has ended on the wire.
    pub(super) fn end(&mut self, reset: Option<Reset>) {
        self.state = State::Closed;
        if let Some(reset) = reset {
            self.reset = Some(Box::new(reset));
        }
    }

    /// Received bytes are lost, perhaps after the end: the rest must not look complete.
    pub(super) fn lose(&mut self, reset: Reset) {
        #[cfg(feature = "mux")]
        {
            self.lost = true;
        }
        self.reset.get_or_insert_with(|| Box::new(reset));
    }

    /// The application releases its handle.
    pub(super) fn release(&mut self) {
        self.released = true;
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    pub(super) fn reset(&self) -> Option<&Reset> {
        self.reset.as_deref()
    }

    /// Whether received bytes were lost.
    #[cfg(feature = "mux")]
    pub(super) const fn has_lost(&self) -> bool {
        self.lost
    }

    /// The application answers, which may be too late. Returns whether it had not before.
    pub(super) fn answer(&mut self) -> bool {
        core::mem::take(&mut self.asked_for)
    }

    /// Whether the peer asked for it, and the application has not answered. It may have ended
    /// meanwhile.
    pub(super) const fn is_asked_for(&self) -> bool {
        self.asked_for
    }

    /// Whether the application holds a handle.
    pub(super) const fn is_held(&self) -> bool {
        !self.released
    }

    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether this end has sent CLOSE and the peer has not.
    pub(super) const fn waits_for_peer(&self) -> bool {
        matches!(self.state, State::LocalFinished | State::ConnectingFinished)
    }

    /// Whether the stream has ended and was released.
    pub(super) const fn is_over(&self) -> bool {
        self.released && self.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const PROTOCOL: &str = include_str!("../../PROTOCOL.md");

    const KINDS: [Kind; 9] = [
        Kind::Connect,
        Kind::Connected,
        Kind::Data,
        Kind::Close,
        Kind::Error,
        Kind::Ping,
        Kind::Pong,
        Kind::Window,
        Kind::GoAway,
    ];

    const STATES: [(&str, State); 8] = [
        ("Connecting", State::Connecting),
        ("Connecting-Finished", State::ConnectingFinished),
        ("Pending", State::Pending),
        ("Pending-Finished", State::PendingFinished),
        ("Open", State::Open),
        ("Local-Finished", State::LocalFinished),
        ("Remote-Finished", State::RemoteFinished),
        ("Closed", State::Closed),
    ];

    fn state(name: &str) -> Option<State> {
        let known = STATES.iter().find(|(known, _)| *known == name);
        known.map(|(_, state)| *state)
    }

    /// The meaning of a cell of the tables.
    fn verdict(cell: &str) -> Verdict {
        match cell {
            "violation" => Verdict::Violation,
            // The answer of v1 to DATA for an id that is not live does not concern a stream.
            "ignored" | "one CLOSE back" => Verdict::Ignore,
            "taken" | "new: Pending" => Verdict::Take,
            "ended" => Verdict::End,
            "reset" => Verdict::Reset,
            "over" => Verdict::Become(State::Closed),
            name => Verdict::Become(state(name).unwrap_or_else(|| panic!("no verdict: {name}"))),
        }
    }

    fn cells(line: &str) -> Vec<&str> {
        line.trim()
            .trim_matches('|')
            .split('|')
            .map(str::trim)
            .collect()
    }

    /// The table of PROTOCOL.md in `section` that has a column for each message type and a row for
    /// each state.
    fn table(section: &str) -> (Vec<Kind>, Vec<(State, Vec<Verdict>)>) {
        let (_, text) = PROTOCOL.split_once(section).unwrap();
        let mut lines = text
            .lines()
            .skip_while(|line| !line.starts_with("| state | CONNECT |"));
        let kind = |name: &&str| {
            let named = KINDS.iter().find(|kind| alloc::format!("{kind}") == *name);
            *named.unwrap_or_else(|| panic!("no type: {name}"))
        };
        let columns: Vec<Kind> = cells(lines.next().unwrap())[1..].iter().map(kind).collect();
        let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
        let rows = rows.map(|line| {
            let cells = cells(line);
            assert_eq!(cells.len() - 1, columns.len(), "{line}");
            let state = match cells[0] {
                "not live" => State::Closed,
                name => state(name).unwrap_or_else(|| panic!("no state: {name}")),
            };
            let verdicts = cells[1..].iter().map(|cell| verdict(cell));
            (state, verdicts.collect())
        });
        let rows = rows.collect();
        (columns, rows)
    }

    /// Every message type in every state of a byte stream is what PROTOCOL.md says, in both
    /// versions.
    #[test]
    fn the_tables_of_the_protocol_hold() {
        for (section, version) in [
            ("### 4.2 Stream states and rules", Version::V1),
            ("### 5.3 Stream states", Version::V2),
        ] {
            let (columns, rows) = table(section);
            let states: Vec<State> = rows.iter().map(|(state, _)| *state).collect();
            assert_eq!(states, STATES.map(|(_, state)| state));
            for kind in KINDS {
                let column = columns.iter().position(|named| *named == kind);
                // Types without a column are about the tunnel, and taken in every state.
                assert_eq!(
                    column.is_none(),
                    matches!(kind, Kind::Ping | Kind::Pong)
                        || (kind, version) == (Kind::GoAway, Version::V2),
                    "{version:?} {kind}"
                );
                for (state, row) in &rows {
                    let expected = column.map_or(Verdict::Take, |column| row[column]);
                    let verdict = state.on_message(kind, Proto::Tcp, version);
                    assert_eq!(verdict, expected, "{version:?} {kind} in {state:?}");
                }
            }
        }
    }

    #[test]
    fn a_flow_ends_with_the_first_close_and_has_no_credit() {
        for version in [Version::V1, Version::V2] {
            for (kind, (_, state)) in KINDS.into_iter().flat_map(|k| STATES.map(|s| (k, s))) {
                let [stream, flow] =
                    [Proto::Tcp, Proto::Udp].map(|proto| state.on_message(kind, proto, version));
                let expected = match kind {
                    Kind::Close if state != State::Closed => Verdict::End,
                    Kind::Window if state != State::Closed => Verdict::Violation,
                    _ => stream,
                };
                assert_eq!(flow, expected, "{version:?} {kind} in {state:?}");
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
