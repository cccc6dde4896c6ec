//! System V shared memory without its kernel: identifiers and keys, permissions, limits, what shmctl and /proc/sysvipc tell (Linux:
//! ipc/util.c, ipc/shm.c, ipc/ipc_sysctl.c).
//!
//! Everything here is a state and a function; nothing waits or locks. The bytes of a segment are elsewhere: the kernel keeps them in
//! its page cache, and names them by a handle. Who attaches a segment is the kernel's to count, too: [`Usage`] is asked for.
//!
//! Invariants:
//! I1  an identifier is `sequence << 15 | index`; no two segments have one index, and one key other than 0 leads to one segment;
//! I2  `total_pages` is the sum over all segments;
//! I3  a segment that was removed while somebody had it attached has key 0 and SHM_DEST, and goes with the last detachment.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
mod ids;
mod perm;
mod proc;
mod shm;
#[cfg(test)]
mod tests;

pub use ids::{IPCMNI, Ids};
pub use mm_core::Errno;
pub use perm::{Caller, Perm, mode};
pub use proc::show;
pub use shm::{Limits, Removed, Segment, SetRequest, Shm, ShmFlags, Summary, Usage};
