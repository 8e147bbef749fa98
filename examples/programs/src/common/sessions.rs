//! The places of sessions of a host or runner, shared between addresses.

use std::sync::atomic::{AtomicBool, Ordering};

use super::addresses::Source;
use super::front::Caller;
use super::http::BadRequest;
use super::metrics::Counter;
use super::places::{Full, Place, Places, Sizes};

#[derive(Debug)]
pub struct Sessions {
    places: Places<Source>,
    warned: AtomicBool,
    /// Refused because all places were taken.
    pub full: Counter,
    /// Refused because the address had its share.
    pub share: Counter,
}

impl Sessions {
    /// An address may have `times_free` times as many as are left free, and at most `each`.
    pub fn new(places: usize, times_free: usize, each: Option<usize>) -> Self {
        Self {
            places: Places::new(Sizes {
                places,
                each: each.unwrap_or(usize::MAX),
                times_free,
                // Each that waits has evicted a session.
                queue: usize::MAX,
            }),
            warned: AtomicBool::new(false),
            full: Counter::default(),
            share: Counter::default(),
        }
    }

    /// A place for a caller's session. Its connection gives back its handshake place. If all places
    /// are taken, and this caller may have the next one that is given back, `evict` may end another
    /// session.
    ///
    /// # Errors
    /// All places are taken, or this address has its share.
    pub async fn take(
        &self,
        caller: &Caller,
        evict: impl FnOnce() -> bool,
    ) -> Result<Place<Source>, BadRequest> {
        match self.places.take_or(caller.source, evict).await {
            Ok(place) => {
                caller.handshake.settle();
                Ok(place)
            }
            Err(Full::All) => {
                self.full.add(1);
                let line = "there are as many sessions here as there may be: try again later";
                Err(BadRequest::busy(line))
            }
            Err(Full::Share) => {
                self.share.add(1);
                if !self.warned.swap(true, Ordering::Relaxed) {
                    let address = caller.address.ip();
                    tracing::warn!(
                        "{address} has as many sessions as one address may: if many clients are \
                         behind it, give --proxy {address} (said once, counted in /metrics)"
                    );
                }
                let line = "your address has as many sessions here as one may have";
                Err(BadRequest::busy(line))
            }
        }
    }
}
