//! The reading half: turns bytes into messages, and bounds the memory held and the work of one
//! poll.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;
use tungstenite::Message;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::{CloseFrame, Role};

use crate::budget::Charge;
use crate::close;
use crate::error::{Error, Violation};
use crate::header::Header;
use crate::limits::{
    BYTES_PER_TURN, FRAMES_PER_TURN, FREE_ALLOWANCE, PINNED_MAX, READ_AHEAD_MAX, READ_MIN,
};
use crate::mask::{apply_mask, unmasked};
use crate::partial::{Partial, message};
use crate::patience::Patience;

/// Bytes read, and the state of the message that they belong to.
#[derive(Debug)]
pub(crate) struct Inbound {
    role: Role,
    message_max: usize,
    buffer: BytesMut,
    /// Size of the allocation that `buffer` is the rest of.
    allocated: usize,
    read_size: usize,
    /// Length of the current data frame, or of the last one.
    frame: usize,
    partial: Option<Partial>,
    charge: Charge,
    patience: Patience,
    /// Frames since the task last yielded.
    frames: usize,
    /// Their bytes.
    taken: usize,
    /// Bytes read since then, or since the last message.
    bytes: usize,
}

/// Outcome of one look at the buffer.
#[derive(Debug)]
pub(crate) enum Found {
    Data(Message),
    Ping(Bytes),
    Pong(Bytes),
    Close(Option<CloseFrame>),
    /// At least this many bytes are missing.
    Missing(usize),
    /// There is no memory for a fragment.
    Short,
    /// There may be more, but the task yields first.
    Enough,
}

impl Inbound {
    pub(crate) fn new(read: Bytes, role: Role, message_max: usize) -> Self {
        let buffer = BytesMut::from(read);
        Self {
            role,
            message_max,
            allocated: buffer.capacity(),
            buffer,
            read_size: READ_MIN,
            frame: 0,
            partial: None,
            charge: Charge::default(),
            patience: Patience::default(),
            frames: 0,
            taken: 0,
            bytes: 0,
        }
    }

    pub(crate) fn set_message_max(&mut self, message_max: usize) {
        self.message_max = message_max;
        self.read_size = self.read_size.min(self.read_max());
    }

    /// Most bytes that one read asks for.
    fn read_max(&self) -> usize {
        self.message_max.clamp(READ_MIN, READ_AHEAD_MAX)
    }

    /// Memory held now is charged with the next read.
    pub(crate) fn charge_to(&mut self, charge: Charge) {
        self.charge = charge;
    }

    /// Takes the next message, or control frame, off the bytes read.
    pub(crate) fn next(&mut self) -> Result<Found, Error> {
        loop {
            if self.frames >= FRAMES_PER_TURN {
                self.shorten_reads();
                return Ok(Found::Enough);
            }
            if self.bytes >= BYTES_PER_TURN {
                return Ok(Found::Enough);
            }
            if self.buffer.is_empty() {
                return Ok(Found::Missing(1));
            }
            let Some(header) = Header::parse(&self.buffer, self.role)? else {
                return Ok(Found::Missing(1));
            };
            self.check_data(&header)?;
            let whole = header.size.saturating_add(header.len);
            if matches!(header.opcode, OpCode::Data(_)) {
                self.frame = whole;
            }
            if let Some(missing) = whole.checked_sub(self.buffer.len() + 1) {
                return Ok(Found::Missing(missing + 1));
            }
            if !self.has_memory(&header) {
                return Ok(Found::Short);
            }
            self.frames += 1;
            self.taken += whole;
            self.buffer.advance(header.size);
            if let Some(found) = self.take_frame(&header)? {
                if self.partial.is_none() {
                    self.patience.reset();
                }
                return Ok(found);
            }
        }
    }

    /// Reads less at once if one read may bring more than twice what this turn took.
    fn shorten_reads(&mut self) {
        if self.taken < self.read_size / 2 {
            self.read_size = (self.read_size / 2).max(READ_MIN);
        }
    }

