//! The programs' WebSocket, in both roles, compared with tungstenite on the same bytes.
//!
//! Input: one byte of options, one byte for the number of chunk sizes, the chunk sizes, then the
//! bytes of the peer. The socket transfers at most one chunk at a time and is pending in between.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error as TheirError, Message};
use tunnel_websocket::limits::{BYTES_PER_TURN, FRAMES_PER_TURN, PONGS_MAX, WRITE_BUFFER};
use tunnel_websocket::{Account, Error, Violation, WebSocket};

/// For any input: both see the same messages, or both refuse it. Every ping is answered at most
/// once and in order. The last frame is one close frame with the right code. No poll does unbounded
/// work. Memory taken from the account is returned. Messages that are sent arrive unchanged at
/// tungstenite. A peer that does not read makes no more wait for it than the stated bound, and its
/// last ping is answered once it reads.
pub fn websocket(data: &[u8]) {
    let Some((&[options, sizes], rest)) = data.split_first_chunk() else {
        return;
    };
    let role = match options & 1 {
        0 => Role::Server,
        _ => Role::Client,
    };
    let message_max = [0, 130, 70_000, 1 << 20][usize::from(options >> 1 & 3)];
    let limit = [usize::MAX >> 1, 0, 1000, 50_000][usize::from(options >> 3 & 3)];
    let (sizes, wire) = rest.split_at(usize::from(sizes).min(rest.len()));

    let purse = Arc::new(Purse {
        limit,
        taken: AtomicUsize::new(0),
    });
    let account = Arc::clone(&purse) as Arc<dyn Account>;
    let mut socket = Script::new(wire, sizes);
    let ours = receive(&mut socket, role, message_max, account);
    assert_eq!(
        purse.taken.load(Ordering::Relaxed),
        0,
        "kept from the account"
    );
    let theirs = receive_theirs(wire, role, message_max);
    compare(&ours, &theirs);
    check_answers(&socket.written, role, &ours);

    let data = |message: &&Message| matches!(message, Message::Binary(_) | Message::Text(_));
    let messages: Vec<Message> = ours.messages.iter().filter(data).cloned().collect();
    send(&messages, role, sizes);
    answer_late(wire, role, message_max, sizes);
}

struct Ours {
    messages: Vec<Message>,
    end: Option<Error>,
}

/// All messages, and how the input ended.
fn receive(socket: &mut Script, role: Role, message_max: usize, account: Arc<dyn Account>) -> Ours {
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut cx = Context::from_waker(&waker);
    let mut messages = Vec::new();
    let mut end = None;
    let mut ours = WebSocket::new(&mut *socket, Bytes::new(), role, message_max);
    ours.charge_to(account);
    loop {
        let woken = wakes.0.load(Ordering::Relaxed);
        match Pin::new(&mut ours).poll_next(&mut cx) {
            Poll::Ready(Some(Ok(message))) => {
                assert!(end.is_none(), "a message after an error");
                messages.push(message);
            }
            Poll::Ready(Some(Err(error))) => {
                assert!(end.is_none(), "two errors");
                end = Some(error);
            }
            Poll::Ready(None) => break,
            Poll::Pending => assert!(wakes.0.load(Ordering::Relaxed) > woken, "lost wake-up"),
        }
    }
    while Pin::new(&mut ours).poll_close(&mut cx).is_pending() {}
    drop(ours);
    assert!(socket.most_at_once <= BYTES_PER_TURN + FRAMES_PER_TURN);
    Ours { messages, end }
}

fn receive_theirs(wire: &[u8], role: Role, message_max: usize) -> (Vec<Message>, TheirError) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(message_max))
        .max_frame_size(Some(message_max.max(125)));
    let pipe = Pipe(wire.iter().copied().collect(), Vec::new());
    let mut theirs = tungstenite::protocol::WebSocket::from_raw_socket(pipe, role, Some(config));
    let mut messages = Vec::new();
    loop {
        match theirs.read() {
            Ok(message) => messages.push(message),
            Err(error) => return (messages, error),
        }
    }
}

