use core::time::Duration;

use bytes::Bytes;

use super::dialect::Dialect;
use super::{Config, Instant};
use crate::wire::{ClientId, Frame};

/// Whether the peer lives, and the round trip to it (PROTOCOL.md section 5.8).
#[derive(Debug, Default)]
pub(super) struct Keepalive {
    /// Whether PINGs have payloads that distinguish their answers.
    has_echo: bool,
    interval: Option<Duration>,
    last_heard: Instant,
    /// When the current silence was probed.
    probed: Option<Instant>,
    probe_wanted: bool,
    ping: Option<(u64, Instant)>,
    sequence: u64,
    ping_wanted: bool,
    last_sample: Option<Instant>,
    rtt: Option<Duration>,
}

impl Keepalive {
    /// Least time between two measurements of the round trip while data arrives.
    const SAMPLE_EVERY: Duration = Duration::from_millis(500);

    pub(super) fn new(dialect: Dialect, config: &Config, now: Instant) -> Self {
        Self {
            has_echo: dialect.has_echo(),
            interval: config.keepalive,
            last_heard: now,
            ..Self::default()
        }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.probed = None;
    }

    /// A stream begins or data arrived: measures the round trip, unless one was measured recently.
    pub(super) fn want_sample(&mut self, now: Instant) {
        let recent = self
            .last_sample
            .is_some_and(|at| now - at < Self::SAMPLE_EVERY);
        if self.has_echo && self.ping.is_none() && !recent {
            self.ping_wanted = true;
        }
    }

    /// Measures the round trip now, where it can be measured.
    pub(super) fn want_ping(&mut self) {
        self.ping_wanted |= self.has_echo;
    }

    /// Probes the peer now, as if it had been silent for an interval.
    pub(super) fn probe(&mut self, now: Instant) {
        self.probed.get_or_insert(now);
        match self.has_echo {
            true => self.ping_wanted = true,
            false => self.probe_wanted = true,
        }
    }

    /// Whether the peer was probed and has not been heard since.
    pub(super) const fn is_probing(&self) -> bool {
        self.probed.is_some()
    }

    /// The payload of a PING to send now. It is repeated until a PONG with it arrives.
    pub(super) fn take_ping(&mut self, now: Instant) -> Option<Bytes> {
        if !core::mem::take(&mut self.ping_wanted) {
            return None;
        }
        let (sequence, _) = *self.ping.get_or_insert_with(|| {
            self.sequence += 1;
            (self.sequence, now)
        });
        Some(Bytes::copy_from_slice(&sequence.to_be_bytes()))
    }

    /// Whether to send the transport's own ping now.
    pub(super) fn take_probe(&mut self) -> bool {
        core::mem::take(&mut self.probe_wanted)
    }

    /// The answer to a PING of the peer.
    pub(super) fn answer(&self, id: ClientId, payload: &[u8]) -> Frame {
        // Longer payloads are cut.
        const MAX: usize = 125;
        let payload = match self.has_echo {
            true => Bytes::copy_from_slice(payload.get(..MAX).unwrap_or(payload)),
            false => Bytes::new(),
        };
        Frame::Pong { id, payload }
    }

    pub(super) fn handle_pong(&mut self, now: Instant, payload: &[u8]) {
        let Some((sequence, sent)) = self.ping else {
            return;
        };
        if payload != sequence.to_be_bytes() {
            return;
        }
        self.ping = None;
        self.last_sample = Some(now);
        let sample = now - sent;
        // Minimum filter: take lower samples at once, drift up by 1/64. Samples include queueing
        // delay, also at this end.
        self.rtt = Some(match self.rtt {
            Some(rtt) if sample > rtt => rtt + (sample - rtt) / 64,
            _ => sample,
        });
    }

    /// Whether the peer has been silent for too long.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let Some(interval) = self.interval else {
            return false;
        };
        match self.probed {
            // Silence counts from the probe, because this end may have been suspended before.
            Some(at) => return now - at >= interval,
            None if now - self.last_heard < interval => {}
            None => self.probe(now),
        }
        false
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let since = self.probed.unwrap_or(self.last_heard);
        self.interval.map(|interval| since + interval)
    }

    pub(super) fn has_output(&self) -> bool {
        self.ping_wanted || self.probe_wanted
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }
}
