//! Cuts, stalled readers, and somebody who has not got the secret.

use bytes::Bytes;
use kohakuriver_tunnel::resume::{EndReason, Message, Open, Secret};

use super::network::{Network, UNBOUND, Unbound};
use super::rng::Rng;
use super::wire::{Line, MILLI, Notice, Party, SECOND, Transport};

impl Network {
    /// An OPEN that must change nothing.
    pub fn attack(&mut self, tunnel: usize) {
        let Some(message) = self.forgery(tunnel) else {
            return;
        };
        let line = Line {
            delay: 0,
            capacity: 1 << 20,
            ..self.scenario.line
        };
        let mut transport = Transport::new(line, Notice::Soon);
        transport.write(Party::Client, self.now, message, &mut self.rng);
        self.transports.push(transport);
        let transport = self.transports.len() - 1;
        let until = self.now + UNBOUND;
        self.tunnels[tunnel].unbound.push(Unbound {
            transport,
            until,
            forged: true,
        });
    }

    pub fn forgery(&mut self, tunnel: usize) -> Option<Bytes> {
        let t = &self.tunnels[tunnel];
        let last = t.seen.last().copied();
        let wild = |rng: &mut Rng| {
            let words = [rng.next().to_be_bytes(), rng.next().to_be_bytes()];
            Secret::new(words.concat().try_into().unwrap())
        };
        // The last one is valid, and until the client shows that it has it, the one it came with.
        let current = t.secrets.len().saturating_sub(1);
        let previous = last.filter(|_| !t.confirmed).map(|open| open.secret);
        let old = t.secrets[..current].iter().copied();
        let old: Vec<_> = old.filter(|secret| Some(*secret) != previous).collect();
        let (identity, seen) = (t.identity, t.seen.clone());
        let rng = &mut self.rng;
        let attempt = rng.pick(&[0, 1, 2, 1_000, u32::MAX]);
        let received = rng.pick(&[0, 1, 100, u64::MAX]);
        let open = match rng.below(5) {
            // Replayed as it was.
            0 => rng.pick(
                &seen
                    .iter()
                    .copied()
                    .map(Some)
                    .chain([None])
                    .collect::<Vec<_>>(),
            )?,
            // With a secret that no longer holds.
            1 if !old.is_empty() => {
                let secret = rng.pick(&old);
                let tunnel = identity.tunnel;
                Open {
                    tunnel,
                    secret,
                    attempt,
                    received,
                    keep: 1,
                    ring: 1,
                }
            }
            2 => Open {
                secret: wild(rng),
                attempt,
                ..last?
            },
            3 => {
                // One bit is wrong.
                let mut bytes = last?.secret.to_bytes();
                bytes[usize::try_from(rng.below(16)).unwrap()] ^= 1 << rng.below(8);
                Open {
                    secret: Secret::new(bytes),
                    attempt,
                    received,
                    ..last?
                }
            }
            _ => {
                let kind = rng.pick(&[0x01, 0x03, 0x0a, 0x0b, 0x0c, 0x0d, 0xff]);
                let mut bytes = vec![0; usize::try_from(rng.below(60)).unwrap()];
                for byte in &mut bytes {
                    *byte = rng.next() as u8;
                }
                if let Some(first) = bytes.first_mut() {
                    *first = kind;
                }
                return Some(bytes.into());
            }
        };
        Some(Message::Open(open).to_bytes())
    }

    // Chaos.

    pub fn chaos(&mut self, tunnel: usize) -> bool {
        let now = self.now;
        if self.tunnels[tunnel].next_chaos.is_none_or(|at| at > now) {
            return false;
        }
        let span = self.rng.pick(&[MILLI, 20 * MILLI, 300 * MILLI, 5 * SECOND]);
        let next = now + 1 + self.rng.below(span);
        self.tunnels[tunnel].next_chaos = Some(next).filter(|_| self.tunnels[tunnel].cuts > 0);
        let (client, server) = (self.tunnels[tunnel].client, self.tunnels[tunnel].server);
        let young = self.may_die_young(tunnel);
        let calm = self.scenario.drip || self.tunnels[tunnel].cuts == 0 || young;
        match self.rng.below(10) {
            0..4 if !calm => self.cut(tunnel),
            4 if !calm => self.tunnels[tunnel].hint = Some(now),
            5 | 6 => self.attack(tunnel),
            7 | 8 if self.rng.once_in(3) => {
                let end = self.rng.pick(&[Some(client), server]).unwrap_or(client);
                self.ends[end].deaf_until = now + self.rng.below(500 * MILLI);
            }
            8 if self.scenario.stalls => {
                let most = self.rng.pick(&[100 * MILLI, 10 * SECOND, 100 * SECOND]);
                for end in [Some(client), server].into_iter().flatten() {
                    if let Some(app) = &mut self.ends[end].app {
                        app.stall(now, most, &mut self.rng);
                    }
                }
            }
            9 if self.rng.once_in(2) => {
                let end = self.rng.pick(&[Some(client), server]).unwrap_or(client);
                let limit = self.rng.pick(&[0, 1_000, 100_000, usize::MAX]);
                self.ends[end].link.as_mut().unwrap().set_ring_limit(limit);
            }
            9 if self.scenario.ends && self.rng.once_in(2) => {
                let end = if self.rng.once_in(2) {
                    Some(client)
                } else {
                    server
                };
                if let Some(end) = end {
                    self.end_here(end, EndReason::Gone);
                }
            }
            _ if self.scenario.requests && self.tunnels[tunnel].junk >= 50 => {
                self.tunnels[tunnel].junk -= 50;
                let ping = Bytes::from_static(&[6, 0, 0, 0, 0, 0, 0, 0]);
                let by_server = self.scenario.asker() == Some(Party::Server);
                if let Some(asker) = if by_server { server } else { Some(client) } {
                    self.ends[asker].junk.extend(vec![ping; 50]);
                }
            }
            _ if self.tunnels[tunnel].junk > 0 => {
                self.tunnels[tunnel].junk -= 1;
                let end = self.rng.pick(&[Some(client), server]).unwrap_or(client);
                let junk = junk(&mut self.rng);
                self.ends[end].junk.push(junk);
            }
            _ => {}
        }
        true
    }

    /// Cuts the client's transport at a random position.
    pub fn cut(&mut self, tunnel: usize) {
        let client = self.tunnels[tunnel].client;
        let Some(transport) = self.ends[client].transport else {
            return;
        };
        self.tunnels[tunnel].cuts -= 1;
        self.transports[transport].cut(self.now, &mut self.rng);
    }

    /// A client that has sent messages and never got an answer cannot go on.
    pub fn may_die_young(&self, tunnel: usize) -> bool {
        let link = self.ends[self.tunnels[tunnel].client].link.as_ref();
        !self.scenario.young && link.is_some_and(|link| link.identity().is_none())
    }
}

/// A message that no session sends: unknown, malformed, or for a stream that is not there.
fn junk(rng: &mut Rng) -> Bytes {
    let mut junk = vec![0; usize::try_from(rng.below(20)).unwrap()];
    for byte in &mut junk {
        *byte = rng.next() as u8;
    }
    if let Some(first) = junk.first_mut() {
        *first = rng.pick(&[0x00, 0x02, 0x03, 0x04, 0x07, 0x08, 0x0e, 0xff]);
    }
    if let Some(id) = junk.get_mut(2) {
        *id |= 0x80;
    }
    junk.into()
}
