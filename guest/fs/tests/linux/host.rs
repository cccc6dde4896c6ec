//! The calls on this machine's Linux.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use guest_fs::OpenFlags;
use rustix::fs::{self as sys, AtFlags, CWD, Mode, OFlags, RawDir, RenameFlags};
use rustix::io::{self, Errno};
use tempfile::TempDir;

use crate::op::Op;
use crate::{ABOVE, Outcome};

/// The mask of both sides.
pub const UMASK: u32 = 0o027;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Whether the directory is on a tmpfs.
pub fn on_tmpfs() -> bool {
    sys::statfs("/dev/shm").is_ok_and(|fs| fs.f_type == TMPFS_MAGIC)
}

/// A directory of Linux.
pub struct Host {
    _top: TempDir,
    base: OwnedFd,
    slots: [Option<OwnedFd>; 4],
    tmpfs: bool,
}

impl Host {
    pub fn new() -> Host {
        rustix::process::umask(Mode::from_raw_mode(UMASK));
        let shm = Path::new("/dev/shm");
        let tmpfs = on_tmpfs();
        let top = if tmpfs { TempDir::new_in(shm) } else { TempDir::new() }.expect("a directory");
        let path = (0..ABOVE).fold(top.path().to_path_buf(), |path, _| path.join("x"));
        fs::create_dir_all(&path).expect("directories");
        let base = sys::open(&path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("the directory");
        Host { _top: top, base, slots: [None, None, None, None], tmpfs }
    }

    pub fn run(&mut self, op: &Op) -> Outcome {
        self.call(op).unwrap_or_else(|error| Outcome::Failed(error.raw_os_error()))
    }

    fn stat(&self, stat: &sys::Stat) -> Outcome {
        let is_dir = stat.st_mode & 0o170_000 == 0o40_000;
        Outcome::Stat {
            mode: stat.st_mode,
            nlink: (self.tmpfs || !is_dir).then_some(stat.st_nlink),
            size: (self.tmpfs || !is_dir).then(|| u64::try_from(stat.st_size).expect("a size")),
        }
    }

    fn call(&mut self, op: &Op) -> Result<Outcome, Errno> {
        let number = |len: usize| Ok(Outcome::Number(len as u64));
        let done = Ok(Outcome::Number(0));
        let base = self.base.as_fd();
        let mode = |mode: u32| Mode::from_raw_mode(mode);
        if let Op::Read { slot, .. }
        | Op::Write { slot, .. }
        | Op::Pread { slot, .. }
        | Op::Pwrite { slot, .. }
        | Op::Seek { slot, .. }
        | Op::Ftruncate { slot, .. }
        | Op::Fstat { slot }
        | Op::List { slot } = op
        {
            let Some(file) = &self.slots[*slot] else { return Ok(Outcome::Nothing) };
            return self.on_file(file, op);
        }
        match op {
            Op::Open { slot, path, flags, mode: bits } => {
                self.slots[*slot] = None;
                let raw = OFlags::from_bits_retain((*flags | OpenFlags::LARGEFILE).bits());
                self.slots[*slot] = Some(sys::openat(base, path, raw, mode(*bits))?);
                done
            }
            Op::Close { slot } => {
                self.slots[*slot] = None;
                done
            }
            Op::Mkdir { path, mode: bits } => sys::mkdirat(base, path, mode(*bits)).and(done),
            Op::Rmdir { path } => sys::unlinkat(base, path, AtFlags::REMOVEDIR).and(done),
            Op::Unlink { path } => sys::unlinkat(base, path, AtFlags::empty()).and(done),
            Op::Rename { from, to, flags } => {
                sys::renameat_with(base, from, base, to, RenameFlags::from_bits_retain(*flags)).and(done)
            }
            Op::Link { from, to, follow } => {
                let flags = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
                sys::linkat(base, from, base, to, flags).and(done)
            }
            Op::Symlink { target, path } => sys::symlinkat(target, base, path).and(done),
            Op::Readlink { path } => {
                sys::readlinkat(base, path, Vec::new()).map(|text| Outcome::Bytes(text.into_bytes()))
            }
            Op::Stat { path, follow } => {
                let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
                sys::statat(base, path, flags).map(|stat| self.stat(&stat))
            }
            Op::Truncate { path, len } => {
                // There is no truncateat: the directory's place in /proc leads there.
                if path.is_empty() {
                    return Err(Errno::NOENT);
                }
                let fd = std::os::fd::AsRawFd::as_raw_fd(&base);
                let path = format!("/proc/self/fd/{fd}/{path}");
                if path.len() >= 4096 {
                    return Ok(Outcome::Nothing);
                }
                let path = std::ffi::CString::new(path).expect("no zeroes");
                truncate(&path, *len)?;
                done
            }
            Op::Chmod { path, mode: bits } => {
                sys::chmodat(base, path, mode(*bits & 0o7777), AtFlags::empty()).and(done)
            }
            Op::Access { path, mode } => {
                sys::accessat(base, path, sys::Access::from_bits_retain(*mode), AtFlags::empty()).and(done)
            }
            Op::Mknod { path, fifo, mode: bits } => {
                let kind = if *fifo { sys::FileType::Fifo } else { sys::FileType::RegularFile };
                sys::mknodat(base, path, kind, mode(*bits), 0).and(done)
            }
            Op::Chdir { path } => {
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                self.base = sys::openat(base, path, flags, Mode::empty())?;
                done
            }
            _ => number(0),
        }
    }

    fn on_file(&self, file: &OwnedFd, op: &Op) -> Result<Outcome, Errno> {
        let bytes = |mut buffer: Vec<u8>, len: usize| {
            buffer.truncate(len);
            Outcome::Bytes(buffer)
        };
        let number = |len: usize| Outcome::Number(len as u64);
        if matches!(op, Op::Read { .. } | Op::Write { .. })
            && sys::fstat(file)?.st_mode & 0o170_000 == 0o10_000
        {
            return Ok(Outcome::Nothing);
        }
        Ok(match *op {
            Op::Read { len, .. } => {
                let mut buffer = vec![0; len];
                let len = io::read(file, &mut buffer[..])?;
                bytes(buffer, len)
            }
            Op::Pread { len, at, .. } => {
                let mut buffer = vec![0; len];
                let len = io::pread(file, &mut buffer[..], at)?;
                bytes(buffer, len)
            }
            Op::Write { len, byte, .. } => number(io::write(file, &vec![byte; len])?),
            Op::Pwrite { len, at, byte, .. } => number(io::pwrite(file, &vec![byte; len], at)?),
            Op::Seek { .. } if sys::fstat(file)?.st_mode & 0o170_000 == 0o40_000 => Outcome::Nothing,
            Op::Seek { offset, whence, .. } => match seek(offset, whence) {
                Some(from) => Outcome::Number(sys::seek(file, from)?),
                None => Outcome::Nothing,
            },
            Op::Ftruncate { len, .. } => {
                sys::ftruncate(file, len)?;
                Outcome::Number(0)
            }
            Op::Fstat { .. } => self.stat(&sys::fstat(file)?),
            Op::List { .. } => {
                let stat = sys::fstat(file)?;
                if stat.st_mode & 0o170_000 != 0o40_000 {
                    return Ok(Outcome::Nothing);
                }
                sys::seek(file, sys::SeekFrom::Start(0))?;
                let mut buffer = Vec::with_capacity(8192);
                let mut names = Vec::new();
                let mut dir = RawDir::new(file, buffer.spare_capacity_mut());
                while let Some(entry) = dir.next() {
                    let entry = entry?;
                    let kind = guest_fs::mode::S_IFMT & entry.file_type().as_raw_mode();
                    names.push((
                        entry.file_name().to_bytes().to_vec(),
                        u8::try_from(kind >> 12).expect("4 bits"),
                    ));
                }
                names.sort();
                Outcome::Names(names)
            }
            _ => Outcome::Nothing,
        })
    }
}

fn truncate(path: &std::ffi::CStr, len: u64) -> Result<(), Errno> {
    // rustix has no truncate: the same checks are those of an open for writing and ftruncate, but for what may be cut.
    let stat = sys::statat(CWD, path, AtFlags::empty())?;
    match stat.st_mode & 0o170_000 {
        0o40_000 => Err(Errno::ISDIR),
        0o100_000 => {
            let file = sys::open(path, OFlags::WRONLY, Mode::empty())?;
            sys::ftruncate(&file, len)
        }
        _ => Err(Errno::INVAL),
    }
}

fn seek(offset: i64, whence: u32) -> Option<sys::SeekFrom> {
    let start = u64::try_from(offset).ok();
    Some(match whence {
        0 => sys::SeekFrom::Start(start?),
        1 => sys::SeekFrom::Current(offset),
        2 => sys::SeekFrom::End(offset),
        // Holes are a matter of the page cache.
        _ => return None,
    })
}
