//! The tunnel to one agent, as the sessions of its container share it.

use kohakuriver_tunnel::mux::Mux;
use kohakuriver_tunnel::session::Config;

use crate::common::ceilings::DIALS;
use crate::common::dials::{LASTING, Party};
use crate::common::places::{Places, Sizes};

#[derive(Clone)]
pub struct Tunnel {
    pub mux: Mux,
    /// For all streams and flows.
    pub streams: Places<Party>,
    /// For streams that the agent has not answered yet: as many as an agent dials at once.
    pub unanswered: Places<Party>,
}

impl Tunnel {
    pub fn new(mux: Mux) -> Self {
        let sizes = |places, times_free| Sizes {
            places,
            each: usize::MAX,
            times_free,
            // Who waits is bounded by the streams of its session.
            queue: usize::MAX,
        };
        Self {
            mux,
            streams: Places::new(sizes(Config::default().max_streams, LASTING)),
            unanswered: Places::new(sizes(DIALS, 1)),
        }
    }
}
