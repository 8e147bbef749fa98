//! The mux as a program uses it: over a strict pipe in memory and over real WebSockets.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

#[path = "mux/cancel.rs"]
mod cancel;
#[path = "mux/clock.rs"]
mod clock;
#[path = "mux/datagrams.rs"]
mod datagrams;
#[path = "mux/ending.rs"]
mod ending;
#[path = "mux/executor.rs"]
mod executor;
#[path = "mux/flow.rs"]
mod flow;
#[path = "mux/handshake.rs"]
mod handshake;
#[path = "mux/hostile.rs"]
mod hostile;
#[path = "mux/join.rs"]
mod join;
#[path = "mux/lifecycle.rs"]
mod lifecycle;
#[path = "mux/pipe.rs"]
mod pipe;
#[path = "mux/prefixed.rs"]
mod prefixed;
#[path = "mux/relay.rs"]
mod relay;
#[path = "mux/resume/mod.rs"]
mod resume;
#[path = "mux/resume_chain.rs"]
mod resume_chain;
#[path = "mux/resume_hostile.rs"]
mod resume_hostile;
#[path = "mux/resume_tcp.rs"]
mod resume_tcp;
#[path = "mux/streams.rs"]
mod streams;
#[path = "mux/tunnel.rs"]
mod tunnel;
#[path = "mux/wakers.rs"]
mod wakers;
