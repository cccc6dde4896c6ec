//! Files (Linux: fs/). What they are is guest-fs's; here are the locks, the waiting, and what a process has of files.
//!
//! Locks, in their order: `VFS`, a table of descriptors, an open file's state; these let others run while they wait. Pipes and the
//! terminal have spinning locks, because those who wait look at them. A program's memory is never touched with `VFS` held.

pub mod block;
pub mod console;
mod cpuinfo;
mod data;
pub mod disk_file;
mod exec;
pub mod file;
pub mod initrd;
pub mod mapped;
mod mutex;
mod numa_maps;
pub mod pipe;
mod processes;
pub mod program;
pub mod source;
pub mod sync;
pub mod table;
mod vm;

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_fs::{Context, Timespec, Vfs};
use mm_vma::Errno;

pub use data::Pages;
pub use exec::{ExecFile, open_exec};
pub use file::OpenFile;
pub use mutex::Mutex;
pub use processes::Tasks;
pub use table::Files;

use crate::time;

/// All file systems of this machine.
pub type FileSystems = Vfs<Pages, Tasks>;

static VFS: Mutex<Option<FileSystems>> = Mutex::new(None);
/// Files that were looked at under `VFS`, where the last reference must not be dropped.
static GRAVE: Mutex<Vec<Arc<OpenFile>>> = Mutex::new(Vec::new());

/// An empty root. Slabs can be had.
pub fn init() {
    let vfs = Vfs::new(Pages, Tasks, now()).ok();
    VFS.with(|slot| *slot = vfs);
    block::make_nodes();
}

/// Calls `f` with the file systems.
///
/// # Errors
/// Those of `f`; `EIO` before [`init`].
pub fn with_vfs<R>(f: impl FnOnce(&mut FileSystems) -> Result<R, Errno>) -> Result<R, Errno> {
    let result = VFS.with(|vfs| f(vfs.as_mut().ok_or(Errno::Eio)?));
    drop(GRAVE.with(core::mem::take));
    result
}

/// The time of day, for inodes.
pub fn now() -> Timespec {
    const NANOSECONDS: u64 = 1_000_000_000;
    let now = time::realtime();
    let nsec = u32::try_from(now % NANOSECONDS).unwrap_or(0);
    Timespec { sec: (now / NANOSECONDS).cast_signed(), nsec }
}

/// Who calls: the current process, or the kernel.
///
/// # Errors
/// `EIO` before [`init`].
pub fn context() -> Result<Context, Errno> {
    let kernel = || with_vfs(|vfs| Ok(vfs.kernel_context(now())));
    match crate::task::current() {
        Some(task) => task.files.context().map_or_else(kernel, Ok),
        None => kernel(),
    }
}
