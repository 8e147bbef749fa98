//! Looks up names, each one once at a time.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::threads;

/// Look-ups at once, each on a thread.
const AT_ONCE: usize = 256;

static NAMES: Names = Names::new(AT_ONCE);

type Found = io::Result<Vec<SocketAddr>>;

/// Look-ups that have not ended. One goes on also when nobody waits for it: if each caller began
/// its own, a name without an answer would take all threads.
struct Names {
    places: Semaphore,
    running: Mutex<BTreeMap<String, watch::Sender<Option<Found>>>>,
}

/// A look-up that waits for a place or has one. It leaves the list when it is dropped.
struct LookUp {
    names: &'static Names,
    name: String,
    tell: watch::Sender<Option<Found>>,
}

/// The addresses of a name, with port 0.
///
/// # Errors
/// It has none, or no resolver answers, or the system allows no other thread.
pub async fn look_up(name: &str) -> Found {
    let ask = |name: &str| Ok((name, 0).to_socket_addrs()?.collect());
    NAMES.find(name, ask).await
}

impl Names {
    const fn new(at_once: usize) -> Self {
        Self {
            places: Semaphore::const_new(at_once),
            running: Mutex::new(BTreeMap::new()),
        }
    }

    /// What `ask`, which may block, says about a name.
    async fn find(&'static self, name: &str, ask: fn(&str) -> Found) -> Found {
        loop {
            let mut told = self.join(name, ask);
            let told = told.wait_for(Option::is_some).await;
            match told.as_deref().ok().and_then(Option::as_ref) {
                Some(Ok(addresses)) => return Ok(addresses.clone()),
                Some(Err(error)) => return Err(io::Error::new(error.kind(), error.to_string())),
                // Its last caller had left before there was a place for it.
                None => {}
            }
        }
    }

    /// The look-up of a name, which begins unless there is one.
    fn join(&'static self, name: &str, ask: fn(&str) -> Found) -> watch::Receiver<Option<Found>> {
        let mut running = self.running.lock();
        if let Some(tell) = running.get(name) {
            return tell.subscribe();
        }
        let (tell, told) = watch::channel(None);
        running.insert(name.to_owned(), tell.clone());
        let look_up = LookUp {
            names: self,
            name: name.to_owned(),
            tell,
        };
        drop(running);
        tokio::spawn(look_up.run(ask));
        told
    }
}

impl LookUp {
    async fn run(self, ask: fn(&str) -> Found) {
        let place = tokio::select! {
            biased;
            place = self.names.places.acquire() => place,
            () = self.tell.closed() => return,
        };
        let tell = self.tell.clone();
        let begun = threads::aside(move || {
            self.tell.send_replace(Some(ask(&self.name)));
            drop(place);
        });
        if let Err(error) = begun {
            tell.send_replace(Some(Err(error)));
        }
    }
}

impl Drop for LookUp {
    fn drop(&mut self) {
        self.names.running.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    const MOMENT: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn a_silent_name_takes_one_place_however_many_wait_for_it() {
        static ALL: Names = Names::new(2);
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        static SILENT: AtomicBool = AtomicBool::new(true);
        fn ask(name: &str) -> Found {
            if name == "silent" {
                ASKED.fetch_add(1, Ordering::SeqCst);
                while SILENT.load(Ordering::SeqCst) {
                    thread::sleep(MOMENT);
                }
            }
            Ok(vec![ADDRESS])
        }
        // Callers that give up leave the look-up to the next ones.
        for _ in 0..10 {
            assert!(ALL.find("silent", ask).now_or_never().is_none());
            while ASKED.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        }
        let waiting = join_all((0..10).map(|_| ALL.find("silent", ask)));
        let others = async {
            for name in ["a", "b", "c"] {
                assert_eq!(ALL.find(name, ask).await.unwrap(), [ADDRESS]);
            }
            SILENT.store(false, Ordering::SeqCst);
        };
        let (waited, ()) = tokio::join!(waiting, others);
        assert!(waited.into_iter().all(|found| found.unwrap() == [ADDRESS]));
        assert_eq!(ASKED.load(Ordering::SeqCst), 1);
        // What was found is not kept.
        while !ALL.running.lock().is_empty() {
            thread::sleep(MOMENT);
        }
        ALL.find("silent", ask).await.unwrap();
        assert_eq!(ASKED.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn who_leaves_before_there_is_a_place_leaves_nothing() {
        static ALL: Names = Names::new(0);
        let ask = |_: &str| Ok(Vec::new());
        assert!(ALL.find("x", ask).now_or_never().is_none());
        while !ALL.running.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
