//! A user-defined message stack, and the code needed to run the tunnel over it.
//!
//! This crate represents a user's: it sees only the public interface of `kohakuriver-tunnel`, which
//! does not know its stack. The stack has text, binary, ping, pong and close messages over any byte
//! stream. Each is a tag, a big-endian `u16` length and that many bytes. A longer message is sent
//! in parts, of which all but the last carry the tag `+`.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kohakuriver_tunnel::transport::{Carrier, Received};
use tokio_util::codec::{Decoder, Encoder};

/// A message of the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Packet {
    Text(String),
    Binary(Vec<u8>),
    Ping,
    Pong,
    Close,
}

/// Packets in bytes: `Framed<S, PacketCodec>` is the stack's socket.
#[derive(Debug, Default)]
pub struct PacketCodec {
    parts: Vec<u8>,
}

/// How [`Packet`]s carry tunnel messages. The tunnel needs nothing else.
#[derive(Debug, Clone, Copy)]
pub struct InPackets;

impl Carrier for InPackets {
    type Message = Packet;

    fn binary(&mut self, message: Bytes) -> Packet {
        Packet::Binary(message.into())
    }

    fn classify(&mut self, packet: Packet) -> Received<Packet> {
        match packet {
            Packet::Binary(message) => Received::Message(message.into()),
            Packet::Ping | Packet::Pong => Received::Skip,
            Packet::Close => Received::End(None),
            Packet::Text(text) => Received::Text(text),
        }
    }

    fn ping(&mut self) -> Option<Packet> {
        Some(Packet::Ping)
    }

    fn text(&mut self, text: String) -> Option<Packet> {
        Some(Packet::Text(text))
    }

    fn close(&mut self, _: u16, _: &str) -> Option<Packet> {
        Some(Packet::Close)
    }
}

const HEAD_LEN: usize = 3;
/// Longest whole message taken from a peer.
const MESSAGE_MAX: usize = 2 * 1024 * 1024;

impl Decoder for PacketCodec {
    type Item = Packet;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Packet>> {
        loop {
            let Some(&[tag, l0, l1]) = buffer.first_chunk::<HEAD_LEN>() else {
                return Ok(None);
            };
            let len = usize::from(u16::from_be_bytes([l0, l1]));
            if buffer.len() < HEAD_LEN + len {
                return Ok(None);
            }
            buffer.advance(HEAD_LEN);
            let part = buffer.split_to(len);
            if self.parts.len() + part.len() > MESSAGE_MAX {
                return Err(invalid("packet too long"));
            }
            self.parts.extend_from_slice(&part);
            let whole = match tag {
                b'+' => continue,
                _ => std::mem::take(&mut self.parts),
            };
            let packet = match tag {
                b'b' => Packet::Binary(whole),
                b't' => Packet::Text(String::from_utf8(whole).map_err(|_| invalid("no text"))?),
                b'?' => Packet::Ping,
                b'!' => Packet::Pong,
                b'.' => Packet::Close,
                _ => return Err(invalid("unknown tag")),
            };
            return Ok(Some(packet));
        }
    }
}

impl Encoder<Packet> for PacketCodec {
    type Error = io::Error;

    fn encode(&mut self, packet: Packet, buffer: &mut BytesMut) -> io::Result<()> {
        let (tag, mut rest) = match &packet {
            Packet::Binary(bytes) => (b'b', &bytes[..]),
            Packet::Text(text) => (b't', text.as_bytes()),
            Packet::Ping => (b'?', &[][..]),
            Packet::Pong => (b'!', &[][..]),
            Packet::Close => (b'.', &[][..]),
        };
        while let Some((part, more)) = rest.split_at_checked(usize::from(u16::MAX)) {
            put(b'+', u16::MAX, part, buffer);
            rest = more;
        }
        put(tag, rest.len() as u16, rest, buffer);
        Ok(())
    }
}

fn put(tag: u8, len: u16, bytes: &[u8], buffer: &mut BytesMut) {
    buffer.put_u8(tag);
    buffer.put_u16(len);
    buffer.put_slice(bytes);
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
