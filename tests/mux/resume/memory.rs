//! Laws 9 and 10 of PROTOCOL.md section 5.10 while the tunnels of a server share a budget: clients
//! are away for long and come back, and nobody else notices. On a paused clock.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use kohakuriver_tunnel::mux::Budget;
use tokio::time::sleep;

use super::*;

/// So much that one client without a transport fits, and not all of them.
const LIMIT: usize = 5 << 19;

/// What a client asks for at once, of `noise` by its port, and a bystander.
const BULK: usize = 1 << 20;
const LITTLE: usize = 40_000;

/// How connections ended.
#[derive(Debug, Default)]
struct Ends {
    complete: AtomicUsize,
    reset: AtomicUsize,
}

/// A client whose way to the server can be cut and refused.
struct Roamer {
    mux: Mux,
    is_away: Arc<AtomicBool>,
    wires: Arc<Mutex<[Wire; 2]>>,
}

impl Roamer {
    fn new(server: &Server, config: &resume::Config) -> Self {
        let is_away = Arc::<AtomicBool>::default();
        let wires = Arc::<Mutex<[Wire; 2]>>::default();
        let dial = {
            let (server, wires) = (server.clone(), Arc::clone(&wires));
            move || {
                let near = server.dial();
                *wires.lock().unwrap() = server.newest();
                near
            }
        };
        let first = dial();
        let away = Arc::clone(&is_away);
        let connector = move |_: Dial| {
            let refused = away.load(Ordering::Relaxed);
            ready(match refused {
                true => Err(ConnectFailure::again("away")),
                false => Ok(dial()),
            })
        };
        let builder = mux::builder().resume(config.clone());
        let (mux, driver) = builder.resuming_opener(first, CARRIER, connector);
        tokio::spawn(driver);
        Self {
            mux,
            is_away,
            wires,
        }
    }

    fn leave(&self) {
        self.is_away.store(true, Ordering::Relaxed);
        self.wires.lock().unwrap().iter().for_each(Wire::cut);
    }

    fn come_back(&self) {
        self.is_away.store(false, Ordering::Relaxed);
    }

