//! Every bound, and what a hostile peer gains at it.

use std::time::Duration;

/// Frames of any kind taken before the task yields, so that tiny frames cannot occupy a thread.
pub const FRAMES_PER_TURN: usize = 64;

/// Bytes read before the task yields, unless they completed a message.
pub const BYTES_PER_TURN: usize = 256 << 10;

/// Fragments of one message that may be of any size. Honest peers send fewer.
pub const FRAGMENTS_FREE: usize = 1024;

/// Average size in bytes of the fragments beyond [`FRAGMENTS_FREE`], at least. Smaller ones would
/// only cost time. The Autobahn suite sends 64 bytes each.
pub const FRAGMENT_MIN: usize = 16;

/// Bytes that may wait to be written before the sink accepts no more; [`FREE_ALLOWANCE`] if the
/// account is exhausted. Beyond the bound there are at most the message that crossed it,
/// [`PONGS_MAX`] pongs and one close frame.
pub const WRITE_BUFFER: usize = 128 << 10;

/// Pongs that are queued at a time. While so many wait, one more is kept: that of the last ping.
pub const PONGS_MAX: usize = 16;

/// Bytes held each way without asking the [`Account`](crate::Account).
pub const FREE_ALLOWANCE: usize = 16 << 10;

/// While the account is exhausted, a message that holds memory of it and is incomplete for longer
/// ends its connection.
pub const INCOMPLETE_MAX: Duration = Duration::from_secs(10);

/// How often that is looked at. More often than [`STEP_MAX`], so that only a pause of this end
/// counts as one.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a message waits for memory before it ends its connection: longer than those that hold
/// memory may be incomplete.
pub const WAIT_MAX: Duration = Duration::from_secs(15);

/// Most of the time between two looks at a message that counts if it waits for memory, or if bytes
/// came in between: this end may have made a pause.
pub(crate) const STEP_MAX: Duration = Duration::from_secs(5);

/// Time between two attempts to get memory for a message.
pub(crate) const MEMORY_RETRY: Duration = Duration::from_millis(20);

/// Bytes discarded after an error, while the peer gets time to read the reason.
pub const DISCARDED_MAX: usize = 256 << 10;

/// Most bytes that one read asks for: one of the tunnel's largest messages, and a little. Less if
/// the longest message is shorter.
pub const READ_AHEAD_MAX: usize = 132 << 10;

/// Least bytes that one read asks for. An idle connection holds no more.
pub(crate) const READ_MIN: usize = 8 << 10;

/// A payload that would keep more than so many times its length alive is copied. One of 16 KiB in a
/// buffer of [`READ_AHEAD_MAX`] is not.
pub(crate) const PINNED_MAX: usize = 10;

/// Payloads up to this length are copied behind their header: one write for both is cheaper than
/// two.
pub(crate) const SMALL: usize = 1024;

/// Room for headers and small frames, allocated at once.
pub(crate) const SCRATCH: usize = 8 << 10;

/// Bytes that are copied to be masked for one write. Each thread that writes keeps a buffer of this
/// size.
pub(crate) const MASKED_MAX: usize = 132 << 10;

/// Most parts written by one call.
pub(crate) const WRITE_SLICES: usize = 32;

/// Longest payload of a control frame (RFC 6455 section 5.5).
pub(crate) const CONTROL_MAX: usize = 125;

/// Longest frame header (RFC 6455 section 5.2).
pub(crate) const HEADER_MAX: usize = 14;
