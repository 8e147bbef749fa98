//! Allocations per message on a running tunnel.

use kohakuriver_tunnel::mux::TunnelStream;
use kohakuriver_tunnel::session::{Config, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::counting::counts;
use super::tunnel::{Link, Tunnel, piped, within};

const MESSAGE: usize = 64 << 10;

/// Allocations and bytes per message of 64 KiB, both ends together.
struct Cost {
    allocations: f64,
    bytes: f64,
}

async fn bulk(name: &str, mut tunnel: Tunnel) -> Cost {
    let (near, far) = tunnel.stream().await;
    carry(name, near, far).await
}

/// Through two tunnels, whose streams are joined.
async fn joined(name: &str, mut first: Tunnel, mut second: Tunnel) -> Cost {
    let ((near, here), (there, far)) = (first.stream().await, second.stream().await);
    let join = tokio::spawn(here.join(there));
    let cost = carry(name, near, far).await;
    join.abort();
    cost
}

async fn carry(name: &str, mut near: TunnelStream, mut far: TunnelStream) -> Cost {
    const MESSAGES: usize = 1000;
    let message = vec![7; MESSAGE];
    let mut got = vec![0; MESSAGE];
    let mut turn = async |from: usize, to: usize| {
        for _ in from..to {
            let write = near.write_all(&message);
            let (written, read) = tokio::join!(write, far.read_exact(&mut got));
            written.unwrap();
            read.unwrap();
        }
    };
    within(turn(0, 100)).await;
    let before = counts();
    within(turn(0, MESSAGES)).await;
    let used = counts() - before;
    let cost = Cost {
        allocations: used.calls as f64 / MESSAGES as f64,
        bytes: used.bytes as f64 / MESSAGES as f64,
    };
    println!(
        "{name}: {:.2} allocations and {:.0} bytes per message of {MESSAGE} bytes",
        cost.allocations, cost.bytes
    );
    cost
}

async fn round_trips(name: &str, mut tunnel: Tunnel) -> f64 {
    const TRIPS: usize = 1000;
    let (mut near, mut far) = tunnel.stream().await;
    let mut trip = async || {
        let mut buffer = [0; 64];
        near.write_all(&buffer).await.unwrap();
        far.read_exact(&mut buffer).await.unwrap();
        far.write_all(&buffer).await.unwrap();
        near.read_exact(&mut buffer).await.unwrap();
    };
    for _ in 0..100 {
        within(trip()).await;
    }
    let before = counts();
    for _ in 0..TRIPS {
        within(trip()).await;
    }
    let each = (counts() - before).calls as f64 / TRIPS as f64;
    println!("{name}: {each:.2} allocations per round trip of 64 bytes");
    each
}

#[tokio::test]
async fn a_message_costs_few_allocations() {
    let config = Config::default;
    let v2 = Version::V2;
    let cost = bulk("pipe", piped(v2, config()).0).await;
    assert!(cost.allocations <= 4.0);
    assert!(cost.bytes <= 2.5 * MESSAGE as f64);
    let each = round_trips("pipe", piped(v2, config()).0).await;
    assert!(each <= 3.0);

    let over_tcp = Link::WebSocket.v2().await;
    let cost = bulk("websocket", over_tcp).await;
    assert!(cost.allocations <= 4.0);
    let over_tcp = Link::WebSocket.v2().await;
    let each = round_trips("websocket", over_tcp).await;
    assert!(each <= 8.0);
}

#[tokio::test]
async fn a_message_that_nobody_else_holds_is_joined_without_a_copy() {
    let tunnel = || piped(Version::V2, Config::default()).0;
    let cost = joined("joined", tunnel(), tunnel()).await;
    // The one allocation is that of the sender, which copies what it is given.
    assert!(cost.bytes <= 1.2 * MESSAGE as f64);
    assert!(cost.allocations <= 5.0);
}
