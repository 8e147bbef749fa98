//! The golden vectors of `tests/resume_vectors.json`, which any implementation can read
//! (PROTOCOL.md section 9).
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;

use kohakuriver_tunnel::resume::{
    EndReason, Kind, Malformed, Message, Open, Opened, Secret, counts, is_layer,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    hex: String,
    repeat: Option<Repeat>,
    counts: bool,
    layer: bool,
    message: Option<Fields>,
    canonical: Option<String>,
    why: String,
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
    instance: Option<u64>,
    tunnel: Option<u64>,
    secret: Option<String>,
    attempt: Option<u32>,
    received: Option<u64>,
    keep: Option<u32>,
    ring: Option<u32>,
    code: Option<u16>,
    text: Option<String>,
}

impl Fields {
    fn message(&self) -> Message {
        let secret = || {
            let bytes = unhex(self.secret.as_ref().unwrap());
            Secret::new(bytes.try_into().unwrap())
        };
        match Kind::of(&[self.kind]).unwrap() {
            Kind::Open => Message::Open(Open {
                tunnel: self.tunnel.unwrap(),
                secret: secret(),
                attempt: self.attempt.unwrap(),
                received: self.received.unwrap(),
                keep: self.keep.unwrap(),
                ring: self.ring.unwrap(),
            }),
            Kind::Opened => Message::Opened(Opened {
                instance: self.instance.unwrap(),
                tunnel: self.tunnel.unwrap(),
                secret: secret(),
                received: self.received.unwrap(),
                keep: self.keep.unwrap(),
                ring: self.ring.unwrap(),
            }),
            Kind::Ack => Message::Ack {
                received: self.received.unwrap(),
            },
            Kind::End => Message::End {
                reason: EndReason::from_code(self.code.unwrap()),
                text: self.text.clone().unwrap(),
            },
            other => panic!("no vector can have {other}"),
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn vectors() -> Vec<(Vector, Vec<u8>)> {
    let all: Vec<Vector> = serde_json::from_str(include_str!("resume_vectors.json")).unwrap();
    all.into_iter()
        .map(|vector| {
            let mut message = unhex(&vector.hex);
            if let Some(Repeat { byte, count }) = &vector.repeat {
                message.extend(unhex(byte).repeat(*count));
            }
            (vector, message)
        })
        .collect()
}

#[test]
fn every_message_is_told_apart() {
    for (vector, message) in vectors() {
        assert_eq!(counts(&message), vector.counts, "{}", vector.name);
        assert_eq!(is_layer(&message), vector.layer, "{}", vector.name);
    }
}

#[test]
fn every_message_of_the_layer_is_decoded_and_encoded() {
    for (vector, message) in vectors() {
        let decoded = Message::decode(&message);
        let Some(fields) = &vector.message else {
            let error = decoded.unwrap_err();
            let other = error == Malformed::OtherKind;
            assert_eq!(other, !vector.layer, "{}", vector.name);
            continue;
        };
        assert_eq!(decoded, Ok(fields.message()), "{}", vector.name);
        let canonical = vector.canonical.as_deref().map_or(message, unhex);
        assert_eq!(fields.message().to_bytes(), canonical, "{}", vector.name);
    }
}

#[test]
fn the_vectors_are_named_and_cover_every_type_and_code() {
    let all = vectors();
    let names: BTreeSet<&str> = all.iter().map(|(v, _)| &v.name[..]).collect();
    assert_eq!(names.len(), all.len());
    assert!(all.iter().all(|(v, _)| !v.why.is_empty()));
    let fields = || all.iter().filter_map(|(v, _)| v.message.as_ref());
    for kind in [Kind::Open, Kind::Opened, Kind::Ack, Kind::End] {
        assert!(fields().any(|f| f.kind == kind as u8), "{kind}");
        let malformed = all.iter().any(|(v, message)| {
            v.message.is_none() && Kind::of(message) == Some(kind) && message.len() < 8
        });
        assert!(malformed, "{kind}");
    }
    for reason in EndReason::ALL {
        assert!(fields().any(|f| f.code == Some(reason.code())), "{reason}");
    }
}
