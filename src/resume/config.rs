use core::time::Duration;

/// Bounds and times of a [`Link`](super::Link).
///
/// The two ends need not use the same values. Each field has a setter with the prefix `with_`:
///
/// ```
/// use std::time::Duration;
///
/// use kohakuriver_tunnel::resume::Config;
///
/// let config = Config::default().with_keep(Duration::from_secs(30)).with_ring_max(4 << 20);
/// # assert_eq!(config.ring_max, 4 << 20);
/// ```
///
/// A link clamps values that are out of range.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// How long a tunnel without a transport is kept; the shorter of the two ends' values holds.
    /// The peer is told whole seconds, rounded up. Default 120 s.
    ///
    /// What a vanished client holds at a service (a transaction, a lock) outlives it by this.
    pub keep: Duration,
    /// As `keep`, while the tunnel has no connections and the peer knows of the end of each (see
    /// [`Link::set_idle`](super::Link::set_idle)). Default 10 s.
    pub idle_keep: Duration,
    /// Size of the ring of kept messages at first, in bytes, where each message counts 64 bytes
    /// more than its length. At most 1 GiB. Default 1 MiB.
    ///
    /// The peer is told this size, so that it acknowledges in time. Every tunnel may use it.
    pub ring_min: usize,
    /// Size to which the ring may grow, in bytes, from `ring_min` to 1 GiB. Default 32 MiB.
    ///
    /// With the default a tunnel reaches 1 Gbit/s over a round trip of about 200 ms. Tunnels that
    /// share a budget keep to `ring_min` while more than a sixteenth of it is held.
    pub ring_max: usize,
    /// Bytes that may be kept beyond the ring, of messages that are not data: they cannot wait for
    /// room. The tunnel ends when more would be kept (PROTOCOL.md section 5.10). At least 2 MiB,
    /// which the longest message fits in. Default 4 MiB.
    pub ring_reserve: usize,
    /// Client: longest time from OPEN to the answer. Then the transport counts as lost. Default 10
    /// s.
    pub opening_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(120),
            idle_keep: Duration::from_secs(10),
            ring_min: 1 << 20,
            ring_max: 32 << 20,
            ring_reserve: 4 << 20,
            opening_timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    setters! {
        with_keep => keep: Duration,
        with_idle_keep => idle_keep: Duration,
        with_ring_min => ring_min: usize,
        with_ring_max => ring_max: usize,
        with_ring_reserve => ring_reserve: usize,
        with_opening_timeout => opening_timeout: Duration,
    }

    /// The same configuration, with values clamped to the range the protocol allows.
    pub(super) fn clamped(mut self) -> Self {
        const LARGEST_RING: usize = 1 << 30;
        const LEAST_RESERVE: usize = 2 << 20;
        self.ring_min = self.ring_min.clamp(1, LARGEST_RING);
        self.ring_max = self.ring_max.clamp(self.ring_min, LARGEST_RING);
        self.ring_reserve = self.ring_reserve.max(LEAST_RESERVE);
        self.opening_timeout = self.opening_timeout.max(Duration::from_millis(1));
        self
    }

    /// `keep` as a message carries it, in seconds.
    pub(super) fn keep_seconds(&self) -> u32 {
        let part = u64::from(self.keep.subsec_nanos() > 0);
        u32::try_from(self.keep.as_secs().saturating_add(part)).unwrap_or(u32::MAX)
    }
}