    /// Checks whether a data frame may come now and is not too long. This needs only its header.
    fn check_data(&self, header: &Header) -> Result<(), Error> {
        let OpCode::Data(kind) = header.opcode else {
            return Ok(());
        };
        let before = match (kind, &self.partial) {
            (Data::Continue, Some(partial)) => partial.len(),
            (Data::Continue, None) => return Err(Violation::UnexpectedContinuation.into()),
            (_, Some(_)) => return Err(Violation::ExpectedContinuation.into()),
            (_, None) => 0,
        };
        let size = header.len.saturating_add(before);
        if size > self.message_max {
            let max = self.message_max;
            return Err(Error::TooLong { size, max });
        }
        Ok(())
    }

    /// Whether there is memory for the frame, which is needed if it is a fragment.
    fn has_memory(&mut self, header: &Header) -> bool {
        let is_whole = header.is_final && self.partial.is_none();
        if is_whole || !matches!(header.opcode, OpCode::Data(_)) {
            return true;
        }
        let partial = self.partial.as_ref();
        let (held, len) = partial.map_or((0, 0), |partial| (partial.held(), partial.len()));
        let grown = held.max(len + header.len);
        self.charge.hold(self.allocated + grown)
    }

    /// Takes the payload of a frame off the buffer.
    fn take_frame(&mut self, header: &Header) -> Result<Option<Found>, Error> {
        if let (OpCode::Data(kind), true, None) = (header.opcode, header.is_final, &self.partial) {
            let payload = self.take_message(header);
            self.bytes = 0;
            return message(kind, payload).map(|message| Some(Found::Data(message)));
        }
        let mut payload = self.buffer.split_to(header.len);
        if let Some(key) = header.mask {
            apply_mask(&mut payload, key);
        }
        let kind = match header.opcode {
            OpCode::Control(control) => return take_control(control, &payload).map(Some),
            OpCode::Data(kind) => kind,
        };
        let mut partial = self.partial.take().unwrap_or_else(|| Partial::new(kind));
        partial.push(&payload, header.is_final)?;
        if header.is_final {
            self.bytes = 0;
            let message = partial.into_message()?;
            return Ok(Some(Found::Data(message)));
        }
        self.partial = Some(partial);
        Ok(None)
    }

    /// Takes the payload of a whole message. One that was masked gets memory of its own: that costs
    /// little more than unmasking it in place, whoever gets it may write to it, and the buffer is
    /// read into again. One that was not masked shares the buffer.
    ///
    /// A slow reader may keep a payload for long, so it must not pin a buffer of many times its
    /// size.
    fn take_message(&mut self, header: &Header) -> Bytes {
        let payload = self.buffer.get(..header.len).unwrap_or_default();
        let copy = match header.mask {
            Some(key) => unmasked(payload, key),
            None if payload.len() < self.allocated / PINNED_MAX => Bytes::copy_from_slice(payload),
            None => return self.buffer.split_to(header.len).freeze(),
        };
        self.buffer.advance(header.len);
        copy
    }

