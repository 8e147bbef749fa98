//! Case 7: the closing handshake.

use super::peer::{BINARY, CLOSE, CONTINUATION, Case, Expected, PING, TEXT, echo, failure};

#[tokio::test]
async fn nothing_after_a_close_frame_is_answered() {
    for after in [
        Case::default().close(1000, "").close(1000, ""),
        Case::default().close(1000, "").then(PING, "late"),
        Case::default().close(1000, "").then(TEXT, "late"),
        Case::default().close(1000, "").then(BINARY, [7; 300]),
    ] {
        after.gives(echo(&[])).await;
    }
    let unfinished = Case::default()
        .more(TEXT, "fragment")
        .close(1000, "")
        .then(CONTINUATION, "late");
    unfinished.gives(echo(&[])).await;
    let between = Case::default().then(TEXT, "before").close(1000, "");
    between.gives(echo(&[(TEXT, b"before")])).await;
}

/// A close frame that is echoed unchanged.
async fn comes_back(payload: &[u8]) {
    let case = Case::default().then(CLOSE, payload);
    case.gives(Expected(vec![(CLOSE, payload.to_vec())])).await;
}

#[tokio::test]
async fn a_close_frame_comes_back_with_code_and_reason() {
    comes_back(b"").await;
    comes_back(b"\x03\xe8").await;
    comes_back(b"\x0f\xa0").await;
    comes_back(b"\x03\xe8Hello World!").await;
    comes_back(&[&b"\x03\xe8"[..], &[b'*'; 123]].concat()).await;
}

#[tokio::test]
async fn a_close_frame_of_one_byte_or_of_126_ends_it() {
    let case = Case::default().then(CLOSE, "x");
    case.gives(failure(&[], 1002)).await;
    let case = Case::default().close(1000, [b'*'; 124]);
    case.gives(failure(&[], 1002)).await;
    let case = Case::default().more(CLOSE, b"\x03\xe8");
    case.gives(failure(&[], 1002)).await;
}

#[tokio::test]
async fn a_reason_that_is_not_text_ends_it() {
    let case = Case::default().close(1000, b"\xce\xba\xed\xa0\x80edited");
    case.gives(failure(&[], 1007)).await;
}

#[tokio::test]
async fn codes_that_may_be_sent_come_back() {
    let assigned = (1000..=1003).chain(1007..=1014);
    for code in assigned.chain([3000, 3999, 4000, 4999_u16]) {
        comes_back(&code.to_be_bytes()).await;
    }
}

#[tokio::test]
async fn codes_that_may_not_be_sent_end_it() {
    for code in [
        0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535_u16,
    ] {
        let case = Case::default().close(code, "why");
        case.gives(failure(&[], 1002)).await;
    }
}
