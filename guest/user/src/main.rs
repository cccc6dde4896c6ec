//! The guest's first program: touches memory and checks that demand paging gave it what Linux would.
//!
//! It runs in ring 3 with Linux's system calls. RDI says what it does: 0 ends by `exit`, 1 by `pause`, which
//! keeps it alive for an audit, 2 has children and threads too, 3 signals, futexes and
//! clocks, 4 mappings, and 5 memory that is shared. Its exit status is the number of failed checks.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod arguments;
#[cfg(target_os = "none")]
mod futexes;
#[cfg(target_os = "none")]
mod mappings;
#[cfg(target_os = "none")]
mod processes;
#[cfg(target_os = "none")]
mod program;
#[cfg(target_os = "none")]
mod shared;
#[cfg(target_os = "none")]
mod signals;
#[cfg(target_os = "none")]
mod sys;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a program of the guest: build it with `make guest`");
    std::process::exit(2);
}
