//! Bounds the queries to the cluster about callers.
//!
//! Nobody knows yet who these callers are, so they share a small pool and have no session's place.

use std::time::Duration;

use tokio::time::timeout;

use crate::common::addresses::Source;
use crate::common::front::Caller;
use crate::common::http::BadRequest;
use crate::common::metrics::Counter;
use crate::common::places::{Place, Places, Sizes};

/// How long a caller waits for its turn. The client waits 10 s in all.
const TURN_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Questions {
    places: Places<Source>,
    /// Callers that got no turn.
    pub refused: Counter,
}

impl Questions {
    pub fn new(questions: usize, waiting: usize) -> Self {
        Self {
            places: Places::new(Sizes {
                queue: waiting,
                ..Sizes::of(questions)
            }),
            refused: Counter::default(),
        }
    }

    /// A turn to query about this caller. Its connection gives back its handshake place.
    ///
    /// # Errors
    /// There are too many other callers.
    pub async fn turn(&self, caller: &Caller) -> Result<Place<Source>, BadRequest> {
        caller.handshake.settle();
        let Ok(Ok(turn)) = timeout(TURN_WITHIN, self.places.take(caller.source)).await else {
            self.refused.add(1);
            let line = "this host asks its cluster about many callers: try again later";
            return Err(BadRequest::busy(line));
        };
        Ok(turn)
    }
}
