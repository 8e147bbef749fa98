//! The virtual network: tunnels, their ends, and transports that come and go.

use kohakuriver_tunnel::resume::{Identity, Link, Open, Secret};
use kohakuriver_tunnel::session::{Instant, Role, Session, Version};

use super::apps::{App, Plan, Relay};
use super::end::End;
use super::rng::Rng;
use super::scenario::{Scenario, Shape};
use super::wire::{Notice, Party, SECOND, Time, Transport};

/// Time in which a transport without a tunnel has to send OPEN.
pub const UNBOUND: Time = 10 * SECOND;
/// More steps than any run needs that makes progress.
const MOST_STEPS: u64 = 500_000;

pub struct Network {
    pub now: Time,
    pub rng: Rng,
    pub scenario: Scenario,
    pub transports: Vec<Transport>,
    pub ends: Vec<End>,
    pub tunnels: Vec<Tunnel>,
    pub relay: Relay,
    /// The tunnel on which the relay opens what comes in on the others.
    pub back: Option<usize>,
    pub steps: u64,
    /// How often something was due and time did not pass.
    pub waiting: u64,
}

pub struct Tunnel {
    pub resumable: bool,
    pub client: usize,
    pub server: Option<usize>,
    pub opener: Party,
    pub version: Version,
    /// The application's streams at either side, unless the relay is there.
    pub plans: [Option<Vec<(u16, Plan)>>; 2],
    pub next_open: Time,
    // The client's connector.
    pub next_dial: Option<Time>,
    pub dialling: Vec<(usize, Time)>,
    /// When the client asks whether its transport is alive and dials beside it.
    pub hint: Option<Time>,
    // The server's keeper.
    pub unbound: Vec<Unbound>,
    pub pending: Vec<Pending>,
    pub identity: Identity,
    /// Secrets in the order in which they were given out.
    pub secrets: Vec<Secret>,
    /// OPENs that the server has seen.
    pub seen: Vec<Open>,
    /// A message has come on the transport of the last secret.
    pub confirmed: bool,
    /// The attempt of the last OPEN for a new tunnel.
    pub newest: u32,
    // Chaos.
    pub cuts: u64,
    pub next_chaos: Option<Time>,
    pub junk: u64,
    pub takeovers: u64,
    /// Transports that were lost while messages were sent again.
    pub cut_in_replay: u64,
    pub refused: u64,
}

pub struct Unbound {
    pub transport: usize,
    pub until: Time,
    /// Sent by somebody without the secret.
    pub forged: bool,
}

/// An OPEN on its way to the task that owns the tunnel.
pub struct Pending {
    pub transport: usize,
    pub open: Open,
    pub due: Time,
}

