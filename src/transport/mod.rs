//! Frames over any WebSocket stack's `Stream` and `Sink` of messages.

mod carrier;

pub use carrier::{Carrier, Received};
