//! An allocator that counts what each thread allocates, so that tests do not affect each other.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Sub;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Counting;

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts::NONE) };
}

/// What a thread has allocated so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// Calls of the allocator that are not for giving back.
    pub(crate) calls: usize,
    /// Bytes that it was asked for; of a longer block, the growth.
    pub(crate) bytes: usize,
    /// Bytes of the largest block since the last look at the counts.
    pub(crate) largest: usize,
    /// Bytes not given back. Another thread may give back what this one allocated.
    pub(crate) live: isize,
}

impl Counts {
    const NONE: Self = Self {
        calls: 0,
        bytes: 0,
        largest: 0,
        live: 0,
    };
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            calls: self.calls - earlier.calls,
            bytes: self.bytes - earlier.bytes,
            largest: self.largest,
            live: self.live - earlier.live,
        }
    }
}

/// The counts of this thread.
pub(crate) fn counts() -> Counts {
    let counts = COUNTS.get();
    COUNTS.set(Counts {
        largest: 0,
        ..counts
    });
    counts
}

fn count(size: usize, instead_of: usize) {
    let call = usize::from(size > 0);
    // A thread that is ending has no counter left.
    let _ = COUNTS.try_with(|counts| {
        let Counts {
            calls,
            bytes,
            largest,
            live,
        } = counts.get();
        counts.set(Counts {
            calls: calls + call,
            bytes: bytes + size.saturating_sub(instead_of),
            largest: largest.max(size),
            live: live + size as isize - instead_of as isize,
        });
    });
}

// SAFETY: every call is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: guaranteed by the caller.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: guaranteed by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}
