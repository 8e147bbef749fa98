//! A message in fragments (RFC 6455 section 5.4).

use bytes::{Bytes, BytesMut};
use tungstenite::Message;
use tungstenite::protocol::frame::Utf8Bytes;
use tungstenite::protocol::frame::coding::Data;

use crate::error::{Error, Violation};
use crate::limits::{FRAGMENT_MIN, FRAGMENTS_FREE};

/// The part of a message received so far.
#[derive(Debug)]
pub(crate) struct Partial {
    kind: Data,
    payload: BytesMut,
    fragments: usize,
    /// Length of the prefix of a text that is known to be UTF-8.
    valid: usize,
}

impl Partial {
    pub(crate) fn new(kind: Data) -> Self {
        Self {
            kind,
            payload: BytesMut::new(),
            fragments: 0,
            valid: 0,
        }
    }

    /// Adds a fragment. Fails as soon as a text can no longer become UTF-8.
    pub(crate) fn push(&mut self, payload: &[u8], is_final: bool) -> Result<(), Error> {
        if payload.is_empty() && !is_final && self.fragments > 0 {
            return Err(Error::EmptyFragment);
        }
        self.fragments += 1;
        self.payload.extend_from_slice(payload);
        if self.fragments > FRAGMENTS_FREE + self.payload.len() / FRAGMENT_MIN {
            return Err(Error::TooManyFragments);
        }
        if self.kind == Data::Text {
            self.check_text()?;
        }
        Ok(())
    }

    fn check_text(&mut self) -> Result<(), Error> {
        let unchecked = self.payload.get(self.valid..).unwrap_or_default();
        match std::str::from_utf8(unchecked) {
            Ok(text) => self.valid += text.len(),
            // The rest of a character may follow in the next fragment.
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(Error::Utf8),
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.payload.len()
    }

    /// Bytes of memory held.
    pub(crate) fn held(&self) -> usize {
        self.payload.capacity()
    }

    pub(crate) fn into_message(self) -> Result<Message, Error> {
        message(self.kind, self.payload.freeze())
    }
}

/// Makes a whole message of this kind.
pub(crate) fn message(kind: Data, payload: Bytes) -> Result<Message, Error> {
    match kind {
        Data::Text => Utf8Bytes::try_from(payload)
            .map(Message::Text)
            .map_err(|_| Error::Utf8),
        Data::Binary => Ok(Message::Binary(payload)),
        Data::Continue => Err(Violation::UnexpectedContinuation.into()),
        Data::Reserved(opcode) => Err(Violation::ReservedOpcode(opcode).into()),
    }
}
