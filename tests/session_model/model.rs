//! What a pair of sessions must have done, told from the calls alone.

use std::time::Duration;

use kohakuriver_tunnel::session::{
    Allowance, Config, Event, Instant, OpenError, Reason, Session, StreamId, Version,
};
use kohakuriver_tunnel::wire::{ClientId, Proto};

use super::network::{App, Network, Side};
use super::op::Op;

/// The model's knowledge of a stream. Pairs are indexed by side.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: ClientId,
    pub(super) proto: Proto,
    pub(super) handles: [Option<StreamId>; 2],
    pub(super) answered: bool,
    /// Bytes, or datagrams.
    pub(super) sent: [u64; 2],
    /// Bytes; for datagrams the number of the last one plus one.
    pub(super) read: [u64; 2],
    pub(super) finished: [bool; 2],
    /// The last result of reading at this end: nothing comes after it.
    pub(super) ended: [Option<End>; 2],
    /// Sending was refused, and no event has come since.
    pub(super) blocked: [bool; 2],
    /// This end discards what it receives.
    pub(super) discards: [bool; 2],
    /// One end reset it or discards, so bytes may be missing.
    pub(super) disturbed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Finished,
    Reset,
}

pub(super) struct Model {
    pub(super) version: Version,
    pub(super) config: Config,
    pub(super) streams: Vec<Stream>,
    pub(super) told: u64,
    /// Which ends take no new connections.
    pub(super) drains: [bool; 2],
}

impl App for Model {
    fn on_event(&mut self, side: Side, session: &mut Session, event: Event, _: Instant) {
        self.told += 1;
        match event {
            Event::Incoming {
                stream,
                proto,
                port,
            } => {
                let id = session.client_id(stream).unwrap();
                let known = self.streams.iter_mut().find(|s| s.id == id).unwrap();
                assert_eq!((side, known.proto, port), (Side::Acceptor, proto, 80));
                assert_eq!(known.handles[1].replace(stream), None, "{id} came in twice");
            }
            Event::Established(stream) | Event::Readable(stream) | Event::Writable(stream) => {
                let held = |s: &&mut Stream| s.handles[side as usize] == Some(stream);
                let Some(s) = self.streams.iter_mut().find(held) else {
                    panic!("{event:?} of a released stream");
                };
                s.blocked[side as usize] &= event != Event::Writable(stream);
            }
            Event::GoAway => {
                let announced = self.drains[side.other() as usize];
                assert!(announced && self.version == Version::V2, "{event:?}");
            }
            Event::PeerDead => panic!("{event:?}"),
            _ => {}
        }
    }
}

impl Model {
    /// A stream for which `fits` holds, chosen by `which`.
    fn choose(&self, which: usize, fits: impl Fn(&Stream) -> bool) -> Option<usize> {
        let fit: Vec<_> = (0..self.streams.len())
            .filter(|i| fits(&self.streams[*i]))
            .collect();
        (!fit.is_empty()).then(|| fit[which % fit.len()])
    }

    fn held(&self, which: usize, side: Side) -> Option<(usize, StreamId)> {
        let i = self.choose(which, |s| s.handles[side as usize].is_some())?;
        Some((i, self.streams[i].handles[side as usize]?))
    }

    pub(super) fn apply(&mut self, network: &mut Network, op: &Op) {
        let now = network.now();
        match *op {
            Op::Open { udp } => {
                let session = &mut network.opener.session;
                let opened = match udp {
                    true => session.open_udp(80, now),
                    false => session.open_tcp(80, now),
                };
                let may_be_refused = self.drains.contains(&true);
                let stream = match opened {
                    Ok(stream) => {
                        assert!(!self.drains[0], "opened while it drains");
                        stream
                    }
                    Err(OpenError::Draining) => return assert!(may_be_refused),
                    Err(OpenError::Limit(limit)) => {
                        return assert_eq!(session.stats().streams, limit);
                    }
                    Err(OpenError::Congested) => return,
                    Err(error) => panic!("{error}"),
                };
                let id = session.client_id(stream).unwrap();
                assert!(self.streams.iter().all(|s| s.id != id), "{id} again");
                self.streams.push(Stream {
                    id,
                    proto: if udp { Proto::Udp } else { Proto::Tcp },
                    handles: [Some(stream), None],
                    answered: false,
                    sent: [0; 2],
                    read: [0; 2],
                    finished: [false; 2],
                    ended: [None; 2],
                    blocked: [false; 2],
                    discards: [false; 2],
                    disturbed: may_be_refused,
                });
            }
            Op::Accept { which } => {
                if let Some(i) = self.choose(which, |s| s.handles[1].is_some() && !s.answered) {
                    self.accept(network, i);
                }
            }
            Op::Reject { which } => {
                let Some(i) = self.choose(which, |s| s.handles[1].is_some() && !s.answered) else {
                    return;
                };
                let s = &mut self.streams[i];
                (s.answered, s.disturbed) = (true, true);
                let handle = s.handles[1].take().unwrap();
                network
                    .acceptor
                    .session
                    .reject(handle, Reason::Refused, "no");
            }
            Op::Send {
                side,
                which,
                len,
                copy,
            } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.send(network.session(side), side, i, handle, len, copy);
                }
            }
            Op::Recv { side, which, times } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.recv(network, side, i, handle, times);
                }
            }
            Op::Flood { side, which } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.flood(network, side, i, handle);
                }
            }
            Op::Finish { side, which } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.streams[i].finished[side as usize] = true;
                    network.session(side).finish(handle);
                }
            }
            Op::Reset { side, which } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.streams[i].disturbed = true;
                    network.session(side).reset(handle, Reason::Reset, "reset");
                }
            }
            Op::Release { side, which } => {
                if let Some((i, handle)) = self.held(which, side) {
                    let s = &mut self.streams[i];
                    s.handles[side as usize] = None;
                    s.answered |= side == Side::Acceptor;
                    // Data it sent arrives, but data from the other end may not.
                    s.disturbed = true;
                    network.session(side).release(handle, now);
                }
            }
            Op::Discard { side, which } => {
                if let Some((i, handle)) = self.held(which, side) {
                    let s = &mut self.streams[i];
                    s.discards[side as usize] = true;
                    s.disturbed = true;
                    network.session(side).discard(handle);
                }
            }
            Op::Scarce { side, scarce } => {
                let allowance = match scarce {
                    true => Allowance::Scarce,
                    false => Allowance::Ample,
                };
                network.session(side).set_allowance(allowance);
            }
            Op::Wait { micros } => network.run_for(Duration::from_micros(micros), self),
            Op::Rate { side, kilobytes } => {
                network.end_mut(side).link.config.bytes_per_second = kilobytes << 10;
            }
            Op::Ping { side } => network.session(side).ping(),
            Op::Drain { side } => {
                self.drain(side);
                network.session(side).drain();
            }
            Op::Shutdown { side } => {
                self.drain(side);
                for s in &mut self.streams {
                    s.disturbed = true;
                }
                network.session(side).shutdown();
            }
        }
    }

    /// Streams that the acceptor does not know yet may be refused.
    fn drain(&mut self, side: Side) {
        self.drains[side as usize] = true;
        for s in &mut self.streams {
            s.disturbed |= s.handles[1].is_none() && !s.answered;
        }
    }

    /// Whether the bounds are so small that honest streams reach them.
    pub(super) fn is_small(&self) -> bool {
        self.config.max_streams < 10
    }
}
