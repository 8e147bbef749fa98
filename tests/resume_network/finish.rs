//! The end of a run, and what must hold then.

use kohakuriver_tunnel::resume::{EndReason, State};

use super::network::Network;
use super::scenario::Shape;
use super::wire::{Party, SECOND, Time};

const HOUR: Time = 3_600 * SECOND;

/// What happened in all runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub runs: u64,
    pub transports: u64,
    pub takeovers: u64,
    pub cut_in_replay: u64,
    pub refused: u64,
    pub replayed: u64,
    pub messages: u64,
    pub datagrams: u64,
    pub streams: u64,
    pub resets: u64,
    /// Streams of detached clients whose places a bystander needed.
    pub squeezed: u64,
    pub full_rings: u64,
    pub expired: u64,
    pub died_young: u64,
    pub ended: u64,
    pub orphans: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.transports += other.transports;
        self.takeovers += other.takeovers;
        self.cut_in_replay += other.cut_in_replay;
        self.refused += other.refused;
        self.replayed += other.replayed;
        self.messages += other.messages;
        self.datagrams += other.datagrams;
        self.streams += other.streams;
        self.resets += other.resets;
        self.squeezed += other.squeezed;
        self.full_rings += other.full_rings;
        self.expired += other.expired;
        self.died_young += other.died_young;
        self.ended += other.ended;
        self.orphans += other.orphans;
    }
}

impl Totals {
    /// Fails if something did not happen although the runs were enough for it.
    pub fn check(&self) {
        let usual = [
            self.takeovers,
            self.cut_in_replay,
            self.refused,
            self.replayed,
            self.datagrams,
            self.resets,
            self.full_rings,
            self.expired,
        ];
        let rare = [self.squeezed, self.died_young, self.ended, self.orphans];
        assert!(self.runs < 100 || !usual.contains(&0), "{self:?}");
        assert!(self.runs < 2_000 || !rare.contains(&0), "{self:?}");
    }
}

impl Network {
    pub fn run_to_the_end(&mut self, totals: &mut Totals) {
        self.run_while(|network| !network.is_done());
        self.calm_down();
        self.run_until(self.now + 200 * SECOND);
        let dead: Vec<_> = (0..self.tunnels.len()).map(|t| self.has_ended(t)).collect();
        self.check_excuses(&dead);
        if dead.contains(&true) {
            // The other ends learn it by the time at which they would give up anyway.
            let keep = u64::try_from(self.scenario.resume.keep.as_micros()).unwrap();
            self.run_until(self.now + 2 * keep + 200 * SECOND);
        }
        self.check_streams(&dead);
        self.check_silence();
        self.end_all(&dead);
        self.check_nothing_is_left();
        self.count(totals);
    }

    fn run_while(&mut self, more: impl Fn(&Self) -> bool) {
        let most = self.now + 300 * HOUR;
        self.settle();
        while more(self) {
            let Some(next) = self.next_moment() else {
                panic!("nothing is due, and streams wait: {}", self.describe());
            };
            self.now = self.now.max(next);
            assert!(
                self.now < most,
                "streams wait for too long: {}",
                self.describe()
            );
            self.settle();
        }
    }

    /// Where everything is, for a run that fails.
    pub fn describe(&self) -> String {
        let mut text = format!("{} us, {:?}\n", self.now, self.scenario);
        for t in &self.tunnels {
            text += &format!("cuts {} dial {:?} hint {:?}\n", t.cuts, t.next_dial, t.hint);
        }
        for e in &self.ends {
            let link = e.link.as_ref().map(|link| (link.state(), link.stats()));
            let halves = e.app.as_ref().map(|app| &app.halves);
            let (party, tunnel, transport) = (e.party, e.tunnel, e.transport);
            let reads = e.can_receive();
            text += &format!("{party:?} {tunnel} on {transport:?}, reads {reads}: ");
            text += &format!("{link:?} {halves:?}\n");
        }
        text
    }

    fn is_done(&self) -> bool {
        let calm = |t: &super::network::Tunnel| t.cuts == 0 || self.scenario.drip;
        let dead = (0..self.tunnels.len()).any(|t| self.has_ended(t));
        let over = |e: &super::end::End| e.app.as_ref().is_none_or(|app| app.all_over());
        dead || self.tunnels.iter().all(calm)
            && self.ends.iter().filter(|e| !e.orphan).all(over)
            && (0..self.tunnels.len()).all(|t| self.is_up(t))
    }

    fn has_ended(&self, tunnel: usize) -> bool {
        let t = &self.tunnels[tunnel];
        let ends = [Some(t.client), t.server];
        ends.into_iter()
            .flatten()
            .any(|end| self.ends[end].ended.is_some())
    }

    /// A tunnel ends only for a reason that the scenario gives.
    fn check_excuses(&self, dead: &[bool]) {
        for (tunnel, _) in dead.iter().enumerate().filter(|(_, dead)| **dead) {
            for end in self.ends.iter().filter(|end| end.tunnel == tunnel) {
                let Some(ended) = &end.ended else {
                    continue;
                };
                let young = self.scenario.young;
                let fits = match ended.reason {
                    EndReason::Expired => {
                        end.orphan || young || self.scenario.expires || self.scenario.ends
                    }
                    EndReason::Gone => self.scenario.ends,
                    EndReason::Replaced => end.orphan,
                    EndReason::Unknown => young || self.scenario.expires || self.scenario.ends,
                    _ => false,
                };
                assert!(fits, "the tunnel ended: {ended}");
            }
        }
    }

