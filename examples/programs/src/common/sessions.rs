//! The places of sessions of a host or runner, shared between addresses.

use std::sync::atomic::{AtomicBool, Ordering};

use super::addresses::{Source, Sources};
use super::front::{Caller, FrontSettings};
use super::http::BadRequest;
use super::metrics::Counter;
use super::places::{Full, Place, Places, Sizes};

#[derive(Debug)]
pub struct Sessions {
    places: Places<Source>,
    sources: Sources,
    warned: AtomicBool,
    /// Refused because all places were taken.
    pub full: Counter,
    /// Refused because the address had its share.
    pub share: Counter,
}

impl Sessions {
    /// Does not limit addresses, as all sessions of a runner come from its host.
    pub fn freely(places: usize) -> Self {
        Self::new(places, places, Sources::apart())
    }

    /// An address may have as many as it leaves free, and no more than its flag allows.
    pub fn by_address(places: usize, front: &FrontSettings) -> Self {
        let each = front.max_per_address.unwrap_or(usize::MAX);
        Self::new(places, each, Sources::by_address(front.proxies.clone()))
    }

    fn new(places: usize, each: usize, sources: Sources) -> Self {
        Self {
            places: Places::new(Sizes {
                each,
                ..Sizes::of(places)
            }),
            sources,
            warned: AtomicBool::new(false),
            full: Counter::default(),
            share: Counter::default(),
        }
    }

    /// Whether all places are taken.
    pub fn is_full(&self) -> bool {
        self.places.free() == 0
    }

    /// As [`take`](Self::take), without counting or telling that there is none.
    pub fn try_take(&self, caller: &Caller) -> Option<Place<Source>> {
        let place = self.places.try_take(self.sources.of(caller.address.ip()));
        let place = place.ok()?;
        caller.handshake.settle();
        Some(place)
    }

    /// A place for a caller's session. Its connection gives back its handshake place.
    ///
    /// # Errors
    /// All places are taken, or this address has its share.
    pub fn take(&self, caller: &Caller) -> Result<Place<Source>, BadRequest> {
        let address = caller.address.ip();
        match self.places.try_take(self.sources.of(address)) {
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
