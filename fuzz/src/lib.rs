//! The bodies of the fuzz targets: functions that take any bytes and panic when a law is broken.
//!
//! A new target needs its body as a module here, a line in [`TARGETS`], a binary of its name in
//! `fuzz_targets/` and `Cargo.toml`, and a few inputs in a folder of its name in `corpus/`.
//! `tests/replay.rs` checks that nothing is missing.

mod decode;
mod resume;
mod session;
mod stream_codec;
mod transport;
mod websocket;

pub use decode::decode;
pub use resume::resume;
pub use session::session;
pub use stream_codec::stream_codec;
pub use transport::transport;
pub use websocket::websocket;

/// The body of a target.
pub type Body = fn(&[u8]);

/// Every target, by the name of its binary and of its corpus.
pub const TARGETS: &[(&str, Body)] = &[
    ("decode", decode),
    ("resume", resume),
    ("session", session),
    ("stream_codec", stream_codec),
    ("transport", transport),
    ("websocket", websocket),
];