/// Checks for the same messages, unless our WebSocket is stricter and says so.
fn compare(ours: &Ours, (theirs, their_end): &(Vec<Message>, TheirError)) {
    let stricter = match &ours.end {
        // tungstenite accepts lengths that are not minimal, and treats a wrong close code as 1002.
        Some(Error::Violation(Violation::LongLength(_) | Violation::CloseCode(_))) => true,
        Some(Error::EmptyFragment | Error::TooManyFragments | Error::NoMemory) => true,
        _ => false,
    };
    if stricter {
        assert!(theirs.starts_with(&ours.messages));
        return;
    }
    // 1014 is assigned, but tungstenite does not know it.
    let bad_gateway = matches!(ours.messages.last(), Some(Message::Close(Some(frame)))
        if u16::from(frame.code) == 1014);
    if bad_gateway {
        assert_eq!(ours.messages.len(), theirs.len());
        return;
    }
    assert_eq!(&ours.messages, theirs, "{:?} / {their_end}", ours.end);
    // After a close frame our WebSocket reads nothing; tungstenite may reject what follows.
    if !matches!(theirs.last(), Some(Message::Close(_))) {
        let closed = matches!(their_end, TheirError::ConnectionClosed);
        assert!(!closed, "{:?}", ours.end);
    }
}

/// The frames that our WebSocket wrote: pongs, then at most one close frame.
fn check_answers(written: &[u8], role: Role, ours: &Ours) {
    let other = match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    };
    let (answers, _) = receive_theirs(written, other, 1000);
    let mut pings = ours.messages.iter().filter_map(|message| match message {
        Message::Ping(payload) => Some(payload),
        _ => None,
    });
    let mut closes = Vec::new();
    for answer in answers {
        match answer {
            Message::Pong(payload) => {
                assert!(closes.is_empty());
                assert!(pings.any(|ping| *ping == payload), "a pong without a ping");
            }
            Message::Close(frame) => closes.push(frame.map(|frame| u16::from(frame.code))),
            other => panic!("{other:?} was never asked for"),
        }
    }
    let expected = match (&ours.end, ours.messages.last()) {
        (Some(error), _) => error.close_code().or(Some(1001)),
        (None, Some(Message::Close(frame))) => frame.as_ref().map(|frame| u16::from(frame.code)),
        (None, _) => Some(1001),
    };
    // tungstenite does not know 1014 and reports it as 1002.
    let expected = expected.map(|code| if code == 1014 { 1002 } else { code });
    assert_eq!(closes, [expected]);
}

/// Messages that our WebSocket sends arrive at tungstenite.
fn send(messages: &[Message], role: Role, sizes: &[u8]) {
    let waker = Waker::from(Arc::new(Wakes::default()));
    let mut cx = Context::from_waker(&waker);
    let mut socket = Script::new(&[], sizes);
    let mut ours = WebSocket::new(&mut socket, Bytes::new(), role, 0);
    for message in messages {
        while Pin::new(&mut ours).poll_ready(&mut cx).is_pending() {}
        let sent = Pin::new(&mut ours).start_send(message.clone());
        sent.expect("an open connection takes it");
    }
    while Pin::new(&mut ours).poll_close(&mut cx).is_pending() {}
    let other = match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    };
    let (mut received, _) = receive_theirs(&socket.written, other, 1 << 20);
    assert!(matches!(received.pop(), Some(Message::Close(_))));
    assert_eq!(received, messages);
}

