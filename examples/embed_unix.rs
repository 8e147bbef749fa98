//! A tunnel without WebSocket and HTTP, over a Unix socket. Over TCP, TLS, vsock or an SSH channel
//! only the type of the socket would differ.
//!
//! Where tokio has no Unix sockets (Windows) it runs over TCP: give `127.0.0.1:7000` as PATH.
//!
//! `serve` lets others reach the TCP ports of this machine; remove the socket's file before you
//! serve again. `open` joins one of the ports to its stdin and stdout, as netcat would.
//!
//! ```text
//! cargo run --example embed_unix -- serve /tmp/tunnel.sock
//! cargo run --example embed_unix -- open /tmp/tunnel.sock 8080
//! ```

use std::error::Error;

use kohakuriver_tunnel::mux::{self, Incoming, length_prefixed};
use kohakuriver_tunnel::session::Reason;
use kohakuriver_tunnel::transport::Plain;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
#[cfg(not(unix))]
use tokio::net::{TcpListener as Listener, TcpStream as Socket};
#[cfg(unix)]
use tokio::net::{UnixListener as Listener, UnixStream as Socket};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", path] => serve(path).await,
        ["open", path, port] => open(path, port.parse()?).await,
        _ => Err("usage: embed_unix serve PATH | embed_unix open PATH PORT".into()),
    }
}

async fn open(path: &str, port: u16) -> Result<(), Box<dyn Error>> {
    let socket = Socket::connect(path).await?;
    // Both ends come from this program, so there is no version to agree on: the builder's is 2.
    let (mux, driver) = mux::builder().opener(length_prefixed(socket), Plain);
    let driver = tokio::spawn(driver);

    let (mut reply, mut request) = tokio::io::split(mux.open_tcp(port)?);
    drop(mux); // the tunnel ends with the connection
    let mut stdout = tokio::io::stdout();
    let send = async move {
        tokio::io::copy(&mut tokio::io::stdin(), &mut request).await?;
        request.shutdown().await // this direction alone, the reply still comes
    };
    let receive = async move {
        tokio::io::copy(&mut reply, &mut stdout).await?;
        stdout.flush().await
    };
    tokio::try_join!(send, receive)?;
    driver.await??; // until then, some of what was sent may be on its way
    Ok(())
}

async fn serve(path: &str) -> Result<(), Box<dyn Error>> {
    #[cfg(unix)]
    let listener = Listener::bind(path)?;
    #[cfg(not(unix))]
    let listener = Listener::bind(path).await?;
    println!("Listening on {path}");
    loop {
        let (socket, _) = listener.accept().await?;
        let (mut acceptor, driver) = mux::builder().acceptor(length_prefixed(socket), Plain);
        tokio::spawn(driver);
        tokio::spawn(async move {
            while let Some(incoming) = acceptor.accept().await {
                tokio::spawn(connect(incoming));
            }
        });
    }
}

/// Joins a connection of the other side to the port that it asks for.
async fn connect(incoming: Incoming) {
    let Incoming::Tcp(incoming) = incoming else {
        return; // whatever is dropped is refused
    };
    match TcpStream::connect(("127.0.0.1", incoming.port())).await {
        Ok(mut service) => {
            if let Err(error) = incoming.accept().relay(&mut service).await {
                let _ = service.set_zero_linger(); // not an end like any other
                eprintln!("a connection broke: {error}");
            }
        }
        Err(error) => incoming.reject(Reason::Refused, &error.to_string()),
    }
}
