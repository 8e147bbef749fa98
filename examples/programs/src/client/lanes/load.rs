//! How loaded a tunnel is, which one a new connection takes, and when another one is opened.
//!
//! A tunnel is busy while it moves at least [`BUSY`] bytes a second, and for [`BUSY_FOR`] after
//! that, or until its last connection ends: a transport with bulk may stand still for a moment. It
//! is taken once it has had connections for [`TAKEN_AFTER`] without a break. Flows of datagrams are
//! connections too.
//!
//! Nobody can tell whether a new connection is bulk, and it stays where it began. So while all
//! tunnels are busy or taken, another one is opened, which awaits the next connections, unless
//! [`ENOUGH`] are not busy: idle connections may have come one by one.
//!
//! A new connection takes a tunnel that is not busy, if there is one, and rather one that is not
//! taken, so that what is interactive stays apart from bulk, whichever came first. Of several it
//! takes the one with the fewest connections. Beyond [`FEW`] streams a tunnel, all further ones
//! take the first: it is fairer to many than the kernel is to several transports. Flows have no
//! such bound, because most are idle. The last tunnel takes connections only while all others are
//! busy or taken. A burst of bulk connections, which are not busy when they come, would fill it
//! too.

use std::time::Duration;

use kohakuriver_tunnel::wire::Proto;

/// Bytes a second in both directions: 20 Mbit/s.
const BUSY: u64 = 2_500_000;

const BUSY_FOR: Duration = Duration::from_secs(1);

const TAKEN_AFTER: Duration = Duration::from_secs(1);

const FEW: usize = 16;

const ENOUGH: usize = 4;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    streams: usize,
    flows: usize,
    /// Time for which it still counts as busy.
    busy_for: Duration,
    /// Time between the first look at its connections and the last one. `None` before the first.
    used_for: Option<Duration>,
}

impl Load {
    /// Bytes that were moved in the time since the last call.
    pub(super) fn moved(&mut self, bytes: u64, elapsed: Duration) {
        let busy = u128::from(bytes) * 1_000_000 >= u128::from(BUSY) * elapsed.as_micros().max(1);
        self.busy_for = match busy {
            true => BUSY_FOR,
            false => self.busy_for.saturating_sub(elapsed),
        };
        if self.connections() > 0 {
            // The first connection may have come at any moment since the last call.
            let before = self.used_for.map(|used| used.saturating_add(elapsed));
            self.used_for = Some(before.unwrap_or_default());
        }
    }

    /// A connection has come.
    pub(super) fn entered(&mut self, proto: Proto) {
        *self.count(proto) += 1;
    }

