//! A scripted client: a WebSocket, and tunnel messages written by hand.

use futures_util::StreamExt;
use kohakuriver_tunnel::wire::{ClientId, Header, Kind, Proto};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::flood::connect_from;
use crate::soon;

pub type Client = WebSocketStream<TcpStream>;

/// The header that offers v2.
pub const V2: (&str, &str) = ("sec-websocket-protocol", "kohakuriver-tunnel.v2");

/// A WebSocket from 127.0.0.`last`, or the status of its refusal.
pub async fn upgrade(
    url: &str,
    headers: &[(&'static str, &str)],
    last: u8,
) -> Result<(Client, Response), u16> {
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let address = request.uri().authority().unwrap().as_str();
    let stream = connect_from(last, address.parse().unwrap());
    let stream = soon("connect", stream).await.unwrap();
    match soon("upgrade", client_async(request, stream)).await {
        Ok(connected) => Ok(connected),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("no WebSocket: {error}"),
    }
}

/// A session after its first text, with that text, or the status of its refusal.
pub async fn greeted(
    url: &str,
    headers: &[(&'static str, &str)],
    last: u8,
) -> Result<(Client, String), u16> {
    let (mut client, _) = upgrade(url, headers, last).await?;
    match soon("first text", client.next()).await {
        Some(Ok(Message::Text(text))) => Ok((client, text.to_string())),
        other => panic!("no text: {other:?}"),
    }
}

/// A session after its `CONNECTED`.
pub async fn session(url: &str, v2: bool) -> Client {
    let headers: &[_] = if v2 { &[V2] } else { &[] };
    let (client, text) = greeted(url, headers, 1).await.unwrap();
    assert_eq!(text, "CONNECTED");
    client
}

/// A tunnel message.
pub fn frame(kind: Kind, proto: Proto, id: u32, port: u16, payload: &[u8]) -> Message {
    let id = ClientId(id);
    let header = Header {
        kind,
        proto,
        id,
        port,
    };
    Message::binary([&header.to_bytes(), payload].concat())
}
