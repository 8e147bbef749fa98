//! Case 2: pings and pongs.

use super::peer::{BINARY, Case, PING, PONG, TEXT, echo, failure};

#[tokio::test]
async fn a_ping_is_answered_with_its_payload() {
    let every_byte: Vec<u8> = (0..125).map(|byte| 255 - byte).collect();
    for payload in [&b""[..], b"Hello, world!", b"\x00\xff\xfe\xfd", &every_byte] {
        let case = Case::default().then(PING, payload);
        case.clone().gives(echo(&[(PONG, payload)])).await;
        case.in_pieces(1).gives(echo(&[(PONG, payload)])).await;
    }
}

#[tokio::test]
async fn a_ping_of_126_bytes_ends_it() {
    let case = Case::default().then(PING, [b'*'; 126]);
    case.gives(failure(&[], 1002)).await;
}

#[tokio::test]
async fn pongs_that_nobody_asked_for_are_passed_over() {
    let case = Case::default().then(PONG, "").then(PONG, "unsolicited");
    case.gives(echo(&[])).await;
    let case = Case::default().then(PONG, "unsolicited").then(PING, "p");
    case.gives(echo(&[(PONG, b"p")])).await;
}

#[tokio::test]
async fn pings_in_a_row_are_answered_in_order() {
    let payloads: Vec<String> = (0..10).map(|i| format!("payload-{i}")).collect();
    let case = |chop| {
        let start = Case::default().in_pieces(chop);
        payloads
            .iter()
            .fold(start, |case, ping| case.then(PING, ping))
    };
    let pongs: Vec<(u8, &[u8])> = payloads
        .iter()
        .map(|ping| (PONG, ping.as_bytes()))
        .collect();
    // Few enough that none is left out.
    case(0).gives(echo(&pongs)).await;
    case(1).gives(echo(&pongs)).await;
}

#[tokio::test]
async fn a_fragmented_control_frame_ends_it() {
    for opcode in [PING, PONG] {
        let case = Case::default()
            .then(BINARY, "x")
            .more(opcode, "fragment1")
            .then(0, "fragment2");
        case.gives(failure(&[(BINARY, b"x")], 1002)).await;
    }
}

#[tokio::test]
async fn pings_between_messages_keep_their_place() {
    let case = Case::default()
        .then(TEXT, "one")
        .then(PING, "p")
        .then(TEXT, "two");
    case.gives(echo(&[(TEXT, b"one"), (PONG, b"p"), (TEXT, b"two")]))
        .await;
}
