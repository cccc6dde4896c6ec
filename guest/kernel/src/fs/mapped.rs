//! What programs map, by name: /proc/PID/maps (Linux: `vma->vm_file`, `file_path`).
//!
//! A VMA keeps its mapping and not its file, so a file's name is remembered here when it is mapped first. While the file is there it is
//! asked for its path again.

use alloc::sync::Arc;
use alloc::vec::Vec;

use alloc::format;
use guest_fs::{Node, Place};
use mm_vma::{Errno, Id, MapFile, Mapping};

use super::{context, with_vfs};
use crate::ipc;
use crate::mm::oom;
use crate::mm::space::Source;
use crate::mm::space::cache;
use crate::sync::Lock;

/// A file that was mapped.
#[derive(Debug)]
struct Name {
    place: Place,
    dev: u64,
    ino: u64,
    path: Vec<u8>,
}

/// By number of the mapping, ascending.
static NAMES: Lock<Vec<(u64, Arc<Name>)>> = Lock::new(Vec::new());

/// What /proc/PID/maps shows of a mapping.
#[derive(Debug, Default)]
pub struct Shown {
    /// Number of the file system.
    pub dev: u64,
    /// Number of the inode.
    pub ino: u64,
    /// Path.
    pub path: Vec<u8>,
}

const DELETED: &[u8] = b" (deleted)";

/// Path and whether it is gone, as text.
fn path_of(place: Place) -> Result<Vec<u8>, Errno> {
    let context = context()?;
    with_vfs(|vfs| {
        let mut found = vfs.path_of(&context, place)?;
        if found.state == guest_fs::PathState::Deleted {
            found.path.try_reserve(DELETED.len()).map_err(|_| Errno::Enomem)?;
            found.path.extend_from_slice(DELETED);
        }
        Ok(found.path)
    })
}

/// Remembers the name of a file, open at that place, that is about to be mapped.
///
/// # Errors
/// `ENOMEM`.
pub fn remember(mapping: Id<Mapping>, place: Place) -> Result<(), Errno> {
    let number = mapping.as_u64();
    if find(number).is_some() {
        return Ok(());
    }
    let stat = with_vfs(|vfs| vfs.stat(place))?;
    let path = path_of(place)?;
    let name = Arc::new(Name { place, dev: stat.dev, ino: stat.ino, path });
    oom::or_wait(|| {
        let mut names = NAMES.lock();
        names.try_reserve(1).map_err(|_| Errno::Enomem)?;
        if let Err(at) = names.binary_search_by_key(&number, |entry| entry.0) {
            names.insert(at, (number, Arc::clone(&name)));
        }
        Ok(())
    })
}

/// Tells readers from outside which file a mapping is of, when it is opened first. What cannot be told now is told another time.
pub fn publish(mapping: Id<Mapping>, place: Place) {
    if cache::has_name(mapping) {
        return;
    }
    let Ok(stat) = with_vfs(|vfs| vfs.stat(place)) else { return };
    if let Ok(path) = path_of(place) {
        cache::set_name(mapping, stat.dev, stat.ino, &path);
    }
}

fn find(number: u64) -> Option<Arc<Name>> {
    let names = NAMES.lock();
    let at = names.binary_search_by_key(&number, |entry| entry.0).ok()?;
    names.get(at).map(|entry| Arc::clone(&entry.1))
}

/// The mapping is gone.
pub fn forget(mapping: Id<Mapping>) {
    let gone = {
        let mut names = NAMES.lock();
        let at = names.binary_search_by_key(&mapping.as_u64(), |entry| entry.0);
        at.ok().map(|at| names.remove(at))
    };
    drop(gone);
}

/// How the mapping is shown; `None` for the program in the kernel's image and files that only execve mapped.
pub fn show(mapping: Id<Mapping>) -> Option<Shown> {
    let without_place = |name: Vec<u8>, ino: u64| {
        let dev = with_vfs(|vfs| Ok(vfs.nameless_device())).unwrap_or(0);
        Some(Shown { dev, ino, path: name })
    };
    match cache::source(mapping) {
        Source::Program => None,
        // Differs from Linux: it has no inode, and its number is made up.
        Source::Anonymous => without_place(b"/dev/zero (deleted)".to_vec(), mapping.as_u64() >> 6),
        Source::SysV => {
            let (key, id) = ipc::shm::name_of(mapping)?;
            without_place(format!("/SYSV{key:08x} (deleted)").into_bytes(), id.into())
        }
        Source::Shmem | Source::Device | Source::Disk | Source::Bdev | Source::Gone => {
            let name = find(mapping.as_u64())?;
            let there = with_vfs(|vfs| vfs.stat(name.place)).is_ok_and(|stat| stat.ino == name.ino);
            let path = if there && matches!(name.place.node, Node::Inode(_) | Node::Disk(_)) {
                path_of(name.place).ok()?
            } else {
                let mut path = name.path.clone();
                if !path.ends_with(DELETED) {
                    path.extend_from_slice(DELETED);
                }
                path
            };
            Some(Shown { dev: name.dev, ino: name.ino, path })
        }
    }
}

/// A file that is being mapped: what mmap needs of it, and its seals kept away until it is.
#[derive(Debug)]
pub struct Mapped {
    /// For mmap.
    pub file: MapFile,
    writable: Option<Id<Mapping>>,
}

impl Mapped {
    /// A file that has no seals.
    pub fn of(file: MapFile) -> Mapped {
        Mapped { file, writable: None }
    }

    /// A file in memory, as its seals allow (Linux: `memfd_check_seals_mmap`, `mapping_map_writable`).
    ///
    /// # Errors
    /// `EPERM`.
    pub fn sealed(mut file: MapFile, shared: bool, write: bool) -> Result<Mapped, Errno> {
        if !shared || !file.writable {
            return Ok(Mapped::of(file));
        }
        let sealed = cache::sealed(file.mapping);
        if sealed.seals().check_mmap(write).map_err(|error| error.errno())? {
            file.without = mm_vma::VmFlags::MAYWRITE;
            return Ok(Mapped::of(file));
        }
        sealed.map_writable()?;
        Ok(Mapped { file, writable: Some(file.mapping) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Some(mapping) = self.writable {
            cache::sealed(mapping).unmap_writable();
        }
    }
}
