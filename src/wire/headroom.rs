use core::fmt;

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{HEADER_LEN, Header};

/// A read buffer that keeps room for a header in front of the bytes read into it.
///
/// Fill it through [`spare`](Self::spare), then take the payload out as a [`Chunk`]. Writing the
/// eight bytes of a header makes the chunk a whole message; the payload is not moved.
///
/// ```
/// use bytes::BufMut;
/// use kohakuriver_tunnel::wire::{ClientId, Header, HeadroomBuf, Kind, Proto};
///
/// let mut buffer = HeadroomBuf::with_capacity(64 * 1024);
/// buffer.spare(1024).put_slice(b"hi"); // or a socket's `read_buf`
/// let header = Header { kind: Kind::Data, proto: Proto::Udp, id: ClientId(0xdead_beef), port: 0 };
/// let message = buffer.split().seal(header);
/// assert_eq!(message[..], [3, 1, 0xde, 0xad, 0xbe, 0xef, 0, 0, b'h', b'i']);
/// ```
pub struct HeadroomBuf {
    buffer: BytesMut,
    capacity: usize,
}

/// Without the bytes read.
impl fmt::Debug for HeadroomBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadroomBuf")
            .field("filled", &self.filled().len())
            .field("capacity", &self.capacity)
            .finish()
    }
}

impl HeadroomBuf {
    /// A buffer for reads of at most `capacity` payload bytes. It allocates on first use, for one
    /// read at a time.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            capacity,
        }
    }

    /// Room for at most `limit` more payload bytes. The rest of the buffer bounds it further; a
    /// full buffer grows.
    ///
    /// Reuses the memory of chunks that were dropped meanwhile.
    pub fn spare(&mut self, limit: usize) -> Limit<&mut BytesMut> {
        if self.filled().is_empty() {
            // Less than half of a read is left: a fresh buffer avoids many tiny reads.
            let read = limit.min(self.capacity).max(1);
            if self.buffer.capacity() < HEADER_LEN + read.div_ceil(2) {
                self.buffer.clear();
                self.buffer.reserve(HEADER_LEN + read);
            }
            self.buffer.resize(HEADER_LEN, 0);
        }
        if self.buffer.capacity() == self.buffer.len() {
            self.buffer.reserve(self.capacity.max(1));
        }
        let left = self.buffer.capacity() - self.buffer.len();
        (&mut self.buffer).limit(limit.min(left))
    }

    /// Takes the bytes read so far and keeps the rest of the allocation for the next read.
    ///
    /// The chunk keeps the whole allocation alive, which is acceptable for large reads.
    pub fn split(&mut self) -> Chunk {
        Chunk::from_headroom(self.buffer.split())
    }

    /// Takes the bytes read so far together with the whole allocation.
    pub fn take(&mut self) -> Chunk {
        Chunk::from_headroom(core::mem::take(&mut self.buffer))
    }

    /// Copies the bytes read so far into an allocation of their size and keeps the buffer.
    ///
    /// The chunk keeps no other memory alive, which suits small reads.
    pub fn copy(&mut self) -> Chunk {
        let chunk = Chunk::copied(self.filled());
        self.buffer.clear();
        chunk
    }

    /// Takes the bytes read so far by [`copy`](Self::copy) if they are at most `copy_max`, by
    /// [`take`](Self::take) if the allocation is nearly full, else by [`split`](Self::split).
    ///
    /// A WebSocket client can mask a chunk in place if nothing else shares the chunk's allocation.
    pub fn next_chunk(&mut self, copy_max: usize) -> Chunk {
        let len = self.filled().len();
        if len <= copy_max {
            self.copy()
        } else if self.buffer.capacity() - self.buffer.len() <= len / 4 {
            self.take()
        } else {
            self.split()
        }
    }

    /// The payload bytes read so far.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        self.buffer.get(HEADER_LEN..).unwrap_or_default()
    }
}

/// Payload bytes. If they were read behind headroom, they become a message without a copy.
pub struct Chunk(Storage);

enum Storage {
    /// `HEADER_LEN` bytes of headroom, then the payload.
    Headroom(BytesMut),
    /// The payload alone.
    Shared(Bytes),
}

/// The length alone.
impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("len", &self.len()).finish()
    }
}

impl Chunk {
    /// Copies a payload behind headroom, into an allocation of exactly the required size.
    #[must_use]
    pub fn copied(payload: &[u8]) -> Self {
        Self::copied_with_room(payload, 0)
    }

    /// As [`copied`](Self::copied), with room to [`append`](Self::append) `room` more bytes.
    #[must_use]
    pub fn copied_with_room(payload: &[u8], room: usize) -> Self {
        let mut buffer = BytesMut::with_capacity(HEADER_LEN + payload.len() + room);
        buffer.put_bytes(0, HEADER_LEN);
        buffer.put_slice(payload);
        Self(Storage::Headroom(buffer))
    }

