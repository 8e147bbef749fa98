//! Cases 1 (payloads of every length form), 3 (reserved bits), 4 (reserved opcodes), and masks and
//! lengths.

use super::peer::{BINARY, CONTINUATION, Case, FIN, PING, PONG, TEXT, echo, exchange, failure};
use crate::support::{frame, other};
use tunnel_websocket::Role;

const SIZES: [usize; 8] = [0, 125, 126, 127, 128, 65_535, 65_536, 300_000];

#[tokio::test]
async fn every_size_is_echoed() {
    for opcode in [TEXT, BINARY] {
        for size in SIZES {
            let payload = vec![b'*'; size];
            let case = Case::default().then(opcode, &payload);
            case.gives(echo(&[(opcode, &payload)])).await;
        }
    }
}

#[tokio::test]
async fn pieces_of_any_size_make_the_same_message() {
    for chop in [1, 2, 13, 997] {
        for opcode in [TEXT, BINARY] {
            let payload = vec![b'*'; 3000.min(chop * 500)];
            let case = Case::default().then(opcode, &payload).in_pieces(chop);
            case.gives(echo(&[(opcode, &payload)])).await;
        }
    }
}

#[tokio::test]
async fn reserved_bits_end_it_and_what_came_before_is_answered() {
    for bits in 1..8_u8 {
        for opcode in [TEXT, BINARY, PING, PONG] {
            let case = Case::default()
                .then(TEXT, "before")
                .raw(FIN | bits << 4 | opcode, "small")
                .then(PING, "");
            case.gives(failure(&[(TEXT, b"before")], 1002)).await;
        }
    }
}

#[tokio::test]
async fn reserved_opcodes_end_it() {
    for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        for payload in [&b""[..], b"reserved"] {
            let case = Case::default()
                .then(TEXT, "before")
                .then(opcode, payload)
                .then(PING, "");
            case.gives(failure(&[(TEXT, b"before")], 1002)).await;
        }
    }
}

/// Sends these bytes in both roles. Our end has to close with 1002.
async fn refused(bytes: impl Fn(Role) -> Vec<u8>) {
    for role in [Role::Client, Role::Server] {
        let answer = exchange(role, bytes(role), 0).await;
        assert_eq!(answer, failure(&[], 1002).0, "as {role:?}");
    }
}

#[tokio::test]
async fn a_length_in_more_bytes_than_it_needs_ends_it() {
    for (bytes, len) in [(2, 0), (2, 125), (8, 0), (8, 125), (8, 126), (8, 65_535)] {
        refused(|role| {
            let whole = frame(other(role), FIN | BINARY, &vec![7; len]);
            let masked = whole[1] & 0x80;
            let skipped = match len {
                0..126 => 2,
                _ => 4,
            };
            let mut long = vec![FIN | BINARY, masked | if bytes == 2 { 126 } else { 127 }];
            long.extend_from_slice(&(len as u64).to_be_bytes()[8 - bytes..]);
            long.extend_from_slice(&whole[skipped..]);
            long
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_masks_and_a_server_does_not() {
    refused(|role| frame(role, FIN | BINARY, b"wrong way round")).await;
}

#[tokio::test]
async fn a_length_of_all_ones_is_too_long() {
    for role in [Role::Client, Role::Server] {
        let masked = frame(other(role), FIN | BINARY, b"")[1];
        let mut bytes = vec![FIN | BINARY, masked | 127];
        bytes.extend([0xff; 8]);
        bytes.extend([0; 4]);
        assert_eq!(exchange(role, bytes, 0).await, failure(&[], 1009).0);
    }
}

/// Case 9: messages up to the limit, and beyond.
#[tokio::test]
async fn the_longest_message_is_taken_and_no_longer() {
    let longest = vec![7; crate::support::MAX];
    let case = Case::default().then(BINARY, &longest);
    case.gives(echo(&[(BINARY, &longest)])).await;
    let case = Case::default()
        .more(BINARY, &longest[1..])
        .then(CONTINUATION, [7]);
    case.gives(echo(&[(BINARY, &longest)])).await;
    let longer = [&longest[..], &[7]].concat();
    Case::default()
        .then(BINARY, &longer)
        .gives(failure(&[], 1009))
        .await;
    let case = Case::default()
        .more(BINARY, &longest)
        .then(CONTINUATION, [7]);
    case.gives(failure(&[], 1009)).await;
}
