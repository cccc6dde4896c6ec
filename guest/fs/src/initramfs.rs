//! Unpacking an initramfs into the root (Linux: init/initramfs.c).

use alloc::vec::Vec;

use crate::change::At;
use crate::cpio::{CpioError, Entry, Reader};
use crate::device::Device;
use crate::flags::{OpenFlags, mode};
use crate::inode::Timespec;
use crate::open::Kind;
use crate::proc::Processes;
use crate::vfs::{Context, Vfs};
use crate::walk::Follow;
use crate::{Data, Errno, SetTime};

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Entries that could not be made, and why the last one could not.
    pub failed: Option<(u64, Errno)>,
    /// Why the rest was not read.
    pub error: Option<CpioError>,
}

/// An inode of the archive that has several names.
struct Linked<'a> {
    key: (u32, (u32, u32)),
    name: &'a [u8],
}

/// Unpacks the archive below the context's root. Goes on after an entry that cannot be made, as Linux does, and stops where the archive
/// cannot be read.
pub fn unpack<D: Data, P: Processes>(vfs: &mut Vfs<D, P>, context: &Context, archive: &[u8]) -> Unpacked {
    let mut result = Unpacked::default();
    let mut linked: Vec<Linked<'_>> = Vec::new();
    let mut dirs: Vec<(&[u8], u32)> = Vec::new();
    for entry in Reader::new(archive) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                result.error = Some(error);
                break;
            }
        };
        result.entries += 1;
        match make(vfs, context, &entry, &mut linked) {
            Ok(()) => {
                result.bytes += entry.data.len() as u64;
                // Without memory for this, the directory keeps the time of its last entry.
                if entry.mode & mode::S_IFMT == mode::S_IFDIR && dirs.try_reserve(1).is_ok() {
                    dirs.push((entry.name, entry.mtime));
                }
            }
            Err(error) => result.failed = Some((result.failed.map_or(0, |(count, _)| count) + 1, error)),
        }
    }
    // What was made in a directory changed its time (Linux: `dir_utime`).
    for (path, mtime) in dirs {
        if let Ok(place) = vfs.lookup(context, context.root, path, Follow::No) {
            let time = SetTime::To(Timespec { sec: i64::from(mtime), nsec: 0 });
            // It is no file of /proc.
            let _ = vfs.set_times(context, place, time, time);
        }
    }
    result
}

fn make<'a, D: Data, P: Processes>(
    vfs: &mut Vfs<D, P>,
    context: &Context,
    entry: &Entry<'a>,
    linked: &mut Vec<Linked<'a>>,
) -> Result<(), Errno> {
    let at = At { base: context.root, path: entry.name };
    let kind = entry.mode & mode::S_IFMT;
    let permissions = entry.mode & mode::PERMISSIONS;
    clear_way(vfs, context, at, kind)?;
    match kind {
        mode::S_IFREG => {
            let key = (entry.ino, entry.dev);
            if entry.nlink > 1 {
                match linked.binary_search_by_key(&key, |first| first.key) {
                    Ok(first) => {
                        let from = At { base: context.root, path: linked[first].name };
                        vfs.link(context, from, Follow::No, at)?;
                        // The content comes with one of the names.
                        if entry.data.is_empty() {
                            return Ok(());
                        }
                    }
                    Err(place) => {
                        linked.try_reserve(1)?;
                        linked.insert(place, Linked { key, name: entry.name });
                    }
                }
            }
            let flags = OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC | OpenFlags::NOFOLLOW;
            let file = vfs.open(context, at.base, at.path, flags, permissions)?;
            let written = match file.kind {
                Kind::Regular(data) => vfs.data.write(data, 0, entry.data),
                _ => Ok(()),
            };
            vfs.put(file.place);
            written?;
        }
        mode::S_IFDIR => match vfs.mkdir(context, at, permissions) {
            Ok(()) | Err(Errno::Eexist) => {}
            Err(error) => return Err(error),
        },
        mode::S_IFLNK => vfs.symlink(context, entry.data, at)?,
        mode::S_IFCHR | mode::S_IFBLK | mode::S_IFIFO | mode::S_IFSOCK => {
            let device = Device { major: entry.rdev.0, minor: entry.rdev.1 };
            vfs.mknod(context, at, entry.mode, device)?;
        }
        _ => return Err(Errno::Einval),
    }
    let place = vfs.lookup(context, at.base, at.path, Follow::No)?;
    vfs.chown(context, place, Some(entry.uid), Some(entry.gid))?;
    if kind != mode::S_IFLNK {
        vfs.chmod(context, place, permissions)?;
    }
    let time = SetTime::To(Timespec { sec: i64::from(entry.mtime), nsec: 0 });
    vfs.set_times(context, place, time, time)
}

/// Removes what is in the way and of another type (Linux: `clean_path`).
fn clear_way<D: Data, P: Processes>(
    vfs: &mut Vfs<D, P>,
    context: &Context,
    at: At<'_>,
    kind: u32,
) -> Result<(), Errno> {
    let Ok(place) = vfs.lookup(context, at.base, at.path, Follow::No) else { return Ok(()) };
    let found = vfs.mode_of(place).unwrap_or(0) & mode::S_IFMT;
    match found {
        _ if found == kind && matches!(kind, mode::S_IFREG | mode::S_IFDIR) => Ok(()),
        mode::S_IFDIR => vfs.rmdir(context, at),
        _ => vfs.unlink(context, at),
    }
}
