//! A raw peer of our echo.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel_websocket::{Message, Role};

use crate::support::{MAX, frame, open, other, sockets, within};

pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;

/// The bit in the first byte that marks the last fragment.
pub(crate) const FIN: u8 = 0x80;

/// What a peer sends in one case.
#[derive(Default, Clone)]
pub(crate) struct Case {
    frames: Vec<(u8, Vec<u8>)>,
    /// Bytes per write. 0 writes all at once.
    chop: usize,
}

impl Case {
    /// A whole frame.
    pub(crate) fn then(self, opcode: u8, payload: impl AsRef<[u8]>) -> Self {
        self.raw(FIN | opcode, payload)
    }

    /// A fragment that is not the last.
    pub(crate) fn more(self, opcode: u8, payload: impl AsRef<[u8]>) -> Self {
        self.raw(opcode, payload)
    }

    /// A frame with any first byte.
    pub(crate) fn raw(mut self, first: u8, payload: impl AsRef<[u8]>) -> Self {
        self.frames.push((first, payload.as_ref().to_vec()));
        self
    }

    /// A close frame with a code and a reason.
    pub(crate) fn close(self, code: u16, reason: impl AsRef<[u8]>) -> Self {
        let payload = [&code.to_be_bytes()[..], reason.as_ref()].concat();
        self.then(CLOSE, payload)
    }

    /// The same, written in pieces of `chop` bytes.
    pub(crate) fn in_pieces(mut self, chop: usize) -> Self {
        self.chop = chop;
        self
    }

    /// Sends this to our end in each role. Then the peer closes with 1000. The frames that come
    /// back must be `expected`.
    pub(crate) async fn gives(self, expected: Expected) {
        for role in [Role::Client, Role::Server] {
            let mut bytes = Vec::new();
            for (first, payload) in &self.frames {
                bytes.extend(frame(other(role), *first, payload));
            }
            let got = exchange(role, bytes, self.chop).await;
            let says = |frames: &[_]| format!("{:.300}", format!("{frames:02x?}"));
            assert!(
                got == expected.0,
                "as {role:?}: {} gives {}, not {}",
                says(&self.frames),
                says(&got),
                says(&expected.0)
            );
        }
    }
}

/// The frames that come back, with the opcode of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected(pub(crate) Vec<(u8, Vec<u8>)>);

/// These frames, and a normal end.
pub(crate) fn echo(frames: &[(u8, &[u8])]) -> Expected {
    let frames = frames
        .iter()
        .map(|(opcode, payload)| (*opcode, payload.to_vec()));
    let end = (CLOSE, 1000_u16.to_be_bytes().to_vec());
    Expected(frames.chain([end]).collect())
}

/// These frames, and a close frame with this code.
pub(crate) fn failure(frames: &[(u8, &[u8])], code: u16) -> Expected {
    let mut expected = echo(frames);
    expected.0.pop();
    expected.0.push((CLOSE, code.to_be_bytes().to_vec()));
    expected
}

/// The answer of our end to these bytes and a normal close.
pub(crate) async fn exchange(role: Role, bytes: Vec<u8>, chop: usize) -> Vec<(u8, Vec<u8>)> {
    let (near, far) = sockets().await;
    let ours = tokio::spawn(async move {
        let mut ours = open(near, role, MAX);
        while let Some(Ok(message)) = ours.next().await {
            if matches!(message, Message::Text(_) | Message::Binary(_)) {
                ours.send(message).await.unwrap();
            }
        }
        ours.close().await
    });
    let (mut read, mut write) = far.into_split();
    let close = frame(other(role), FIN | CLOSE, &1000_u16.to_be_bytes());
    let writing = tokio::spawn(async move {
        for piece in bytes.chunks(if chop == 0 { usize::MAX } else { chop }) {
            if write.write_all(piece).await.is_err() {
                return;
            }
            if chop > 0 {
                tokio::task::yield_now().await;
            }
        }
        let _ = write.write_all(&close).await;
    });
    let mut answer = Vec::new();
    within(read.read_to_end(&mut answer)).await.unwrap();
    within(writing).await.unwrap();
    drop(read);
    within(ours).await.unwrap().unwrap();
    parse(&answer, role)
}

/// Frames as `role` has to write them: whole, and masked by clients only.
fn parse(mut bytes: &[u8], role: Role) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[0] & 0xf0, FIN, "ours writes whole frames");
        assert_eq!(bytes[1] & 0x80 != 0, role == Role::Client);
        let (len, size) = match bytes[1] & 0x7f {
            126 => (u64::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4),
            127 => (u64::from_be_bytes(bytes[2..10].try_into().unwrap()), 10),
            len => (u64::from(len), 2),
        };
        let key = match role {
            Role::Client => bytes[size..size + 4].to_vec(),
            Role::Server => Vec::new(),
        };
        let start = size + key.len();
        let payload = &bytes[start..start + len as usize];
        let unmask = |(at, byte): (usize, &u8)| byte ^ key.get(at % 4).unwrap_or(&0);
        frames.push((
            bytes[0] & 0x0f,
            payload.iter().enumerate().map(unmask).collect(),
        ));
        bytes = &bytes[start + len as usize..];
    }
    frames
}
