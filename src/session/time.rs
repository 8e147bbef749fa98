use core::ops::{Add, Sub};
use core::time::Duration;

/// A point in time on the caller's monotonic clock, in microseconds since an origin that the caller
/// chooses.
///
/// The session has no clock: every call in which time matters takes the current time.
///
/// ```
/// use core::time::Duration;
/// use kohakuriver_tunnel::session::Instant;
///
/// let later = Instant::from_micros(5) + Duration::from_micros(2);
/// assert_eq!(later.as_micros(), 7);
/// assert_eq!(Instant::default() - later, Duration::ZERO);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The time `micros` microseconds after the origin.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the origin.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }
}

/// The earlier of two times, if there are any.
pub(super) fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        let seconds = span.as_secs().saturating_mul(1_000_000);
        let micros = seconds.saturating_add(span.subsec_micros().into());
        Self(self.0.saturating_add(micros))
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// Time since `earlier`; zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}
