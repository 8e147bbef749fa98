//! Every bound, with what a hostile peer gains at it.

/// Frames of any kind taken before other tasks get their turn, so that no number of tiny frames keeps
/// a thread.
pub const FRAMES_PER_TURN: usize = 64;

/// Bytes read before other tasks get their turn, unless a message came of them.
pub const BYTES_PER_TURN: usize = 256 << 10;

/// Most fragments of one message: twice as many as the Autobahn suite sends. Honest peers send fewer, and
/// more would only cost time.
pub const FRAGMENTS_MAX: usize = 128 << 10;

/// Bytes that wait to be written before the sink takes no more, or [`FREE_ALLOWANCE`] when the account has no
/// more. Beyond it there are at most the message that crossed it, one pong and one close frame.
pub const WRITE_BUFFER: usize = 128 << 10;

/// Held each way without asking the [`Account`](crate::Account).
pub const FREE_ALLOWANCE: usize = 16 << 10;

/// Bytes thrown away after an error, while the peer is given the chance to read the reason.
pub const DISCARDED_MAX: usize = 256 << 10;

/// The most that one read asks for: two of the tunnel's largest messages with their headers.
pub const READ_AHEAD_MAX: usize = 132 << 10;

/// The least. A connection that is idle holds no more.
pub(crate) const READ_MIN: usize = 8 << 10;

/// Payloads from here on keep the buffer that they were read into; shorter ones are copied out of it when it
/// is more than eight times as large.
pub(crate) const COPIED_BELOW: usize = 16 << 10;

/// Payloads up to this are copied behind their header; one write for both costs less than two.
pub(crate) const SMALL: usize = 1024;

/// Room for headers and small frames, allocated at once.
pub(crate) const SCRATCH: usize = 8 << 10;

/// Parts written by one call.
pub(crate) const WRITE_SLICES: usize = 32;

/// RFC 6455 section 5.5.
pub(crate) const CONTROL_MAX: usize = 125;

/// RFC 6455 section 5.2.
pub(crate) const HEADER_MAX: usize = 14;
