//! The mux in a browser: a page opens a port behind a tunnel and shows what comes.
//!
//! There are no threads and no sockets here. The tunnel is a WebSocket of the browser's, and the
//! driver runs among the page's own tasks.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Sink;
use gloo_net::websocket::Message;
use gloo_net::websocket::futures::WebSocket;
use gloo_timers::future::TimeoutFuture;
use kohakuriver_tunnel::mux::{self, Clock, Timer};
use kohakuriver_tunnel::session::{Config, Instant, Version};
use kohakuriver_tunnel::transport::{Carrier, Received};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::spawn_local;
use web_sys::{TextDecodeOptions, TextDecoder};

/// Tunnel messages in those of gloo-net.
struct Ws;

impl Carrier for Ws {
    type Message = Message;

    fn binary(&mut self, message: Bytes) -> Message {
        Message::Bytes(message.into())
    }

    fn classify(&mut self, message: Message) -> Received<Message> {
        match message {
            Message::Bytes(message) => Received::Message(message.into()),
            Message::Text(text) => Received::Text(text),
        }
    }

    fn text(&mut self, text: String) -> Option<Message> {
        Some(Message::Text(text))
    }
}

/// The page's timers.
#[derive(Default)]
struct PageTimer {
    armed: Option<(Instant, TimeoutFuture)>,
}

/// The page's clock, which only moves forward.
#[derive(Debug, Clone, Copy)]
struct PageClock;

impl Clock for PageClock {
    fn now(&self) -> Instant {
        let performance = web_sys::window().and_then(|window| window.performance());
        let millis = performance.map_or(0.0, |performance| performance.now());
        Instant::from_micros((millis * 1000.0) as u64)
    }
}

impl Timer for PageTimer {
    fn clock(&mut self) -> Arc<dyn Clock> {
        Arc::new(PageClock)
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let armed = self.armed.take().filter(|(armed, _)| *armed == deadline);
        let (_, sleep) = self.armed.insert(armed.unwrap_or_else(|| {
            let wait = (deadline - PageClock.now()).as_micros().div_ceil(1000);
            (
                deadline,
                TimeoutFuture::new(u32::try_from(wait).unwrap_or(u32::MAX)),
            )
        }));
        let due = Pin::new(sleep).poll(cx);
        if due.is_ready() {
            // A browser's timer may be early, and then the same deadline is asked for again.
            self.armed = None;
        }
        due
    }
}

/// Asks the web service at `port` for a page, and gives `show` the answer piece by piece.
#[wasm_bindgen]
pub async fn get(url: String, port: u16, show: js_sys::Function) -> Result<(), JsError> {
    let mut socket = WebSocket::open_with_protocol(&url, Version::OFFER)?;
    // Which version was chosen is known when the WebSocket is open.
    poll_fn(|cx| Pin::new(&mut socket).poll_ready(cx)).await?;
    let version = Version::answered(Some(&socket.protocol()))?;

    // Two clients behind a deployed runner must not choose the same ids.
    let mut config = Config::default();
    config.first_id = Some((js_sys::Math::random() * f64::from(u32::MAX)) as u32);
    let builder = mux::builder()
        .version(version)
        .config(config)
        .timer(PageTimer::default());
    let (mux, driver) = builder.connect(socket, Ws).await?;
    spawn_local(async { drop(driver.await) });

    // For uploads, let the sink wait while the WebSocket's `bufferedAmount` is high: gloo's is
    // always ready, and the browser would queue whatever the peer has given credit for.
    let mut stream = mux.open_tcp(port)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    // A character may begin in one piece and end in the next.
    let decoder = TextDecoder::new().map_err(described)?;
    let in_pieces = TextDecodeOptions::new();
    in_pieces.set_stream(true);
    let mut buffer = vec![0; 16 << 10];
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        let piece = &buffer[..len];
        let text = decoder.decode_with_u8_array_and_options(piece, &in_pieces);
        let _ = show.call1(&JsValue::NULL, &text.map_err(described)?.into());
    }
}

fn described(error: JsValue) -> JsError {
    JsError::new(&format!("{error:?}"))
}
