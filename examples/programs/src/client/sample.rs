//! A small web service to try the tunnel with: a page, a WebSocket echo, downloads and uploads.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, Path, Request};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;

const MIB: usize = 1 << 20;

/// Largest download, in MiB.
const DOWNLOAD_MAX: usize = 16 << 10;

/// Serves until dropped.
pub async fn serve(listener: TcpListener) {
    let app = Router::new()
        .route("/", get(|| async { Html(include_str!("sample.html")) }))
        .route("/echo", get(echo))
        .route("/download/{mib}", get(download))
        .route("/upload", post(upload))
        .layer(DefaultBodyLimit::disable());
    if let Err(error) = axum::serve(listener, app).await {
        tracing::warn!("the sample service ended: {error}");
    }
}

async fn echo(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|mut socket: WebSocket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if matches!(message, Message::Text(_) | Message::Binary(_))
                && socket.send(message).await.is_err()
            {
                return;
            }
        }
    })
}

/// This many MiB, the same bytes every time.
async fn download(Path(mib): Path<usize>) -> Response {
    if mib > DOWNLOAD_MAX {
        let line = format!("at most {DOWNLOAD_MAX} MiB\n");
        return (StatusCode::BAD_REQUEST, line).into_response();
    }
    let block: Bytes = (0..MIB)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect();
    let blocks = stream::iter(0..mib).map(move |_| Ok::<_, std::io::Error>(block.clone()));
    let length = [("content-length", (mib * MIB).to_string())];
    (length, Body::from_stream(blocks)).into_response()
}

/// Answers with the number of bytes.
async fn upload(request: Request) -> Response {
    let mut body = request.into_body().into_data_stream();
    let mut count = 0;
    while let Some(part) = body.next().await {
        match part {
            Ok(part) => count += part.len(),
            Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        }
    }
    format!("{count} bytes\n").into_response()
}