    /// The payload of a received message of at least a header. If nobody else holds the message,
    /// its header becomes headroom; otherwise the payload is shared.
    pub(crate) fn received(message: Bytes) -> Self {
        Self(match message.try_into_mut() {
            Ok(message) => Storage::Headroom(message),
            Err(mut message) => {
                message.advance(HEADER_LEN.min(message.len()));
                Storage::Shared(message)
            }
        })
    }

    /// As [`received`](Self::received), but the payload is copied if the message keeps much more
    /// memory alive than its length.
    pub(crate) fn small(message: Bytes) -> Self {
        let payload = |message| <[u8]>::get(message, HEADER_LEN..).unwrap_or_default();
        match message.try_into_mut() {
            Ok(mut message) => match message.try_reclaim(message.len()) {
                true => Self::copied(payload(&message)),
                // So its memory is less than three times as long, whatever part of it this is.
                false => Self(Storage::Headroom(message)),
            },
            Err(message) => Self::copied(payload(&message)),
        }
    }

    fn from_headroom(mut buffer: BytesMut) -> Self {
        if buffer.len() < HEADER_LEN {
            buffer.clear();
            buffer.put_bytes(0, HEADER_LEN);
        }
        Self(Storage::Headroom(buffer))
    }

    /// Bytes that [`append`](Self::append) takes.
    pub(crate) fn room(&self) -> usize {
        match &self.0 {
            Storage::Headroom(buffer) => buffer.capacity() - buffer.len(),
            Storage::Shared(_) => 0,
        }
    }

    /// Appends as much of `payload` as fits without a new allocation; returns how many bytes.
    pub fn append(&mut self, payload: &[u8]) -> usize {
        match &mut self.0 {
            Storage::Headroom(buffer) => {
                let room = buffer.capacity() - buffer.len();
                let fits = payload.get(..room).unwrap_or(payload);
                buffer.put_slice(fits);
                fits.len()
            }
            Storage::Shared(_) => 0,
        }
    }

    /// Splits off the first `at` bytes (at most all). The rest stays, without headroom.
    pub fn split_to(&mut self, at: usize) -> Self {
        let at = at.min(self.len());
        match &mut self.0 {
            Storage::Headroom(buffer) => {
                let front = buffer.split_to(HEADER_LEN + at);
                let rest = core::mem::take(buffer).freeze();
                self.0 = Storage::Shared(rest);
                Self(Storage::Headroom(front))
            }
            Storage::Shared(bytes) => Self(Storage::Shared(bytes.split_to(at))),
        }
    }

    /// Makes the message: writes the header into the headroom, or in front of a copy of the payload
    /// if there is no headroom.
    #[inline]
    #[must_use]
    pub fn seal(self, header: Header) -> Bytes {
        match self.0 {
            Storage::Headroom(mut buffer) => {
                if let Some(room) = buffer.first_chunk_mut() {
                    *room = header.to_bytes();
                }
                buffer.freeze()
            }
            Storage::Shared(payload) => copy_behind(header, &payload),
        }
    }

    /// The payload without its headroom.
    #[must_use]
    pub fn into_payload(self) -> Bytes {
        match self.0 {
            Storage::Headroom(mut buffer) => {
                buffer.advance(HEADER_LEN);
                buffer.freeze()
            }
            Storage::Shared(payload) => payload,
        }
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        match &self.0 {
            Storage::Headroom(buffer) => buffer.get(HEADER_LEN..).unwrap_or_default(),
            Storage::Shared(payload) => payload,
        }
    }

    /// Bytes of payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload().len()
    }

    /// Whether there is no payload.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A function of its own, so that [`Chunk::seal`] is small enough to be inlined.
#[inline(never)]
fn copy_behind(header: Header, payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(HEADER_LEN + payload.len());
    message.put_slice(&header.to_bytes());
    message.put_slice(payload);
    message.freeze()
}

impl Default for Chunk {
    /// No payload. Allocates nothing.
    fn default() -> Self {
        Self(Storage::Shared(Bytes::new()))
    }
}

impl From<&[u8]> for Chunk {
    /// As [`copied`](Self::copied).
    fn from(payload: &[u8]) -> Self {
        Self::copied(payload)
    }
}

impl<const N: usize> From<&[u8; N]> for Chunk {
    /// As [`copied`](Self::copied).
    fn from(payload: &[u8; N]) -> Self {
        Self::copied(payload)
    }
}

impl From<alloc::vec::Vec<u8>> for Chunk {
    /// As from [`Bytes`].
    fn from(payload: alloc::vec::Vec<u8>) -> Self {
        Bytes::from(payload).into()
    }
}

impl From<Bytes> for Chunk {
    /// Shares the bytes. Sealing them costs a copy, because they have no headroom.
    fn from(payload: Bytes) -> Self {
        Self(Storage::Shared(payload))
    }
}
