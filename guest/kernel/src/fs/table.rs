//! What a task has of files: its descriptors, and where it is (Linux: fs/file.c, fs/fs_struct.c).

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_fs::{Context, FdTable, Place};
use mm_vma::Errno;

use super::{Mutex, OpenFile, now, with_vfs};
use crate::sync::Lock;
use crate::task::{CloneFlags, Task};

/// Descriptors, shared by tasks that were cloned with CLONE_FILES.
pub type Table = Mutex<FdTable<Arc<OpenFile>>>;

/// Root, working directory and mask, shared with CLONE_FS. Its places are held.
#[derive(Debug)]
pub struct Whereabouts {
    inner: Lock<(Place, Place, u32)>,
}

/// A task's files; nothing for those that never had any.
#[derive(Debug)]
pub struct Files {
    table: Lock<Option<Arc<Table>>>,
    whereabouts: Lock<Option<Arc<Whereabouts>>>,
    exe: Lock<Option<Arc<Exe>>>,
}

/// The program of a process, held, and its arguments as it got them.
///
/// Differs from Linux: /proc/PID/cmdline does not show what the program made of them.
#[derive(Debug)]
pub struct Exe(Place, Vec<u8>);

impl Drop for Exe {
    fn drop(&mut self) {
        put(self.0);
    }
}

fn put(place: Place) {
    // A held place has a file system.
    let _ = with_vfs(|vfs| {
        vfs.put(place);
        Ok(())
    });
}

impl Drop for Whereabouts {
    fn drop(&mut self) {
        let (root, cwd, _) = *self.inner.lock();
        put(root);
        put(cwd);
    }
}

impl Whereabouts {
    fn new(root: Place, cwd: Place, umask: u32) -> Result<Whereabouts, Errno> {
        with_vfs(|vfs| {
            vfs.hold(root);
            vfs.hold(cwd);
            Ok(())
        })?;
        Ok(Whereabouts { inner: Lock::new((root, cwd, umask)) })
    }

    fn get(&self) -> (Place, Place, u32) {
        *self.inner.lock()
    }
}

impl Default for Files {
    fn default() -> Files {
        Files { table: Lock::new(None), whereabouts: Lock::new(None), exe: Lock::new(None) }
    }
}

impl Files {
    /// Files of the first process: no descriptors, at the root.
    ///
    /// # Errors
    /// `ENOMEM`, `EIO`.
    pub fn begin(&self) -> Result<(), Errno> {
        let root = with_vfs(|vfs| Ok(vfs.root()))?;
        let here = Whereabouts::new(root, root, 0o22)?;
        *self.whereabouts.lock() = Some(Arc::new(here));
        *self.table.lock() = Some(Arc::new(Mutex::new(FdTable::new())));
        Ok(())
    }

    /// For a new task: shared or copied as `flags` say (Linux: `copy_files`, `copy_fs`).
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn fork(&self, flags: CloneFlags) -> Result<Files, Errno> {
        let files = Files::default();
        let table = self.table.lock().clone();
        *files.table.lock() = match table {
            Some(table) if !flags.contains(CloneFlags::FILES) => {
                let copy = table.with(|table| table.try_clone())?;
                Some(Arc::new(Mutex::new(copy)))
            }
            table => table,
        };
        let here = self.whereabouts.lock().clone();
        *files.whereabouts.lock() = match here {
            Some(here) if !flags.contains(CloneFlags::FS) => {
                let (root, cwd, umask) = here.get();
                Some(Arc::new(Whereabouts::new(root, cwd, umask)?))
            }
            here => here,
        };
        let exe = self.exe.lock().clone();
        *files.exe.lock() = exe;
        Ok(files)
    }

    /// The task ends (Linux: `exit_files`, `exit_fs`).
    pub fn exit(&self, _task: &Task) {
        // Dropped with the locks given back: closing waits.
        let table = self.table.lock().take();
        let here = self.whereabouts.lock().take();
        let exe = self.exe.lock().take();
        drop((table, here, exe));
    }

    /// The descriptors.
    ///
    /// # Errors
    /// `EBADF` for a task that has none.
    pub fn table(&self) -> Result<Arc<Table>, Errno> {
        self.table.lock().clone().ok_or(Errno::Ebadf)
    }

    /// The open file.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get(&self, fd: u32) -> Result<Arc<OpenFile>, Errno> {
        self.table()?.with(|table| table.get(fd).map(|slot| Arc::clone(&slot.file)))
    }

    /// Where the task is, for calls on paths.
    pub fn context(&self) -> Option<Context> {
        let here = self.whereabouts.lock().clone()?;
        let (root, cwd, umask) = here.get();
        Some(Context { root, cwd, umask, uid: 0, gid: 0, now: now() })
    }

    /// Goes to another working directory or root, which is held for this.
    ///
    /// # Errors
    /// `ENOENT` for a task without files.
    pub fn go(&self, root: Option<Place>, cwd: Option<Place>) -> Result<(), Errno> {
        let here = self.whereabouts.lock().clone().ok_or(Errno::Enoent)?;
        let old = {
            let mut inner = here.inner.lock();
            let old = (root.map(|_| inner.0), cwd.map(|_| inner.1));
            inner.0 = root.unwrap_or(inner.0);
            inner.1 = cwd.unwrap_or(inner.1);
            old
        };
        [old.0, old.1].into_iter().flatten().for_each(put);
        Ok(())
    }

    /// umask: the old one.
    pub fn set_umask(&self, umask: u32) -> u32 {
        let here = self.whereabouts.lock().clone();
        here.map_or(0o22, |here| core::mem::replace(&mut here.inner.lock().2, umask & 0o777))
    }

    /// The program.
    pub fn exe(&self) -> Option<Place> {
        self.exe.lock().as_ref().map(|exe| exe.0)
    }

    /// Its arguments, a zero behind each.
    pub fn arguments(&self) -> Vec<u8> {
        let exe = self.exe.lock().clone();
        exe.map_or(Vec::new(), |exe| exe.1.clone())
    }

    /// execve succeeded with the program at `place`: it is remembered, and descriptors that are to be closed are.
    pub fn exec(&self, place: Place, arguments: Vec<u8>) {
        // Who shared the table keeps it (Linux: `unshare_files`).
        if let Ok(table) = self.table()
            && Arc::strong_count(&table) > 2
            && let Ok(copy) = table.with(|table| table.try_clone())
        {
            *self.table.lock() = Some(Arc::new(Mutex::new(copy)));
        }
        if let Ok(table) = self.table() {
            while let Some((_, file)) = table.with(|table| table.take_if(0, u32::MAX, |fd| fd.cloexec)) {
                drop(file);
            }
        }
        let held = with_vfs(|vfs| {
            vfs.hold(place);
            Ok(())
        });
        let exe = Arc::new(Exe(place, arguments));
        let old = self.exe.lock().replace(exe);
        debug_assert!(held.is_ok());
        drop(old);
    }
}
