//! Calls on files (Linux: fs/).

mod descriptors;
mod exec;
mod io;
mod path;
mod poll;
mod system;

use alloc::vec::Vec;

pub use descriptors::open_console;

use guest_fs::{Context, PATH_MAX, Place};
use mm_vma::Errno;

use super::signed;
use crate::arch::trap::TrapFrame;
use crate::fs::{self, Files};
use crate::task::{Current, current};
use crate::uaccess;

/// The calls of this file's parts.
pub fn call(number: u64, frame: &mut TrapFrame) -> Option<Result<u64, Errno>> {
    io::call(number, frame)
        .or_else(|| path::call(number, frame))
        .or_else(|| descriptors::call(number, frame))
        .or_else(|| poll::call(number, frame))
        .or_else(|| exec::call(number, frame))
        .or_else(|| system::call(number, frame))
}

/// Where paths begin that begin nowhere else.
const AT_FDCWD: i32 = -100;
/// The descriptor itself is meant if the path is empty.
const AT_EMPTY_PATH: u32 = 0x1000;
/// A symbolic link at the end is meant itself.
const AT_SYMLINK_NOFOLLOW: u32 = 0x100;

fn task() -> Result<Current, Errno> {
    current().ok_or(Errno::Esrch)
}

/// Calls `f` with the current task's files.
fn with_files<R>(f: impl FnOnce(&Files) -> Result<R, Errno>) -> Result<R, Errno> {
    f(&task()?.files)
}

/// A path from a program's memory (Linux: `getname`).
fn path_at(address: u64) -> Result<Vec<u8>, Errno> {
    let mut path = Vec::new();
    path.try_reserve_exact(PATH_MAX).map_err(|_| Errno::Enomem)?;
    path.resize(PATH_MAX, 0);
    let len = uaccess::read_text(address, &mut path)?.ok_or(Errno::Enametoolong)?;
    path.truncate(len);
    Ok(path)
}

/// What a call on a path is about. The base is held by an open file or the task itself.
struct Target {
    context: Context,
    base: Place,
    path: Vec<u8>,
    /// Keeps the base.
    _file: Option<alloc::sync::Arc<fs::OpenFile>>,
}

impl Target {
    fn new(dirfd: i32, address: u64) -> Result<Target, Errno> {
        let path = path_at(address)?;
        let context = fs::context()?;
        if dirfd == AT_FDCWD || path.first() == Some(&b'/') {
            return Ok(Target { context, base: context.cwd, path, _file: None });
        }
        let file = with_files(|files| files.get(dirfd.cast_unsigned()))?;
        Ok(Target { context, base: file.place, path, _file: Some(file) })
    }

    fn at(&self) -> guest_fs::At<'_> {
        guest_fs::At { base: self.base, path: &self.path }
    }
}

/// A count of bytes (Linux: `MAX_RW_COUNT`).
fn count(len: u64) -> usize {
    usize::try_from(len.min(0x7fff_f000)).unwrap_or(0)
}

/// Number, arguments: C's `int`s among them.
fn ints(frame: &TrapFrame) -> ([u64; 6], [i32; 6]) {
    let arguments = super::arguments(frame);
    (arguments, arguments.map(signed))
}

fn done(result: Result<(), Errno>) -> Result<u64, Errno> {
    result.map(|()| 0)
}
