//! How loaded a tunnel is, which one a new connection takes, and when another one is opened.
//!
//! A tunnel is busy while it moves at least [`BUSY`] bytes a second, and for [`BUSY_FOR`] after
//! that, or until its last connection ends: a transport with bulk may stand still for a moment. A
//! new connection takes the tunnel with the fewest connections of those that are not busy, so that
//! what is interactive stays apart from bulk. If all are busy, it takes the one with the fewest.
//! Beyond [`FEW`] connections a tunnel, all further ones take the first: it is fairer to many than
//! the kernel is to several transports. The last tunnel takes connections only while all others are
//! busy. A burst of bulk connections, which are not busy when they come, would fill it too.

use std::time::Duration;

/// Bytes a second in both directions: 20 Mbit/s.
const BUSY: u64 = 2_500_000;

const BUSY_FOR: Duration = Duration::from_secs(1);

const FEW: usize = 16;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    pub(super) connections: usize,
    /// Time for which it still counts as busy.
    busy_for: Duration,
}

impl Load {
    /// Bytes that were moved in the time since the last call.
    pub(super) fn moved(&mut self, bytes: u64, elapsed: Duration) {
        let busy = u128::from(bytes) * 1_000_000 >= u128::from(BUSY) * elapsed.as_micros().max(1);
        self.busy_for = match busy {
            true => BUSY_FOR,
            false => self.busy_for.saturating_sub(elapsed),
        };
    }

    /// A connection has ended. What the last one moved was its own.
    pub(super) fn left(&mut self) {
        self.connections -= 1;
        if self.connections == 0 {
            self.busy_for = Duration::ZERO;
        }
    }

    fn is_busy(&self) -> bool {
        !self.busy_for.is_zero()
    }
}

/// The tunnel of a new connection. `None` is one that is not there.
pub(super) fn choose(loads: &[Option<Load>]) -> usize {
    let last = loads.len().saturating_sub(1);
    let all_busy = loads.iter().take(last).flatten().all(Load::is_busy);
    let open = if all_busy { loads.len() } else { last };
    let few = loads.iter().take(open).enumerate();
    let few = few.filter_map(|(index, load)| {
        let load = load.filter(|load| load.connections < FEW)?;
        Some((load.is_busy(), load.connections, index))
    });
    few.min().map_or(0, |(_, _, index)| index)
}

/// Which tunnel is to be opened: the first that is not there, if all others are busy.
pub(super) fn wanted(loads: &[Option<Load>]) -> Option<usize> {
    let idle = loads.iter().flatten().any(|load| !load.is_busy());
    let free = || loads.iter().position(Option::is_none);
    if idle { None } else { free() }
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

    const fn load(connections: usize, busy: bool) -> Option<Load> {
        let busy_for = if busy { BUSY_FOR } else { Duration::ZERO };
        Some(Load {
            connections,
            busy_for,
        })
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
        load.left();
        assert!(load.is_busy());
        load.left();
        assert!(!load.is_busy());
        assert_eq!(load.connections, 0);
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
    fn an_idle_one_stays_while_another_would_be_opened_in_its_place() {
        let busy = load(1, true);
        assert!(is_spare(&[busy, QUIET, None], 1));
        assert!(!is_spare(&[load(1, false), QUIET, None], 1));
        assert!(!is_spare(&[busy, QUIET, QUIET], 1));
        assert!(!is_spare(&[busy, None, None], 1));
    }
}
