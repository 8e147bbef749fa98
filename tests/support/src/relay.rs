//! A relay between two parts, whose connections a test can cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A relay; its connections are cut when it is dropped.
pub struct Relay {
    address: SocketAddr,
    open: watch::Sender<bool>,
    begun: Arc<AtomicUsize>,
}

impl Relay {
    /// Relays to an address.
    pub async fn to(address: &str) -> Self {
        let to: SocketAddr = address.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = watch::Sender::new(true);
        let begun = Arc::<AtomicUsize>::default();
        let (mut state, counter) = (open.subscribe(), Arc::clone(&begun));
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    Err(_) = state.changed() => return,
                };
                let Ok((near, _)) = accepted else { return };
                if !*state.borrow_and_update() {
                    continue;
                }
                counter.fetch_add(1, Ordering::Relaxed);
                let mut cut = state.clone();
                tokio::spawn(async move {
                    let both = async {
                        let mut near = near;
                        let mut far = TcpStream::connect(to).await?;
                        near.set_nodelay(true)?;
                        far.set_nodelay(true)?;
                        copy_bidirectional(&mut near, &mut far).await
                    };
                    tokio::select! {
                        _ = both => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self {
            address,
            open,
            begun,
        }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Connections relayed so far.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// Cuts all connections; new ones are relayed.
    pub fn cut(&self) {
        self.open.send_replace(true);
    }

    /// Cuts all connections, and drops new ones until [`cut`](Self::cut).
    pub fn shut(&self) {
        self.open.send_replace(false);
    }
}
