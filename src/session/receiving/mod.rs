//! What was received and not read, and how much more may come.

mod buffer;
mod early;
mod stall;
mod window;

pub(super) use self::buffer::ReceiveBuffer;
pub(super) use self::early::Early;
pub(super) use self::stall::{Conversation, Pause, Stall};
pub(super) use self::window::ReceiveWindow;
