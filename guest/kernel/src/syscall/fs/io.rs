//! read, write and their kin (Linux: fs/read_write.c, fs/ioctl.c).

use alloc::sync::Arc;

use guest_fs::{Char, Kind, Whence};
use guest_process::signal::{SigInfo, Signal, Target};
use mm_core::PAGE_SIZE;
use mm_filemap::Seek;
use mm_filemap::shmem::FallocFlags;
use mm_vma::Errno;

use super::{count, done, ints, task, with_files};
use crate::arch::trap::TrapFrame;
use crate::fs::file::Position;
use crate::fs::{self, OpenFile, console, disk_file, with_vfs};
use crate::mm::space::backing::RaState;
use crate::mm::space::cache;
use crate::mm::writeback;
use crate::printk::reader;
use crate::syscall::int;
use crate::{sched, signal, uaccess};

/// Linux: `UIO_MAXIOV`.
const IOV_MAX: u64 = 1024;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let ([a, b, c, d, ..], _) = ints(frame);
    let fd = int(a);
    Some(match number {
        0 => read(fd, b, c, Position::Current),
        1 => write(fd, b, c, Position::Current),
        8 => lseek(fd, b.cast_signed(), int(c)),
        16 => ioctl(fd, int(b), c),
        17 => position(d).and_then(|at| read(fd, b, c, at)),
        18 => position(d).and_then(|at| write(fd, b, c, at)),
        19 => vector(fd, b, c, Position::Current, read),
        20 => vector(fd, b, c, Position::Current, write),
        40 => sendfile(fd, int(b), c, d),
        // fsync, fdatasync.
        74 | 75 => done(get(fd).and_then(|file| file.sync())),
        // syncfs.
        306 => done(get(fd).and_then(|_| fs::sync::all())),
        // sync_file_range.
        277 => sync_file_range(fd, b, c, int(d)),
        // readahead.
        187 => advise(fd, b, c, WILLNEED),
        77 => ftruncate(fd, b.cast_signed()),
        // fadvise64
        221 => advise(fd, b, c, int(d)),
        285 => fallocate(fd, int(b), c.cast_signed(), d.cast_signed()),
        // preadv, pwritev
        295 => position(d).and_then(|at| vector(fd, b, c, at, read)),
        296 => position(d).and_then(|at| vector(fd, b, c, at, write)),
        _ => return None,
    })
}

fn get(fd: u32) -> Result<Arc<OpenFile>, Errno> {
    with_files(|files| files.get(fd))
}

fn position(offset: u64) -> Result<Position, Errno> {
    if offset.cast_signed() < 0 { Err(Errno::Einval) } else { Ok(Position::At(offset)) }
}

fn read(fd: u32, address: u64, len: u64, position: Position) -> Result<u64, Errno> {
    Ok(get(fd)?.read(address, count(len), position)? as u64)
}

fn write(fd: u32, address: u64, len: u64, position: Position) -> Result<u64, Errno> {
    let result = get(fd)?.write(address, count(len), position);
    if result == Err(Errno::Epipe) {
        let task = task()?;
        // It is there.
        let _ = signal::send(&task.process, Target::Thread(task.tid()), SigInfo::kernel(Signal::PIPE));
    }
    Ok(result? as u64)
}

/// Calls `f` for each buffer until one is not full. A position moves on with them.
fn vector(
    fd: u32,
    address: u64,
    buffers: u64,
    position: Position,
    f: impl Fn(u32, u64, u64, Position) -> Result<u64, Errno>,
) -> Result<u64, Errno> {
    get(fd)?;
    if buffers > IOV_MAX {
        return Err(Errno::Einval);
    }
    let mut sum = 0;
    for number in 0..buffers {
        let [base, len] = uaccess::get_user::<[u64; 2]>(address + 16 * number)?;
        if len.cast_signed() < 0 {
            return Err(Errno::Einval);
        }
        if len == 0 {
            continue;
        }
        let at = if let Position::At(at) = position { Position::At(at + sum) } else { position };
        match f(fd, base, len, at) {
            Ok(got) => {
                sum += got;
                if got < len {
                    break;
                }
            }
            Err(error) => return if sum > 0 { Ok(sum) } else { Err(error) },
        }
    }
    Ok(sum)
}

fn lseek(fd: u32, offset: i64, whence: u32) -> Result<u64, Errno> {
    let file = get(fd)?;
    let whence = Whence::from_raw(whence)?;
    let looks_for = match whence {
        Whence::Data => Some(Seek::Data),
        Whence::Hole => Some(Seek::Hole),
        Whence::Set | Whence::Current | Whence::End => None,
    };
    if let (Some(what), Kind::Regular(data)) = (looks_for, file.kind) {
        let from = u64::try_from(offset).map_err(|_| Errno::Enxio)?;
        let found = cache::seek(data, from, what)?;
        return file.state.with(|state| state.seek(found.cast_signed(), Whence::Set, found));
    }
    let size = match file.kind {
        Kind::Block(device) => fs::block::size(device),
        Kind::Char(Char::Kmsg) => reader::end_seq(),
        _ => with_vfs(|vfs| Ok(vfs.size(file.place)))?,
    };
    file.state.with(|state| state.seek(offset, whence, size))
}

const WILLNEED: u32 = 3;

