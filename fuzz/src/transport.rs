//! `FrameTransport` over an arbitrary sequence of items of a transport.
//!
//! Input: operations of one byte. A message is followed by its length in one byte and its bytes.
//! Needs `bytes` and `futures-util` with `sink`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use kohakuriver_tunnel::transport::{Carrier, FrameTransport, ReceiveError, Received};
use kohakuriver_tunnel::wire::Frame;

/// What the transport does when it is polled.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Message(Bytes),
    Skip,
    Text(u8),
    Other(u8),
    Fail(u8),
    Pending,
    /// The carrier's end: a WebSocket close.
    Close,
}

struct Steps;

impl Carrier for Steps {
    type Message = Step;

    fn binary(&mut self, message: Bytes) -> Step {
        Step::Message(message)
    }

    fn classify(&mut self, step: Step) -> Received<Step> {
        match step {
            Step::Message(message) => Received::Message(message),
            Step::Skip => Received::Skip,
            Step::Text(text) => Received::Text(text.to_string()),
            Step::Close => Received::End(None),
            other => Received::Other(other),
        }
    }
}

/// A transport that follows the input and then ends.
#[derive(Debug)]
struct Script {
    steps: VecDeque<Step>,
    polls: usize,
    sent: Vec<Step>,
}

/// Every message is passed on by its kind, in order, until the end. No poll does unbounded work. A
/// received frame can be sent and received again.
pub fn transport(data: &[u8]) {
    let steps = script(data);
    let received = receive(steps.clone());
    assert_eq!(received, expected(&steps));

    let frames = || received.iter().flatten().cloned();
    let sent = send(frames());
    let again: Vec<_> = receive(sent).into_iter().map(Result::unwrap).collect();
    assert!(again.into_iter().eq(frames()));
}

fn script(mut data: &[u8]) -> VecDeque<Step> {
    let mut steps = VecDeque::new();
    while let Some((&operation, rest)) = data.split_first() {
        data = rest;
        match operation {
            0x00..0x80 => {
                let Some((&len, rest)) = data.split_first() else {
                    break;
                };
                let (message, rest) = rest.split_at(usize::from(len).min(rest.len()));
                steps.push_back(Step::Message(Bytes::copy_from_slice(message)));
                data = rest;
            }
            // Up to twice as many as one poll skips.
            0x80..0xc0 => steps.extend(vec![Step::Skip; usize::from(operation - 0x7f)]),
            0xc0..0xc8 => steps.push_back(Step::Other(operation)),
            0xc8..0xd0 => steps.push_back(Step::Text(operation)),
            0xd0..0xe0 => steps.push_back(Step::Fail(operation)),
            0xe0..0xf0 => steps.push_back(Step::Pending),
            0xf0.. => steps.push_back(Step::Close),
        }
    }
    steps
}

type Item = Result<Frame, ReceiveError<u8, Step>>;

fn expected(steps: &VecDeque<Step>) -> Vec<Item> {
    let before_close = steps.iter().take_while(|&step| *step != Step::Close);
    before_close
        .filter_map(|step| match step {
            Step::Message(message) => {
                Some(Frame::decode(message.clone()).map_err(ReceiveError::Decode))
            }
            Step::Text(text) => Some(Err(ReceiveError::Text(text.to_string()))),
            Step::Other(_) => Some(Err(ReceiveError::Unexpected(step.clone()))),
            Step::Fail(code) => Some(Err(ReceiveError::Transport(*code))),
            Step::Skip | Step::Pending | Step::Close => None,
        })
        .collect()
}

fn receive(steps: VecDeque<Step>) -> Vec<Item> {
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut cx = Context::from_waker(&waker);
    let mut frames = over(steps);
    let mut items = Vec::new();
    loop {
        let polled = frames.transport().polls;
        let woken = wakes.0.load(Ordering::Relaxed);
        let poll = Stream::poll_next(Pin::new(&mut frames), &mut cx);
        assert!(frames.transport().polls - polled <= 33, "unbounded work");
        match poll {
            Poll::Ready(Some(item)) => items.push(item),
            Poll::Ready(None) => break,
            // A pending poll must have arranged a wake-up.
            Poll::Pending => assert!(wakes.0.load(Ordering::Relaxed) > woken, "lost wake-up"),
        }
    }
    let polled = frames.transport().polls;
    assert!(Stream::poll_next(Pin::new(&mut frames), &mut cx) == Poll::Ready(None));
    assert_eq!(frames.transport().polls, polled, "polled after the end");
    items
}

fn send(frames: impl Iterator<Item = Frame>) -> VecDeque<Step> {
    let mut transport = over(VecDeque::new());
    for (i, frame) in frames.enumerate() {
        let Ok(()) = match i % 2 {
            0 => Sink::<Frame>::start_send(Pin::new(&mut transport), frame),
            _ => Sink::<Bytes>::start_send(Pin::new(&mut transport), frame.to_bytes()),
        };
    }
    transport.into_parts().0.sent.into()
}

fn over(steps: VecDeque<Step>) -> FrameTransport<Script, Steps> {
    let script = Script {
        steps,
        polls: 0,
        sent: Vec::new(),
    };
    FrameTransport::new(script, Steps)
}

impl Stream for Script {
    type Item = Result<Step, u8>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.polls += 1;
        match self.steps.pop_front() {
            Some(Step::Pending) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Fail(code)) => Poll::Ready(Some(Err(code))),
            step => Poll::Ready(step.map(Ok)),
        }
    }
}

impl Sink<Step> for Script {
    type Error = Infallible;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(mut self: Pin<&mut Self>, step: Step) -> Result<(), Infallible> {
        self.sent.push(step);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
