//! As `resume`, over WebSockets on TCP that is cut between any two bytes.

use std::net::SocketAddr;
use std::time::Duration;

use kohakuriver_tunnel::mux::{
    self, Admission, Binding, ConnectFailure, Dial, Incoming, Keeper, KeeperLimits,
};
use kohakuriver_tunnel::resume;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role as Side;

use super::tunnel::{Tungstenite, echoes, noise, within};

type Socket = WebSocketStream<TcpStream>;

async fn serve(keeper: Keeper<Socket>, socket: TcpStream) {
    let mut socket = WebSocketStream::from_raw_socket(socket, Side::Server, None).await;
    let (mut builder, mut carrier) = (mux::builder(), Tungstenite);
    if builder
        .say_greeting(&mut socket, &mut carrier)
        .await
        .is_err()
    {
        return;
    }
    let binding = Binding::new("route", "group", "peer");
    let admitted = builder.admit(&keeper, socket, Tungstenite, binding);
    let Ok(Admission::New(opening)) = admitted.await else {
        return;
    };
    let (mut acceptor, driver) = opening.acceptor();
    tokio::spawn(driver);
    while let Some(Incoming::Tcp(incoming)) = acceptor.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(incoming.accept());
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}

/// Passes bytes on, in both directions, and drops the connections after so many.
async fn relay(mut near: TcpStream, to: SocketAddr, mut budget: usize) {
    let mut far = TcpStream::connect(to).await.unwrap();
    let (mut there, mut back) = ([0; 4096], [0; 4096]);
    while budget > 0 {
        let (read, from_near) = tokio::select! {
            read = near.read(&mut there) => (read, true),
            read = far.read(&mut back) => (read, false),
        };
        let Ok(read @ 1..) = read else { return };
        let len = read.min(budget);
        budget -= len;
        let written = match from_near {
            true => far.write_all(&there[..len]).await,
            false => near.write_all(&back[..len]).await,
        };
        if written.is_err() {
            return;
        }
    }
}

async fn dial(to: SocketAddr) -> Result<Socket, ConnectFailure> {
    let failed = |error: &dyn ToString| ConnectFailure::again(&error.to_string());
    let socket = TcpStream::connect(to).await.map_err(|e| failed(&e))?;
    let mut socket = WebSocketStream::from_raw_socket(socket, Side::Client, None).await;
    let (mut builder, mut carrier) = (mux::builder(), Tungstenite);
    let heard = builder.hear_greeting(&mut socket, &mut carrier).await;
    heard.map_err(|e| failed(&e))?;
    Ok(socket)
}

#[tokio::test]
async fn contents_survive_cuts_in_the_middle_of_messages() {
    let random = {
        let mut seed = 0;
        move |bytes: &mut [u8]| {
            seed += 1;
            bytes.copy_from_slice(&noise(seed, bytes.len()));
        }
    };
    let keeper = Keeper::new(resume::Config::default(), KeeperLimits::default(), random);
    let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn({
        let keeper = keeper.clone();
        async move {
            loop {
                let (socket, _) = server.accept().await.unwrap();
                tokio::spawn(serve(keeper.clone(), socket));
            }
        }
    });
    let host = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let through = host.local_addr().unwrap();
    tokio::spawn(async move {
        for turn in 0.. {
            let (socket, _) = host.accept().await.unwrap();
            let budget = u32::from_le_bytes(noise(turn, 4).try_into().unwrap());
            // Some are cut before the tunnel is open again.
            let budget = match turn % 4 {
                1 => budget as usize % 200,
                _ => 50_000 + budget as usize % 2_000_000,
            };
            tokio::spawn(relay(socket, address, budget));
        }
    });
    let first = within(dial(through)).await.unwrap();
    let again = move |_: Dial| dial(through);
    let config = resume::Config::default().with_opening_timeout(Duration::from_secs(2));
    let builder = mux::builder().resume(config);
    let (mux, driver) = builder.resuming_opener(first, Tungstenite, again);
    let driver = tokio::spawn(driver);
    within(echoes(&mux, 4, 1 << 20)).await;
    let stats = mux.tunnel().resume_stats();
    assert!(stats.resumed >= 5 && stats.replayed > 0, "{stats:?}");
    let kept = keeper.stats();
    assert_eq!((kept.tunnels, kept.gaps, kept.failed), (1, 0, 0));
    mux.tunnel().shutdown();
    assert_eq!(within(driver).await.unwrap(), Ok(()));
}
