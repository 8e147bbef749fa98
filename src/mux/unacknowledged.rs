use core::time::Duration;

use crate::resume::Link;
use crate::session::{Instant, Session};

/// What a resumable tunnel keeps beyond its part of a budget, while memory is short.
///
/// A peer that acknowledges frees it, as fast as its path is. One that does not would make this end
/// keep it for ever, at the cost of other tunnels.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    /// Most bytes that the tunnel may keep, if memory is short.
    most: Option<usize>,
    /// It keeps more.
    wait: Option<Wait>,
    /// This end does not read its transport, so acknowledgements may be unread.
    deaf: bool,
    /// How many messages were acknowledged when the peer was last asked for more.
    asked: Option<u64>,
}

/// A tunnel that keeps too much, since the peer last acknowledged enough.
#[derive(Debug, Clone, Copy)]
struct Wait {
    since: Instant,
    /// Bytes kept then.
    kept: usize,
    /// How many messages were acknowledged then.
    acked: u64,
    /// For how long this end has read its transport since, until `seen`.
    read: Duration,
    seen: Instant,
    /// When the wait was first found to be too long.
    found: Option<Instant>,
}

impl Unacknowledged {
    /// Time for an acknowledgement. A peer near its budget may not read for 20 s (PROTOCOL.md
    /// section 5.5).
    const PATIENCE: Duration = Duration::from_secs(30);
    /// The same, with the time for which this end has not read its transport.
    const LONGEST: Duration = Duration::from_secs(120);
    /// For how long this end reads on after that. It may have been stopped, as by SIGSTOP, and then
    /// the acknowledgements are still unread.
    const LAST_LOOK: Duration = Duration::from_secs(1);
    /// A tunnel that acknowledges may be above its part by about a message. Above that, it has to
    /// get down to it, by as much in each [`PATIENCE`](Self::PATIENCE).
    const MESSAGE: usize = 192 << 10;
    /// What it may keep more than when the wait began. No data is taken meanwhile, so this is what
    /// the peer asked for: answers, each with a new chance to acknowledge.
    const GROWTH: usize = 512 << 10;

