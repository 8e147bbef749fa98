use alloc::collections::{BTreeMap, BinaryHeap};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::mem::size_of;

use super::dialect::Dialect;
use super::ids::IdAllocator;
use super::late::EndedIds;
use super::stream::Stream;
use super::{Config, Instant, Reset, State, StreamError};
use crate::wire::{ClientId, Proto};

/// Names a stream or flow of one [`Session`](super::Session) from open or accept until release.
///
/// Unlike the client id on the wire it is never reused.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, Reason, Role, Session, Version};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
/// let first = session.open_tcp(80, now)?;
/// session.reset(first, Reason::Reset, "");
/// session.release(first, now);
/// let second = session.open_tcp(80, now)?;
/// assert!(first != second && first.slot() == second.slot());
/// # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    slot: u32,
    generation: u32,
}

impl StreamId {
    #[cfg(test)]
    pub(super) const fn of_slot(slot: usize) -> Self {
        let (slot, generation) = (slot as u32, 0);
        Self { slot, generation }
    }

    /// A small number, unique among the streams that exist now: an index for the caller's own
    /// tables.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

/// The streams of a session, by handle and by client id, and the ids that are not free yet.
#[derive(Debug)]
pub(super) struct Streams {
    slots: Vec<Option<Stream>>,
    /// The empty slots. New streams take the lowest, so that the last ones become empty and can be
    /// dropped. Numbers beyond the slots are of dropped ones.
    free: BinaryHeap<Reverse<u32>>,
    /// Slots that are not empty.
    len: usize,
    generation: u32,
    /// Ids in use on the wire. A stream that has ended on the wire but was not released has none.
    wire: BTreeMap<ClientId, u32>,
    ids: IdAllocator,
    ended: EndedIds,
    /// Streams that the peer asked for and the application has not accepted yet, with those that
    /// have ended meanwhile: the application may still make their connections.
    pending: usize,
    /// Those of them that have not ended.
    waiting: usize,
}

/// What a client id refers to.
#[derive(Debug)]
pub(super) enum OnWire<'a> {
    Live(&'a mut Stream),
    /// It ended recently. Late messages for it are normal.
    Ended,
    Unknown,
}

impl Streams {
    /// Slots that are never dropped, so that an idle session does not allocate for each stream.
    const KEPT: usize = 16;

    pub(super) fn new(config: &Config) -> Self {
        Self {
            slots: Vec::new(),
            free: BinaryHeap::new(),
            len: 0,
            generation: 0,
            wire: BTreeMap::new(),
            ids: IdAllocator::starting_at(config.first_id.unwrap_or(1)),
            ended: EndedIds::new(config.max_streams),
            pending: 0,
            waiting: 0,
        }
    }

    /// Adds a stream that this end opens, with an id that no other stream has.
    pub(super) fn open(
        &mut self,
        proto: Proto,
        dialect: Dialect,
        now: Instant,
    ) -> (StreamId, ClientId) {
        let (wire, ended) = (&self.wire, &self.ended);
        let in_use = |id| wire.contains_key(&id) || ended.contains(id);
        let id = self.ids.allocate(in_use);
        (self.insert(id, proto, State::Connecting, dialect, now), id)
    }

    /// Adds a stream that the peer requests. The id must not be live.
    pub(super) fn admit(
        &mut self,
        id: ClientId,
        proto: Proto,
        dialect: Dialect,
        now: Instant,
    ) -> StreamId {
        self.ended.forget(id);
        self.pending += 1;
        self.waiting += 1;
        self.insert(id, proto, State::Pending, dialect, now)
    }

    /// The application accepts a stream.
    pub(super) fn accept(&mut self, id: StreamId) -> Result<&mut Stream, StreamError> {
        let s = Self::find(&mut self.slots, id).ok_or(StreamError::Unknown)?;
        if s.life.answer() {
            self.pending -= 1;
            self.waiting -= usize::from(!s.life.is_closed());
        }
        if let Some(reset) = s.life.reset() {
            return Err(StreamError::Reset(reset.clone()));
        }
        s.life.accept()?;
        Ok(s)
    }

    /// The stream has ended on the wire: its id is remembered for a while and no longer names it.
    /// `None` if it had ended before.
    pub(super) fn close(
        &mut self,
        id: StreamId,
        reset: Option<Reset>,
        answered: bool,
        dialect: Dialect,
    ) -> Option<&mut Stream> {
        let s = Self::find(&mut self.slots, id).filter(|s| !s.life.is_closed())?;
        self.wire.remove(&s.wire_id());
        self.waiting -= usize::from(s.life.is_asked_for());
        let credit = s.late_credit(dialect);
        self.ended.remember(s.wire_id(), answered, credit);
        s.life.end(reset);
        Some(s)
    }

    /// Removes the stream if it has ended and was released. Returns whether there were many more
    /// streams before, so that memory was given back.
    pub(super) fn reap(&mut self, id: StreamId) -> bool {
        let Some(place) = self.slots.get_mut(id.slot()) else {
            return false;
        };
        match place {
            Some(s) if s.id() == id && s.life.is_over() => {
                self.pending -= usize::from(s.life.is_asked_for());
            }
            _ => return false,
        }
        *place = None;
        self.free.push(Reverse(id.slot));
        self.len -= 1;
        self.slots.len() > Self::KEPT && self.len < self.slots.len() / 4 && self.give_back()
    }

