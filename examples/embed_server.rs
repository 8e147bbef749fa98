//! The shortest server: whoever opens a tunnel to it reaches the TCP ports of this machine.
//!
//! README.md shows this program, and a test runs it against the real `forward`.
//!
//! ```text
//! cargo run --example embed_server
//! cargo run --example forward -- \
//!     --host ws://127.0.0.1:8000/api/tunnel/42 --remote-port 8080 --local-port 9000
//! ```

use axum::{Router, extract::ws, routing::any};
use kohakuriver_tunnel::{carrier, mux, session::Version};
use tokio::net::{TcpListener, TcpStream};
carrier!(Ws: ws::Message, close: ws::CloseFrame);
#[tokio::main]
async fn main() -> std::io::Result<()> {
    let open = async |ws: ws::WebSocketUpgrade| ws.protocols([Version::OFFER]).on_upgrade(tunnel);
    let app = Router::new().route("/api/tunnel/{task}", any(open));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8000".into());
    axum::serve(TcpListener::bind(address).await?, app).await
}
async fn tunnel(socket: ws::WebSocket) {
    let version = socket.protocol().map_or(Version::V1, |_| Version::V2);
    if let Ok((mut acceptor, driver)) = mux::builder().version(version).welcome(socket, Ws).await {
        tokio::spawn(driver); // owns the socket, and ends when the tunnel does
        while let Some(incoming) = acceptor.accept_tcp().await {
            tokio::spawn(async move {
                let address = ("127.0.0.1", incoming.port());
                let mut service = TcpStream::connect(address).await.ok()?; // dropped: refused
                let relayed = incoming.accept().relay(&mut service).await;
                relayed.inspect_err(|_| _ = service.set_zero_linger()).ok() // no clean end
            });
        }
    }
}