    /// A connection has ended. What the last one moved was its own.
    pub(super) fn left(&mut self, proto: Proto) {
        *self.count(proto) -= 1;
        if self.connections() == 0 {
            self.busy_for = Duration::ZERO;
            self.used_for = None;
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.streams + self.flows
    }

    fn count(&mut self, proto: Proto) -> &mut usize {
        match proto {
            Proto::Tcp => &mut self.streams,
            Proto::Udp => &mut self.flows,
        }
    }

    fn takes(&self, proto: Proto) -> bool {
        proto == Proto::Udp || self.streams < FEW
    }

    fn is_busy(&self) -> bool {
        !self.busy_for.is_zero()
    }

    fn is_taken(&self) -> bool {
        self.used_for.is_some_and(|used| used >= TAKEN_AFTER)
    }

    fn is_used(&self) -> bool {
        self.is_busy() || self.is_taken()
    }
}

/// The tunnel of a new connection. `None` is one that is not there.
pub(super) fn choose(loads: &[Option<Load>], proto: Proto) -> usize {
    let last = loads.len().saturating_sub(1);
    let all_used = loads.iter().take(last).flatten().all(Load::is_used);
    let open = if all_used { loads.len() } else { last };
    let few = loads.iter().take(open).enumerate();
    let few = few.filter_map(|(index, load)| {
        let load = load.filter(|load| load.takes(proto))?;
        let order = (load.is_busy(), load.is_taken(), load.connections());
        Some((order, index))
    });
    few.min().map_or(0, |(_, index)| index)
}

/// Which tunnel is to be opened: the first that is not there, if all others are busy or taken.
pub(super) fn wanted(loads: &[Option<Load>]) -> Option<usize> {
    let free = loads.iter().position(Option::is_none)?;
    let up = || loads.iter().flatten();
    let not_busy = up().filter(|load| !load.is_busy()).count();
    (not_busy < ENOUGH && up().all(Load::is_used)).then_some(free)
}

/// Whether a tunnel without connections has to stay: another one would be opened in its place.
pub(super) fn is_spare(loads: &[Option<Load>], index: usize) -> bool {
    let mut others = loads.to_vec();
    others.get_mut(index).and_then(Option::take).is_some() && wanted(&others).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Option<Load> = load(0, false);

    /// A new one, or one that has been there for long.
    const NEW: Option<Load> = load(1, false);
    const TAKEN: Option<Load> = Some(Load {
        streams: 1,
        flows: 0,
        busy_for: Duration::ZERO,
        used_for: Some(TAKEN_AFTER),
    });

    const fn load(streams: usize, busy: bool) -> Option<Load> {
        Some(Load {
            streams,
            flows: 0,
            busy_for: if busy { BUSY_FOR } else { Duration::ZERO },
            used_for: None,
        })
    }

    fn choose(loads: &[Option<Load>]) -> usize {
        super::choose(loads, Proto::Tcp)
    }

    #[test]
    fn a_tunnel_is_busy_at_a_rate_and_for_a_while_after() {
        let busy_after = |bytes, millis| {
            let mut load = Load::default();
            load.moved(bytes, Duration::from_millis(millis));
            load.is_busy()
        };
        assert!(busy_after(BUSY / 10, 100));
        assert!(!busy_after(BUSY / 10 - 1, 100));
        assert!(busy_after(BUSY, 1000));
        assert!(!busy_after(BUSY / 10, 1000));

        let mut load = Load::default();
        load.moved(BUSY, Duration::from_millis(100));
        load.moved(0, Duration::from_millis(900));
        assert!(load.is_busy());
        load.moved(0, Duration::from_millis(100));
        assert!(!load.is_busy());
    }

    #[test]
    fn a_tunnel_is_not_busy_any_more_without_connections() {
        let mut load = load(2, true).unwrap();
        load.left(Proto::Tcp);
        assert!(load.is_busy());
        load.left(Proto::Tcp);
        assert!(!load.is_busy());
        assert_eq!(load.connections(), 0);
    }

    #[test]
    fn a_tunnel_is_taken_after_a_while_with_connections() {
        let mut load = Load::default();
        let hour = Duration::from_secs(3600);
        let short = Duration::from_millis(10);
        load.moved(0, hour);
        load.entered(Proto::Tcp);
        // The connection came at the end of this hour.
        load.moved(0, hour);
        assert!(!load.is_taken());
        load.moved(0, TAKEN_AFTER - short);
        assert!(!load.is_taken());
        load.moved(0, short);
        assert!(load.is_taken());
        // Also by the flow that goes on.
        load.entered(Proto::Udp);
        load.left(Proto::Tcp);
        assert!(load.is_taken());
        load.left(Proto::Udp);
        assert!(!load.is_taken());
        load.entered(Proto::Tcp);
        load.moved(0, hour);
        assert!(!load.is_taken());
    }

    #[test]
    fn a_connection_takes_the_tunnel_with_the_fewest() {
        assert_eq!(choose(&[QUIET]), 0);
        assert_eq!(choose(&[load(100, true)]), 0);
        assert_eq!(choose(&[QUIET, QUIET, None]), 0);
        assert_eq!(choose(&[load(1, false), QUIET, None]), 1);
        assert_eq!(choose(&[load(1, false), load(1, false), QUIET, None]), 2);
        assert_eq!(choose(&[load(2, false), load(1, false), None, None]), 1);
    }

    #[test]
    fn quiet_tunnels_come_before_busy_ones() {
        let many = load(FEW - 1, false);
        assert_eq!(choose(&[load(1, true), many, None]), 1);
        assert_eq!(choose(&[many, load(1, true), None]), 0);
        assert_eq!(choose(&[load(2, true), load(1, true), None]), 1);
        // But not at any price.
        assert_eq!(choose(&[load(FEW, false), load(1, true), None]), 1);
    }

    #[test]
    fn the_last_one_is_for_what_comes_while_all_others_are_busy() {
        let full = load(FEW, false);
        assert_eq!(choose(&[load(1, false), QUIET]), 0);
        assert_eq!(choose(&[full, full, QUIET]), 0);
        let busy = load(FEW, true);
        assert_eq!(choose(&[busy, full, QUIET]), 0);
        assert_eq!(choose(&[busy, busy, QUIET]), 2);
        assert_eq!(choose(&[load(1, true), QUIET]), 1);
        assert_eq!(choose(&[load(3, true), load(2, true), load(1, true)]), 2);
    }

    #[test]
    fn many_connections_share_the_first() {
        let full = load(FEW, true);
        assert_eq!(choose(&[load(100, true), full, None]), 0);
        assert_eq!(choose(&[load(100, true), load(FEW - 1, true), None]), 1);
    }

    #[test]
    fn flows_count_as_connections_but_fill_no_tunnel() {
        let flows = |flows| {
            let load = Load::default();
            Some(Load { flows, ..load })
        };
        let udp = |loads: &[_]| super::choose(loads, Proto::Udp);
        assert_eq!(udp(&[load(1, true), flows(1000), None]), 1);
        assert_eq!(udp(&[flows(2), flows(1), None]), 1);
        assert_eq!(udp(&[load(100, true), load(FEW, false), None]), 1);
        assert_eq!(udp(&[load(1, false), QUIET]), 0);
        assert_eq!(udp(&[load(1, true), QUIET]), 1);
        assert_eq!(choose(&[load(1, true), flows(1000), None]), 1);
        assert_eq!(choose(&[flows(1), QUIET, None]), 1);
        assert_eq!(choose(&[load(1, false), flows(2), None]), 0);
    }

    #[test]
    fn another_is_wanted_while_all_are_busy() {
        let busy = load(1, true);
        assert_eq!(wanted(&[QUIET, None]), None);
        assert_eq!(wanted(&[busy, None, None]), Some(1));
        assert_eq!(wanted(&[busy, QUIET, None]), None);
        assert_eq!(wanted(&[busy, busy, None]), Some(2));
        assert_eq!(wanted(&[busy, None, busy]), Some(1));
        assert_eq!(wanted(&[busy, busy]), None);
        // The first is not there while it was never connected.
        assert_eq!(wanted(&[None, None]), Some(0));
    }

    #[test]
    fn another_is_wanted_while_all_are_taken_or_busy() {
        let busy = load(1, true);
        assert_eq!(wanted(&[TAKEN, None, None]), Some(1));
        assert_eq!(wanted(&[TAKEN, None]), Some(1));
        assert_eq!(wanted(&[NEW, None, None]), None);
        assert_eq!(wanted(&[TAKEN, QUIET, None]), None);
        assert_eq!(wanted(&[TAKEN, NEW, None]), None);
        assert_eq!(wanted(&[TAKEN, busy, None]), Some(2));
        assert_eq!(wanted(&[TAKEN, None, busy]), Some(1));
        assert_eq!(wanted(&[TAKEN]), None);
        assert_eq!(wanted(&[TAKEN, TAKEN, TAKEN, busy, None]), Some(4));
        assert_eq!(wanted(&[TAKEN, TAKEN, TAKEN, TAKEN, None]), None);
    }

    #[test]
    fn newcomers_take_no_tunnel_with_an_older_connection_while_there_is_another() {
        assert_eq!(choose(&[TAKEN, QUIET]), 1);
        assert_eq!(choose(&[TAKEN, load(FEW - 1, false)]), 1);
        assert_eq!(choose(&[TAKEN, load(FEW, false)]), 0);
        assert_eq!(choose(&[TAKEN, QUIET, QUIET]), 1);
        let busy = load(1, true);
        assert_eq!(choose(&[TAKEN, busy, QUIET]), 2);
        assert_eq!(choose(&[TAKEN, busy, None]), 0);
        assert_eq!(choose(&[TAKEN, busy]), 0);
        assert_eq!(choose(&[busy, TAKEN, busy]), 1);
    }

    #[test]
    fn an_idle_one_stays_while_another_would_be_opened_in_its_place() {
        let busy = load(1, true);
        assert!(is_spare(&[busy, QUIET, None], 1));
        assert!(!is_spare(&[load(1, false), QUIET, None], 1));
        assert!(!is_spare(&[busy, QUIET, QUIET], 1));
        assert!(!is_spare(&[busy, None, None], 1));
        assert!(is_spare(&[TAKEN, QUIET, None], 1));
        assert!(!is_spare(&[TAKEN, QUIET, QUIET, None], 2));
        assert!(is_spare(&[TAKEN, QUIET], 1));
    }
}
