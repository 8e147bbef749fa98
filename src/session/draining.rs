/// Whether a tunnel takes connections, and whether it is still there (PROTOCOL.md section 5.7).
#[derive(Debug, Default)]
pub(super) struct Phase {
    draining: bool,
    peer_draining: bool,
    closed: bool,
}

impl Phase {
    /// This end takes no new connections any more. Says whether that is news.
    pub(super) fn drain(&mut self) -> bool {
        !core::mem::replace(&mut self.draining, true)
    }

    /// The peer takes no new connections any more. Says whether that is news.
    pub(super) fn drain_peer(&mut self) -> bool {
        !core::mem::replace(&mut self.peer_draining, true)
    }

    /// The transport has ended.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) const fn is_draining(&self) -> bool {
        self.draining || self.peer_draining
    }

    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }
}
