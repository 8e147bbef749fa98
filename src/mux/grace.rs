use alloc::boxed::Box;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

/// The time limit of a relay or a join for a side that does not accept data from before a reset.
#[derive(Debug)]
pub(super) struct Grace<F, M> {
    make: M,
    /// The timer that runs, and the progress when it was made.
    timer: Option<(u64, Pin<Box<F>>)>,
}

impl<F: Future<Output = ()>, M: FnMut() -> F> Grace<F, M> {
    pub(super) const fn new(make: M) -> Self {
        Self { make, timer: None }
    }

    /// Ready when the time is over. It begins again with each change of `progress`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, progress: u64) -> Poll<()> {
        let timer = self
            .timer
            .take()
            .filter(|(made_at, _)| *made_at == progress);
        let timer = timer.unwrap_or_else(|| (progress, Box::pin((self.make)())));
        self.timer.insert(timer).1.as_mut().poll(cx)
    }
}