/// The peer sends everything before it reads. Each of its messages is sent back as often as that is
/// accepted, up to a bound.
fn answer_late(wire: &[u8], role: Role, message_max: usize, sizes: &[u8]) {
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut cx = Context::from_waker(&waker);
    let mut socket = Script::new(wire, sizes);
    // It may stop in the middle of a frame.
    let early: usize = sizes.iter().map(|size| usize::from(*size)).sum();
    let room = Rc::new(Cell::new(early));
    socket.room = Some(Rc::clone(&room));
    let mut ours = WebSocket::new(&mut socket, Bytes::new(), role, message_max);
    let (mut sent, mut last_ping, mut is_open) = (Vec::new(), None, true);
    loop {
        let woken = wakes.0.load(Ordering::Relaxed);
        match Pin::new(&mut ours).poll_next(&mut cx) {
            Poll::Ready(Some(Ok(message @ (Message::Binary(_) | Message::Text(_))))) => {
                for _ in 0..50 {
                    if Pin::new(&mut ours).poll_ready(&mut cx).is_pending() {
                        break;
                    }
                    let accepted = Pin::new(&mut ours).start_send(message.clone());
                    accepted.expect("an open connection takes it");
                    sent.push(message.clone());
                }
            }
            Poll::Ready(Some(Ok(Message::Ping(payload)))) => last_ping = Some(payload),
            Poll::Ready(Some(Ok(message))) => is_open &= !matches!(message, Message::Close(_)),
            Poll::Ready(Some(Err(_))) => is_open = false,
            Poll::Ready(None) => break,
            Poll::Pending if wakes.0.load(Ordering::Relaxed) > woken => {}
            // The answer to a close frame waits.
            Poll::Pending => {
                assert!(!is_open, "lost wake-up");
                break;
            }
        }
    }
    let early = early - room.replace(usize::MAX);
    while Pin::new(&mut ours).poll_flush(&mut cx).is_pending() {}
    drop(ours);
    let written = socket.written;

    const HEADER_MAX: usize = 14;
    const CONTROL_MAX: usize = HEADER_MAX + 125;
    let longest = sent.iter().map(|message| message.len() + HEADER_MAX).max();
    let most = WRITE_BUFFER + longest.unwrap_or(0) + (PONGS_MAX + 2) * CONTROL_MAX;
    assert!(
        written.len() - early <= most,
        "{} bytes waited",
        written.len() - early
    );
    let other = match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    };
    let is_pong = |message: &Message| message.is_pong();
    let (answers, _) = receive_theirs(&written[..early], other, 1 << 20);
    let before = answers.into_iter().filter(is_pong).count();
    let (mut answers, _) = receive_theirs(&written, other, 1 << 20);
    answers.retain(|answer| !answer.is_close());
    let (pongs, data): (Vec<_>, Vec<_>) = answers.into_iter().partition(is_pong);
    assert!(
        pongs.len() - before <= PONGS_MAX + 1,
        "{} pongs waited",
        pongs.len() - before
    );
    assert_eq!(data, sent);
    if is_open {
        assert_eq!(pongs.last().cloned(), last_ping.map(Message::Pong));
    }
}

/// A socket that follows the input.
struct Script {
    input: VecDeque<u8>,
    sizes: Vec<u8>,
    turn: usize,
    written: Vec<u8>,
    /// The bytes that it still accepts, if that is bounded. Each write takes as many, and without
    /// any nothing wakes a writer.
    room: Option<Rc<Cell<usize>>>,
    since_pending: usize,
    most_at_once: usize,
}

impl Script {
    fn new(wire: &[u8], sizes: &[u8]) -> Self {
        Self {
            input: wire.iter().copied().collect(),
            sizes: sizes.to_vec(),
            turn: 0,
            written: Vec::new(),
            room: None,
            since_pending: 0,
            most_at_once: 0,
        }
    }

    /// How many bytes move now. None means that the socket is pending.
    fn chunk(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let size = match self.sizes.len() {
            0 => usize::MAX,
            len => usize::from(self.sizes[self.turn % len]),
        };
        self.turn += 1;
        // Not twice in a row, so that it terminates.
        if size == 0 && self.since_pending > 0 {
            self.since_pending = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.since_pending += 1;
        Poll::Ready(size.max(1))
    }
}

impl AsyncRead for &mut Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = std::task::ready!(self.chunk(cx));
        let len = size.min(buffer.remaining()).min(self.input.len());
        let bytes: Vec<u8> = self.input.drain(..len).collect();
        buffer.put_slice(&bytes);
        self.most_at_once = self.most_at_once.max(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for &mut Script {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let size = match &self.room {
            Some(room) if room.get() == 0 => return Poll::Pending,
            Some(room) => room.get(),
            None => std::task::ready!(self.chunk(cx)),
        };
        let len = size.min(bytes.len());
        if let Some(room) = &self.room {
            room.set(size - len);
        }
        self.written.extend_from_slice(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The socket of tungstenite: all input at once, all output accepted.
struct Pipe(VecDeque<u8>, Vec<u8>);

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Purse {
    limit: usize,
    taken: AtomicUsize,
}

impl Account for Purse {
    fn take(&self, bytes: usize) -> bool {
        let taken = self.taken.load(Ordering::Relaxed) + bytes;
        let granted = taken <= self.limit;
        if granted {
            self.taken.store(taken, Ordering::Relaxed);
        }
        granted
    }

    fn give_back(&self, bytes: usize) {
        let before = self.taken.fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "more given back than taken");
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
