//! The golden vectors of `tests/vectors.json`, which any implementation can read.
//!
//! A message is `hex`, followed by `repeat.byte` `repeat.count` times if there is a `repeat`, which
//! belongs to the payload. `fields` is the raw header and payload, `null` if there is no whole
//! header. `canonical` is the encoding of what a lenient decoder decoded. `offending` is the value
//! that a diagnostic has to name.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kohakuriver_tunnel::wire::{
    Chunk, ClientId, DecodeError, Frame, HeadroomBuf, Kind, Proto, RawFrame,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    hex: String,
    repeat: Option<Repeat>,
    fields: Option<Fields>,
    accepted: Accepted,
    why: String,
    since: u8,
    canonical: Option<String>,
    canonical_repeat: Option<Repeat>,
    error: Option<String>,
    offending: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Repeat {
    byte: String,
    count: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(rename = "type")]
    kind: u8,
    proto: u8,
    id: u32,
    port: u16,
    payload: String,
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Accepted {
    Strict,
    Lenient,
    Neither,
}

impl Vector {
    fn message(&self) -> Vec<u8> {
        whole(&self.hex, self.repeat.as_ref())
    }

    fn canonical(&self) -> Vec<u8> {
        match &self.canonical {
            Some(hex) => whole(hex, self.canonical_repeat.as_ref()),
            None => self.message(),
        }
    }

    /// The frame that the fields describe, made without the decoder.
    fn frame(&self) -> Frame {
        let fields = self.fields.as_ref().unwrap();
        let id = ClientId(fields.id);
        let payload = Bytes::from(whole(&fields.payload, self.repeat.as_ref()));
        let proto = match fields.proto {
            0 => Proto::Tcp,
            1 => Proto::Udp,
            other => panic!("{}: protocol {other}", self.name),
        };
        match fields.kind {
            1 => Frame::Connect {
                proto,
                id,
                port: fields.port,
            },
            2 => Frame::Connected { proto, id },
            3 => Frame::Data { proto, id, payload },
            4 => Frame::Close { proto, id },
            5 => Frame::Error {
                proto,
                id,
                code: fields.port,
                text: payload,
            },
            6 => Frame::Ping { id, payload },
            7 => Frame::Pong { id, payload },
            8 => Frame::Window {
                id,
                credit: payload.clone().get_u32(),
            },
            9 => Frame::GoAway,
            other => panic!("{}: type {other}", self.name),
        }
    }

    fn check_error(&self, error: DecodeError) {
        let variant = match error {
            DecodeError::Truncated { .. } => "truncated",
            DecodeError::UnknownKind(_) => "unknown_type",
            DecodeError::UnknownProto(_) => "unknown_proto",
            DecodeError::ZeroId(_) => "zero_id",
            DecodeError::WindowLength { .. } => "window_length",
            DecodeError::ReservedPort { .. } => "reserved_port",
            DecodeError::ReservedProto(_) => "reserved_proto",
            DecodeError::ReservedId { .. } => "reserved_id",
            DecodeError::ReservedPayload { .. } => "reserved_payload",
            DecodeError::InvalidUtf8 { .. } => "invalid_utf8",
            other => panic!("{}: {other}", self.name),
        };
        assert_eq!(Some(variant), self.error.as_deref(), "{}", self.name);
        let (text, offending) = (error.to_string(), self.offending.as_deref().unwrap());
        assert!(
            text.contains(offending),
            "{}: {text:?} does not name {offending:?}",
            self.name
        );
        assert!(!text.ends_with('.') && !text.contains('\n'), "{text:?}");
    }
}

