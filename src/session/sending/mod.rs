//! What waits to be sent, and in which order it goes.

mod queue;
mod schedule;

pub(super) use self::queue::SendQueue;
pub(super) use self::schedule::{Schedule, Turn};
