//! open, close, dup, fcntl, pipe (Linux: fs/open.c, fs/file.c, fs/fcntl.c, fs/pipe.c).

use alloc::sync::Arc;

use guest_fs::{Kind, OpenFlags, mode};
use guest_process::limits::Resource;
use mm_filemap::Seals;
use mm_vma::Errno;

use super::{Target, done, ints, path_at, with_files};
use crate::arch::trap::TrapFrame;
use crate::fs::{self, OpenFile, with_vfs};
use crate::mm::space::cache;
use crate::syscall::int;
use crate::task::current;
use crate::uaccess;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let ([a, b, c, d, ..], [dirfd, ..]) = ints(frame);
    Some(match number {
        2 => open(super::AT_FDCWD, a, int(b), int(c)),
        3 => close(int(a)),
        22 => pipe(a, 0),
        32 => dup(int(a), 0, false),
        33 => dup_to(int(a), int(b), None),
        72 => fcntl(int(a), int(b), c),
        // flock: nobody else is asked.
        73 => with_files(|files| files.get(int(a))).map(|_| 0),
        85 => {
            open(super::AT_FDCWD, a, (OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC).bits(), int(b))
        }
        257 => open(dirfd, b, int(c), int(d)),
        292 => dup_to(int(a), int(b), Some(int(c))),
        293 => pipe(a, int(b)),
        319 => memfd_create(a, int(b)),
        436 => close_range(int(a), int(b), int(c)),
        _ => return None,
    })
}

/// RLIMIT_NOFILE of the caller.
fn nofile() -> u64 {
    current().map_or(0, |task| task.process.signals.limits.lock().soft(Resource::Nofile))
}

/// Gives an open file the lowest number.
fn install(file: Arc<OpenFile>, cloexec: bool) -> Result<u32, Errno> {
    let table = with_files(|files| files.table())?;
    // The file that did not get a number is closed outside of the table's lock.
    let result = table.with(|table| table.insert(file, cloexec, 0, nofile()));
    result.map_err(|(error, file)| {
        drop(file);
        error
    })
}

fn open(dirfd: i32, path: u64, flags: u32, mode: u32) -> Result<u64, Errno> {
    let target = Target::new(dirfd, path)?;
    let flags = OpenFlags::from_bits_retain(flags) | OpenFlags::LARGEFILE;
    let file = with_vfs(|vfs| vfs.open(&target.context, target.base, &target.path, flags, mode))?;
    let file = OpenFile::new(file, flags.contains(OpenFlags::NOCTTY), true)?;
    install(file, flags.contains(OpenFlags::CLOEXEC)).map(u64::from)
}

fn close(fd: u32) -> Result<u64, Errno> {
    let table = with_files(|files| files.table())?;
    let file = table.with(|table| table.remove(fd))?;
    drop(file);
    Ok(0)
}

fn close_range(from: u32, last: u32, flags: u32) -> Result<u64, Errno> {
    const CLOEXEC: u32 = 4;
    if from > last || flags & !CLOEXEC != 0 {
        return Err(Errno::Einval);
    }
    let table = with_files(|files| files.table())?;
    if flags & CLOEXEC != 0 {
        table.with(|table| {
            let mut at = from;
            while let Some((fd, _)) = table.next(at).filter(|(fd, _)| *fd <= last) {
                // It is there.
                let _ = table.set_cloexec(fd, true);
                let Some(next) = fd.checked_add(1) else { break };
                at = next;
            }
        });
        return Ok(0);
    }
    while let Some((_, file)) = table.with(|table| table.take_if(from, last, |_| true)) {
        drop(file);
    }
    Ok(0)
}

fn dup(fd: u32, lowest: u32, cloexec: bool) -> Result<u64, Errno> {
    let table = with_files(|files| files.table())?;
    table.with(|table| table.dup(fd, lowest, cloexec, nofile())).map(u64::from)
}

fn dup_to(from: u32, to: u32, flags: Option<u32>) -> Result<u64, Errno> {
    let table = with_files(|files| files.table())?;
    let cloexec = match flags {
        Some(flags) if flags & !OpenFlags::CLOEXEC.bits() != 0 || from == to => return Err(Errno::Einval),
        Some(flags) => flags != 0,
        None => false,
    };
    if from == to {
        return table.with(|table| table.get(from).map(|_| u64::from(to)));
    }
    let old = table.with(|table| table.dup_to(from, to, cloexec, nofile()))?;
    drop(old);
    Ok(u64::from(to))
}

fn fcntl(fd: u32, command: u32, argument: u64) -> Result<u64, Errno> {
    const DUPFD: u32 = 0;
    const GETFD: u32 = 1;
    const SETFD: u32 = 2;
    const GETFL: u32 = 3;
    const SETFL: u32 = 4;
    const GETLK: u32 = 5;
    const SETLKW: u32 = 7;
    const DUPFD_CLOEXEC: u32 = 1030;
    const GETPIPE_SZ: u32 = 1032;
    const ADD_SEALS: u32 = 1033;
    const GET_SEALS: u32 = 1034;
    let table = with_files(|files| files.table())?;
    let file = with_files(|files| files.get(fd))?;
    match command {
        DUPFD | DUPFD_CLOEXEC => dup(fd, int(argument), command == DUPFD_CLOEXEC),
        GETFD => table.with(|table| table.get(fd).map(|slot| u64::from(slot.cloexec))),
        SETFD => done(table.with(|table| table.set_cloexec(fd, argument & 1 != 0))),
        GETFL => Ok(u64::from(file.flags().bits())),
        SETFL => {
            file.set_flags(OpenFlags::from_bits_retain(int(argument)));
            Ok(0)
        }
        // Locks of ranges: nobody else is asked.
        GETLK..=SETLKW => Ok(0),
        ADD_SEALS => done(add_seals(&file, int(argument))),
        GET_SEALS => match file.kind {
            Kind::Regular(data) => Ok(cache::sealed(data).seals().bits().into()),
            _ => Err(Errno::Einval),
        },
        GETPIPE_SZ if file.pipe_len().is_some() => Ok(65_536),
        _ => Err(Errno::Einval),
    }
}

