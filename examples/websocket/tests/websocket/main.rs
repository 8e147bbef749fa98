//! The WebSocket as the programs use it, over real sockets and over pipes in memory.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod basics;
mod conformance;
mod hostile;
mod interop;
mod support;
