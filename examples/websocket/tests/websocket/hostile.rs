//! What a hostile peer can do to memory and to the thread. Each test states the bound.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, DuplexStream};
use tokio::io::{ReadBuf, duplex};
use tunnel_websocket::limits::{
    FRAGMENT_MIN, FRAGMENTS_FREE, FREE_ALLOWANCE, PONGS_MAX, READ_AHEAD_MAX, WAIT_MAX, WRITE_BUFFER,
};
use tunnel_websocket::{Account, Error, Message, Role, WebSocket};

use crate::support::{MAX, frame, open, other, sockets, within};

const ROLES: [Role; 2] = [Role::Client, Role::Server];

const BINARY: u8 = 0x82;
const CONTINUATION: u8 = 0x00;
const BINARY_BEGIN: u8 = 0x02;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// Frames of `role` as sent: opcode and payload of each.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [first, second, rest @ ..] = bytes {
        let len = usize::from(second & 0x7f);
        assert!(len < 126, "only control frames are expected");
        let masked = second & 0x80 != 0;
        let (key, rest) = rest.split_at(if masked { 4 } else { 0 });
        let (payload, rest) = rest.split_at(len);
        let unmask = |(at, byte): (usize, &u8)| byte ^ key.get(at % 4).unwrap_or(&0);
        frames.push((*first, payload.iter().enumerate().map(unmask).collect()));
        bytes = rest;
    }
    frames
}

/// A socket whose use is recorded.
struct Watched {
    socket: DuplexStream,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    writes: AtomicUsize,
    /// The length of each read.
    reads: Mutex<Vec<usize>>,
}

