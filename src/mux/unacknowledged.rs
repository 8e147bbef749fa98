use core::time::Duration;

use crate::resume::Link;
use crate::session::{Instant, Session};

/// What a resumable tunnel keeps beyond its part of a budget, while memory is short.
///
/// A peer that acknowledges frees it within a round trip. One that does not would make this end
/// keep it for ever, at the cost of other tunnels.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    /// Most bytes that the tunnel may keep, if memory is short.
    most: Option<usize>,
    /// Since when there is more, and how many messages were acknowledged then.
    since: Option<(Instant, u64)>,
    /// How many messages were acknowledged when the peer was last asked for more.
    asked: Option<u64>,
}

impl Unacknowledged {
    /// Time for an acknowledgement.
    const PATIENCE: Duration = Duration::from_secs(5);
    /// A tunnel that acknowledges may be above its part by about a message. Above that, it has to
    /// get down to it.
    const MESSAGE: usize = 192 << 10;

    /// The tunnel may keep `most` bytes.
    pub(super) fn limit(&mut self, link: &mut Link, most: Option<usize>) {
        link.set_ring_share(most);
        self.most = most;
    }

    /// The tunnel waits for acknowledgements: asks for them, once after each. So few bytes may be
    /// less than the peer receives without one.
    pub(super) fn ask(&mut self, link: &Link, session: &mut Session) {
        let acked = self.most.map(|_| link.stats().acked);
        if acked.is_some() && acked != self.asked {
            session.ping();
        }
        self.asked = acked;
    }

    /// Whether the tunnel, which has a transport, has to end.
    pub(super) fn is_overdue(&mut self, now: Instant, link: &Link) -> bool {
        let kept = link.ring_bytes();
        let Some(most) = self.most.filter(|most| kept > *most) else {
            self.since = None;
            return false;
        };
        let acked = link.stats().acked;
        let (since, before) = self.since.get_or_insert((now, acked));
        if *before != acked && kept <= most + Self::MESSAGE {
            (*since, *before) = (now, acked);
        }
        now - *since >= Self::PATIENCE
    }

    /// Without a transport nothing can be acknowledged.
    pub(super) fn pause(&mut self) {
        self.since = None;
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.since.map(|(since, _)| since + Self::PATIENCE)
    }
}
