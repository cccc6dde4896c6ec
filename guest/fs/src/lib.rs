//! Files without a kernel: names and inodes, tmpfs and initramfs, open files and descriptors, pipes, the terminal, /proc
//! (Linux: fs/, mm/shmem.c, init/initramfs.c, drivers/tty/n_tty.c, drivers/char/mem.c).
//!
//! Everything here is a state and a function; nothing waits, locks or touches a program's memory. What cannot go on says
//! what it waits for, and the kernel sleeps and asks again. The bytes of regular files are elsewhere, behind [`Data`]:
//! the kernel copies them between the page cache and a program outside of the lock that guards a [`Vfs`].
//!
//! Invariants are in `vfs.rs` (F), `inode.rs` (I), `dir.rs` (D) and `pipe.rs` (P); [`Vfs::audit`] checks F, I and D.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod attr;
mod audit;
mod change;
mod cpio;
mod data;
mod device;
mod dir;
mod disk;
mod disk_change;
mod fd;
mod flags;
mod initramfs;
mod inode;
mod list;
mod mount;
mod open;
mod pipe;
mod poll;
pub mod proc;
mod stat;
#[cfg(test)]
mod tests;
mod tty;
mod vfs;
mod walk;

pub use attr::{Memory, SetTime};
pub use change::At;
pub use cpio::{CpioError, Entry, Reader};
pub use data::{Data, Vecs};
pub use device::{Char, Device};
pub use disk::{DiskNode, Source};
pub use fd::{Descriptor, FdTable};
pub use flags::{MAX_OFFSET, MAXSYMLINKS, NAME_MAX, OpenFlags, PATH_MAX, RenameFlags, mode};
pub use initramfs::{Unpacked, unpack};
pub use inode::{Content, Inode, InodeId, Timespec};
pub use mm_core::Errno;
pub use mount::MountRequest;
pub use open::{File, Kind, Whence};
pub use pipe::{PIPE_BUF, Pipe, PipeRead, PipeWrite};
pub use poll::{FdSet, PollFlags, SELECT_EXCEPT, SELECT_READ, SELECT_WRITE};
pub use stat::{Dirent, Stat, Statfs};
pub use tty::{Termios, Tty, TtyRead, TtySignal, Winsize};
pub use vfs::{Context, FsKind, MountId, Node, Place, Vfs};
pub use walk::{Follow, PathOf, PathState};

/// What a collection says that cannot grow.
fn no_memory(_: alloc::collections::TryReserveError) -> Errno {
    Errno::Enomem
}
