/// Which ends take no new connections (GOAWAY, PROTOCOL.md section 5.7). Once either end does not,
/// nothing is opened here, and a CONNECT of the peer is refused with reason gone. Open streams
/// continue.
#[derive(Debug, Default)]
pub(super) struct Draining {
    here: bool,
    peer: bool,
}

impl Draining {
    /// This end takes no new connections any more. Returns whether that is new.
    pub(super) fn begin(&mut self) -> bool {
        !core::mem::replace(&mut self.here, true)
    }

    /// The peer takes no new connections any more. Returns whether that is new.
    pub(super) fn begin_at_peer(&mut self) -> bool {
        !core::mem::replace(&mut self.peer, true)
    }

    pub(super) const fn has_begun(&self) -> bool {
        self.here || self.peer
    }
}
