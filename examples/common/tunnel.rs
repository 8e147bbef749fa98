//! From a WebSocket to a tunnel, and to its end in good order when the program is told to stop.

use std::future::Future;
use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;

use kohakuriver_tunnel::mux::{self, Acceptor, Closed, Driver, Mux};
use kohakuriver_tunnel::session::{Config, Role, Version};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ws::{Socket, Tungstenite};

/// How long the connections of a program that is to stop may go on.
const GRACE: Duration = Duration::from_secs(1);

/// After this the program ends, whatever the other sides do.
const STOP_WITHIN: Duration = Duration::from_millis(2500);

/// The tunnels of this process.
static TUNNELS: LazyLock<Tunnels> = LazyLock::new(Tunnels::default);

#[derive(Default)]
struct Tunnels {
    stopping: CancellationToken,
    open: TaskTracker,
}

/// Puts a tunnel on a WebSocket whose handshake is over. The caller runs the driver, the future at the end.
pub fn over(
    socket: Socket,
    role: Role,
    v2: bool,
) -> (Mux, Acceptor, impl Future<Output = Closed> + Send + 'static) {
    let version = if v2 { Version::V2 } else { Version::V1 };
    let mut config = Config::default();
    // Each is looked at as soon as it comes, and accepted when the service has answered: a burst of slow
    // ones is no reason to refuse any.
    config.accept_backlog = config.max_streams;
    let (mux, acceptor, driver) = mux::connect(socket, Tungstenite, role, version, config);
    (mux, acceptor, TUNNELS.open.track_future(drive(driver)))
}

/// Ends all tunnels: the other sides are told, connections get a moment to end by themselves, and the
/// WebSockets are closed. At once when `again` is ready.
pub async fn end_all(again: impl Future) {
    TUNNELS.stopping.cancel();
    TUNNELS.open.close();
    tokio::select! {
        () = TUNNELS.open.wait() => {}
        () = sleep(STOP_WITHIN) => {}
        _ = again => {}
    }
}

async fn drive(driver: Driver<Socket, Tungstenite>) -> Closed {
    let mut driver = pin!(driver);
    tokio::select! {
        closed = &mut driver => return closed,
        () = TUNNELS.stopping.cancelled() => {}
    }
    let mux = driver.mux();
    mux.drain();
    let used = async {
        while mux.stats().streams > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        closed = &mut driver => return closed,
        _ = timeout(GRACE, used) => {}
    }
    mux.shutdown();
    driver.await
}
