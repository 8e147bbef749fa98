use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::StreamId;
use super::stream::Stream;
use crate::wire::ClientId;

/// The streams of a session, by handle and by the id they have on the wire.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Option<Stream>>,
    free: Vec<u32>,
    /// Ids in use on the wire. A stream that is over on the wire but not released has none.
    wire: BTreeMap<ClientId, u32>,
    generation: u32,
}

impl Streams {
    /// Adds the stream that `make` builds for its generation.
    pub(super) fn insert(&mut self, id: ClientId, make: impl FnOnce(u32) -> Stream) -> StreamId {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let stream = Some(make(generation));
        let free = self.free.pop();
        let vacant = free.and_then(|slot| Some((slot, self.slots.get_mut(slot as usize)?)));
        let slot = match vacant {
            Some((slot, place)) => {
                *place = stream;
                slot
            }
            None => {
                self.slots.push(stream);
                // `max_streams` is far below 2^32.
                (self.slots.len() - 1) as u32
            }
        };
        self.wire.insert(id, slot);
        StreamId { slot, generation }
    }

    /// The stream is over on the wire: its id names it no longer.
    pub(super) fn detach(&mut self, id: ClientId) {
        self.wire.remove(&id);
    }

    /// Drops the stream. It must be detached before.
    pub(super) fn remove(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            if place.take().is_some() {
                self.free.push(slot);
            }
        }
    }

    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.slot_mut(id.slot)
            .filter(|stream| stream.generation == id.generation)
    }

    pub(super) fn slot_mut(&mut self, slot: u32) -> Option<&mut Stream> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn at(&self, slot: u32) -> Option<&Stream> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn get(&self, id: StreamId) -> Option<&Stream> {
        let stream = self.at(id.slot)?;
        (stream.generation == id.generation).then_some(stream)
    }

    /// The slot of a stream that lives on the wire.
    pub(super) fn find(&self, id: ClientId) -> Option<u32> {
        self.wire.get(&id).copied()
    }

    /// Slots of the streams that live on the wire.
    pub(super) fn live(&self) -> Vec<u32> {
        self.wire.values().copied().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Stream)> {
        (0..)
            .zip(&self.slots)
            .filter_map(|(slot, stream)| Some((slot, stream.as_ref()?)))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
