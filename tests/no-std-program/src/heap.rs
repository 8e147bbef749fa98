//! A minimal heap that only grows, for programs that run once.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

const SIZE: usize = 256 << 20;

/// Allocates from one arena, front to back.
pub struct Heap {
    arena: UnsafeCell<[u8; SIZE]>,
    used: AtomicUsize,
}

impl Heap {
    /// A heap of 256 MiB, which uses no memory before it is needed.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            arena: UnsafeCell::new([0; SIZE]),
            used: AtomicUsize::new(0),
        }
    }

    /// Bytes allocated so far.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

// SAFETY: the arena is only reached through `alloc`, which never returns a byte twice.
unsafe impl Sync for Heap {}

// SAFETY: blocks are aligned, inside the arena, and disjoint.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = self.arena.get() as usize;
        let mut start = 0;
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                start = (base + used).next_multiple_of(layout.align()) - base;
                Some(start + layout.size()).filter(|end| *end <= SIZE)
            });
        match taken {
            // SAFETY: `start` was checked to be inside the arena.
            Ok(_) => unsafe { self.arena.get().cast::<u8>().add(start) },
            Err(_) => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
