//! Files as programs (Linux: fs/exec.c `do_open_execat`).

use guest_fs::{Follow, Kind, OpenFlags, Place};
use mm_vma::{Errno, Id, MapFile, Mapping};

use super::{context, mapped, with_vfs};
use crate::mm::space::cache;

/// A file that may be run; held.
#[derive(Debug)]
pub struct ExecFile {
    place: Place,
    data: Id<Mapping>,
}

/// Opens a program.
///
/// # Errors
/// `ENOENT` and others of the path; `EACCES` if it is no regular file or nobody may run it.
pub fn open_exec(base: Place, path: &[u8], follow: Follow) -> Result<ExecFile, Errno> {
    let context = context()?;
    let opened = with_vfs(|vfs| {
        let place = vfs.lookup(&context, base, path, follow)?;
        vfs.check_exec(place)?;
        let file = vfs.open_place(&context, place, OpenFlags::empty())?;
        match file.kind {
            Kind::Regular(data) => Ok(ExecFile { place, data }),
            _ => {
                vfs.put(place);
                Err(Errno::Eacces)
            }
        }
    })?;
    mapped::publish(opened.data, opened.place);
    mapped::remember(opened.data, opened.place)?;
    Ok(opened)
}

impl ExecFile {
    /// Reads; how many bytes, fewer at the end.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> usize {
        // What cannot be read is missing.
        cache::read(self.data, offset, bytes).unwrap_or(0)
    }

    /// For mappings of it.
    pub fn map(&self) -> MapFile {
        MapFile { writable: false, ..MapFile::of(self.data) }
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        self.place
    }
}

impl Drop for ExecFile {
    fn drop(&mut self) {
        // It was held, so there is a file system.
        let _ = with_vfs(|vfs| {
            vfs.put(self.place);
            Ok(())
        });
    }
}
