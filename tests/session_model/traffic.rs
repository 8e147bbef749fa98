//! What streams may answer when they are accepted, written and read, and what must arrive.

use std::sync::OnceLock;
use std::time::Duration;

use kohakuriver_tunnel::session::{Recv, SendError, Session, StreamError, StreamId};
use kohakuriver_tunnel::wire::{Chunk, ClientId, Proto};

use super::model::{End, Model};
use super::network::{Network, Side};

/// Bytes without repetition. What a stream sends starts at a position derived from its id and
/// direction.
fn pattern(id: ClientId, side: Side, offset: u64, len: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    const PERIOD: u64 = 1 << 19;
    let bytes = BYTES.get_or_init(|| {
        let mut x = 0x9e37_79b9_7f4a_7c15_u64;
        let words = std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()
        });
        let period: Vec<u8> = words.take((1 << 19) / 8).flatten().collect();
        period.repeat(2)
    });
    let start = u64::from(id.0) * 0x1_0001 + side as u64 * 0x7_0003;
    let start = usize::try_from((start + offset) % PERIOD).unwrap();
    &bytes[start..start + len]
}
impl Model {
    pub(super) fn accept(&mut self, network: &mut Network, i: usize) {
        let small = self.is_small();
        let s = &mut self.streams[i];
        s.answered = true;
        let handle = s.handles[1].unwrap();
        let now = network.now();
        match network.acceptor.session.accept(handle, now) {
            Ok(()) => {}
            Err(StreamError::Reset(_)) => {
                let over_udp = s.proto == Proto::Udp && s.finished[0];
                assert!(s.disturbed || over_udp || small, "{s:?}");
                s.disturbed = true;
            }
            Err(error) => panic!("{error}: {s:?}"),
        }
    }

    pub(super) fn send(
        &mut self,
        session: &mut Session,
        side: Side,
        i: usize,
        handle: StreamId,
        len: usize,
        copy: bool,
    ) {
        let small = self.is_small();
        let s = &mut self.streams[i];
        let sent = &mut s.sent[side as usize];
        let outcome = if s.proto == Proto::Udp {
            let mut datagram = sent.to_be_bytes().to_vec();
            datagram.extend_from_slice(pattern(s.id, side, *sent, len.min(2000)));
            session
                .send_datagram(handle, Chunk::copied(&datagram))
                .map(|()| *sent += 1)
        } else if copy {
            let bytes = pattern(s.id, side, *sent, len);
            session.send_slice(handle, bytes).map(|taken| {
                *sent += taken as u64;
                s.blocked[side as usize] = taken == 0 && len > 0;
            })
        } else {
            session.send_capacity(handle).and_then(|capacity| {
                let len = len.min(capacity).max(1);
                s.blocked[side as usize] = capacity == 0;
                let chunk = Chunk::copied(pattern(s.id, side, *sent, len));
                match session.send(handle, chunk) {
                    Err(SendError::Blocked(chunk)) => {
                        assert_eq!(capacity, 0);
                        assert_eq!(chunk.payload(), pattern(s.id, side, *sent, len));
                        Ok(())
                    }
                    outcome => outcome.map(|()| *sent += len as u64),
                }
            })
        };
        match outcome {
            Ok(()) => assert!(!s.finished[side as usize] || len == 0, "{s:?}"),
            Err(SendError::Finished) => {
                let over_udp = s.proto == Proto::Udp && s.finished.contains(&true);
                let fits = s.finished[side as usize] || over_udp || s.disturbed;
                assert!(fits, "{s:?}");
            }
            Err(SendError::NotAccepted) => {
                assert!(side == Side::Acceptor && !s.answered, "{s:?}");
            }
            Err(SendError::Reset(reset)) => {
                assert!(s.disturbed || small, "{reset}: {s:?}");
                s.disturbed = true;
            }
            Err(error) => panic!("{error}: {s:?}"),
        }
    }

    /// Sends until refused for a while, or for a megabyte.
    pub(super) fn flood(&mut self, network: &mut Network, side: Side, i: usize, handle: StreamId) {
        let until = self.streams[i].sent[side as usize] + (1 << 20);
        for _ in 0..200 {
            let before = self.streams[i].sent[side as usize];
            self.send(network.session(side), side, i, handle, 64 << 10, false);
            let s = &self.streams[i];
            let sent = s.sent[side as usize];
            if s.proto == Proto::Udp || sent > until {
                return;
            }
            if sent == before {
                network.run_for(Duration::from_millis(50), self);
                if self.streams[i].blocked[side as usize] {
                    return;
                }
            }
        }
    }

    /// Reads and compares with what was sent. Returns whether anything was read.
    pub(super) fn recv(
        &mut self,
        network: &mut Network,
        side: Side,
        i: usize,
        handle: StreamId,
        times: usize,
    ) -> bool {
        let small = self.is_small();
        let s = &mut self.streams[i];
        let peer = side.other();
        let now = network.now();
        let session = network.session(side);
        for time in 0..times {
            let end = match session.recv(handle, now) {
                Ok(Recv::Blocked) => {
                    assert_eq!(s.ended[side as usize], None, "blocked after the end: {s:?}");
                    return time > 0;
                }
                Ok(Recv::Data(data)) => {
                    assert!(!s.discards[side as usize], "discarded data comes: {s:?}");
                    assert_eq!(s.ended[side as usize], None, "data after the end: {s:?}");
                    let read = &mut s.read[side as usize];
                    if s.proto == Proto::Udp {
                        let (number, filler) = data.split_first_chunk().unwrap();
                        let number = u64::from_be_bytes(*number);
                        assert!(number >= *read && number < s.sent[peer as usize]);
                        assert_eq!(filler, pattern(s.id, peer, number, filler.len()));
                        *read = number + 1;
                    } else {
                        let expected = pattern(s.id, peer, *read, data.len());
                        assert!(data[..] == *expected, "other bytes than were sent: {s:?}");
                        let read = &mut s.read[side as usize];
                        *read += data.len() as u64;
                        assert!(*read <= s.sent[peer as usize], "more than was sent: {s:?}");
                    }
                    continue;
                }
                Ok(Recv::Finished) => {
                    if s.proto == Proto::Tcp && !s.disturbed {
                        assert!(s.finished[peer as usize], "an end nobody said: {s:?}");
                        assert_eq!(s.read[side as usize], s.sent[peer as usize], "cut short");
                    }
                    End::Finished
                }
                Err(StreamError::Reset(reset)) => {
                    assert!(s.disturbed || small, "{reset}: {s:?}");
                    s.disturbed = true;
                    End::Reset
                }
                Err(error) => panic!("{error}: {s:?}"),
            };
            let before = s.ended[side as usize].replace(end);
            // A direction that ended in order may still see a reset later, but never the reverse.
            let fits = before.is_none_or(|before| before == end || before == End::Finished);
            assert!(
                fits && (before.is_none_or(|before| before == end) || s.disturbed),
                "{s:?}"
            );
            return time > 0;
        }
        true
    }
}
