//! Looks up names, each one once at a time.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::threads;

/// Look-ups at once, each on a thread.
const AT_ONCE: usize = 256;

type Found = io::Result<Vec<SocketAddr>>;

/// Looks up names for a whole program. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Names(Arc<LookUps>);

/// Look-ups that have not ended. One goes on also when nobody waits for it: if each caller began
/// its own, a name without an answer would take all threads.
#[derive(Debug)]
struct LookUps {
    places: Arc<Semaphore>,
    running: Mutex<BTreeMap<String, watch::Sender<Option<Found>>>>,
}

/// A look-up that waits for a place or has one. It leaves the list when it is dropped.
struct LookUp {
    all: Arc<LookUps>,
    name: String,
    tell: watch::Sender<Option<Found>>,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(AT_ONCE)
    }
}

impl Names {
    fn new(at_once: usize) -> Self {
        Self(Arc::new(LookUps {
            places: Arc::new(Semaphore::new(at_once)),
            running: Mutex::default(),
        }))
    }

    /// The addresses of a name, with port 0.
    ///
    /// # Errors
    /// It has none, or no resolver answers, or the system allows no other thread.
    pub async fn look_up(&self, name: &str) -> Found {
        let ask = |name: &str| Ok((name, 0).to_socket_addrs()?.collect());
        self.find(name, ask).await
    }

    /// What `ask`, which may block, says about a name.
    async fn find(
        &self,
        name: &str,
        ask: impl Fn(&str) -> Found + Clone + Send + 'static,
    ) -> Found {
        loop {
            let mut told = self.join(name, ask.clone());
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
    fn join(
        &self,
        name: &str,
        ask: impl Fn(&str) -> Found + Send + 'static,
    ) -> watch::Receiver<Option<Found>> {
        let mut running = self.0.running.lock();
        if let Some(tell) = running.get(name) {
            return tell.subscribe();
        }
        let (tell, told) = watch::channel(None);
        running.insert(name.to_owned(), tell.clone());
        let look_up = LookUp {
            all: Arc::clone(&self.0),
            name: name.to_owned(),
            tell,
        };
        drop(running);
        tokio::spawn(look_up.run(ask));
        told
    }
}

impl LookUp {
    async fn run(self, ask: impl Fn(&str) -> Found + Send + 'static) {
        let place = tokio::select! {
            biased;
            place = Arc::clone(&self.all.places).acquire_owned() => place,
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
        self.all.running.lock().remove(&self.name);
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
        let names = Names::new(2);
        let state = Arc::new((AtomicUsize::new(0), AtomicBool::new(true)));
        let (asked, silent) = &*state;
        let answering = Arc::clone(&state);
        let ask = move |name: &str| {
            let (asked, silent) = &*answering;
            if name == "silent" {
                asked.fetch_add(1, Ordering::SeqCst);
                while silent.load(Ordering::SeqCst) {
                    thread::sleep(MOMENT);
                }
            }
            Ok(vec![ADDRESS])
        };
        // Callers that give up leave the look-up to the next ones.
        for _ in 0..10 {
            assert!(names.find("silent", ask.clone()).now_or_never().is_none());
            while asked.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        }
        let waiting = join_all((0..10).map(|_| names.find("silent", ask.clone())));
        let others = async {
            for name in ["a", "b", "c"] {
                assert_eq!(names.find(name, ask.clone()).await.unwrap(), [ADDRESS]);
            }
            silent.store(false, Ordering::SeqCst);
        };
        let (waited, ()) = tokio::join!(waiting, others);
        assert!(waited.into_iter().all(|found| found.unwrap() == [ADDRESS]));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // What was found is not kept.
        while !names.0.running.lock().is_empty() {
            thread::sleep(MOMENT);
        }
        names.find("silent", ask).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn who_leaves_before_there_is_a_place_leaves_nothing() {
        let names = Names::new(0);
        let ask = |_: &str| Ok(Vec::new());
        assert!(names.find("x", ask).now_or_never().is_none());
        while !names.0.running.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