fn whole(hex: &str, repeat: Option<&Repeat>) -> Vec<u8> {
    assert_eq!(hex.len() % 2, 0, "{hex}");
    let digits = hex.as_bytes().chunks(2);
    let mut bytes: Vec<u8> = digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    if let Some(Repeat { byte, count }) = repeat {
        bytes.resize(bytes.len() + count, u8::from_str_radix(byte, 16).unwrap());
    }
    bytes
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

#[test]
fn vectors_cover_the_format() {
    let vectors = vectors();
    assert!(vectors.len() >= 90);
    let names: BTreeSet<_> = vectors.iter().map(|v| &v.name).collect();
    assert_eq!(names.len(), vectors.len(), "names are unique");
    assert!(vectors.iter().all(|v| !v.why.is_empty()));
    let messages: BTreeSet<_> = vectors.iter().map(Vector::message).collect();
    assert_eq!(messages.len(), vectors.len(), "messages are unique");

    let fields = || {
        vectors
            .iter()
            .filter_map(|v| Some((v, v.fields.as_ref()?, v.accepted)))
    };
    for &kind in Kind::ALL {
        let byte = kind as u8;
        for accepted in [Accepted::Strict, Accepted::Neither] {
            assert!(
                fields().any(|(_, f, a)| f.kind == byte && a == accepted),
                "{kind} {accepted:?}"
            );
        }
        assert!(fields().any(|(_, f, a)| f.kind == byte && a == Accepted::Lenient));
        let protos = if kind <= Kind::Error { 0..=1 } else { 0..=0 };
        for proto in protos {
            assert!(
                fields()
                    .any(|(_, f, a)| (f.kind, f.proto) == (byte, proto) && a == Accepted::Strict)
            );
        }
        let since = if kind.in_v1() { 1 } else { 2 };
        assert!(fields().all(|(v, f, _)| f.kind != byte || v.since == since));
        if kind != Kind::GoAway {
            for id in [1, 0x7fff_ffff, 0xffff_ffff] {
                assert!(fields().any(|(_, f, _)| (f.kind, f.id) == (byte, id)));
            }
        }
        assert!(fields().any(|(_, f, _)| (f.kind, f.id) == (byte, 0)));
    }
    for port in [0, 1, 0x00ff, 0x0100, 0xffff] {
        assert!(fields().any(|(_, f, _)| (f.kind, f.port) == (1, port)));
    }
    let errors: BTreeSet<_> = vectors.iter().filter_map(|v| v.error.as_deref()).collect();
    assert_eq!(errors.len(), 10, "{errors:?}");
}

/// PROTOCOL.md section 2.5.
#[test]
fn the_examples_of_the_protocol_are_vectors() {
    let protocol = include_str!("../PROTOCOL.md");
    let (_, section) = protocol.split_once("### 2.5 Golden bytes").unwrap();
    let (section, _) = section.split_once("Section 9").unwrap();
    let rows = section.lines().filter_map(|row| row.rsplit('`').nth(1));
    let examples: Vec<String> = rows.map(|bytes| bytes.replace(' ', "")).collect();
    assert_eq!(examples.len(), 10);
    let vectors = vectors();
    for example in &examples {
        let strict = |v: &&Vector| v.accepted == Accepted::Strict && v.hex == *example;
        assert!(vectors.iter().any(|v| strict(&v)), "no vector is {example}");
    }
}

#[test]
fn raw_view_keeps_every_byte() {
    for vector in vectors() {
        let message = vector.message();
        match (RawFrame::new(&message[..]), &vector.fields) {
            (Err(error), None) => vector.check_error(error),
            (Ok(raw), Some(fields)) => {
                assert_eq!(raw.kind_byte(), fields.kind, "{}", vector.name);
                assert_eq!(raw.proto_byte(), fields.proto, "{}", vector.name);
                assert_eq!(raw.id().0, fields.id, "{}", vector.name);
                assert_eq!(raw.port(), fields.port, "{}", vector.name);
                let payload = whole(&fields.payload, vector.repeat.as_ref());
                assert!(raw.payload() == payload, "{}", vector.name);
                assert!(raw.into_inner() == message, "{}", vector.name);
            }
            (raw, _) => panic!("{}: {:?}", vector.name, raw.map(|_| ())),
        }
    }
}

#[test]
fn lenient_decoding_takes_what_it_should() {
    for vector in vectors() {
        let message = Bytes::from(vector.message());
        let borrowed = Frame::decode(&message[..]);
        let shared = Frame::decode(message.clone());
        match (borrowed, shared) {
            (Ok(borrowed), Ok(shared)) => {
                assert_ne!(vector.accepted, Accepted::Neither, "{}", vector.name);
                assert!(shared == vector.frame(), "{}", vector.name);
                let owned = borrowed.map_payload(Bytes::copy_from_slice);
                assert!(owned == shared, "{}", vector.name);
            }
            (Err(borrowed), Err(shared)) => {
                assert_eq!(vector.accepted, Accepted::Neither, "{}", vector.name);
                assert_eq!(borrowed, shared, "{}", vector.name);
                vector.check_error(shared);
            }
            _ => panic!("{}: borrowed and shared disagree", vector.name),
        }
    }
}

#[test]
fn strict_decoding_takes_what_it_should() {
    for vector in vectors() {
        let message = Bytes::from(vector.message());
        let borrowed = Frame::decode_strict(&message[..]);
        let shared = Frame::decode_strict(message.clone());
        match (borrowed, shared) {
            (Ok(borrowed), Ok(shared)) => {
                assert_eq!(vector.accepted, Accepted::Strict, "{}", vector.name);
                assert!(shared == vector.frame(), "{}", vector.name);
                let owned = borrowed.map_payload(Bytes::copy_from_slice);
                assert!(owned == shared, "{}", vector.name);
            }
            (Err(borrowed), Err(shared)) => {
                assert_ne!(vector.accepted, Accepted::Strict, "{}", vector.name);
                assert_eq!(borrowed, shared, "{}", vector.name);
                vector.check_error(shared);
            }
            _ => panic!("{}: borrowed and shared disagree", vector.name),
        }
    }
}

#[test]
fn every_encoder_gives_the_golden_bytes() {
    for vector in vectors() {
        if vector.accepted == Accepted::Neither {
            continue;
        }
        let frame = vector.frame();
        let golden = vector.canonical();
        for (form, bytes) in encoded(&frame) {
            assert!(
                bytes == golden,
                "{}: {form}: {:02x?}",
                vector.name,
                &bytes[..bytes.len().min(16)]
            );
        }
        let again = Frame::decode(&golden[..]).unwrap();
        assert!(again.map_payload(Bytes::copy_from_slice) == frame);
        let text = matches!(frame, Frame::Error { .. });
        assert!(
            text || Frame::decode_strict(&golden[..]).is_ok(),
            "{}",
            vector.name
        );
    }
}

/// The frame in every form to which the crate can encode it.
fn encoded(frame: &Frame) -> Vec<(&'static str, Vec<u8>)> {
    let len = frame.encoded_len();
    let mut exact = vec![0xee; len];
    assert_eq!(frame.encode_to_slice(&mut exact), Ok(len));
    let mut roomy = vec![0xee; len + 3];
    assert_eq!(frame.encode_to_slice(&mut roomy), Ok(len));
    assert_eq!(roomy.split_off(len), [0xee; 3]);
    let mut vec = Vec::new();
    frame.encode(&mut vec).unwrap();
    let mut buffer = BytesMut::new();
    frame.encode(&mut buffer).unwrap();
    let mut filled = vec![0; len];
    frame.encode(&mut &mut filled[..]).unwrap();

    let mut forms = vec![
        ("slice", exact),
        ("larger slice", roomy),
        ("Vec", vec),
        ("BytesMut", buffer.into()),
        ("&mut [u8]", filled),
        ("to_bytes", frame.to_bytes().into()),
    ];
    if !matches!(frame, Frame::Window { .. }) {
        let (header, payload) = (frame.header(), frame.payload());
        forms.push(("copied", Chunk::copied(payload).seal(header).into()));
        let shared = Bytes::copy_from_slice(payload);
        forms.push(("shared", Chunk::from(shared).seal(header).into()));
        let takes: [fn(&mut HeadroomBuf) -> Chunk; 3] =
            [HeadroomBuf::split, HeadroomBuf::take, HeadroomBuf::copy];
        for take in takes {
            let mut headroom = HeadroomBuf::with_capacity(payload.len());
            headroom.spare(payload.len()).put_slice(payload);
            forms.push(("headroom", take(&mut headroom).seal(header).into()));
        }
    }
    forms
}
