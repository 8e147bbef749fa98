//! How a client gets transports, and what is to become of each.

use super::network::{Network, UNBOUND, Unbound};
use super::wire::{MILLI, Notice, Party, SECOND, Transport};

impl Network {
    pub fn dial_later(&mut self, tunnel: usize) {
        let away = match self.tunnels[tunnel].cuts {
            0 => self.rng.below(100 * MILLI),
            _ => self.scenario.away(&mut self.rng),
        };
        self.tunnels[tunnel].next_dial = Some(self.now + away);
    }

    /// The client will ask itself whether the transport is alive.
    pub fn expect_a_hint(&mut self, tunnel: usize) {
        let within = self.rng.pick(&[20 * MILLI, 40 * SECOND]);
        let hint = self.now + self.rng.below(within);
        self.tunnels[tunnel].hint.get_or_insert(hint);
    }

    pub fn connect(&mut self, tunnel: usize) -> bool {
        let now = self.now;
        let client = self.tunnels[tunnel].client;
        let t = &mut self.tunnels[tunnel];
        if self.ends[client].ended.is_some() {
            (t.next_dial, t.hint) = (None, None);
            t.dialling.clear();
            return false;
        }
        if let Some(at) = self.ends[client].transport {
            let unknown = self.transports[at].next_loss(Party::Client).is_none();
            let silent = self.scenario.keepalive.is_none();
            if self.transports[at].is_broken() && unknown && silent {
                self.expect_a_hint(tunnel);
            }
        }
        let t = &mut self.tunnels[tunnel];
        let mut moved = false;
        let due = t.next_dial.is_some_and(|at| at <= now);
        let hinted = t.hint.is_some_and(|at| at <= now);
        if due || hinted {
            moved = true;
            t.hint = t.hint.filter(|_| !hinted);
            t.next_dial = t.next_dial.filter(|_| !due);
            let transport = self.new_transport(tunnel);
            let ready = now + self.rng.below(self.scenario.line.delay + 1_000);
            self.tunnels[tunnel].dialling.push((transport, ready));
        }
        let dialling = &mut self.tunnels[tunnel].dialling;
        if let Some(ready) = dialling.iter().position(|(_, ready)| *ready <= now) {
            let (transport, _) = dialling.remove(ready);
            moved = true;
            self.dialled(tunnel, transport);
        }
        moved
    }

    pub fn dialled(&mut self, tunnel: usize, transport: usize) {
        let client = self.tunnels[tunnel].client;
        if self.tunnels[tunnel].cuts > 0 && self.rng.once_in(6) {
            // The dial failed.
            if self.ends[client].transport.is_none() {
                self.dial_later(tunnel);
            } else {
                self.expect_a_hint(tunnel);
            }
            return;
        }
        if self.ends[client].transport.is_some() {
            // The new one is there; only now the old one is given up.
            self.lose(client);
        }
        self.tunnels[tunnel].next_dial = None;
        let now = self.real();
        let end = &mut self.ends[client];
        end.link.as_mut().unwrap().attach(now);
        end.transport = Some(transport);
        end.follow_link(self.now);
        let until = self.now + UNBOUND;
        let unbound = Unbound {
            transport,
            until,
            forged: false,
        };
        self.tunnels[tunnel].unbound.push(unbound);
    }

    /// A transport with its fate.
    pub fn new_transport(&mut self, tunnel: usize) -> usize {
        let young = self.may_die_young(tunnel);
        let rng = &mut self.rng;
        let notice = self.scenario.notice(rng);
        let mut transport = Transport::new(self.scenario.line, notice);
        let party = rng.pick(&Party::BOTH);
        let calm = self.tunnels[tunnel].cuts == 0 || self.scenario.drip || young;
        match rng.below(10) {
            _ if calm => transport.notice = Notice::Soon,
            0..3 => {}
            // Around OPEN and OPENED.
            3..5 => transport.cut_after(party, rng.below(120)),
            5..7 => transport.cut_after(party, rng.below(3_000)),
            7 => transport.cut_after(party, rng.below(100_000)),
            // A stopped host lets it go later.
            _ => {
                let span = rng.pick(&[100 * MILLI, 3 * SECOND, 40 * SECOND]);
                transport.hold(party, self.now + rng.below(span));
            }
        }
        self.tunnels[tunnel].cuts -= u64::from(!calm);
        self.transports.push(transport);
        self.transports.len() - 1
    }
}
