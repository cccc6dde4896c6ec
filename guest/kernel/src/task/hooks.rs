//! What other parts of the kernel keep of a process. Each part fills in its own type; here are the moments at which it is asked.

use mm_vma::Errno;

use super::{CloneFlags, Task};

/// Descriptors, root and working directory (Linux: `files_struct`, `fs_struct`).
#[derive(Debug, Default)]
pub struct Files;

impl Files {
    /// For a new task: shared or copied as `flags` say (Linux: `copy_files`, `copy_fs`).
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn fork(&self, _flags: CloneFlags) -> Result<Files, Errno> {
        Ok(Files)
    }

    /// The task ends (Linux: `exit_files`, `exit_fs`).
    pub fn exit(&self, _task: &Task) {}
}

/// The word at `address` of the current process became 0 because a task ended: wakes who waits for it (Linux: `do_futex`
/// with FUTEX_WAKE in `mm_release`).
pub(super) fn futex_wake(address: u64) {
    crate::futex::wake_one(address);
}
