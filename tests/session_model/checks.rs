//! What holds at every moment, and at the end.

use std::time::Duration;

use kohakuriver_tunnel::session::{INITIAL_WINDOW, SendError, State, Version};
use kohakuriver_tunnel::wire::Proto;

use super::HOUR;
use super::model::{End, Model, Stream};
use super::network::{Flow, Network, Side};

impl Model {
    /// Invariants at every point in time.
    pub(super) fn check(&self, network: &mut Network) {
        let config = &self.config;
        for side in Side::BOTH {
            let end = network.end(side);
            assert_eq!(
                end.violations,
                [],
                "{side:?} saw its honest peer break the protocol"
            );
            assert!(end.session.audit(), "what is counted is not what is there");
            let stats = end.session.stats();
            let unread = config.receive_budget + config.datagram_budget;
            assert!(stats.unread <= unread, "{stats:?}");
            let reserve = stats.streams * 4096 + config.max_piece;
            let unsent = config.send_budget + config.datagram_budget + reserve;
            assert!(stats.unsent <= unsent, "{stats:?}");
            assert!(stats.streams <= config.max_streams, "{stats:?}");
            assert!(stats.resets <= stats.opened, "{stats:?}");
            assert_eq!(stats.violations, 0, "{stats:?}");
        }
        if self.version == Version::V2 {
            for s in self.streams.iter().filter(|s| s.proto == Proto::Tcp) {
                self.check_credit(network, s);
            }
        }
    }

    /// Credit and bytes are conserved in each direction.
    fn check_credit(&self, network: &Network, s: &Stream) {
        for side in Side::BOTH {
            let flow = |side| network.end(side).sent.get(&s.id).copied();
            let ours: Flow = flow(side).unwrap_or_default();
            let theirs: Flow = flow(side.other()).unwrap_or_default();
            let initial = u64::from(INITIAL_WINDOW);
            assert!(
                ours.data_sent <= initial + theirs.credit_received,
                "overrun: {s:?}"
            );
            assert!(ours.data_received <= ours.data_sent);
            // The receiver has granted at most the bytes read or discarded plus the largest window.
            let taken = match s.handles[side.other() as usize] {
                Some(_) if !s.discards[side.other() as usize] => s.read[side.other() as usize],
                _ => ours.data_received,
            };
            let most = taken + u64::from(self.config.max_window) - initial;
            assert!(theirs.credit_sent <= most, "{theirs:?} {s:?}");
            // Held and granted credit, bytes in flight, and unread bytes add up to the window.
            let held = initial + theirs.credit_received - ours.data_sent;
            let credit_under_way = theirs.credit_sent - theirs.credit_received;
            let data_under_way = ours.data_sent - ours.data_received;
            let read = s.read[side.other() as usize];
            if !s.disturbed {
                let unread = ours.data_received - read;
                let window = initial + theirs.credit_sent - read;
                assert_eq!(held + credit_under_way + data_under_way + unread, window);
                assert!(ours.data_sent <= s.sent[side as usize]);
            }
            assert!(ours.closes <= 1, "CLOSE twice: {s:?}");
            assert!(ours.errors <= 1, "ERROR twice: {s:?}");
            assert_eq!(ours.after_error, 0, "more after ERROR: {s:?}");
        }
    }

    /// Accepts waiting streams, and reads everything on both ends until nothing more comes.
    fn read_all(&mut self, network: &mut Network) {
        loop {
            let mut moved = false;
            for i in 0..self.streams.len() {
                if self.streams[i].handles[1].is_some() && !self.streams[i].answered {
                    self.accept(network, i);
                    moved = true;
                }
            }
            for side in Side::BOTH {
                for i in 0..self.streams.len() {
                    if let Some(handle) = self.streams[i].handles[side as usize] {
                        if self.streams[i].ended[side as usize].is_none() {
                            moved |= self.recv(network, side, i, handle, usize::MAX);
                        }
                    }
                }
            }
            let told = self.told;
            network.run_for(Duration::from_secs(10), self);
            self.check(network);
            if !moved && told == self.told {
                return;
            }
        }
    }

    /// Lets everything end and checks what is left.
    pub(super) fn wind_up(&mut self, network: &mut Network) {
        for side in Side::BOTH {
            network.end_mut(side).link.config.bytes_per_second = 100 << 20;
        }
        network.run_for(Duration::from_secs(10), self);
        self.read_all(network);
        self.no_window_is_closed(network);
        for side in Side::BOTH {
            for s in &mut self.streams {
                if let Some(handle) = s.handles[side as usize] {
                    s.finished[side as usize] = true;
                    network.session(side).finish(handle);
                }
            }
        }
        self.read_all(network);
        // Streams released on one side only are given up after a while.
        let silent = network.run_until_silent(10 * HOUR, self);
        assert!(silent, "an idle pair does not fall silent");
        self.read_all(network);
        let now = network.now();
        for s in &mut self.streams {
            for side in Side::BOTH {
                let Some(handle) = s.handles[side as usize].take() else {
                    continue;
                };
                let session = network.session(side);
                assert_eq!(session.state(handle), Some(State::Closed), "{s:?}");
                let end = s.ended[side as usize].expect("a stream has no end");
                assert!(!s.blocked[side as usize], "a writer was not woken: {s:?}");
                if !s.disturbed {
                    assert_eq!(end, End::Finished);
                    if s.proto == Proto::Tcp {
                        assert_eq!(s.read[side as usize], s.sent[side.other() as usize]);
                    }
                }
                session.release(handle, now);
                assert_eq!(session.state(handle), None);
            }
        }
        assert!(network.run_until_silent(10 * HOUR, self));
        for side in Side::BOTH {
            assert_eq!(network.end(side).link.in_flight(), 0);
            let session = network.session(side);
            let stats = session.stats();
            assert_eq!((stats.streams, stats.unread, stats.unsent), (0, 0, 0));
            assert!(session.is_idle() && !session.has_transmit() && session.can_receive());
            assert_eq!((session.poll_timeout(), session.poll_event()), (None, None));
        }
        self.check(network);
    }

    /// Everything was read, so every open stream can send.
    fn no_window_is_closed(&mut self, network: &mut Network) {
        for side in Side::BOTH {
            // If the other end has released the stream, the sender learns that when the other end
            // gives up.
            let undisturbed = self.streams.iter().filter(|s| !s.disturbed);
            for s in undisturbed {
                if let (Some(handle), Proto::Tcp) = (s.handles[side as usize], s.proto) {
                    let waits = s.blocked[side as usize] && !s.finished[side as usize];
                    assert!(!waits, "a writer was not woken: {s:?}");
                    match network.session(side).send_capacity(handle) {
                        Ok(room) => assert!(room > 0, "a window stays closed: {s:?}"),
                        Err(SendError::Finished | SendError::Reset(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    }
}