    /// One download after the other, each read slowly, until the tunnel ends.
    fn downloads(&self, seed: u16, ends: &Arc<Ends>) {
        let (mux, ends) = (self.mux.clone(), Arc::clone(ends));
        tokio::spawn(async move {
            for turn in 0.. {
                let port = 1000 + (seed * 31 + turn) % 200;
                let Ok(stream) = mux.open_tcp(port) else {
                    return;
                };
                let pace = Duration::from_millis(500);
                match download(stream, port, BULK, pace).await {
                    true => &ends.complete,
                    false => &ends.reset,
                }
                .fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

/// Reads what the service sends for this port. True if it is all there, false if it was reset.
async fn download(mut stream: TunnelStream, port: u16, len: usize, pace: Duration) -> bool {
    let right = noise(port.into(), len);
    let mut at = 0;
    let mut piece = vec![0; 64 << 10];
    loop {
        match stream.read(&mut piece).await {
            Ok(0) => break,
            Ok(len) => {
                assert!(piece[..len] == right[at..at + len], "other bytes at {at}");
                at += len;
            }
            Err(_) => return false,
        }
        sleep(pace).await;
    }
    assert_eq!(at, right.len(), "a part that looks like the whole");
    true
}

/// An agent's end, which sends for each connection what its port says.
async fn agent(mut acceptor: Acceptor) {
    while let Some(Incoming::Tcp(incoming)) = acceptor.accept().await {
        let port = incoming.port();
        tokio::spawn(async move {
            let len = if port < 1000 { LITTLE } else { BULK };
            let mut stream = incoming.accept();
            let _ = stream.write_all(&noise(port.into(), len)).await;
            let _ = stream.shutdown().await;
        });
    }
}

/// Joins what comes in on these tunnels with streams of the agent's.
async fn join(mut accepted: mpsc::UnboundedReceiver<Acceptor>, agent: Mux) {
    while let Some(mut acceptor) = accepted.recv().await {
        let agent = agent.clone();
        tokio::spawn(async move {
            while let Some(Incoming::Tcp(incoming)) = acceptor.accept().await {
                let Ok(there) = agent.open_tcp(incoming.port()) else {
                    return;
                };
                tokio::spawn(incoming.accept().join(there));
            }
        });
    }
}

/// A client of the same agent that stays. It reads at once, and nothing of it may be reset.
fn bystander(mux: Mux, number: u16, ends: &Arc<Ends>) -> JoinHandle<()> {
    let ends = Arc::clone(ends);
    tokio::spawn(async move {
        for turn in 0.. {
            let port = 1 + (number * 97 + turn) % 900;
            let stream = mux.open_tcp(port).unwrap();
            let whole = download(stream, port, LITTLE, Duration::ZERO).await;
            assert!(whole, "bystander {number} was reset in turn {turn}");
            ends.complete.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_secs(3)).await;
        }
    })
}

async fn run(seed: u64) -> mux::KeeperStats {
    let budget = Budget::new(LIMIT);
    let hours = Duration::from_secs(36_000);
    let config = resume::Config::default()
        .with_keep(hours)
        .with_idle_keep(hours);
    let (mut server, accepted) = Server::new(config.clone());
    server.builder = mux::builder().budget(&budget);
    let (near, far, _) = pipe(8);
    let (to_agent, driver) = mux::builder().budget(&budget).opener(near, CARRIER);
    tokio::spawn(driver);
    let (acceptor, driver) = mux::builder().acceptor(far, CARRIER);
    tokio::spawn(driver);
    tokio::spawn(agent(acceptor));
    tokio::spawn(join(accepted, to_agent));

    let (theirs, others) = (Arc::<Ends>::default(), Arc::<Ends>::default());
    let mut bystanders = Vec::new();
    for number in 0..3 {
        let mux = match number {
            // Without resumption.
            0 => {
                let (near, far, _) = pipe(8);
                let (acceptor, driver) = mux::builder().budget(&budget).acceptor(far, CARRIER);
                tokio::spawn(driver);
                server.acceptors.send(acceptor).unwrap();
                let (mux, driver) = mux::builder().opener(near, CARRIER);
                tokio::spawn(driver);
                mux
            }
            _ => Roamer::new(&server, &config).mux,
        };
        bystanders.push(bystander(mux, number, &others));
    }
    let mut roamers: Vec<Roamer> = Vec::new();
    for turn in 0..30_u64 {
        let random = |n: u64| usize::from(noise(seed * 1000 + turn * 10 + n, 1)[0]);
        roamers.retain(|roamer| roamer.mux.tunnel().close_reason().is_none());
        if roamers.len() < 6 {
            let roamer = Roamer::new(&server, &config);
            roamer.downloads(turn as u16, &theirs);
            roamers.push(roamer);
        }
        let roamer = &roamers[random(1) % roamers.len()];
        match random(2) % 3 {
            0 => roamer.come_back(),
            _ => roamer.leave(),
        }
        for _ in 0..random(3) % 30 {
            sleep(Duration::from_secs(1)).await;
            assert!(budget.held() <= LIMIT, "{} bytes", budget.held());
            assert!(!bystanders.iter().any(JoinHandle::is_finished));
        }
    }
    // Away for a while is not slow: the session's time stood still.
    for roamer in &roamers {
        roamer.come_back();
        let rtt = roamer.mux.tunnel().rtt();
        assert!(
            rtt.is_none_or(|rtt| rtt < Duration::from_secs(1)),
            "{rtt:?}"
        );
    }
    sleep(Duration::from_secs(60)).await;
    let live = roamers
        .iter()
        .filter(|roamer| roamer.mux.tunnel().is_attached());
    assert!(live.count() > 0);
    for bystander in bystanders {
        assert!(!bystander.is_finished());
        bystander.abort();
    }
    let stats = server.keeper.stats();
    assert_eq!(stats.expired + stats.gaps + stats.failed, 0, "{stats:?}");
    assert!(theirs.complete.load(Ordering::Relaxed) > 0);
    assert!(others.complete.load(Ordering::Relaxed) > 100);
    stats
}

#[test]
fn clients_that_are_away_cost_no_bystander_a_connection() {
    let mut all = (0, 0);
    for seed in 0..5 {
        // The tasks end with their runtime.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let stats = runtime.block_on(run(seed));
        all = (all.0 + stats.resumed, all.1 + stats.evicted);
    }
    assert!(all.0 > 5 && all.1 > 5, "resumed and evicted {all:?}");
}