    /// Drops the empty slots at the end. Returns whether much less memory is used now.
    #[cold]
    fn give_back(&mut self) -> bool {
        let last = self.slots.iter().rposition(Option::is_some);
        let used = last.map_or(0, |last| last + 1);
        self.slots.truncate(used);
        let much = self.slots.capacity() > Self::KEPT.max(4 * used);
        if much {
            self.slots.shrink_to(Self::KEPT.max(2 * used));
            self.free.retain(|Reverse(slot)| (*slot as usize) < used);
            self.free.shrink_to_fit();
        }
        much
    }

    /// Whether to answer late DATA for an id that is not live now. True once for an id, known or
    /// not.
    pub(super) fn answer_late(&mut self, id: ClientId, dialect: Dialect) -> bool {
        self.ended.answer(id, dialect.stray_credit())
    }

    /// Subtracts late bytes for an id from its remaining credit. The error is by how much they
    /// exceed it.
    pub(super) fn receive_late(&mut self, id: ClientId, len: usize) -> Result<(), u64> {
        self.ended.receive(id, len)
    }

    /// The stream with this client id. One look-up for each message.
    pub(super) fn on_wire(&mut self, id: ClientId) -> OnWire<'_> {
        if let Some(slot) = self.wire.get(&id) {
            if let Some(Some(s)) = self.slots.get_mut(*slot as usize) {
                return OnWire::Live(s);
            }
        }
        match self.ended.contains(id) {
            true => OnWire::Ended,
            false => OnWire::Unknown,
        }
    }

    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        Self::find(&mut self.slots, id)
    }

    pub(super) fn get(&self, id: StreamId) -> Option<&Stream> {
        let s = self.slots.get(id.slot())?.as_ref()?;
        (s.id() == id).then_some(s)
    }

    /// The live streams.
    pub(super) fn live(&self) -> Vec<StreamId> {
        let live = self.iter().filter(|s| !s.life.is_closed());
        live.map(Stream::id).collect()
    }

    /// Whether a stream has not ended on the wire.
    #[cfg(feature = "mux")]
    pub(super) fn has_live(&self) -> bool {
        !self.wire.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.slots.iter().flatten()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Every [`StreamId::slot`] is below this.
    #[cfg(feature = "mux")]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that are allocated for further streams.
    pub(super) fn spare(&self) -> usize {
        (self.slots.capacity() - self.len) * size_of::<Option<Stream>>()
            + self.free.capacity() * size_of::<u32>()
    }

    /// Streams that are neither accepted nor released yet.
    pub(super) const fn pending(&self) -> usize {
        self.pending
    }

    /// Streams that are neither accepted nor have ended yet.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Forgets the ids of ended streams, but for the latest.
    pub(super) fn forget_ended(&mut self) {
        self.ended.shrink();
    }

    /// The number of remembered ids.
    pub(super) fn remembered(&self) -> usize {
        self.ended.len()
    }

    /// Whether counts and ids match the streams.
    pub(super) fn audit(&self) -> bool {
        let pending = || self.iter().filter(|s| s.life.is_asked_for());
        let waiting = pending().filter(|s| !s.life.is_closed());
        let live = self.live();
        let named = |id: &StreamId| {
            let wire_id = self.get(*id).map(Stream::wire_id);
            wire_id.and_then(|wire_id| self.wire.get(&wire_id)) == Some(&id.slot)
        };
        pending().count() == self.pending
            && waiting.count() == self.waiting
            && live.len() == self.wire.len()
            && live.iter().all(named)
            && self.iter().count() == self.len
    }

    fn find(slots: &mut [Option<Stream>], id: StreamId) -> Option<&mut Stream> {
        let s = slots.get_mut(id.slot())?.as_mut()?;
        (s.id() == id).then_some(s)
    }

    fn insert(
        &mut self,
        wire_id: ClientId,
        proto: Proto,
        state: State,
        dialect: Dialect,
        now: Instant,
    ) -> StreamId {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        // `max_streams` is far below 2^32.
        let end = self.slots.len() as u32;
        let slot = match self.free.pop() {
            Some(Reverse(slot)) if slot < end => slot,
            Some(_) => {
                self.free.clear();
                end
            }
            None => end,
        };
        self.len += 1;
        self.wire.insert(wire_id, slot);
        let id = StreamId { slot, generation };
        let stream = Some(Stream::new(id, wire_id, proto, state, dialect, now));
        match self.slots.get_mut(slot as usize) {
            Some(place) => *place = stream,
            None => self.slots.push(stream),
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Role, Version};
    use super::*;

    #[test]
    fn an_id_is_not_given_again_while_it_lives_or_lingers() {
        let (now, dialect) = (Instant::default(), Dialect::new(Version::V2, Role::Opener));
        let mut streams = Streams::new(&Config::default());
        let open = |streams: &mut Streams| streams.open(Proto::Tcp, dialect, now);
        let (_, live) = open(&mut streams);
        let (over, ended) = open(&mut streams);
        assert!(streams.close(over, None, false, dialect).is_some());
        // Billions of connections later the ids have wrapped.
        streams.ids = IdAllocator::starting_at(live.0);
        let (_, next) = open(&mut streams);
        assert_eq!([live, ended, next], [1, 2, 3].map(ClientId));
    }
}
