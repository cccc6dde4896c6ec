//! What a Linux process is apart from its memory: the logic of signals, program files, argument stacks, waiting, futexes,
//! limits and time, without a kernel around it.
//!
//! Everything here is a function of its arguments. The kernel brings locks, wake-ups and user memory.
//!
//! | Module | What | Linux |
//! |---|---|---|
//! | [`chacha`] | random bytes | lib/crypto/chacha-block-generic.c |
//! | [`elf`] | program files | fs/binfmt_elf.c |
//! | [`stack`] | the stack a program begins with | fs/exec.c, `create_elf_tables` |
//! | [`signal`] | numbers, sets, actions, queues, who gets what | kernel/signal.c |
//! | [`frame`] | what a handler finds on its stack | arch/x86/kernel/signal_64.c |
//! | [`wait`] | which child a wait finds, and what it says | kernel/exit.c |
//! | [`futex`] | queues of waiters by address | kernel/futex |
//! | [`idle`] | who halts and who brings work do not miss each other | kernel/sched/idle.c |
//! | [`kallsyms`] | names of the kernel's functions | kernel/kallsyms.c |
//! | [`limits`] | resource limits | kernel/sys.c, `do_prlimit` |
//! | [`priority`] | policies, nice, shares of a CPU | kernel/sched |
//! | [`queue`] | who is least goes first: timers, ready tasks | lib/timerqueue.c |
//! | [`time`] | times, clocks, interval timers | include/linux/time64.h, kernel/time |

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
pub mod chacha;
pub mod elf;
pub mod frame;
pub mod futex;
pub mod idle;
pub mod kallsyms;
pub mod limits;
pub mod priority;
pub mod queue;
pub mod signal;
pub mod stack;
pub mod time;
pub mod wait;

pub use mm_vma::Errno;
