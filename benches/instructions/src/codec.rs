//! The wire layer: one message decoded or encoded.

use std::hint::black_box;

use bytes::{BufMut, Bytes, BytesMut};
use kohakuriver_tunnel::wire::{
    Chunk, ClientId, DecodeError, Frame, HEADER_LEN, Header, HeadroomBuf, Proto,
};

use super::{CALLS, Case};

const MESSAGES: &[&str] = &[
    "connect",
    "connected",
    "data 0",
    "data 64",
    "data 65536",
    "data 1048576",
    "close",
    "error 64",
    "ping 0",
    "pong 8",
    "window",
    "goaway",
];
const PAYLOADS: &[&str] = &["data 0", "data 64", "data 65536", "data 1048576"];

pub(super) const CASES: &[Case] = &[
    Case {
        function: "decode_borrowed",
        budget: 40,
        inputs: MESSAGES,
    },
    Case {
        function: "decode_bytes",
        budget: 120,
        inputs: MESSAGES,
    },
    Case {
        function: "encode_in_place",
        budget: 40,
        inputs: PAYLOADS,
    },
    // Half of these are `BytesMut::freeze`.
    Case {
        function: "seal_in_place",
        budget: 50,
        inputs: PAYLOADS,
    },
];

/// The functions counted. Their symbols keep these names, and they are not inlined into their
/// callers.
mod counted {
    use super::*;

    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn decode_borrowed(message: &[u8]) -> Result<Frame<&[u8]>, DecodeError> {
        Frame::decode(message)
    }

    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn decode_bytes(message: Bytes) -> Result<Frame, DecodeError> {
        Frame::decode(message)
    }

    /// Encoding behind headroom: writes eight bytes in front of the payload.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn encode_in_place(header: Header, message: &mut [u8]) -> bool {
        match message.first_chunk_mut::<HEADER_LEN>() {
            Some(headroom) => {
                *headroom = header.to_bytes();
                true
            }
            None => false,
        }
    }

    /// The same, including the cost in `bytes` of making a shareable message of the buffer.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn seal_in_place(header: Header, chunk: Chunk) -> Bytes {
        chunk.seal(header)
    }
}

/// Calls the function `CALLS` times, with prepared arguments.
pub(super) fn call(function: &str, message: &str) {
    let frame = frame(message);
    let header = black_box(frame.header());
    match function {
        "decode_borrowed" => {
            let message = frame.to_bytes();
            for _ in 0..CALLS {
                black_box(counted::decode_borrowed(black_box(&message))).unwrap();
            }
        }
        "decode_bytes" => {
            // A shared vector, and a part split off a buffer. Both are kept, so that nothing is
            // freed here.
            let [vector, buffer] = [false, true].map(|split| message_bytes(&frame, split));
            for i in 0..CALLS {
                let message = if i % 2 == 0 { &vector } else { &buffer };
                black_box(counted::decode_bytes(black_box(message.clone()))).unwrap();
            }
        }
        "encode_in_place" => {
            let mut message = vec![0; frame.encoded_len()];
            for _ in 0..CALLS {
                assert!(counted::encode_in_place(header, black_box(&mut message)));
            }
            assert_eq!(message[..HEADER_LEN], header.to_bytes());
        }
        "seal_in_place" => {
            // Kept between the calls, as a sender does: parts that were split off are shared from
            // the start.
            let payload = frame.payload();
            let mut buffer = HeadroomBuf::with_capacity(2 * (HEADER_LEN + payload.len()));
            for _ in 0..CALLS {
                buffer.spare(payload.len()).put_slice(payload);
                let message = counted::seal_in_place(header, black_box(buffer.split()));
                assert!(black_box(message)[HEADER_LEN..] == *payload);
            }
        }
        other => panic!("no function {other}"),
    }
}

fn message_bytes(frame: &Frame, split: bool) -> Bytes {
    let mut buffer = BytesMut::new();
    frame.encode(&mut buffer).unwrap();
    if split {
        buffer.split().freeze()
    } else {
        Bytes::from(Vec::from(buffer))
    }
}

fn frame(message: &str) -> Frame {
    let (kind, size) = message.split_once(' ').unwrap_or((message, "0"));
    let payload = Bytes::from(vec![0x5a; size.parse().unwrap()]);
    let (proto, id) = (Proto::Udp, ClientId(0xdead_beef));
    match kind {
        "connect" => Frame::Connect {
            proto,
            id,
            port: 8080,
        },
        "connected" => Frame::Connected { proto, id },
        "data" => Frame::Data { proto, id, payload },
        "close" => Frame::Close { proto, id },
        "error" => Frame::Error {
            proto,
            id,
            code: 1,
            text: payload,
        },
        "ping" => Frame::Ping { id, payload },
        "pong" => Frame::Pong { id, payload },
        "window" => Frame::Window { id, credit: 65536 },
        "goaway" => Frame::GoAway,
        other => panic!("no message {other}"),
    }
}
