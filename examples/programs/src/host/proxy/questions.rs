//! The turns of callers about whom a registry has to ask elsewhere.
//!
//! Nobody knows yet who they are, so they have a small pool of their own and no session's place.

use std::time::Duration;

use hyper::StatusCode;
use tokio::time::timeout;

use crate::common::addresses::Source;
use crate::common::front::Caller;
use crate::common::http::BadRequest;
use crate::common::metrics::Counter;
use crate::common::places::{Place, Places, Sizes};

/// How long one waits for its turn: the client itself waits 10 s for everything.
const TURN_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Questions {
    places: Places<Source>,
    /// Callers for whom there was no turn.
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

    /// A turn to ask about this caller; its connection is no handshake any more.
    ///
    /// # Errors
    /// Too many others are asked about.
    pub async fn turn(&self, caller: &Caller) -> Result<Place<Source>, BadRequest> {
        caller.handshake.settle();
        match timeout(TURN_WITHIN, self.places.take(caller.source)).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => {
                self.refused.add(1);
                let line = "this host asks its cluster about many callers: try again later";
                Err(BadRequest::new(StatusCode::SERVICE_UNAVAILABLE, line))
            }
        }
    }
}