impl Network {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let scenario = Scenario::choose(&mut rng);
        Self::of(scenario, rng)
    }

    pub fn of(scenario: Scenario, rng: Rng) -> Self {
        let mut network = Self {
            now: 1_000,
            rng,
            scenario: scenario.clone(),
            transports: Vec::new(),
            ends: Vec::new(),
            tunnels: Vec::new(),
            relay: Relay::default(),
            back: None,
            steps: 0,
            waiting: 0,
        };
        match scenario.shape {
            Shape::Direct => {
                let plans = network.plans(1);
                network.add(
                    true,
                    Version::V2,
                    Party::Client,
                    [Some(plans.clone()), Some(plans)],
                );
            }
            Shape::Reversed => {
                let plans = network.plans(1);
                network.add(
                    true,
                    Version::V2,
                    Party::Server,
                    [Some(plans.clone()), Some(plans)],
                );
            }
            Shape::Relay { front, back, plain } => {
                let plans = network.plans(1);
                network.add(front, plain, Party::Client, [Some(plans.clone()), None]);
                network.add(back, plain, Party::Server, [Some(plans), None]);
                network.back = Some(1);
            }
            Shape::Bystander { back, plain } => {
                let (mut plans, more) = (network.plans(1), network.modest_plans(101));
                network.add(
                    true,
                    Version::V2,
                    Party::Client,
                    [Some(plans.clone()), None],
                );
                network.add(false, plain, Party::Client, [Some(more.clone()), None]);
                plans.extend(more);
                network.add(back, plain, Party::Server, [Some(plans), None]);
                network.back = Some(2);
            }
        }
        network
    }

    fn plans(&mut self, first_port: u16) -> Vec<(u16, Plan)> {
        self.plans_up_to(self.scenario.largest, first_port)
    }

    /// For a bystander, which holds less than those that cause the pressure.
    fn modest_plans(&mut self, first_port: u16) -> Vec<(u16, Plan)> {
        let largest = match self.scenario.pressed {
            true => 3_000,
            false => self.scenario.largest,
        };
        self.plans_up_to(largest, first_port)
    }

    fn plans_up_to(&mut self, largest: u64, first_port: u16) -> Vec<(u16, Plan)> {
        let ports = first_port..first_port + u16::try_from(self.scenario.streams).unwrap();
        let plan = |port| (port, self.scenario.plan(largest, &mut self.rng));
        ports.map(plan).collect()
    }

    /// A tunnel between a client and a server. `plans`: the applications there.
    fn add(
        &mut self,
        resumable: bool,
        plain: Version,
        opener: Party,
        plans: [Option<Vec<(u16, Plan)>>; 2],
    ) {
        let at = self.tunnels.len();
        let version = if resumable { Version::V2 } else { plain };
        let identity = Identity {
            instance: 77,
            tunnel: 1 + at as u64,
        };
        self.tunnels.push(Tunnel {
            resumable,
            client: self.ends.len(),
            server: None,
            opener,
            version,
            plans,
            next_open: 0,
            next_dial: Some(0).filter(|_| resumable),
            dialling: Vec::new(),
            hint: None,
            unbound: Vec::new(),
            pending: Vec::new(),
            identity,
            secrets: Vec::new(),
            seen: Vec::new(),
            confirmed: false,
            newest: 0,
            cuts: if resumable { self.scenario.cuts } else { 0 },
            next_chaos: Some(self.now).filter(|_| resumable),
            junk: match (self.scenario.junk, self.scenario.requests) {
                (_, true) => 300,
                (true, _) => 20,
                _ => 0,
            },
            takeovers: 0,
            cut_in_replay: 0,
            refused: 0,
        });
        let config = self.scenario.link(Party::Client);
        let link = resumable.then(|| Link::client(config));
        self.add_end(at, Party::Client, link);
        if !resumable {
            let line = self.scenario.line;
            self.transports.push(Transport::new(line, Notice::Soon));
            let transport = self.transports.len() - 1;
            let server = self.add_end(at, Party::Server, None);
            self.tunnels[at].server = Some(server);
            for end in [self.tunnels[at].client, server] {
                self.ends[end].transport = Some(transport);
            }
        }
    }

    pub fn add_end(&mut self, tunnel: usize, party: Party, link: Option<Link>) -> usize {
        let t = &self.tunnels[tunnel];
        let role = match party == t.opener {
            true => Role::Opener,
            false => Role::Acceptor,
        };
        let mut config = self.scenario.session(t.resumable);
        if self.scenario.pressed && party == Party::Server {
            // At the relay: what a client does not take soon waits in the tunnel to the agent.
            config = match role {
                Role::Acceptor => config.with_stream_send_buffer(10_000),
                _ => config.with_receive_budget(100_000),
            };
        }
        let at = Instant::from_micros(self.now);
        let mut session = Session::new(role, t.version, config, at);
        session.set_outlives_transport(link.is_some());
        let mut end = End::new(tunnel, party, session, link);
        end.app = t.plans[party as usize].clone().map(|plans| {
            let side = usize::from(role == Role::Acceptor);
            App::new(side, plans, self.scenario.piece * 2)
        });
        end.follow_link(self.now);
        self.ends.push(end);
        self.ends.len() - 1
    }

    pub fn real(&self) -> Instant {
        Instant::from_micros(self.now)
    }

    /// The other end of the same tunnel.
    pub fn peer(&self, end: usize) -> Option<usize> {
        let end = &self.ends[end];
        let tunnel = &self.tunnels[end.tunnel];
        match end.party {
            Party::Client => tunnel.server,
            Party::Server => Some(tunnel.client),
        }
    }

    /// Runs until nothing is due before `until`.
    pub fn run_until(&mut self, until: Time) {
        self.settle();
        while let Some(at) = self.next_moment().filter(|at| *at <= until) {
            self.advance(at);
        }
        self.now = self.now.max(until);
    }

    /// Runs what is due at that time, now if it has passed.
    pub fn advance(&mut self, at: Time) {
        assert!(
            at > self.now || self.waiting < 1_000,
            "nobody does what is due"
        );
        self.waiting = if at > self.now { 0 } else { self.waiting + 1 };
        self.now = self.now.max(at);
        self.settle();
    }

    /// Runs everything that is due now.
    pub fn settle(&mut self) {
        for turn in 0_u32.. {
            self.steps += 1;
            assert!(
                self.steps < MOST_STEPS,
                "it never ends: {}",
                self.describe()
            );
            assert!(turn < 100_000, "time stands still");
            let mut moved = false;
            for tunnel in 0..self.tunnels.len() {
                moved |= self.connect(tunnel);
                moved |= self.keep(tunnel);
            }
            let start = usize::try_from(self.rng.below(self.ends.len() as u64)).unwrap();
            for n in 0..self.ends.len() {
                let end = (start + n) % self.ends.len();
                moved |= self.write(end);
                moved |= self.ends[end].deaf_until <= self.now && self.read(end);
                moved |= self.timeout(end);
                moved |= self.tell(end);
                moved |= self.drive_app(end);
            }
            moved |= self.drive_relay();
            for tunnel in 0..self.tunnels.len() {
                moved |= self.chaos(tunnel);
            }
            for end in &mut self.ends {
                end.tell_whether_idle();
            }
            if !moved {
                self.check();
                return;
            }
        }
    }

    /// The next time at which something is due.
    pub fn next_moment(&self) -> Option<Time> {
        let mut next: Option<Time> = None;
        let mut at = |time: Option<Time>| {
            if let Some(time) = time {
                next = Some(next.map_or(time, |next| next.min(time)));
            }
        };
        for end in &self.ends {
            at(end.next_timeout());
            if let Some(transport) = end.transport {
                let transport = &self.transports[transport];
                let arrival = transport.next_arrival(end.party);
                let arrival = arrival.filter(|_| end.can_receive());
                // What arrives before is read first.
                let lost = transport.next_loss(end.party);
                let lost = lost.map(|lost| arrival.map_or(lost, |arrival| arrival.max(lost)));
                for due in [arrival, lost].into_iter().flatten() {
                    at(Some(due.max(end.deaf_until)));
                }
            }
            at(end
                .app
                .as_ref()
                .and_then(|app| app.next_stall_end(self.now)));
        }
        for (n, tunnel) in self.tunnels.iter().enumerate() {
            at(tunnel.next_dial);
            at(tunnel.hint);
            at(tunnel.next_chaos);
            at(tunnel.dialling.iter().map(|(_, ready)| *ready).min());
            at(tunnel.pending.iter().map(|pending| pending.due).min());
            for unbound in &tunnel.unbound {
                let transport = &self.transports[unbound.transport];
                at(transport.next_arrival(Party::Server));
                at(transport.next_loss(Party::Server));
                at(Some(unbound.until));
            }
            if self.opens(n).is_some() && self.may_open(n) {
                at(Some(tunnel.next_open.max(self.now + 1)));
            }
        }
        next
    }

    pub fn check(&mut self) {
        // One message beyond, and control, which passes a full ring.
        let most = self.scenario.resume.ring_max + self.scenario.piece + 100_000;
        for e in 0..self.ends.len() {
            let peer = self.peer(e).filter(|_| !self.ends[e].orphan);
            match peer {
                Some(peer) if peer > e => {
                    let (left, right) = self.ends.split_at_mut(peer);
                    left[e].check(Some(&right[0]), most);
                }
                Some(peer) => {
                    let (left, right) = self.ends.split_at_mut(e);
                    right[0].check(Some(&left[peer]), most);
                }
                None => self.ends[e].check(None, most),
            }
        }
    }
}
