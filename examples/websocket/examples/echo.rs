//! Echoes every message: the counterpart of the Autobahn test suite (`tests/autobahn/run.py`).
//!
//! `echo server ADDRESS` serves the suite's client, `echo client ADDRESS AGENT` connects to its
//! server.
#![allow(clippy::unwrap_used)] // a tool of the tests

use std::env;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tunnel_websocket::{Message, Role, WebSocket};

/// As large as the largest message of the suite.
const MESSAGE_MAX: usize = 16 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server", address] => serve(address).await,
        ["client", address, agent] => run_cases(address, agent).await,
        _ => eprintln!("usage: echo server ADDRESS | echo client ADDRESS AGENT"),
    }
}

async fn serve(address: &str) {
    let listener = TcpListener::bind(address).await.unwrap();
    println!("listening");
    while let Ok((mut socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (request, rest) = head(&mut socket).await?;
            let key = field(&request, "sec-websocket-key")?;
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {}\r\n\r\n",
                derive_accept_key(key.as_bytes())
            );
            socket.write_all(answer.as_bytes()).await.ok()?;
            echo(WebSocket::new(socket, rest, Role::Server, MESSAGE_MAX)).await;
            Some(())
        });
    }
}

async fn run_cases(address: &str, agent: &str) {
    let mut count = connect(address, "/getCaseCount").await;
    let Some(Ok(Message::Text(text))) = count.next().await else {
        return eprintln!("the suite does not say how many cases there are");
    };
    let count: usize = text.parse().unwrap();
    for case in 1..=count {
        echo(connect(address, &format!("/runCase?case={case}&agent={agent}")).await).await;
    }
    let mut reports = connect(address, &format!("/updateReports?agent={agent}")).await;
    while let Some(Ok(_)) = reports.next().await {}
    println!("{count} cases");
}

async fn connect(address: &str, path: &str) -> WebSocket<TcpStream> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let (_, rest) = head(&mut socket).await.unwrap();
    WebSocket::new(socket, rest, Role::Client, MESSAGE_MAX)
}

async fn echo(mut socket: WebSocket<TcpStream>) {
    while let Some(Ok(message)) = socket.next().await {
        let back = match message {
            message @ (Message::Text(_) | Message::Binary(_)) => message,
            _ => continue,
        };
        if socket.send(back).await.is_err() {
            break;
        }
    }
    let _ = socket.close().await;
}

/// An HTTP head, and the bytes after it.
async fn head(socket: &mut TcpStream) -> Option<(String, Bytes)> {
    let mut read = BytesMut::new();
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = read.split_to(end + 4);
            return Some((String::from_utf8_lossy(&head).into_owned(), read.freeze()));
        }
        if socket.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields
        .find(|(given, _)| given.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}
