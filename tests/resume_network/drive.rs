//! What the ends of the tunnels and the relay do.

use std::mem;

use kohakuriver_tunnel::resume::{Accepts, Due, Link};
use kohakuriver_tunnel::session::{Event, Reason};
use kohakuriver_tunnel::wire::Proto;

use super::apps::{Leg, OPEN_EVERY};
use super::end::Read;
use super::network::Network;
use super::wire::Party;

impl Network {
    pub fn write(&mut self, e: usize) -> bool {
        let end = &mut self.ends[e];
        let Some(transport) = end.transport else {
            return false;
        };
        let line = &mut self.transports[transport];
        let moved = end.write(self.now, line, &mut self.rng);
        end.follow_end(self.now);
        if end.ended.is_some() && (line.has_room(end.party) || line.is_broken()) {
            // END is out, or never will be.
            line.close_orderly(end.party, self.now);
            end.transport = None;
            return true;
        }
        moved
    }

    pub fn read(&mut self, e: usize) -> bool {
        let mut moved = false;
        let sent = match self.peer(e) {
            Some(peer) => mem::take(&mut self.ends[peer].sent),
            None => Vec::new(),
        };
        for _ in 0..self.scenario.batch {
            let end = &mut self.ends[e];
            let Some(at) = end.transport else {
                break;
            };
            if !end.can_receive() {
                // Writing fails.
                if self.transports[at].fails(end.party, self.now) {
                    self.lose(e);
                    moved = true;
                }
                break;
            }
            let transport = &mut self.transports[at];
            let Some(message) = transport.read(end.party, self.now) else {
                if transport.is_lost(end.party, self.now) {
                    self.lose(e);
                    moved = true;
                }
                break;
            };
            moved = true;
            if end.ended.is_some() {
                // It only waits until END is out.
                continue;
            }
            let tunnel = end.tunnel;
            let outcome = end.handle(self.now, message, &sent);
            let drips = self.scenario.drip && self.tunnels[tunnel].cuts > 0;
            match outcome {
                Read::Fresh if drips && !self.may_die_young(tunnel) => {
                    self.transports[at].cut(self.now, &mut self.rng);
                }
                Read::Drop => self.lose(e),
                _ => {}
            }
            if self.tunnels[tunnel].server == Some(e) {
                self.tunnels[tunnel].confirmed = true;
            }
        }
        if let Some(peer) = self.peer(e) {
            self.ends[peer].sent = sent;
        }
        moved
    }

    /// The transport of an end is lost, or given up.
    pub fn lose(&mut self, e: usize) {
        let now = self.real();
        if !self.drop_transport(e) {
            return;
        }
        let end = &mut self.ends[e];
        let Some(link) = &mut end.link else {
            panic!("a peer without resumption lost its transport");
        };
        if end.ended.is_some() {
            return;
        }
        link.detach(now);
        end.follow_end(self.now);
        end.follow_link(self.now);
        if end.party == Party::Client {
            let tunnel = end.tunnel;
            self.dial_later(tunnel);
        }
    }

    /// What was read is all that will have come on it.
    pub fn drop_transport(&mut self, e: usize) -> bool {
        let end = &mut self.ends[e];
        let Some(transport) = end.transport.take() else {
            return false;
        };
        let replays = end.is_attached() && end.link.as_ref().is_some_and(is_replaying);
        self.tunnels[end.tunnel].cut_in_replay += u64::from(replays);
        self.transports[transport].close(end.party, self.now, &mut self.rng);
        true
    }

    pub fn timeout(&mut self, e: usize) -> bool {
        let now = self.real();
        let end = &mut self.ends[e];
        let mut moved = end.timeout(self.now);
        let Some(link) = &mut end.link else {
            return moved;
        };
        if link.poll_timeout().is_some_and(|due| due <= now) {
            moved = true;
            if let Some(Due::NotOpened) = link.handle_timeout(now) {
                self.lose(e);
            }
            self.ends[e].follow_end(self.now);
            self.ends[e].follow_link(self.now);
            let link = self.ends[e].link.as_ref().unwrap();
            let again = link.poll_timeout().filter(|due| *due <= now);
            assert_eq!(again, None, "still due after handle_timeout");
        }
        moved
    }

