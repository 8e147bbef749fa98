//! The parts that a program without any library needs: an entry point, system calls, the memory
//! functions that the compiler calls, and a panic handler. Linux on x86-64.
#![no_std]

mod heap;
mod memory;
mod sys;

pub use heap::Heap;
pub use sys::{exit, read_all, write_all};

/// Makes `$main` the program: a `fn() -> i32` whose result is the exit code.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        core::arch::global_asm!(
            ".globl _start",
            "_start:",
            "xor ebp, ebp",
            "and rsp, -16",
            "call {main}",
            "ud2",
            main = sym __entry
        );

        extern "C" fn __entry() -> ! {
            $crate::exit($main())
        }
    };
}

/// Must not be linked into a program that cannot panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}
