//! Helpers that the tests share.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tunnel_websocket::{Role, WebSocket};

/// The longest message of most tests.
pub(crate) const MAX: usize = 2 << 20;

pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

pub(crate) fn open<S: AsyncRead + AsyncWrite>(
    socket: S,
    role: Role,
    message_max: usize,
) -> WebSocket<S> {
    WebSocket::new(socket, Bytes::new(), role, message_max)
}

pub(crate) fn other(role: Role) -> Role {
    match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    }
}

/// Fails the test after a time limit instead of hanging.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("stuck")
}

pub(crate) fn payload(len: usize, seed: u8) -> Bytes {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ seed)
        .collect()
}

/// A frame as `from` writes it. A client's frame is masked.
pub(crate) fn frame(from: Role, first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = (from == Role::Client).then_some([0x37, 0xfa, 0x21, 0x3d]);
    let masked = u8::from(mask.is_some()) << 7;
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(masked | len as u8),
        len @ 126..65_536 => {
            frame.push(masked | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(masked | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let Some(key) = mask else {
        frame.extend_from_slice(payload);
        return frame;
    };
    frame.extend_from_slice(&key);
    let bytes = payload.iter().zip(key.iter().cycle());
    frame.extend(bytes.map(|(byte, key)| byte ^ key));
    frame
}
