//! Linux system calls and the entry point.

use core::arch::{asm, global_asm};
use core::fmt;

// The kernel enters with RSP = 16n + 8, as after a call.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "jmp {main}", main = sym crate::program::main);

fn call(number: u64, arguments: [u64; 6]) -> u64 {
    let result;
    // SAFETY: the calls of this program read its own live buffers, and change its address space only where
    // nothing is or where the caller mapped something for that.
    unsafe {
        asm!(
            "syscall",
            inout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}

/// `write(2)` to standard output; returns its result.
pub fn write(bytes: &[u8]) -> u64 {
    call(1, [1, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0])
}

/// `write(2)` of arbitrary arguments, to see how the kernel refuses them.
pub fn write_raw(fd: u64, address: u64, len: u64) -> u64 {
    call(1, [fd, address, len, 0, 0, 0])
}

/// `brk(2)`.
pub fn brk(to: u64) -> u64 {
    call(12, [to, 0, 0, 0, 0, 0])
}

/// `mmap(2)` without a file.
pub fn mmap(addr: u64, len: u64, prot: u64, flags: u64, fd: u64) -> u64 {
    call(9, [addr, len, prot, flags, fd, 0])
}

/// `mprotect(2)`.
pub fn mprotect(addr: u64, len: u64, prot: u64) -> u64 {
    call(10, [addr, len, prot, 0, 0, 0])
}

/// `munmap(2)`.
pub fn munmap(addr: u64, len: u64) -> u64 {
    call(11, [addr, len, 0, 0, 0, 0])
}

/// `mremap(2)`.
pub fn mremap(addr: u64, old_len: u64, new_len: u64, flags: u64) -> u64 {
    call(25, [addr, old_len, new_len, flags, 0, 0])
}

/// `mincore(2)`.
pub fn mincore(addr: u64, len: u64, vec: &mut [u8]) -> u64 {
    call(27, [addr, len, vec.as_mut_ptr() as u64, 0, 0, 0])
}

/// `madvise(2)`.
pub fn madvise(addr: u64, len: u64, advice: u64) -> u64 {
    call(28, [addr, len, advice, 0, 0, 0])
}

/// `mlock(2)`.
pub fn mlock(addr: u64, len: u64) -> u64 {
    call(149, [addr, len, 0, 0, 0, 0])
}

/// `munlock(2)`.
pub fn munlock(addr: u64, len: u64) -> u64 {
    call(150, [addr, len, 0, 0, 0, 0])
}

/// `pause(2)`.
pub fn pause() {
    call(34, [0; 6]);
}

/// `getpid(2)`.
pub fn getpid() -> u64 {
    call(39, [0; 6])
}

/// A call that no Linux has.
pub fn nonsense() -> u64 {
    call(100_000, [0; 6])
}

/// `exit(2)`.
pub fn exit(status: u64) -> ! {
    call(60, [status, 0, 0, 0, 0, 0]);
    // `exit` does not return; ring 3 has nothing else to stop with.
    loop {
        core::hint::spin_loop();
    }
}

/// Standard output, unbuffered.
#[derive(Debug)]
pub struct Out;

impl fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    write(b"user: panic\n");
    exit(101)
}
