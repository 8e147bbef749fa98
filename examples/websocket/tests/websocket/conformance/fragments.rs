//! Case 5: fragmentation.

use super::peer::{BINARY, CONTINUATION, Case, PING, PONG, TEXT, echo, failure};

#[tokio::test]
async fn fragments_are_joined() {
    for opcode in [TEXT, BINARY] {
        for chop in [0, 1] {
            let case = Case::default()
                .more(opcode, "fragment1")
                .then(CONTINUATION, "fragment2")
                .in_pieces(chop);
            case.gives(echo(&[(opcode, b"fragment1fragment2")])).await;
        }
    }
}

#[tokio::test]
async fn control_frames_between_fragments_are_answered_at_once() {
    let case = Case::default()
        .more(TEXT, "1")
        .then(PING, "a")
        .more(CONTINUATION, "2")
        .then(PONG, "nobody asked")
        .then(PING, "b")
        .then(CONTINUATION, "3");
    case.gives(echo(&[(PONG, b"a"), (PONG, b"b"), (TEXT, b"123")]))
        .await;
}

#[tokio::test]
async fn a_continuation_of_nothing_ends_it() {
    for case in [
        Case::default().then(CONTINUATION, "non-continuation"),
        Case::default().more(CONTINUATION, "non-continuation"),
        Case::default().more(CONTINUATION, "").then(TEXT, "x"),
    ] {
        case.gives(failure(&[], 1002)).await;
    }
    let case = Case::default()
        .more(TEXT, "1")
        .then(CONTINUATION, "2")
        .then(CONTINUATION, "3");
    case.gives(failure(&[(TEXT, b"12")], 1002)).await;
}

#[tokio::test]
async fn a_message_within_another_ends_it() {
    for inner in [TEXT, BINARY] {
        let whole = Case::default().more(TEXT, "1").then(inner, "2");
        whole.gives(failure(&[], 1002)).await;
        let begun = Case::default().more(TEXT, "1").more(inner, "2");
        begun.gives(failure(&[], 1002)).await;
    }
}

#[tokio::test]
async fn many_fragments_make_one_message() {
    for (size, count) in [(1, 1000), (64, 4000), (256, 1000), (2000, 1000)] {
        let payload: Vec<u8> = (0..size * count).map(|at: usize| at as u8).collect();
        let mut case = Case::default().more(BINARY, "");
        for fragment in payload.chunks(size) {
            case = case.more(CONTINUATION, fragment);
        }
        let case = case.then(CONTINUATION, "");
        case.gives(echo(&[(BINARY, &payload)])).await;
    }
}

/// Stricter than 6.1.2: such fragments carry nothing and could continue forever.
#[tokio::test]
async fn an_empty_fragment_may_be_first_or_last_only() {
    let case = Case::default()
        .more(TEXT, "")
        .more(CONTINUATION, "middle")
        .then(CONTINUATION, "");
    case.gives(echo(&[(TEXT, b"middle")])).await;
    let case = Case::default().more(TEXT, "").then(CONTINUATION, "");
    case.gives(echo(&[(TEXT, b"")])).await;
    let case = Case::default()
        .more(TEXT, "a")
        .more(CONTINUATION, "")
        .then(CONTINUATION, "b");
    case.gives(failure(&[], 1008)).await;
}
