//! Frame headers and their validity (RFC 6455 section 5.2).

use std::io::Cursor;

use tungstenite::error::ProtocolError;
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::OpCode;

use crate::error::Violation;
use crate::limits::CONTROL_MAX;

/// A header that the peer may send, whatever it sent before.
pub(crate) struct Header {
    pub(crate) opcode: OpCode,
    pub(crate) is_final: bool,
    pub(crate) mask: Option<[u8; 4]>,
    /// Bytes of the header itself.
    pub(crate) size: usize,
    /// Bytes of the payload.
    pub(crate) len: usize,
}

impl Header {
    /// The header at the beginning of `bytes`, once it has arrived completely.
    pub(crate) fn parse(bytes: &[u8], role: Role) -> Result<Option<Self>, Violation> {
        let mut cursor = Cursor::new(bytes);
        let parsed = match FrameHeader::parse(&mut cursor) {
            Ok(parsed) => parsed,
            Err(tungstenite::Error::Protocol(ProtocolError::InvalidOpcode(opcode))) => {
                return Err(Violation::ReservedOpcode(opcode));
            }
            // Reading a slice in memory fails in no other way.
            Err(_) => None,
        };
        let Some((header, len)) = parsed else {
            return Ok(None);
        };
        let size = cursor.position() as usize;
        check(&header, size, len, role)?;
        Ok(Some(Self {
            opcode: header.opcode,
            is_final: header.is_final,
            mask: header.mask,
            size,
            len: usize::try_from(len).unwrap_or(usize::MAX),
        }))
    }
}

fn check(header: &FrameHeader, size: usize, len: u64, role: Role) -> Result<(), Violation> {
    if header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(Violation::ReservedBits);
    }
    match (role, header.mask) {
        (Role::Server, None) => return Err(Violation::Unmasked),
        (Role::Client, Some(_)) => return Err(Violation::Masked),
        _ => {}
    }
    if matches!(header.opcode, OpCode::Control(_)) {
        if !header.is_final {
            return Err(Violation::FragmentedControl);
        }
        if len > CONTROL_MAX as u64 {
            return Err(Violation::LongControl(len));
        }
    }
    if size != header.len(len) {
        return Err(Violation::LongLength(len));
    }
    Ok(())
}
