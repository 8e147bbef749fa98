use core::arch::asm;

const READ: usize = 0;
const WRITE: usize = 1;
const EXIT: usize = 60;

/// Reads the standard input until it ends or `buffer` is full. Returns the bytes read.
pub fn read_all(buffer: &mut [u8]) -> Option<&[u8]> {
    let mut filled = 0;
    while let Some(spare) = buffer.get_mut(filled..) {
        // SAFETY: the kernel writes at most `spare.len()` bytes into `spare`.
        let read = unsafe { call(READ, 0, spare.as_mut_ptr() as usize, spare.len()) };
        match usize::try_from(read).ok()? {
            0 => break,
            read => filled += read,
        }
    }
    buffer.get(..filled)
}

/// Writes all of `bytes` to the standard output.
pub fn write_all(mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads at most `bytes.len()` bytes of `bytes`.
        let written = unsafe { call(WRITE, 1, bytes.as_ptr() as usize, bytes.len()) };
        bytes = bytes.get(usize::try_from(written).ok()?..)?;
    }
    Some(())
}

pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: the call does not return.
        unsafe { call(EXIT, code as usize, 0, 0) };
    }
}

/// # Safety
/// The arguments must be valid for the system call.
unsafe fn call(number: usize, a: usize, b: usize, c: usize) -> isize {
    let result;
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}
