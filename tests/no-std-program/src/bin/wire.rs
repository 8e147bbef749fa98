//! Reads one message from the standard input and writes its frame to the standard output.
//!
//! Exit code 0: accepted strictly; 1: accepted leniently; 2: not a frame; 3: I/O failed.
#![no_std]
#![no_main]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;

use kohakuriver_tunnel::wire::Frame;
use no_std_program::{entry, read_all, write_all};

entry!(main);

fn main() -> i32 {
    let (mut message, mut encoded) = ([0; 4096], [0; 4096]);
    let Some(message) = read_all(&mut message) else {
        return 3;
    };
    #[cfg(feature = "can-panic")]
    if message[message.len() - 1] == 1 {
        return 4;
    }
    let Ok(frame) = Frame::decode(message) else {
        return 2;
    };
    let Ok(len) = frame.encode_to_slice(&mut encoded) else {
        return 3;
    };
    if encoded.get(..len).and_then(write_all).is_none() {
        return 3;
    }
    match Frame::decode_strict(message) {
        Ok(strict) if strict == frame => 0,
        Ok(_) => 3,
        Err(_) => 1,
    }
}

/// The crate links `alloc`, which requires an allocator. This program must not allocate.
#[global_allocator]
static NOTHING: Nothing = Nothing;

struct Nothing;

// SAFETY: no allocation ever succeeds.
unsafe impl GlobalAlloc for Nothing {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
