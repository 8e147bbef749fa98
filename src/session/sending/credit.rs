/// The peer's credit on one stream (PROTOCOL.md section 5.5).
#[derive(Debug, Default)]
pub(super) struct Credit {
    sent: u64,
    /// Total bytes that the peer accepts, as granted so far.
    limit: u64,
    /// Most bytes in total until the connection is accepted.
    early: Option<u64>,
}

impl Credit {
    pub(super) const fn new(limit: u64, early: Option<u64>) -> Self {
        let sent = 0;
        Self { sent, limit, early }
    }

    pub(super) fn spend(&mut self, len: usize) {
        self.sent += len as u64;
    }

    /// The connection was accepted: all of the credit may be used.
    pub(super) fn establish(&mut self) {
        self.early = None;
    }

    /// Adds credit. `None` if the sum overflows.
    pub(super) fn grant(&mut self, credit: u32) -> Option<()> {
        let limit = self.limit.checked_add(u64::from(credit))?;
        (limit <= i64::MAX as u64).then(|| self.limit = limit)
    }

    /// Credit beyond the `queued` bytes.
    pub(super) fn left(&self, queued: usize) -> usize {
        let limit = self.early.unwrap_or(self.limit);
        let left = limit - self.sent - queued as u64;
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Config, Instant, Reason, Role, Session, Version, Violation};
    use crate::wire::{ClientId, Frame};

    /// Reaching the limit takes 2^31 messages, so the test plays only the last one.
    #[test]
    fn more_credit_than_can_be_counted_resets_the_stream() {
        let now = Instant::default();
        let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
        let streams = [1, 2].map(|port| session.open_tcp(port, now).unwrap());
        let most = i64::MAX as u64;
        let id = ClientId(1);
        let stream = session.streams.get_mut(streams[0]).unwrap();
        stream.send.credit.limit = most - 5;
        let mut window = |credit| {
            let frame = Frame::<&[u8]>::Window { id, credit };
            session.handle_message(now, frame.to_bytes())
        };
        assert_eq!(window(5), Ok(()));
        assert_eq!(window(1), Err(Violation::CreditOverflow { id }));
        assert_eq!(window(1), Ok(()), "late");
        let reset = session.reset_of(streams[0]).unwrap();
        assert_eq!(reset.reason, Reason::Overflow);
        assert_eq!(session.reset_of(streams[1]), None);
    }
}