fn pipe(address: u64, flags: u32) -> Result<u64, Errno> {
    let flags = OpenFlags::from_bits_retain(flags);
    if !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK | OpenFlags::DIRECT).contains(flags) {
        return Err(Errno::Einval);
    }
    let context = fs::context()?;
    let (status, cloexec) = (flags - OpenFlags::CLOEXEC, flags.contains(OpenFlags::CLOEXEC));
    let place = with_vfs(|vfs| vfs.create_pipe(&context))?;
    let open = |access: OpenFlags| {
        let file = with_vfs(|vfs| vfs.open_place(&context, place, access | status))?;
        OpenFile::new(file, true, false)
    };
    let ends = open(OpenFlags::empty()).and_then(|reader| Ok((reader, open(OpenFlags::WRONLY)?)));
    with_vfs(|vfs| {
        vfs.put(place);
        Ok(())
    })?;
    let (reader, writer) = ends?;
    let reader = install(reader, cloexec)?;
    let writer = match install(writer, cloexec) {
        Ok(writer) => writer,
        Err(error) => {
            close(reader)?;
            return Err(error);
        }
    };
    if let Err(error) = uaccess::put_user(address, [reader, writer]) {
        close(reader)?;
        close(writer)?;
        return Err(error);
    }
    Ok(0)
}

/// F_ADD_SEALS.
fn add_seals(file: &OpenFile, seals: u32) -> Result<(), Errno> {
    if !file.flags().writes() {
        return Err(Errno::Eperm);
    }
    let Kind::Regular(data) = file.kind else { return Err(Errno::Einval) };
    let rights = with_vfs(|vfs| vfs.mode_of(file.place).ok_or(Errno::Enoent))?;
    cache::add_seals(data, seals, rights & mode::S_IXUGO != 0)
}

/// memfd_create (Linux: mm/memfd.c).
fn memfd_create(name: u64, flags: u32) -> Result<u64, Errno> {
    const CLOEXEC: u32 = 1;
    const ALLOW_SEALING: u32 = 2;
    const HUGETLB: u32 = 4;
    const NOEXEC_SEAL: u32 = 8;
    const EXEC: u32 = 0x10;
    const LONGEST: usize = 249;
    if flags & HUGETLB != 0 {
        // No pool of huge pages (Linux without CONFIG_HUGETLBFS).
        return Err(Errno::Enosys);
    }
    if flags & !(CLOEXEC | ALLOW_SEALING | NOEXEC_SEAL | EXEC) != 0
        || flags & (EXEC | NOEXEC_SEAL) == EXEC | NOEXEC_SEAL
    {
        return Err(Errno::Einval);
    }
    let mut full = alloc::vec::Vec::from(*b"memfd:");
    let name =
        path_at(name).map_err(|error| if error == Errno::Enametoolong { Errno::Einval } else { error })?;
    if name.len() > LONGEST {
        return Err(Errno::Einval);
    }
    full.extend_from_slice(&name);
    let context = fs::context()?;
    let file = with_vfs(|vfs| vfs.open_nameless(&context, &full, OpenFlags::RDWR | OpenFlags::LARGEFILE))?;
    let file = OpenFile::new(file, true, false)?;
    if let Kind::Regular(data) = file.kind {
        let seals = if flags & NOEXEC_SEAL != 0 {
            Seals::EXEC
        } else if flags & ALLOW_SEALING != 0 {
            Seals::empty()
        } else {
            Seals::SEAL
        };
        if flags & NOEXEC_SEAL != 0 {
            with_vfs(|vfs| vfs.chmod(&context, file.place, 0o666))?;
        }
        cache::sealed(data).set(seals);
    }
    install(file, flags & CLOEXEC != 0).map(u64::from)
}

/// Opens the console as descriptors 0, 1 and 2 of the current task (Linux: `console_on_rootfs`).
///
/// # Errors
/// `ENOMEM`, `EMFILE`.
pub fn open_console() -> Result<(), Errno> {
    let context = fs::context()?;
    let number = guest_fs::Device { major: 5, minor: 1 };
    let flags = OpenFlags::RDWR | OpenFlags::LARGEFILE;
    let file = with_vfs(|vfs| {
        vfs.open(&context, context.root, b"/dev/console", flags, 0)
            .or_else(|_| vfs.open_device(&context, number, flags))
    })?;
    let file = OpenFile::new(file, true, false)?;
    for _ in 0..3 {
        install(Arc::clone(&file), false)?;
    }
    Ok(())
}
