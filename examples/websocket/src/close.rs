//! Close frames (RFC 6455 sections 5.5.1 and 7.4).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Utf8Bytes;

use crate::error::{Error, Violation};

/// The contents of a close frame, if it has any.
pub(crate) fn parse(mut payload: Bytes) -> Result<Option<CloseFrame>, Error> {
    if payload.is_empty() {
        return Ok(None);
    }
    let code = payload.try_get_u16().map_err(|_| Violation::ShortClose)?;
    if !may_be_sent(code) {
        return Err(Violation::CloseCode(code).into());
    }
    let reason = Utf8Bytes::try_from(payload).map_err(|_| Error::Utf8)?;
    Ok(Some(CloseFrame {
        code: code.into(),
        reason,
    }))
}

pub(crate) fn payload(frame: Option<&CloseFrame>) -> Bytes {
    let mut payload = BytesMut::new();
    if let Some(frame) = frame {
        payload.put_u16(frame.code.into());
        payload.put_slice(frame.reason.as_bytes());
    }
    payload.freeze()
}

/// Whether a code is assigned, or in the ranges for libraries and applications. Codes that only
/// report a missing code are not.
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
