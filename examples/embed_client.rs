//! The shortest client: a page of a web service behind a tunnel.
//!
//! README.md shows this program, and a test runs it against the real runner.
//!
//! ```text
//! cargo run --example runner -- --target vm-7=127.0.0.1
//! cargo run --example embed_client -- ws://127.0.0.1:8001/api/tunnel/vm-7 8080
//! ```

use kohakuriver_tunnel::{carrier, mux, session::Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::{self, ClientRequestBuilder};

carrier!(Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("no URL")?.parse()?;
    let request = ClientRequestBuilder::new(url).with_sub_protocol(Version::OFFER);
    let (socket, answer) = tokio_tungstenite::connect_async(request).await?;
    let chosen = answer.headers().get("sec-websocket-protocol");
    let version = Version::answered(chosen.and_then(|name| name.to_str().ok()))?;
    let (mux, driver) = mux::builder().version(version).connect(socket, Ws).await?;
    tokio::spawn(driver); // owns the socket, and ends when the tunnel does

    let mut stream = mux.open_tcp(arguments.next().ok_or("no port")?.parse()?)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    println!("{reply}");
    Ok(())
}
