//! System calls, with Linux's numbers and results (arch/x86/entry/syscalls/syscall_64.tbl).

mod mm;

use core::sync::atomic::Ordering;

use crate::arch::trap::TrapFrame;
use crate::arch::user;
use crate::print;
use crate::task::{self, PAUSED, SYSCALLS};

const WRITE: u64 = 1;
const MMAP: u64 = 9;
const MPROTECT: u64 = 10;
const MUNMAP: u64 = 11;
const BRK: u64 = 12;
const MREMAP: u64 = 25;
const MSYNC: u64 = 26;
const MINCORE: u64 = 27;
const MADVISE: u64 = 28;
const PAUSE: u64 = 34;
const GETPID: u64 = 39;
const EXIT: u64 = 60;
const MLOCK: u64 = 149;
const MUNLOCK: u64 = 150;
const MLOCKALL: u64 = 151;
const MUNLOCKALL: u64 = 152;
const EXIT_GROUP: u64 = 231;
const MLOCK2: u64 = 325;

const EBADF: u64 = 9;
const EFAULT: u64 = 14;
const ENOSYS: u64 = 38;

const fn error(number: u64) -> u64 {
    number.wrapping_neg()
}

/// An argument of C's type `int`.
const fn int(argument: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the upper half of the register means nothing")]
    let low = argument as u32;
    low
}

/// Runs the call that the frame's registers describe.
pub fn dispatch(frame: &mut TrapFrame) {
    SYSCALLS.fetch_add(1, Ordering::Relaxed);
    frame.rax = match frame.rax {
        WRITE => write(frame.rdi, frame.rsi, frame.rdx),
        MMAP => {
            let [addr, len, prot, flags, fd, offset] =
                [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9];
            mm::mmap(addr, len, prot, flags, fd, offset)
        }
        MPROTECT => mm::mprotect(frame.rdi, frame.rsi, frame.rdx),
        MUNMAP => mm::munmap(frame.rdi, frame.rsi),
        BRK => mm::brk(frame.rdi),
        MREMAP => mm::mremap(frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8),
        MSYNC => mm::msync(frame.rdi, frame.rsi, int(frame.rdx)),
        MINCORE => mm::mincore(frame.rdi, frame.rsi, frame.rdx),
        MADVISE => mm::madvise(frame.rdi, frame.rsi, int(frame.rdx)),
        MLOCK => mm::mlock(frame.rdi, frame.rsi, 0),
        MLOCK2 => mm::mlock(frame.rdi, frame.rsi, int(frame.rdx)),
        MUNLOCK => mm::munlock(frame.rdi, frame.rsi),
        MLOCKALL => mm::mlockall(int(frame.rdi)),
        MUNLOCKALL => mm::munlockall(),
        PAUSE => user::leave(PAUSED),
        GETPID => u64::from(task::current_pid()),
        EXIT | EXIT_GROUP => user::leave(frame.rdi & 0xff),
        _ => error(ENOSYS),
    };
}

fn write(fd: u64, address: u64, len: u64) -> u64 {
    if fd != 1 && fd != 2 {
        return error(EBADF);
    }
    let mut done = 0;
    let mut chunk = [0; 128];
    while done < len {
        let part = usize::try_from(len - done).map_or(chunk.len(), |left| left.min(chunk.len()));
        let bytes = &mut chunk[..part];
        if task::copy_from_user(address.wrapping_add(done), bytes).is_none() {
            return if done > 0 { done } else { error(EFAULT) };
        }
        for piece in bytes.utf8_chunks() {
            print!("{}", piece.valid());
        }
        done += part as u64;
    }
    len
}
