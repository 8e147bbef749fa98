//! The mux as a program uses it: over a strict pipe in memory and over real WebSockets.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod allocations;
mod cancel;
mod clock;
#[path = "../counting/mod.rs"]
mod counting;
mod datagrams;
mod ending;
mod executor;
mod flow;
mod handshake;
mod hostile;
mod join;
mod lifecycle;
mod pipe;
mod prefixed;
mod relay;
mod resume;
mod resume_chain;
mod resume_hostile;
mod resume_tcp;
mod streams;
mod tunnel;
mod wakers;