    /// The tunnel may keep `most` bytes.
    pub(super) fn limit(&mut self, link: &mut Link, most: Option<usize>) {
        link.set_ring_share(most);
        self.most = most;
        if most.is_none_or(|most| link.ring_bytes() < most) {
            // Data is taken again, and makes what is kept grow.
            self.wait = None;
        }
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

    /// From now on, this end reads its transport, or does not.
    pub(super) fn set_deaf(&mut self, deaf: bool) {
        self.deaf = deaf;
    }

    /// Whether the tunnel, which has a transport, has to end.
    pub(super) fn is_overdue(&mut self, now: Instant, link: &Link) -> bool {
        let kept = link.ring_bytes();
        let Some(most) = self.most.filter(|most| kept > *most) else {
            self.wait = None;
            return false;
        };
        let acked = link.stats().acked;
        let new = Wait {
            since: now,
            kept,
            acked,
            read: Duration::ZERO,
            seen: now,
            found: None,
        };
        let wait = self.wait.get_or_insert(new);
        if !self.deaf {
            wait.read += now - wait.seen;
        }
        wait.seen = now;
        let near = kept <= most + Self::MESSAGE && acked != wait.acked;
        if near || kept + Self::MESSAGE <= wait.kept {
            *wait = new;
        }
        if kept > wait.kept + Self::GROWTH {
            return true;
        }
        if wait.read < Self::PATIENCE && now - wait.since < Self::LONGEST {
            return false;
        }
        let found = *wait.found.get_or_insert(now);
        now - found >= Self::LAST_LOOK
    }

    /// Without a transport nothing can be acknowledged.
    pub(super) fn pause(&mut self) {
        self.wait = None;
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let wait = self.wait?;
        if let Some(found) = wait.found {
            return Some(found + Self::LAST_LOOK);
        }
        let longest = wait.since + Self::LONGEST;
        let patience = wait.seen + Self::PATIENCE.saturating_sub(wait.read);
        Some(match self.deaf {
            true => longest,
            false => patience.min(longest),
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::resume::{Accepts, Config, Identity, Message, Open, Secret};

    const MOST: usize = 100 << 10;
    const MESSAGE: usize = 32 << 10;

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    /// A link whose ring is full, at second 0.
    fn full() -> (Unacknowledged, Link) {
        let open = Open {
            tunnel: 0,
            secret: Secret::new([0; Secret::LEN]),
            attempt: 1,
            received: 0,
            keep: 120,
            ring: 1 << 20,
        };
        let identity = Identity {
            instance: 1,
            tunnel: 1,
        };
        let secret = Secret::new([1; Secret::LEN]);
        let mut link = Link::server(Config::default(), identity, &open, secret, at(0));
        link.poll_output().unwrap();
        fill(&mut link);
        let mut unacknowledged = Unacknowledged::default();
        unacknowledged.limit(&mut link, Some(MOST));
        assert!(!unacknowledged.is_overdue(at(0), &link));
        (unacknowledged, link)
    }

    fn fill(link: &mut Link) {
        let mut message = [0; MESSAGE];
        message[0] = 3;
        while link.accepts() == Accepts::All {
            link.sent(&Bytes::copy_from_slice(&message)).unwrap();
        }
    }

    fn acknowledge(link: &mut Link, now: Instant, messages: u64) {
        let received = link.stats().acked + messages;
        link.handle_message(now, Message::Ack { received }.to_bytes());
    }

    /// When the tunnel ends of a peer that acknowledges so many messages in each period.
    fn ends_at(messages: u64, period: u64) -> Option<u64> {
        let (mut unacknowledged, mut link) = full();
        let begin = link.ring_bytes();
        for second in 1..=600 {
            if second % period == 0 && link.ring_bytes() > MOST {
                acknowledge(&mut link, at(second), messages);
            }
            if unacknowledged.is_overdue(at(second), &link) {
                assert!(link.ring_bytes() <= begin);
                return Some(second);
            }
        }
        assert!(link.ring_bytes() <= MOST);
        None
    }

    #[test]
    fn a_slow_peer_that_acknowledges_is_kept() {
        // 128 kbit/s, and one that does not read for 20 s.
        assert_eq!(ends_at(1, 2), None);
        assert_eq!(ends_at(8, 20), None);
    }

    #[test]
    fn what_this_end_does_not_read_counts_for_a_bounded_time() {
        for (deaf_until, end) in [(70, 101), (110, 121), (200, 121)] {
            let (mut unacknowledged, link) = full();
            unacknowledged.set_deaf(true);
            for second in 1..=end {
                assert!(unacknowledged.poll_timeout() >= Some(at(second)));
                let is_overdue = unacknowledged.is_overdue(at(second), &link);
                unacknowledged.set_deaf(second < deaf_until);
                assert_eq!(is_overdue, second == end, "{second}");
            }
        }
    }

    /// As after SIGSTOP, or in a machine that goes on from a snapshot.
    #[test]
    fn time_in_which_this_end_was_stopped_does_not_end_the_tunnel() {
        let (mut unacknowledged, mut link) = full();
        for away in [40, 400] {
            let back = at(10 + away);
            assert!(!unacknowledged.is_overdue(at(10), &link));
            assert!(!unacknowledged.is_overdue(back, &link));
            // The rest of what the peer had sent meanwhile, in several reads.
            let soon = back + Duration::from_millis(500);
            assert!(!unacknowledged.is_overdue(soon, &link));
            assert!(unacknowledged.poll_timeout() > Some(soon));
            acknowledge(&mut link, soon, 8);
            assert!(!unacknowledged.is_overdue(back + Duration::from_secs(2), &link));
            unacknowledged.pause();
        }
    }

    /// Answers pass a full ring, also while this end does not read.
    #[test]
    fn a_peer_that_asks_and_does_not_acknowledge_is_not() {
        for deaf in [false, true] {
            let (mut unacknowledged, mut link) = full();
            unacknowledged.set_deaf(deaf);
            let begin = link.ring_bytes();
            let mut pong = [0; 133];
            pong[0] = 7;
            while !unacknowledged.is_overdue(at(1), &link) {
                assert!(link.ring_bytes() <= begin + Unacknowledged::GROWTH);
                link.sent(&Bytes::copy_from_slice(&pong)).unwrap();
            }
            assert!(link.ring_bytes() > begin + Unacknowledged::GROWTH);
        }
    }

    /// What was taken while more could be kept is data, and no answers.
    #[test]
    fn a_tunnel_that_grew_while_it_could_keep_more_is_kept() {
        for more in [None, Some(MOST + (1 << 20))] {
            let (mut unacknowledged, mut link) = full();
            acknowledge(&mut link, at(1), 24);
            assert!(!unacknowledged.is_overdue(at(1), &link));
            let before = link.ring_bytes();
            assert!(before > MOST);
            unacknowledged.limit(&mut link, more);
            fill(&mut link);
            assert!(link.ring_bytes() > before + Unacknowledged::GROWTH);
            unacknowledged.limit(&mut link, Some(MOST));
            let end = (1..).find(|second| unacknowledged.is_overdue(at(*second), &link));
            assert_eq!(end, Some(32));
        }
    }

    #[test]
    fn a_peer_that_acknowledges_hardly_anything_is_not() {
        assert_eq!(ends_at(0, 1), Some(31));
        assert_eq!(ends_at(1, 8), Some(31));
    }
}