/// posix_fadvise (Linux: mm/fadvise.c), readahead.
fn advise(fd: u32, offset: u64, len: u64, advice: u32) -> Result<u64, Errno> {
    const NORMAL: u32 = 0;
    const RANDOM: u32 = 1;
    const SEQUENTIAL: u32 = 2;
    const DONTNEED: u32 = 4;
    const NOREUSE: u32 = 5;
    let file = get(fd)?;
    if file.pipe_len().is_some() {
        return Err(Errno::Espipe);
    }
    if len.cast_signed() < 0 || advice > NOREUSE {
        return Err(Errno::Einval);
    }
    let Kind::Regular(data) = file.kind else { return Ok(0) };
    if !cache::source(data).is_written_back() {
        return Ok(0);
    }
    let end = if len == 0 { u64::MAX } else { offset.saturating_add(len) };
    match advice {
        NORMAL => disk_file::set_mode(data, RaState::NORMAL),
        RANDOM => disk_file::set_mode(data, RaState::RANDOM),
        SEQUENTIAL => disk_file::set_mode(data, RaState::SEQUENTIAL),
        WILLNEED => disk_file::force_readahead(data, writeback::pages_of(offset..end))?,
        DONTNEED => {
            // What is dirty begins to be written, and goes the next time. Pages that are there in part stay.
            writeback::begin(data, writeback::pages_of(offset..end), &sched::task_context())?;
            let pages = offset.div_ceil(PAGE_SIZE)..if end == u64::MAX { end } else { end / PAGE_SIZE };
            writeback::invalidate(data, pages);
        }
        _ => {}
    }
    Ok(0)
}

/// Linux: `ksys_sync_file_range`. It keeps nothing that leads to the bytes.
fn sync_file_range(fd: u32, offset: u64, len: u64, flags: u32) -> Result<u64, Errno> {
    const WAIT_BEFORE: u32 = 1;
    const WRITE: u32 = 2;
    const WAIT_AFTER: u32 = 4;
    let file = get(fd)?;
    if flags & !(WAIT_BEFORE | WRITE | WAIT_AFTER) != 0 || offset.cast_signed() < 0 || len.cast_signed() < 0 {
        return Err(Errno::Einval);
    }
    let Kind::Regular(data) = file.kind else { return Err(Errno::Espipe) };
    if !cache::source(data).is_written_back() {
        return Ok(0);
    }
    let context = sched::task_context();
    let end = if len == 0 { u64::MAX } else { offset.saturating_add(len) };
    let pages = writeback::pages_of(offset..end);
    if flags & WAIT_BEFORE != 0 {
        writeback::wait_pages(data, pages.clone(), &context);
    }
    if flags & WRITE != 0 {
        writeback::begin(data, pages.clone(), &context)?;
    }
    if flags & WAIT_AFTER != 0 {
        writeback::wait_pages(data, pages, &context);
        file.check_wb_error()?;
    }
    Ok(0)
}

fn ftruncate(fd: u32, len: i64) -> Result<u64, Errno> {
    if len < 0 {
        return Err(Errno::Einval);
    }
    let file = get(fd)?;
    if matches!(file.kind, Kind::Path) {
        return Err(Errno::Ebadf);
    }
    if !file.flags().writes() || !matches!(file.kind, Kind::Regular(_)) {
        return Err(Errno::Einval);
    }
    done(file.truncate(len))
}

/// Linux: `vfs_fallocate`.
fn fallocate(fd: u32, mode: u32, offset: i64, len: i64) -> Result<u64, Errno> {
    let file = get(fd)?;
    if offset < 0 || len <= 0 {
        return Err(Errno::Einval);
    }
    let mode = FallocFlags::from_bits_retain(mode);
    let known = FallocFlags::KEEP_SIZE | FallocFlags::PUNCH_HOLE;
    if !known.contains(mode) || mode == FallocFlags::PUNCH_HOLE {
        return Err(Errno::Eopnotsupp);
    }
    file.check_writable()?;
    match file.kind {
        Kind::Regular(data) => {
            done(cache::fallocate(data, mode, offset.cast_unsigned(), len.cast_unsigned()))?;
            file.written();
            Ok(0)
        }
        Kind::Fifo(_) => Err(Errno::Espipe),
        _ => Err(Errno::Enodev),
    }
}

fn ioctl(fd: u32, request: u32, argument: u64) -> Result<u64, Errno> {
    const FIONBIO: u32 = 0x5421;
    const FIONREAD: u32 = 0x541b;
    const FIOCLEX: u32 = 0x5451;
    const FIONCLEX: u32 = 0x5450;
    let file = get(fd)?;
    match (request, file.kind) {
        (FIOCLEX | FIONCLEX, _) => {
            let table = with_files(|files| files.table())?;
            done(table.with(|table| table.set_cloexec(fd, request == FIOCLEX)))
        }
        (FIONBIO, _) => {
            let on = uaccess::get_user::<u32>(argument)? != 0;
            let mut flags = file.flags();
            flags.set(guest_fs::OpenFlags::NONBLOCK, on);
            file.set_flags(flags);
            Ok(0)
        }
        (_, Kind::Path) => Err(Errno::Ebadf),
        (_, Kind::Char(device)) if device.is_tty() => console::ioctl(request, argument),
        (request, Kind::Block(device)) => fs::block::ioctl(device, request, argument),
        (FIONREAD, Kind::Fifo(_)) => {
            let len = file.pipe_len().and_then(|len| u32::try_from(len).ok()).unwrap_or(0);
            uaccess::put_user(argument, len)?;
            Ok(0)
        }
        _ => Err(Errno::Enotty),
    }
}

/// Differs from Linux: refused (`EINVAL`), which programs know from files that cannot do it; they go on with read and write.
fn sendfile(to: u32, from: u32, _offset: u64, _len: u64) -> Result<u64, Errno> {
    task()?;
    get(from)?;
    get(to)?;
    Err(Errno::Einval)
}
