use super::budget::QueueBudget;
use super::dialect::Dialect;
use super::events::Notice;
use super::linger::Deadline;
use super::receiving::RecvHalf;
use super::sending::SendHalf;
use super::state::Life;
use super::{EARLY_DATA, Instant, State, StreamId, StreamStats};
use crate::wire::{ClientId, Proto};

/// The state of one stream or flow. Each member belongs to the part that defines its type.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) name: Name,
    pub(super) life: Life,
    pub(super) send: SendHalf,
    pub(super) recv: RecvHalf,
    pub(super) notice: Notice,
    pub(super) linger: Deadline,
}

/// The names of a stream: its handle and its client id.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    id: StreamId,
    wire_id: ClientId,
    proto: Proto,
}

impl Stream {
    #[inline]
    pub(super) fn new(
        id: StreamId,
        wire_id: ClientId,
        proto: Proto,
        state: State,
        dialect: Dialect,
        now: Instant,
    ) -> Self {
        let mut recv = RecvHalf::new(now);
        if state.is_pending() {
            recv.note_opening(now);
        }
        Self {
            name: Name { id, wire_id, proto },
            life: Life::new(state),
            send: SendHalf::new(dialect.initial_credit(proto), dialect.early_data(proto)),
            recv,
            notice: Notice::default(),
            linger: Deadline::default(),
        }
    }

    pub(super) const fn id(&self) -> StreamId {
        self.name.id
    }

    pub(super) const fn wire_id(&self) -> ClientId {
        self.name.wire_id
    }

    pub(super) const fn proto(&self) -> Proto {
        self.name.proto
    }

    /// Bytes that the peer may have sent before it learns that the stream has ended here.
    pub(super) fn late_credit(&self, dialect: Dialect) -> u64 {
        let is_pending = self.life.state().is_pending();
        match self.proto() {
            Proto::Tcp if dialect.has_credit() && is_pending => {
                u64::from(EARLY_DATA).saturating_sub(self.recv.received())
            }
            Proto::Tcp if dialect.has_credit() => self.recv.credit(),
            Proto::Tcp if is_pending => dialect.stray_credit(),
            _ => u64::MAX,
        }
    }

    /// What the stream holds of the session's queues.
    pub(super) fn memory(&self) -> usize {
        let bytes = self.recv.held() + self.send.unsent();
        match self.proto() {
            Proto::Tcp => bytes,
            Proto::Udp => {
                let pieces = self.recv.pieces() + self.send.pieces();
                QueueBudget::memory_of(pieces, bytes)
            }
        }
    }

    pub(super) fn stats(&self) -> StreamStats {
        StreamStats {
            state: self.life.state(),
            bytes_sent: self.send.sent(),
            bytes_received: self.recv.received(),
            unread: self.recv.unread(),
            unsent: self.send.unsent(),
        }
    }
}
