//! How a server finds the tunnel that a transport is for.

use bytes::Bytes;
use kohakuriver_tunnel::resume::{
    EndReason, Identity, Link, Message, Open, Refusal, Secret, Takeover,
};

use super::end::End;
use super::network::{Network, Pending};
use super::wire::{MILLI, Party};

impl Network {
    pub fn keep(&mut self, tunnel: usize) -> bool {
        let mut moved = false;
        let mut n = 0;
        while n < self.tunnels[tunnel].unbound.len() {
            let unbound = &self.tunnels[tunnel].unbound[n];
            let (at, until, forged) = (unbound.transport, unbound.until, unbound.forged);
            let transport = &mut self.transports[at];
            match transport.read(Party::Server, self.now) {
                Some(message) => {
                    self.tunnels[tunnel].unbound.remove(n);
                    self.first_message(tunnel, at, &message, forged);
                    moved = true;
                }
                None if until <= self.now || transport.is_lost(Party::Server, self.now) => {
                    transport.close(Party::Server, self.now, &mut self.rng);
                    self.tunnels[tunnel].unbound.remove(n);
                    moved = true;
                }
                None => n += 1,
            }
        }
        let pending = &mut self.tunnels[tunnel].pending;
        if let Some(due) = pending.iter().position(|pending| pending.due <= self.now) {
            let Pending {
                transport, open, ..
            } = pending.remove(due);
            self.take_over(tunnel, transport, &open);
            moved = true;
        }
        moved | self.register(tunnel)
    }

    /// A tunnel whose client is there takes the place of those that came before it, as an agent's.
    fn register(&mut self, tunnel: usize) -> bool {
        let is_new = |end: &End| {
            let link = end.link.as_ref().filter(|_| end.party == Party::Server);
            end.tunnel == tunnel && !end.registered && link.is_some_and(Link::is_confirmed)
        };
        let Some(new) = self.ends.iter().position(is_new) else {
            return false;
        };
        let identity = |end: usize| self.ends[end].link.as_ref().and_then(Link::identity);
        let client = self.tunnels[tunnel].client;
        assert_eq!(identity(new), identity(client), "a tunnel without a client");
        self.ends[new].registered = true;
        for older in 0..new {
            let end = &self.ends[older];
            if end.tunnel == tunnel && end.party == Party::Server && end.ended.is_none() {
                self.lose(older);
                self.end_here(older, EndReason::Replaced);
            }
        }
        true
    }

    pub fn first_message(
        &mut self,
        tunnel: usize,
        transport: usize,
        message: &Bytes,
        forged: bool,
    ) {
        let Ok(Message::Open(open)) = Message::decode(message) else {
            assert!(forged, "a client's first message is OPEN");
            self.transports[transport].close(Party::Server, self.now, &mut self.rng);
            return;
        };
        if open.tunnel == 0 {
            assert!(!forged);
            return self.new_tunnel(tunnel, transport, &open);
        }
        let t = &self.tunnels[tunnel];
        let server = t.server.filter(|server| {
            self.ends[*server].ended.is_none() && open.tunnel == t.identity.tunnel
        });
        let Some(server) = server else {
            return self.refuse(transport, Refusal::Unknown.to_message());
        };
        let before = self.fingerprint(server);
        let link = self.ends[server].link.as_ref().unwrap();
        match link.check(&open) {
            Ok(()) => {
                assert!(!forged, "a forged OPEN is honoured: {open:?}");
                let due = self.now + self.rng.pick(&[0, 1, 20 * MILLI]);
                self.tunnels[tunnel].pending.push(Pending {
                    transport,
                    open,
                    due,
                });
            }
            Err(refusal) => {
                assert_eq!(
                    before,
                    self.fingerprint(server),
                    "a refusal changed something"
                );
                self.tunnels[tunnel].refused += 1;
                self.refuse(transport, refusal.to_message());
            }
        }
    }

    pub fn refuse(&mut self, transport: usize, message: Bytes) {
        let transport = &mut self.transports[transport];
        transport.write(Party::Server, self.now, message, &mut self.rng);
        transport.close_orderly(Party::Server, self.now);
    }

    pub fn new_secret(&mut self, tunnel: usize) -> Secret {
        let words = [self.rng.next().to_be_bytes(), self.rng.next().to_be_bytes()];
        let secret = Secret::new(words.concat().try_into().unwrap());
        self.tunnels[tunnel].secrets.push(secret);
        secret
    }

    pub fn new_tunnel(&mut self, tunnel: usize, transport: usize, open: &Open) {
        let late = open.attempt < self.tunnels[tunnel].newest;
        if late {
            // Of a client that has long asked again. Nobody will come back for this tunnel.
            let tunnel_of_nobody = self.transports.len() as u64 + 1_000_000;
            let identity = Identity {
                instance: 77,
                tunnel: tunnel_of_nobody,
            };
            let secret = Secret::new([7; 16]);
            let config = self.scenario.link(Party::Server);
            let link = Link::server(config, identity, open, secret, self.real());
            let ghost = self.add_end(tunnel, Party::Server, Some(link));
            self.ends[ghost].orphan = true;
            self.ends[ghost].transport = Some(transport);
            return;
        }
        self.tunnels[tunnel].newest = open.attempt;
        let secret = self.new_secret(tunnel);
        self.tunnels[tunnel].confirmed = false;
        if let Some(older) = self.tunnels[tunnel].server {
            // The answer to the first OPEN was lost.
            assert_eq!(self.ends[self.tunnels[tunnel].client].delivered, 0);
            self.tunnels[tunnel].identity.tunnel += 1_000;
            self.ends[older].orphan = true;
        }
        let identity = self.tunnels[tunnel].identity;
        let config = self.scenario.link(Party::Server);
        let link = Link::server(config, identity, open, secret, self.real());
        let server = self.add_end(tunnel, Party::Server, Some(link));
        self.ends[server].transport = Some(transport);
        self.tunnels[tunnel].server = Some(server);
    }

    pub fn take_over(&mut self, tunnel: usize, transport: usize, open: &Open) {
        let server = self.tunnels[tunnel].server.unwrap();
        if self.ends[server].ended.is_some() {
            return self.refuse(transport, Refusal::Unknown.to_message());
        }
        // Competing ones are looked at again: only the old transport of the winner is dropped.
        if let Err(refusal) = self.ends[server].link.as_ref().unwrap().check(open) {
            self.tunnels[tunnel].refused += 1;
            return self.refuse(transport, refusal.to_message());
        }
        self.drop_transport(server);
        let secret = self.new_secret(tunnel);
        self.tunnels[tunnel].seen.push(*open);
        let now = self.real();
        let end = &mut self.ends[server];
        let taken = end.link.as_mut().unwrap().takeover(open, secret, now);
        // If it has ended, END is for the new transport.
        end.transport = Some(transport);
        match taken {
            Ok(()) => {
                end.resume(self.now);
                self.tunnels[tunnel].confirmed = false;
                self.tunnels[tunnel].takeovers += 1;
            }
            Err(Takeover::Ended(_)) => end.follow_end(self.now),
            Err(error) => panic!("{error} after check"),
        }
    }

    /// This end ends the tunnel in good order.
    pub fn end_here(&mut self, e: usize, reason: EndReason) {
        let end = &mut self.ends[e];
        end.link.as_mut().unwrap().end(reason, "the end");
        end.follow_end(self.now);
    }

    pub fn fingerprint(&self, end: usize) -> String {
        let link = self.ends[end].link.as_ref().unwrap();
        let timeout = link.poll_timeout();
        format!("{:?} {:?} {timeout:?}", link.state(), link.stats())
    }
}