    pub fn tell(&mut self, e: usize) -> bool {
        let events = self.ends[e].poll_events();
        let told = !events.is_empty();
        for event in events {
            let at = self.ends[e].at(self.now);
            let end = &mut self.ends[e];
            match event {
                // Silence is a loss.
                Event::PeerDead => self.lose(e),
                Event::Incoming {
                    stream,
                    proto,
                    port,
                } if end.app.is_none() => {
                    let back = self
                        .back
                        .and_then(|back| self.tunnels[back].server)
                        .unwrap();
                    let back_at = self.ends[back].at(self.now);
                    let onwards = &mut self.ends[back].session;
                    let opened = match proto {
                        Proto::Tcp => onwards.open_tcp(port, back_at),
                        Proto::Udp => onwards.open_udp(port, back_at),
                    };
                    let session = &mut self.ends[e].session;
                    match opened.map(|to| (to, session.accept(stream, at))) {
                        Ok((to, Ok(()))) => self.relay.add((e, stream), (back, to), proto),
                        Ok((to, Err(_))) => {
                            session.release(stream, at);
                            self.ends[back].session.release(to, back_at);
                        }
                        Err(error) => session.reject(stream, Reason::Gone, &error.to_string()),
                    }
                }
                event => {
                    if let Some(app) = &mut end.app {
                        app.on_event(&mut end.session, event, at);
                    }
                }
            }
        }
        told
    }

    pub fn drive_app(&mut self, e: usize) -> bool {
        let at = self.ends[e].at(self.now);
        let tunnel = self.ends[e].tunnel;
        let mut moved = false;
        let due = self.tunnels[tunnel].next_open <= self.now;
        if due && self.opens(tunnel) == Some(e) && self.may_open(tunnel) {
            let end = &mut self.ends[e];
            end.app.as_mut().unwrap().open_next(&mut end.session, at);
            self.tunnels[tunnel].next_open = self.now + 1 + self.rng.below(OPEN_EVERY);
            moved = true;
        }
        let end = &mut self.ends[e];
        match &mut end.app {
            Some(app) => app.drive(&mut end.session, at, self.now) || moved,
            None => moved,
        }
    }

    pub fn drive_relay(&mut self) -> bool {
        let now = self.now;
        let mut legs: Vec<Leg<'_>> = Vec::new();
        for (n, end) in self.ends.iter_mut().enumerate() {
            let at = end.at(now);
            legs.push(Leg {
                end: n,
                session: &mut end.session,
                at,
            });
        }
        self.relay.drive(&mut legs)
    }

    /// The end whose application has streams left to open.
    pub fn opens(&self, tunnel: usize) -> Option<usize> {
        let t = &self.tunnels[tunnel];
        let end = match t.opener {
            Party::Client => Some(t.client),
            Party::Server => t.server.filter(|server| self.ends[*server].registered),
        }?;
        let app = self.ends[end].app.as_ref()?;
        (app.has_more_to_open() && self.ends[end].ended.is_none()).then_some(end)
    }

    /// Clients of a relay begin when the tunnel behind it is up.
    pub fn may_open(&self, tunnel: usize) -> bool {
        match self.back {
            Some(back) if back != tunnel => {
                let client = self.ends[self.tunnels[back].client].link.as_ref();
                client.is_none_or(|link| link.identity().is_some())
            }
            _ => true,
        }
    }

    pub fn is_up(&self, tunnel: usize) -> bool {
        let t = &self.tunnels[tunnel];
        t.server.is_some() && self.ends[t.client].is_attached()
    }
}

fn is_replaying(link: &Link) -> bool {
    link.accepts() == Accepts::Nothing
}
