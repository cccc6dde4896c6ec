//! The bundled guest kernel: a memory manager first, everything else as small as it can honestly be.
//!
//! `init.rs` has the order of boot. All assembly and all `unsafe` is in `arch/`, `sync.rs`, `mm/phys.rs`,
//! `mm/memmap.rs`, `sched/`, `fs/initrd.rs` and where those are called.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
#[path = "arch/x86_64/mod.rs"]
mod arch;
#[cfg(target_os = "none")]
mod cmdline;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod drivers;
#[cfg(target_os = "none")]
mod elf;
#[cfg(target_os = "none")]
mod exec;
#[cfg(target_os = "none")]
mod explain;
#[cfg(target_os = "none")]
mod fs;
#[cfg(target_os = "none")]
mod futex;
#[cfg(target_os = "none")]
mod init;
#[cfg(target_os = "none")]
mod introspect;
#[cfg(target_os = "none")]
mod ipc;
#[cfg(target_os = "none")]
mod kallsyms;
#[cfg(target_os = "none")]
mod ktest;
#[cfg(target_os = "none")]
mod mm;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod printk;
mod proc;
#[cfg(target_os = "none")]
mod random;
#[cfg(target_os = "none")]
mod sched;
#[cfg(target_os = "none")]
mod seeded;
#[cfg(target_os = "none")]
mod signal;
#[cfg(target_os = "none")]
mod smp;
#[cfg(target_os = "none")]
mod sync;
#[cfg(target_os = "none")]
mod syscall;
#[cfg(target_os = "none")]
mod task;
#[cfg(target_os = "none")]
mod time;
#[cfg(target_os = "none")]
mod topology;
#[cfg(target_os = "none")]
mod trace;
#[cfg(target_os = "none")]
mod uaccess;
mod utsname;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is the guest kernel: build it with `make guest`");
    std::process::exit(2);
}
