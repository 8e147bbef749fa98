//! Case 6: UTF-8.

use super::peer::{CONTINUATION, Case, PING, PONG, TEXT, echo, failure};

/// 6.2, 6.5 to 6.23: the smallest and largest character of every length, noncharacters, private
/// use.
const VALID: [&str; 12] = [
    "Hello-µ@ßöäüàá-UTF-8!!",
    "κόσμε",
    "\u{0}",
    "\u{7f}",
    "\u{80}",
    "\u{7ff}",
    "\u{800}",
    "\u{d7ff}\u{e000}\u{fffd}",
    "\u{ffff}\u{fffe}",
    "\u{10000}",
    "\u{10ffff}",
    "\u{1fffe}\u{2ffff}",
];

/// 6.3, 6.12 to 6.22: beyond the range, stray and missing continuations, impossible bytes, overlong
/// forms, surrogates.
const INVALID: [&[u8]; 20] = [
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xf7\xbf\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\x80",
    b"\xbf\x80",
    b"\xc0 \xc1 ",
    b"\xe0 \xe1 ",
    b"\xf0 \xf1 ",
    b"\xc0",
    b"\xe0\x80",
    b"\xdf",
    b"\xef\xbf",
    b"\xfe",
    b"\xff",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xed\xa0\x80\xed\xb0\x80",
];

#[tokio::test]
async fn valid_text_comes_back_however_it_is_cut() {
    for text in VALID {
        let bytes = text.as_bytes();
        let whole = Case::default().then(TEXT, bytes);
        whole.gives(echo(&[(TEXT, bytes)])).await;
        let mut cut = Case::default().more(TEXT, "");
        for byte in bytes {
            cut = cut.more(CONTINUATION, [*byte]);
        }
        let cut = cut.then(CONTINUATION, "");
        cut.gives(echo(&[(TEXT, bytes)])).await;
    }
}

#[tokio::test]
async fn invalid_text_ends_it_however_it_is_cut() {
    for bytes in INVALID {
        let whole = Case::default().then(TEXT, bytes);
        whole.gives(failure(&[], 1007)).await;
        let mut cut = Case::default().more(TEXT, "");
        for byte in bytes {
            cut = cut.more(CONTINUATION, [*byte]);
        }
        let cut = cut.then(CONTINUATION, "");
        cut.gives(failure(&[], 1007)).await;
    }
}

/// 6.4: fails before the message is complete.
#[tokio::test]
async fn fragments_that_cannot_become_text_end_it_at_once() {
    let case = Case::default()
        .more(TEXT, "\u{3ba}")
        .more(CONTINUATION, b"\xf4\x90")
        .then(PING, "not answered");
    case.gives(failure(&[], 1007)).await;
}

#[tokio::test]
async fn a_ping_may_stand_within_a_character() {
    let case = Case::default()
        .more(TEXT, b"\xc3")
        .then(PING, "\u{1f980}")
        .then(CONTINUATION, b"\xa4");
    case.gives(echo(&[
        (PONG, "\u{1f980}".as_bytes()),
        (TEXT, "ä".as_bytes()),
    ]))
    .await;
}
