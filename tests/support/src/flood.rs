//! Hostile connections, from as many loopback addresses as needed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::{raise_file_limit, soon};

/// Behaviour of every connection of a flood until the peer drops it. Then a new one is made.
#[derive(Debug, Clone, Copy)]
pub enum Attack {
    /// Sends nothing.
    Silent,
    /// Sends these bytes and nothing else.
    Says(&'static [u8]),
    /// Sends these bytes, one a second.
    Drips(&'static [u8]),
}

/// Running connections; all are closed when dropped.
pub struct Flood {
    _connections: JoinSet<()>,
}

impl Flood {
    /// Starts `count` connections and waits until each was made once.
    pub async fn start(to: &str, count: usize, sources: u8, attack: Attack) -> Self {
        raise_file_limit();
        let to: SocketAddr = to.parse().unwrap();
        let (made, mut first) = tokio::sync::mpsc::channel(count);
        let mut flood = JoinSet::new();
        for number in 0..count {
            let last = 10 + u8::try_from(number % usize::from(sources)).unwrap();
            let made = made.clone();
            flood.spawn(async move {
                let mut made = Some(made);
                loop {
                    if let Ok(stream) = connect_from(last, to).await {
                        if let Some(made) = made.take() {
                            let _ = made.send(()).await;
                        }
                        attack.run(stream).await;
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            });
        }
        drop(made);
        let all = async { while first.recv().await.is_some() {} };
        soon("the flood", all).await;
        Self {
            _connections: flood,
        }
    }
}

impl Attack {
    async fn run(self, mut stream: TcpStream) {
        let (bytes, pause) = match self {
            Self::Silent => (&b""[..], Duration::ZERO),
            Self::Says(bytes) => {
                let _ = stream.write_all(bytes).await;
                (&b""[..], Duration::ZERO)
            }
            Self::Drips(bytes) => (bytes, Duration::from_secs(1)),
        };
        let (mut read, mut write) = stream.into_split();
        let mut answer = [0; 1024];
        let dripping = async {
            for byte in bytes {
                let _ = write.write_all(&[*byte]).await;
                sleep(pause).await;
            }
            std::future::pending::<()>().await;
        };
        let closed = async { while let Ok(1..) = read.read(&mut answer).await {} };
        tokio::select! {
            () = dripping => {}
            () = closed => {}
        }
    }
}

/// Connects from 127.0.0.`last`.
pub async fn connect_from(last: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::from([127, 0, 0, last]), 0))?;
    socket.connect(to).await
}
