//! HTTP through a tunnel. Its streams are `AsyncRead` and `AsyncWrite`, which is all that hyper and
//! tonic need of a connection.
//!
//! Requests a page of a web service, and the health of a gRPC service. A server at the other end
//! would pass the streams that it accepts to hyper as well:
//! `auto::Builder::serve_connection(TokioIo::new(incoming.accept()), …)` of hyper-util.
//!
//! ```text
//! cargo run --example runner -- --target vm-7=127.0.0.1
//! cargo run --example embed_http -- ws://127.0.0.1:8001/api/tunnel/vm-7 8080 50051
//! ```

use std::error::Error;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use kohakuriver_tunnel::carrier;
use kohakuriver_tunnel::mux::{self, Mux};
use kohakuriver_tunnel::session::Version;
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, ClientRequestBuilder};
use tonic::transport::{Endpoint, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

carrier!(Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame);

const USAGE: &str = "usage: embed_http URL HTTP_PORT GRPC_PORT";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or(USAGE);
    let (url, web, grpc) = (next()?, next()?.parse()?, next()?.parse()?);

    let mux = connect(&url).await?;
    // Both at the same time, each on a stream of its own.
    let (page, health) = tokio::try_join!(page(&mux, web), health(&mux, grpc))?;
    println!("{page}");
    println!("{health}");
    Ok(())
}

/// HTTP/1.1 with hyper: one stream is one connection.
async fn page(mux: &Mux, port: u16) -> Result<String, Box<dyn Error>> {
    let stream = TokioIo::new(mux.open_tcp(port)?);
    let (mut requests, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = hyper::Request::get("/").header("host", "vm-7");
    let answer = requests
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?;
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.into())?)
}

/// HTTP/2 with tonic, which requests a connection whenever it needs one.
async fn health(mux: &Mux, port: u16) -> Result<String, Box<dyn Error>> {
    let mux = mux.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let stream = mux.open_tcp(port);
        async {
            let stream = stream?;
            stream.established().await?; // or a refusal would look like a broken connection
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // The name is for the service's logs. The port decides where to connect.
    let channel = Endpoint::from_static("http://vm-7")
        .connect_with_connector(connector)
        .await?;
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let answer = HealthClient::new(channel).check(request).await?;
    Ok(format!("{:?}", answer.into_inner().status()))
}

/// As in `embed_client`.
async fn connect(url: &str) -> Result<Mux, Box<dyn Error>> {
    let request = ClientRequestBuilder::new(url.parse()?).with_sub_protocol(Version::OFFER);
    let config = WebSocketConfig::default()
        .max_message_size(Some(1 << 20))
        .max_frame_size(Some(1 << 20));
    let (socket, answer) = connect_async_with_config(request, Some(config), true).await?;
    let chosen = answer.headers().get("sec-websocket-protocol");
    let version = Version::answered(chosen.and_then(|name| name.to_str().ok()))?;
    let (mux, driver) = mux::builder().version(version).connect(socket, Ws).await?;
    tokio::spawn(driver);
    Ok(mux)
}