impl Watched {
    fn new(socket: DuplexStream) -> (Self, Arc<Seen>) {
        let seen = Arc::<Seen>::default();
        let watched = Self {
            socket,
            seen: Arc::clone(&seen),
        };
        (watched, seen)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        let len = buffer.filled().len() - before;
        self.seen.reads.lock().unwrap().push(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.seen.writes.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A peer that pings and does not read costs few pongs, of which one answers the last ping.
#[tokio::test]
async fn pings_of_a_peer_that_does_not_read_leave_few_pongs() {
    const ROOM: usize = 64;
    const PINGS: u32 = 100_000;
    for role in ROLES {
        let (near, far) = duplex(ROOM);
        let mut ours = open(near, role, MAX);
        let (mut from_ours, mut to_ours) = tokio::io::split(far);
        let flood = tokio::spawn(async move {
            for i in 0..PINGS {
                let ping = frame(other(role), PING, &i.to_be_bytes());
                to_ours.write_all(&ping).await.unwrap();
            }
            to_ours
        });
        for _ in 0..PINGS {
            let message = within(ours.next()).await.unwrap().unwrap();
            assert!(matches!(message, Message::Ping(_)), "{message:?}");
        }
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            from_ours.read_to_end(&mut all).await.unwrap();
            all
        });
        within(ours.flush()).await.unwrap();
        drop((ours, within(flood).await.unwrap()));
        let pongs = frames(&within(reader).await.unwrap());
        assert!(pongs.iter().all(|(first, _)| *first == PONG));
        assert_eq!(pongs.last().unwrap().1, (PINGS - 1).to_be_bytes());
        // As many as the transport took, those that wait, and the last.
        let taken = ROOM / frame(role, PONG, &[0; 4]).len() + 1;
        let most = taken + PONGS_MAX + 1;
        assert!(pongs.len() <= most, "{} pongs", pongs.len());
    }
}

/// So a flood of pings costs far fewer system calls than it has pings, also where nobody but the
/// reader polls the socket.
#[tokio::test]
async fn pings_that_come_together_are_answered_in_one_write() {
    for role in ROLES {
        let pings = |range: std::ops::Range<u8>| -> Vec<u8> {
            range.flat_map(|i| frame(other(role), PING, &[i])).collect()
        };
        let (near, mut far) = duplex(64 << 10);
        let (near, seen) = Watched::new(near);
        let mut ours = WebSocket::new(near, pings(0..60).into(), role, MAX);
        while futures_util::poll!(ours.next()).is_ready() {}
        assert_eq!(seen.writes.load(Ordering::SeqCst), 1);
        far.write_all(&pings(60..62)).await.unwrap();
        while futures_util::poll!(ours.next()).is_ready() {}
        assert_eq!(seen.writes.load(Ordering::SeqCst), 2);
        drop(ours);
        let mut told = Vec::new();
        far.read_to_end(&mut told).await.unwrap();
        let told = frames(&told);
        assert!(told.iter().all(|(first, _)| *first == PONG));
        let told: Vec<u8> = told.iter().map(|(_, payload)| payload[0]).collect();
        let first = 0..PONGS_MAX as u8 - 1;
        assert_eq!(told, first.chain(59..62).collect::<Vec<u8>>());
    }
}

/// The same while our own pings, and messages, wait.
#[tokio::test]
async fn what_waits_to_be_written_is_bounded() {
    for size in [0, 4, 125, 2000] {
        let (near, _far) = duplex(64);
        let mut ours = open(near, Role::Client, MAX);
        let payload = vec![0; size];
        let mut queued = 0;
        let filling = async {
            loop {
                let message = match size {
                    0..126 => Message::Ping(payload.clone().into()),
                    _ => Message::Binary(payload.clone().into()),
                };
                ours.feed(message).await.unwrap();
                queued += size + 6;
            }
        };
        let filled = tokio::time::timeout(Duration::from_millis(300), filling).await;
        assert!(filled.is_err(), "it must not take messages for ever");
        let bound = WRITE_BUFFER + size + 2 * 64;
        assert!((WRITE_BUFFER..=bound).contains(&queued), "{queued}");
    }
}

/// When the process is short of memory, a connection whose peer does not read holds little of it.
#[tokio::test]
async fn without_memory_little_waits_to_be_written() {
    const SIZE: usize = 3000;
    for (limit, most) in [(0, FREE_ALLOWANCE), (50_000, FREE_ALLOWANCE + 50_000)] {
        let purse = purse(limit);
        let (near, _far) = duplex(64);
        let mut ours = WebSocket::new(near, Bytes::new(), Role::Server, MAX);
        ours.charge_to(Arc::clone(&purse) as Arc<dyn Account>);
        let mut queued = 0;
        let filling = async {
            loop {
                let message = Message::Binary(vec![0; SIZE].into());
                ours.feed(message).await.unwrap();
                queued += SIZE;
            }
        };
        let filled = tokio::time::timeout(Duration::from_millis(200), filling).await;
        assert!(filled.is_err(), "it must not take messages for ever");
        assert!(
            (most - 2 * SIZE..=most + 2 * SIZE).contains(&queued),
            "{queued}"
        );
        drop(ours);
        assert_eq!(purse.taken.load(Ordering::SeqCst), 0);
    }
}

/// A transport with endless input. A task that does not yield would never end.
async fn others_progress(role: Role, endless: &'static [u8], count: usize) -> bool {
    let (near, far) = duplex(64 << 10);
    let mut ours = open(near, role, MAX);
    let (_keep, mut to_ours) = tokio::io::split(far);
    let flood = tokio::spawn(async move { while to_ours.write_all(endless).await.is_ok() {} });
    let mut ended = false;
    let mut steps = 0;
    let work = async {
        // A task that polls forever, except for the times it yields.
        while let Some(message) = ours.next().await {
            if message.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = work => ended = true,
        () = async {
            while steps < count {
                tokio::task::yield_now().await;
                steps += 1;
            }
        } => {}
    }
    flood.abort();
    !ended
}

#[tokio::test]
async fn no_flood_keeps_the_thread() {
    let pings: &[u8] = &[0x89, 0, 0x89, 0, 0x89, 0, 0x89, 0];
    let pongs: &[u8] = &[0x8a, 0, 0x8a, 0, 0x8a, 0, 0x8a, 0];
    let empties: &[u8] = &[0x82, 0, 0x82, 0, 0x82, 0, 0x82, 0];
    for endless in [pings, pongs, empties] {
        let lasting = within(others_progress(Role::Client, endless, 200)).await;
        assert!(lasting, "legal frames, however many, end nothing");
    }
}

/// One read brings the work of few turns, so tiny frames take little memory. Large ones are read
/// many at once as before.
#[tokio::test]
async fn tiny_frames_are_read_few_at_a_time() {
    const LARGE: usize = 65_000;
    for role in ROLES {
        let ping = frame(other(role), PING, &[7; 125]);
        let tiny = frame(other(role), BINARY, &[7; 12]);
        for small in [ping, tiny] {
            let large = frame(other(role), BINARY, &[7; LARGE]).repeat(20);
            let flood = [&large[..], &small.repeat((1 << 20) / small.len())].concat();
            let (near, mut far) = duplex(4 << 20);
            let (near, seen) = Watched::new(near);
            let mut ours = open(near, role, MAX);
            let mut reads_of = async |bytes: &[u8]| {
                far.write_all(bytes).await.unwrap();
                while seen.reads.lock().unwrap().iter().sum::<usize>() < bytes.len() {
                    if futures_util::poll!(ours.next()).is_pending() {
                        tokio::task::yield_now().await;
                    }
                }
                std::mem::take(&mut *seen.reads.lock().unwrap())
            };
            let reads = reads_of(&flood).await;
            let long: usize = reads.into_iter().filter(|len| *len > 32 << 10).sum();
            assert!(long <= large.len() + 2 * READ_AHEAD_MAX, "{long}");
            let reads = reads_of(&large).await;
            assert!(reads.into_iter().max() > Some(LARGE));
        }
    }
}

/// Tiny frames shorten the next reads. The buffer that they were read into is as large as before.
#[tokio::test]
async fn a_small_payload_behind_tiny_frames_pins_no_large_buffer() {
    let (near, mut far) = duplex(4 << 20);
    let mut ours = open(near, Role::Client, MAX);
    let frames = |len, count| frame(Role::Server, BINARY, &vec![7; len]).repeat(count);
    let mut payload = async |len| {
        let payload = within(ours.next()).await.unwrap().unwrap().into_data();
        assert_eq!(payload.len(), len);
        payload
    };
    // Bulk is not copied.
    for len in [16 << 10, 65_000] {
        far.write_all(&frames(len, 20)).await.unwrap();
        let mut shared = 0;
        for _ in 0..20 {
            shared += usize::from(!payload(len).await.is_unique());
        }
        assert!(shared >= 8, "{shared} of {len} bytes");
    }
    let read_at_once = [frames(1, 400), frames(4096, 4)].concat();
    far.write_all(&read_at_once).await.unwrap();
    for _ in 0..400 {
        payload(1).await;
    }
    for _ in 0..4 {
        assert!(payload(4096).await.is_unique());
    }
    // Nor does a longer one behind a message of the largest size, whose buffer is read into again.
    far.write_all(&frames(MAX, 1)).await.unwrap();
    payload(MAX).await;
    far.write_all(&frames(20_000, 10)).await.unwrap();
    for _ in 0..10 {
        assert!(payload(20_000).await.is_unique());
    }
}

/// So a socket that nobody charges holds little.
#[tokio::test]
async fn a_lowered_limit_holds_for_what_has_not_come() {
    const LESS: usize = 8 << 10;
    for role in ROLES {
        let (near, mut far) = duplex(4 << 20);
        let (near, seen) = Watched::new(near);
        let mut ours = open(near, role, MAX);
        ours.set_message_max(LESS);
        let most = frame(other(role), BINARY, &[7; LESS]);
        let long = frame(other(role), BINARY, &[7; LESS + 1]);
        far.write_all(&most.repeat(20)).await.unwrap();
        // Its header is enough.
        far.write_all(&long[..8]).await.unwrap();
        for _ in 0..20 {
            within(ours.next()).await.unwrap().unwrap();
        }
        let error = within(ours.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::TooLong { max: LESS, .. }), "{error}");
        let longest = seen.reads.lock().unwrap().iter().copied().max();
        assert!(longest <= Some(2 * LESS), "{longest:?}");
    }
}

/// One poll of the stream does bounded work, without the help of a runtime.
#[tokio::test]
async fn a_poll_takes_a_bounded_number_of_frames() {
    let mut bytes = frame(Role::Client, BINARY_BEGIN, b"");
    for _ in 0..1000 {
        bytes.extend(frame(Role::Client, CONTINUATION, b"x"));
    }
    bytes.extend(frame(Role::Client, 0x80, b"x"));
    let (near, _far) = duplex(64);
    let mut ours = WebSocket::new(near, bytes.into(), Role::Server, MAX);
    let mut yields = 0;
    let message = loop {
        let polled = futures_util::poll!(ours.next());
        match polled {
            std::task::Poll::Ready(message) => break message.unwrap().unwrap(),
            std::task::Poll::Pending => yields += 1,
        }
        assert!(yields < 100);
    };
    assert_eq!(message.into_data().len(), 1001);
    assert!(yields >= 1002 / 64, "{yields}");
}

/// The outcome of a peer's bytes: our error, and the close code that the peer reads.
async fn verdict(role: Role, bytes: Vec<u8>) -> (Error, Option<u16>) {
    let (near, far) = sockets().await;
    let mut ours = open(near, role, MAX);
    let (mut from_ours, mut to_ours) = far.into_split();
    // Longer than our end reads: the reason has to arrive nevertheless.
    let writer = tokio::spawn(async move { to_ours.write_all(&bytes).await.map(|()| to_ours) });
    let error = within(async {
        loop {
            match ours.next().await.unwrap() {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(within(ours.next()).await.is_none(), "an error is the end");
    let closing = tokio::spawn(async move { ours.close().await });
    let mut told = Vec::new();
    within(from_ours.read_to_end(&mut told)).await.unwrap();
    drop(writer.await);
    drop(within(closing).await);
    let code = frames(&told).into_iter().find(|(first, _)| *first == CLOSE);
    let code = code.map(|(_, payload)| u16::from_be_bytes([payload[0], payload[1]]));
    (error, code)
}

#[tokio::test]
async fn an_empty_fragment_in_the_middle_is_the_end() {
    for role in ROLES {
        let peer = other(role);
        let mut bytes = frame(peer, BINARY_BEGIN, b"");
        bytes.extend(frame(peer, CONTINUATION, b""));
        let (error, code) = verdict(role, bytes).await;
        assert!(matches!(error, Error::EmptyFragment), "{error}");
        assert_eq!(code, Some(1008));
    }
}

#[tokio::test]
async fn small_fragments_of_a_message_are_counted() {
    for role in ROLES {
        let peer = other(role);
        let mut bytes = frame(peer, BINARY_BEGIN, b"");
        // Each takes one place, and every sixteenth brings another one.
        for _ in 0..FRAGMENTS_FREE * FRAGMENT_MIN / (FRAGMENT_MIN - 1) + 1 {
            bytes.extend(frame(peer, CONTINUATION, b"x"));
        }
        let (error, code) = verdict(role, bytes).await;
        assert!(matches!(error, Error::TooManyFragments), "{error}");
        assert_eq!(code, Some(1008));
    }
}

/// An account with a limit. It records the most that was ever taken.
#[derive(Default)]
struct Purse {
    limit: usize,
    taken: AtomicUsize,
    most: AtomicUsize,
}

impl Account for Purse {
    fn take(&self, bytes: usize) -> bool {
        let before = self.taken.fetch_add(bytes, Ordering::SeqCst);
        if before + bytes > self.limit {
            self.give_back(bytes);
            return false;
        }
        self.most.fetch_max(before + bytes, Ordering::SeqCst);
        true
    }

    fn give_back(&self, bytes: usize) {
        let before = self.taken.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "more given back than taken");
    }
}

fn purse(limit: usize) -> Arc<Purse> {
    Arc::new(Purse {
        limit,
        ..Purse::default()
    })
}

fn charged(role: Role, purse: &Arc<Purse>) -> (WebSocket<DuplexStream>, DuplexStream) {
    let (near, far) = duplex(4 << 20);
    let mut ours = WebSocket::new(near, Bytes::new(), role, MAX);
    ours.charge_to(Arc::clone(purse) as Arc<dyn Account>);
    (ours, far)
}

#[tokio::test]
async fn half_messages_are_charged_and_given_back() {
    for role in ROLES {
        let peer = other(role);
        let whole = frame(peer, BINARY, &[7; 300_000]);
        let mut fragment = frame(peer, BINARY_BEGIN, &[7; 150_000]);
        fragment.extend(frame(peer, CONTINUATION, &[7; 150_000]));
        for bytes in [&whole[..290_000], &fragment] {
            let purse = purse(usize::MAX / 2);
            let (mut ours, mut far) = charged(role, &purse);
            far.write_all(bytes).await.unwrap();
            let nothing = tokio::time::timeout(Duration::from_millis(200), ours.next()).await;
            assert!(nothing.is_err());
            let taken = purse.taken.load(Ordering::SeqCst);
            assert!(taken + FREE_ALLOWANCE >= 290_000, "{taken}");
            assert!(taken <= 2 * 300_000 + READ_AHEAD_MAX, "{taken}");
            drop(ours);
            assert_eq!(purse.taken.load(Ordering::SeqCst), 0);
        }
    }
}

#[tokio::test]
async fn an_idle_connection_gives_its_buffers_back() {
    for role in ROLES {
        let purse = purse(usize::MAX / 2);
        let (mut ours, mut far) = charged(role, &purse);
        let message = frame(other(role), BINARY, &[7; 60_000]);
        for _ in 0..100 {
            far.write_all(&message).await.unwrap();
            let received = within(ours.next()).await.unwrap().unwrap();
            assert_eq!(received.len(), 60_000);
        }
        let nothing = tokio::time::timeout(Duration::from_millis(100), ours.next()).await;
        assert!(nothing.is_err());
        assert!(purse.most.load(Ordering::SeqCst) > 0);
        assert_eq!(purse.taken.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn without_memory_small_messages_go_on_and_large_ones_are_told_to_try_again() {
    for role in ROLES {
        let peer = other(role);
        let purse = purse(0);
        let (mut ours, mut far) = charged(role, &purse);
        for len in [0, 100, 8_000, 10_000, 15_000] {
            far.write_all(&frame(peer, BINARY, &vec![7; len]))
                .await
                .unwrap();
            let received = within(ours.next()).await.unwrap().unwrap();
            assert_eq!(received.len(), len);
        }
        far.write_all(&frame(peer, BINARY, &[7; 60_000]))
            .await
            .unwrap();
        let error = within(ours.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::NoMemory), "{error}");
        drop(ours);
        let mut told = Vec::new();
        far.read_to_end(&mut told).await.unwrap();
        let told = frames(&told);
        assert_eq!(told, [(CLOSE, 1013_u16.to_be_bytes().to_vec())]);
    }
}

/// A message that finds no memory waits for it: whoever holds it is to blame.
#[tokio::test(start_paused = true)]
async fn a_message_waits_for_memory_that_an_incomplete_one_holds() {
    for role in ROLES {
        let message = frame(other(role), BINARY, &[7; 120_000]);
        let purse = purse(160_000);
        let (mut hostile, mut far) = charged(role, &purse);
        far.write_all(&frame(other(role), BINARY, &[7; 100_000])[..90_000])
            .await
            .unwrap();
        let hostile = tokio::spawn(async move { hostile.next().await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!hostile.is_finished(), "memory was not short");
        let (mut ours, mut near) = charged(role, &purse);
        near.write_all(&message).await.unwrap();
        let received = within(ours.next()).await.unwrap().unwrap();
        assert_eq!(received.len(), 120_000);
        let error = hostile.await.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, Error::NoMemory), "{error}");
    }
}

/// A message of 120,000 bytes of which the first 40,000 were read, the memory for it, and both
/// ends.
async fn begun(role: Role) -> (Vec<u8>, Arc<Purse>, WebSocket<DuplexStream>, DuplexStream) {
    let message = frame(other(role), BINARY, &[7; 120_000]);
    let purse = purse(160_000);
    let (mut ours, mut near) = charged(role, &purse);
    near.write_all(&message[..40_000]).await.unwrap();
    assert!(futures_util::poll!(ours.next()).is_pending());
    (message, purse, ours, near)
}

/// Whoever does not read for a while cannot blame the peer for it.
#[tokio::test(start_paused = true)]
async fn a_message_waits_for_memory_also_after_a_pause_of_its_reader() {
    for role in ROLES {
        let (message, purse, mut ours, mut near) = begun(role).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let others = 160_000 - purse.taken.load(Ordering::SeqCst);
        assert!(purse.take(others));
        near.write_all(&message[40_000..]).await.unwrap();
        let gives_back = async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            purse.give_back(others);
        };
        let (received, ()) = tokio::join!(ours.next(), gives_back);
        assert_eq!(received.unwrap().unwrap().len(), 120_000);
    }
}

/// The same if what came meanwhile needs no more memory, and the message is still incomplete.
#[tokio::test(start_paused = true)]
async fn a_message_may_stay_incomplete_after_a_pause_of_its_reader() {
    for role in ROLES {
        let (message, purse, mut ours, mut near) = begun(role).await;
        let others = 160_000 - purse.taken.load(Ordering::SeqCst);
        assert!(purse.take(others));
        near.write_all(&message[40_000..41_000]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(futures_util::poll!(ours.next()).is_pending());
        purse.give_back(others);
        near.write_all(&message[41_000..]).await.unwrap();
        let received = within(ours.next()).await.unwrap().unwrap();
        assert_eq!(received.len(), 120_000);
    }
}

/// The same if there was no memory at first for what came meanwhile.
#[tokio::test(start_paused = true)]
async fn a_pause_of_the_reader_is_its_own_although_the_next_read_waits_for_memory() {
    const MEMORY: usize = 160_000;
    for role in ROLES {
        let purse = purse(MEMORY);
        let take_rest = || {
            let rest = MEMORY - purse.taken.load(Ordering::SeqCst);
            assert!(purse.take(rest));
            rest
        };
        let (mut ours, mut near) = charged(role, &purse);
        let begin = frame(other(role), BINARY_BEGIN, &[7; 20_000]);
        near.write_all(&begin).await.unwrap();
        assert!(futures_util::poll!(ours.next()).is_pending());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let others = take_rest();
        let more = frame(other(role), CONTINUATION, &[7; 6_000]);
        near.write_all(&more).await.unwrap();
        assert!(futures_util::poll!(ours.next()).is_pending());
        purse.give_back(others);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(futures_util::poll!(ours.next()).is_pending());
        let others = take_rest();
        assert!(futures_util::poll!(ours.next()).is_pending());
        purse.give_back(others);
        near.write_all(&frame(other(role), 0x80, &[7; 6_000]))
            .await
            .unwrap();
        let received = within(ours.next()).await.unwrap().unwrap();
        assert_eq!(received.len(), 32_000);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_in_fragments_waits_for_memory_too() {
    for role in ROLES {
        let mut message = frame(other(role), BINARY_BEGIN, &[7; 6_000]);
        for _ in 0..4 {
            message.extend(frame(other(role), CONTINUATION, &[7; 6_000]));
        }
        message.extend(frame(other(role), 0x80, &[7; 6_000]));
        let purse = purse(160_000);
        let (mut ours, mut near) = charged(role, &purse);
        near.write_all(&message).await.unwrap();
        assert!(purse.take(160_000));
        let gives_back = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            purse.give_back(160_000);
        };
        let (received, ()) = tokio::join!(ours.next(), gives_back);
        assert_eq!(received.unwrap().unwrap().len(), 36_000);

        assert!(purse.take(160_000 - purse.taken.load(Ordering::SeqCst)));
        let (mut ours, mut near) = charged(role, &purse);
        near.write_all(&message).await.unwrap();
        let began = tokio::time::Instant::now();
        let error = within(ours.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::NoMemory), "{error}");
        assert!(began.elapsed() >= WAIT_MAX);
    }
}

/// A socket with a buffer of its own, as TLS has, accepts an answer before it can send it.
#[tokio::test]
async fn an_answer_leaves_a_socket_with_a_buffer_when_there_is_room() {
    for role in ROLES {
        for (asks, answers) in [(PING, PONG), (CLOSE, CLOSE)] {
            let (near, mut far) = duplex(1);
            let mut ours = open(BufWriter::new(near), role, MAX);
            let reading = tokio::spawn(async move { while ours.next().await.is_some() {} });
            let asked = frame(other(role), asks, b"");
            within(far.write_all(&asked)).await.unwrap();
            // It is in the buffer, and not on the way.
            tokio::task::yield_now().await;
            let mut answer = vec![0; if role == Role::Client { 6 } else { 2 }];
            within(far.read_exact(&mut answer)).await.unwrap();
            assert_eq!(frames(&answer), [(answers, Vec::new())]);
            drop(far);
            within(reading).await.unwrap();
        }
    }
}
