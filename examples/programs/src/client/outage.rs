//! What is logged while tunnels of a command are down, however many ports there are: one line when
//! the first is lost, one for each reason in an answer, one for each tunnel whose connections have
//! ended, one when all are up again.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::common::resume::sent_again;

/// Most reasons logged in one outage. The other side chooses the words.
const LINES: usize = 16;

/// Shared by all tunnels of a command.
pub struct Outage {
    /// The task and the host.
    to: String,
    now: Mutex<Now>,
}

struct Now {
    /// Tunnels that are down.
    down: usize,
    since: Instant,
    /// A new tunnel took the place of one that was lost.
    reconnected: bool,
    /// Messages and bytes sent again over next WebSockets; `None` if no tunnel has gone on.
    again: Option<(u64, u64)>,
    /// Lines with reasons that were logged.
    told: HashSet<String>,
}

impl Outage {
    pub fn new(to: String) -> Self {
        let now = Now {
            down: 0,
            since: Instant::now(),
            reconnected: false,
            again: None,
            told: HashSet::new(),
        };
        let now = Mutex::new(now);
        Self { to, now }
    }

    /// A tunnel was lost, or its WebSocket was.
    pub fn begins(&self, cause: &str) {
        let mut now = self.now.lock();
        now.down += 1;
        if now.down == 1 {
            now.since = Instant::now();
            now.reconnected = false;
            now.again = None;
            now.told.clear();
            tracing::warn!("{cause}; reconnecting to {}", self.to);
        }
    }

    /// A tunnel does not wait for its next WebSocket any more, and its connections have ended.
    pub fn gives_up(&self, cause: &str) {
        tracing::warn!("{cause}: its connections have ended; still reconnecting");
    }

    /// There is a new tunnel.
    pub fn ends(&self) {
        self.over(|now| now.reconnected = true);
    }

    /// A tunnel goes on over its next WebSocket, after these messages and bytes were sent again.
    pub fn goes_on(&self, (messages, bytes): (u64, u64)) {
        self.over(|now| {
            let again = now.again.get_or_insert_default();
            *again = (again.0 + messages, again.1 + bytes);
        });
    }

    fn over(&self, note: impl FnOnce(&mut Now)) {
        let mut now = self.now.lock();
        note(&mut now);
        now.down = now.down.saturating_sub(1);
        if now.down > 0 {
            return;
        }
        let away = now.since.elapsed().as_secs_f64();
        match (now.reconnected, now.again) {
            (true, _) => tracing::info!("reconnected to {} after {away:.1} s", self.to),
            (false, Some(again)) => {
                let again = sent_again(again);
                tracing::info!("the tunnel goes on after {away:.1} s: {again}");
            }
            (false, None) => tracing::info!("the other tunnels to {} are up", self.to),
        }
    }

    /// Several tunnels replace one that is down.
    pub fn spreads(&self, tunnels: usize) {
        let mut now = self.now.lock();
        now.down = (now.down + tunnels).saturating_sub(1);
    }

    /// A tunnel is over that no other one replaces. `down` if it had lost its WebSocket, `lost` if
    /// its connections did not end by themselves.
    pub fn leaves(&self, cause: &str, down: bool, lost: bool) {
        if lost {
            tracing::warn!("{cause}: its connections have ended; others have their own tunnels");
        }
        if down {
            self.over(|_| {});
        }
    }

    /// Why the first session, which is waited for, did not begin.
    pub fn waits(&self, reason: &str) {
        self.warn(format!("{reason}; waiting for {}", self.to));
    }

    /// Something answered and did not let this side through.
    pub fn refused(&self, reason: &str) {
        self.warn(format!("{reason}; still trying"));
    }

    fn warn(&self, line: String) {
        let told = &mut self.now.lock().told;
        if told.len() < LINES && !told.contains(&line) {
            tracing::warn!("{line}");
            told.insert(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tracing::subscriber::with_default;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged, without the time that it took.
    fn logged(work: impl FnOnce(&Outage)) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .finish();
        with_default(log, || work(&Outage::new("task 42".to_owned())));
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        let plain = |line: &str| {
            line.split(" after ")
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        text.lines().map(plain).collect()
    }

    #[test]
    fn every_tunnel_whose_connections_have_ended_is_told() {
        let lines = logged(|outage| {
            for number in 0..LINES {
                outage.refused(&format!("no {number}"));
            }
            outage.refused("no more");
            outage.leaves("lost", false, true);
            outage.leaves("lost", false, true);
            outage.gives_up("over");
        });
        let left = "WARN lost: its connections have ended; others have their own tunnels";
        let over = "WARN over: its connections have ended; still reconnecting";
        assert_eq!(lines[LINES..], [left, left, over]);
    }

    #[test]
    fn the_last_tunnel_that_was_down_ends_the_outage_also_if_it_leaves() {
        let began = "WARN lost; reconnecting to task 42";
        let over = logged(|outage| {
            outage.begins("lost");
            outage.begins("lost");
            outage.ends();
            outage.leaves("lost", true, false);
        });
        assert_eq!(over, [began, "INFO reconnected to task 42"]);
        let over = logged(|outage| {
            outage.begins("lost");
            outage.begins("lost");
            outage.goes_on((0, 0));
            outage.leaves("lost", true, false);
        });
        assert_eq!(over, [began, "INFO the tunnel goes on"]);
        let over = logged(|outage| {
            outage.begins("lost");
            outage.leaves("lost", true, false);
        });
        assert_eq!(over, [began, "INFO the other tunnels to task 42 are up"]);
    }

    #[test]
    fn the_other_side_cannot_fill_the_log() {
        let told = logged(|outage| {
            outage.begins("lost");
            for reason in 0..100 {
                outage.refused(&format!("refused: {reason}"));
            }
        });
        assert_eq!(told.len(), 17, "{told:?}");
    }
}