    /// Reads more of a frame that misses `missing` bytes. `Ok(0)` is the end of the input.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut (impl AsyncRead + Unpin),
        missing: usize,
    ) -> Poll<Result<usize, Error>> {
        while !self.make_room(missing) {
            ready!(self.poll_memory(cx))?;
        }
        let mut room = self.buffer.capacity() - self.buffer.len();
        if self.read_size < READ_AHEAD_MAX {
            // The buffer may be from a time of longer frames.
            room = room.min(self.read_size.max(missing));
        }
        let most = self.whole_frames(room);
        let mut room = (&mut self.buffer).limit(most);
        let read = poll_read_buf(Pin::new(socket), cx, &mut room);
        if read.is_pending() {
            self.rest();
            // A message that stays incomplete would keep memory from those of others.
            if self.charge.is_due() && self.patience.is_over(cx) && self.charge.is_exhausted() {
                return Poll::Ready(Err(Error::NoMemory));
            }
        }
        let len = ready!(read)?;
        self.patience.progressed();
        if len == most {
            self.read_size = (self.read_size * 2).min(self.read_max());
        } else if len.max(self.frame) < self.read_size / 4 {
            self.read_size = (self.read_size / 2).max(READ_MIN);
        }
        self.bytes += len;
        Poll::Ready(Ok(len))
    }

    /// Waits before the next attempt to get memory.
    pub(crate) fn poll_memory(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(match ready!(self.patience.poll_retry(cx)) {
            true => Ok(()),
            false => Err(Error::NoMemory),
        })
    }

    /// Starts a new turn, because nothing has arrived or enough was done.
    pub(crate) fn rest(&mut self) {
        self.frames = 0;
        self.taken = 0;
        self.bytes = 0;
        if self.buffer.is_empty() && self.allocated > READ_MIN {
            self.buffer = BytesMut::new();
            self.allocated = 0;
        }
        // Refused only if an allocation came out larger than requested.
        let held = self.allocated + self.partial.as_ref().map_or(0, Partial::held);
        self.charge.hold(held);
    }

    /// The number of bytes, up to `most`, that ends with a frame if the next ones are as long as
    /// this one. A frame cut at the end of a buffer would have to be copied to the next buffer.
    fn whole_frames(&self, most: usize) -> usize {
        let first = self.frame.saturating_sub(self.buffer.len());
        if first == 0 || first > most {
            return most;
        }
        most - (most - first) % self.frame
    }

    /// Whether there is room to read into, or memory for it.
    fn make_room(&mut self, missing: usize) -> bool {
        let len = self.buffer.len();
        let room = self.buffer.capacity() - len;
        // In proportion to the bytes that arrived: announcing a length costs the peer nothing.
        let wanted = self.whole_frames(self.read_size.max(missing.min(len)));
        // An empty buffer that nobody else holds is filled from its start again.
        let reclaimed = len == 0 && self.buffer.try_reclaim(wanted);
        if reclaimed || room >= wanted.min(missing.max(READ_MIN)) {
            return true;
        }
        let partial = self.partial.as_ref().map_or(0, Partial::held);
        let grown = self.allocated.max(len + wanted);
        if self.charge.hold(partial + grown) {
            if !self.buffer.try_reclaim(wanted) {
                self.move_to(len + wanted);
            }
            return true;
        }
        // Memory is short, so read only what the frame needs.
        self.read_size = READ_MIN;
        let least = missing.clamp(1, READ_MIN);
        if room < least {
            if !self.charge.hold(partial + len + least) {
                return false;
            }
            self.move_to(len + least);
        }
        true
    }

    /// Moves what was read to a new buffer of this size.
    fn move_to(&mut self, size: usize) {
        let mut buffer = BytesMut::with_capacity(size);
        buffer.extend_from_slice(&self.buffer);
        self.allocated = buffer.capacity();
        self.buffer = buffer;
    }

    /// Whether nothing is incomplete.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.buffer.is_empty() && self.partial.is_none()
    }

    /// Drops everything: nothing more will be taken.
    pub(crate) fn clear(&mut self) {
        self.buffer = BytesMut::new();
        self.allocated = 0;
        self.partial = None;
        self.charge.hold(0);
    }
}

fn take_control(control: Control, payload: &[u8]) -> Result<Found, Error> {
    // Copied, so that it does not pin the read buffer.
    let payload = Bytes::copy_from_slice(payload);
    match control {
        Control::Ping => Ok(Found::Ping(payload)),
        Control::Pong => Ok(Found::Pong(payload)),
        Control::Close => close::parse(payload).map(Found::Close),
        Control::Reserved(opcode) => Err(Violation::ReservedOpcode(opcode).into()),
    }
}

/// Reads and discards at most `most` bytes. Returns how many, 0 at the end of the input.
pub(crate) fn poll_discard(
    cx: &mut Context<'_>,
    socket: &mut (impl AsyncRead + Unpin),
    most: usize,
) -> Poll<io::Result<usize>> {
    let mut buffer = [0; 4096];
    let buffer = buffer.get_mut(..most.min(4096)).unwrap_or_default();
    let mut buffer = tokio::io::ReadBuf::new(buffer);
    ready!(Pin::new(socket).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

const _: () = assert!(READ_MIN <= FREE_ALLOWANCE);