    fn calm_down(&mut self) {
        for tunnel in &mut self.tunnels {
            tunnel.cuts = 0;
            tunnel.next_chaos = None;
        }
        for transport in &mut self.transports {
            transport.spare();
        }
    }

    /// Every stream has ended at both sides, in order unless a tunnel below it has ended.
    fn check_streams(&self, dead: &[bool]) {
        for end in &self.ends {
            let Some(app) = &end.app else {
                continue;
            };
            for half in &app.halves {
                assert!(half.outcome.is_some(), "port {} has no end", half.port);
                let excused = match self.scenario.shape {
                    Shape::Bystander { .. } if half.port > 100 => dead[2],
                    Shape::Bystander { .. } => dead[0] || dead[2] || self.scenario.pressed,
                    _ => dead.contains(&true),
                };
                assert!(
                    half.is_complete() || excused || end.orphan,
                    "{half:?} was reset"
                );
            }
        }
    }

    /// Nothing is due and nothing is sent, though the tunnels live.
    fn check_silence(&mut self) {
        let before: Vec<_> = self.ends.iter().map(|end| end.written).collect();
        let turns = 100;
        let span = match self.scenario.keepalive {
            None => HOUR,
            Some(every) => every.as_secs() * turns * SECOND,
        };
        self.run_until(self.now + span);
        for (end, before) in self.ends.iter().zip(before) {
            let Some(link) = &end.link else {
                continue;
            };
            let written = end.written - before;
            match self.scenario.keepalive {
                None => {
                    assert_eq!(written, 0, "an idle end is not silent");
                    assert_eq!(end.next_timeout(), None, "an idle end has a timer");
                }
                // PING, PONG and now and then ACK.
                Some(_) => {
                    assert!(written <= 5 * turns + 5, "{written} messages");
                    assert_eq!(link.poll_timeout(), None, "an idle link has a timer");
                }
            }
        }
    }

    /// Ends what still lives, by either side.
    fn end_all(&mut self, dead: &[bool]) {
        for end in 0..self.ends.len() {
            if self.ends[end].orphan {
                self.end_here(end, EndReason::Replaced);
            }
        }
        for (tunnel, dead) in dead.iter().enumerate() {
            if !self.tunnels[tunnel].resumable || *dead {
                continue;
            }
            let (client, server) = (self.tunnels[tunnel].client, self.tunnels[tunnel].server);
            let by_client = self.rng.once_in(2);
            let end = if by_client { client } else { server.unwrap() };
            self.end_here(end, EndReason::Closed);
            self.run_until(self.now + 100 * SECOND);
            for end in [client, server.unwrap()] {
                let end = &self.ends[end];
                let ended = end
                    .ended
                    .as_ref()
                    .unwrap_or_else(|| panic!("an end that does not end: {}", self.describe()));
                assert_eq!(ended.reason, EndReason::Closed, "{ended:?}");
                assert_eq!(ended.by_peer, by_client != (end.party == Party::Client));
            }
            // In good order: nothing is missing.
            let (client, server) = (&self.ends[client], &self.ends[server.unwrap()]);
            match by_client {
                true => assert_eq!(client.sent.len(), server.delivered),
                false => assert_eq!(server.sent.len(), client.delivered),
            }
        }
    }

    fn check_nothing_is_left(&self) {
        for end in &self.ends {
            let stats = end.session.stats();
            assert_eq!(
                (stats.streams, stats.unread, stats.unsent),
                (0, 0, 0),
                "{:?}",
                end.party
            );
            assert!(end.link.is_none() || end.transport.is_none());
            if let Some(link) = &end.link {
                assert_eq!(
                    link.state(),
                    State::Ended,
                    "{:?} of {}",
                    end.party,
                    end.tunnel
                );
                assert_eq!((link.ring_bytes(), link.poll_timeout()), (0, None));
                assert_eq!(end.session.poll_timeout(), None);
                assert!(!end.session.has_transmit());
            }
        }
    }

    fn count(&self, totals: &mut Totals) {
        totals.runs += 1;
        totals.transports += self.transports.len() as u64;
        for tunnel in &self.tunnels {
            totals.takeovers += tunnel.takeovers;
            totals.cut_in_replay += tunnel.cut_in_replay;
            totals.refused += tunnel.refused;
        }
        for end in &self.ends {
            totals.messages += end.delivered as u64;
            totals.full_rings += end.was_full;
            totals.orphans += u64::from(end.orphan);
            totals.resets += end.session.stats().resets;
            if let Some(link) = &end.link {
                totals.replayed += link.stats().replayed;
            }
            if let Some(app) = &end.app {
                totals.streams += app.halves.len() as u64;
                let datagrams = app.halves.iter().map(|half| half.datagrams());
                let lost = app.halves.iter().filter(|half| !half.is_complete());
                totals.squeezed += lost.filter(|_| self.scenario.pressed).count() as u64;
                totals.datagrams += datagrams.sum::<u64>();
            }
            match end.ended.as_ref().map(|ended| ended.reason) {
                Some(EndReason::Expired) => totals.expired += 1,
                Some(EndReason::Unknown) => totals.died_young += 1,
                Some(EndReason::Gone) => totals.ended += 1,
                _ => {}
            }
        }
    }
}
