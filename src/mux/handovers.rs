use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::{Context, Poll, Waker};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::shared::register;
use super::source::Handover;
use crate::resume::EndReason;

/// Transports for the task that owns a tunnel. Every kept tunnel has this queue, and it is almost
/// always empty: then it holds no room, unlike a channel.
pub(super) struct Handovers<T>(Arc<Mutex<Queue<T>>>);

struct Queue<T> {
    waiting: Vec<Handover<T>>,
    waker: Option<Waker>,
    closed: bool,
}

impl<T> Clone for Handovers<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Handovers<T> {
    /// Competing transports of one client. More are refused for the moment.
    const MOST: usize = 4;

    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Queue {
            waiting: Vec::new(),
            waker: None,
            closed: false,
        })))
    }

    /// Hands a transport over, or refuses it.
    pub(super) fn push(&self, handover: Handover<T>) {
        let mut queue = self.lock();
        let refused = match (queue.closed, queue.waiting.len() < Self::MOST) {
            (true, _) => Some(EndReason::Unknown),
            // The client tries again.
            (false, false) => Some(EndReason::Stale),
            (false, true) => None,
        };
        if let Some(reason) = refused {
            drop(queue);
            return handover.refuse(reason);
        }
        queue.waiting.push(handover);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The next transport. Never ready again after [`close`](Self::close).
    pub(super) fn poll_next(&self, cx: &Context<'_>) -> Poll<Handover<T>> {
        let mut queue = self.lock();
        if queue.waiting.is_empty() {
            let replaced = register(&mut queue.waker, cx);
            drop(queue);
            drop(replaced);
            return Poll::Pending;
        }
        let next = queue.waiting.remove(0);
        if queue.waiting.is_empty() {
            queue.waiting = Vec::new();
        }
        Poll::Ready(next)
    }

    /// Refuses everything that waits, and whatever comes.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        let waiting = core::mem::take(&mut queue.waiting);
        drop(queue);
        // Dropping them refuses them.
        drop(waiting);
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
