//! The guest's first program: touches memory and checks that demand paging gave it what Linux would.
//!
//! It runs in ring 3 with Linux's system calls. RDI says what it does, as a number of `program.rs`'s table of modes: 0 ends by `exit`, 1 by
//! `pause`, which keeps it alive for an audit, and others check more. Its exit status is the number of failed checks.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod areas;
#[cfg(target_os = "none")]
mod arguments;
#[cfg(target_os = "none")]
mod copies;
#[cfg(target_os = "none")]
mod disks;
#[cfg(target_os = "none")]
mod eaters;
mod failures;
mod faults;
mod files;
#[cfg(target_os = "none")]
mod futexes;
#[cfg(target_os = "none")]
mod mappings;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod moves;
#[cfg(target_os = "none")]
mod numa;
#[cfg(target_os = "none")]
mod pressure;
#[cfg(target_os = "none")]
mod proc;
mod processes;
#[cfg(target_os = "none")]
mod program;
#[cfg(target_os = "none")]
mod promises;
#[cfg(target_os = "none")]
mod shapes;
#[cfg(target_os = "none")]
mod shared;
#[cfg(target_os = "none")]
mod signals;
#[cfg(target_os = "none")]
mod swaps;
#[cfg(target_os = "none")]
mod sys;
#[cfg(target_os = "none")]
mod together;
#[cfg(target_os = "none")]
mod walks;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a program of the guest: build it with `make guest`");
    std::process::exit(2);
}
