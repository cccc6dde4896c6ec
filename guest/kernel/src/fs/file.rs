//! Open files (Linux: fs/file_table.c, fs/read_write.c).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_fs::proc::{PidFile, Source as _, Who};
use guest_fs::{Char, File, Kind, Node, OpenFlags, Place, PollFlags, proc};
use memvisor_abi::LOG_LINE_MAX;
use mm_core::PAGE_SIZE;
use mm_vma::{Errno, Id, MapFile, Mapping};

use super::mapped::{self, Mapped};
use super::pipe::PipeEnd;
use super::source::Kernel;
use super::{Mutex, block, console, context, disk_file, sync, with_vfs};
use crate::drivers::frames;
use crate::mm::space::{Spaces, backing, cache};
use crate::mm::writeback;
use crate::printk::{self, reader};
use crate::sched::WaitQueue;
use crate::{random, sched, uaccess};

/// An open file. Its place is held until the last reference is dropped.
#[derive(Debug)]
pub struct OpenFile {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub kind: Kind<Id<Mapping>>,
    flags: AtomicU32,
    pipe: Option<PipeEnd>,
    /// The last error of a write to the disk that its users have heard of (Linux: `f_wb_err`).
    wb_err: AtomicU32,
    /// Its position and the text of a file of /proc.
    pub state: Mutex<File<Id<Mapping>>>,
}

/// Bytes that go through the kernel at once.
const PIECE: usize = 4096;

/// Where a read or write takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Where the file is; it moves on.
    Current,
    /// Here.
    At(u64),
}

impl OpenFile {
    /// Wraps what `open` gave. `noctty` and `wait` are of the open.
    ///
    /// # Errors
    /// Those of opening a pipe.
    pub fn new(file: File<Id<Mapping>>, noctty: bool, wait: bool) -> Result<Arc<OpenFile>, Errno> {
        let pipe = match file.kind {
            Kind::Fifo(inode) => match PipeEnd::open(inode, file.flags, wait) {
                Ok(pipe) => Some(pipe),
                Err(error) => {
                    put(file.place);
                    return Err(error);
                }
            },
            Kind::Char(device) if device.is_tty() => {
                console::opened(noctty || device == Char::Console);
                None
            }
            Kind::Block(device) => {
                if let Err(error) = block::open(device, file.flags) {
                    put(file.place);
                    return Err(error);
                }
                None
            }
            _ => None,
        };
        let (place, kind, flags) = (file.place, file.kind, AtomicU32::new(file.flags.bits()));
        if let Kind::Regular(data) = kind {
            mapped::publish(data, place);
        }
        let wb_err = match kind {
            Kind::Regular(data) => backing::of(data).sample_error(),
            Kind::Block(device) => block::sample_error(device),
            _ => 0,
        };
        let wb_err = AtomicU32::new(wb_err);
        Ok(Arc::new(OpenFile { place, kind, flags, pipe, wb_err, state: Mutex::new(file) }))
    }

    /// Access mode and status flags.
    pub fn flags(&self) -> OpenFlags {
        OpenFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// F_SETFL.
    pub fn set_flags(&self, flags: OpenFlags) {
        self.state.with(|state| {
            state.flags = (state.flags - OpenFlags::SETTABLE) | (flags & OpenFlags::SETTABLE);
            self.flags.store(state.flags.bits(), Ordering::Relaxed);
        });
    }

    fn nonblocking(&self) -> bool {
        self.flags().contains(OpenFlags::NONBLOCK)
    }

    /// Reads into a program's memory.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn read(&self, address: u64, len: usize, position: Position) -> Result<usize, Errno> {
        if position != Position::Current {
            self.state.with(|state| state.check_seek())?;
        }
        self.state.with(|state| state.check_read())?;
        match self.kind {
            Kind::Fifo(_) => self.pipe.as_ref().ok_or(Errno::Ebadf)?.read(address, len, self.nonblocking()),
            Kind::Char(device) if device.is_tty() => console::read(address, len, self.nonblocking()),
            Kind::Char(Char::Frames) => self.read_at(position, |at| {
                in_pieces(len, |done, piece| {
                    let got = frames::read(at + done as u64, piece)?;
                    uaccess::write(address + done as u64, piece.get(..got).unwrap_or_default())?;
                    Ok(got)
                })
            }),
            Kind::Char(Char::Kmsg) => self.read_log(address, len),
            Kind::Char(device) => read_device(device, address, len),
            Kind::Block(device) => self.read_at(position, |at| block::read(device, address, len, at)),
            Kind::Regular(data) => self.read_at(position, |at| {
                let done = read_file(data, address, len, at)?;
                self.was_read();
                Ok(done)
            }),
            Kind::Text(node) => self.read_text(node, address, len, position),
            Kind::Directory => Err(Errno::Eisdir),
            Kind::Path => Err(Errno::Ebadf),
        }
    }

    /// Calls `f` with the offset, and moves on by what it says.
    fn read_at(
        &self,
        position: Position,
        f: impl FnOnce(u64) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        match position {
            Position::At(at) => f(at),
            Position::Current => self.state.with(|state| {
                let done = f(state.pos)?;
                state.pos += done as u64;
                Ok(done)
            }),
        }
    }

    /// A record of the log. The file's place is the number of the next one.
    fn read_log(&self, address: u64, len: usize) -> Result<usize, Errno> {
        let mut at = self.state.with(|state| state.pos);
        let done = reader::read_kmsg(address, len, &mut at, self.nonblocking());
        self.state.with(|state| state.pos = at);
        done
    }

    fn read_text(
        &self,
        node: proc::Node,
        address: u64,
        len: usize,
        position: Position,
    ) -> Result<usize, Errno> {
        if let proc::Node::File(who, PidFile::Pagemap) = node {
            return self.read_at(position, |at| read_pagemap(who, address, (at, len)));
        }
        self.state.with(|state| {
            let at = if let Position::At(at) = position { at } else { state.pos };
            if at == 0 || state.text.is_empty() {
                state.text = proc::render(node, &Kernel)?;
            }
            let start = usize::try_from(at).unwrap_or(usize::MAX).min(state.text.len());
            let rest = &state.text[start..];
            let piece = &rest[..rest.len().min(len)];
            uaccess::write(address, piece)?;
            if position == Position::Current {
                state.pos += piece.len() as u64;
            }
            Ok(piece.len())
        })
    }

    /// Writes from a program's memory.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn write(&self, address: u64, len: usize, position: Position) -> Result<usize, Errno> {
        if position != Position::Current {
            self.state.with(|state| state.check_seek())?;
        }
        self.state.with(|state| state.check_write())?;
        match self.kind {
            Kind::Fifo(_) => self.pipe.as_ref().ok_or(Errno::Ebadf)?.write(address, len, self.nonblocking()),
            Kind::Char(device) if device.is_tty() => console::write(address, len),
            Kind::Char(Char::Frames) => self.read_at(position, |at| {
                in_pieces(len, |done, piece| {
                    uaccess::read(address + done as u64, piece)?;
                    frames::write(at + done as u64, piece)
                })
            }),
            Kind::Char(Char::Kmsg) => write_log(address, len),
            Kind::Char(device) => write_device(device, address, len),
            Kind::Block(device) => self.read_at(position, |at| block::write(device, address, len, at)),
            Kind::Regular(data) => self.state.with(|state| {
                let at = if let Position::At(at) = position { at } else { state.pos };
                let size = cache::size(data);
                let (at, len) = state.write_range(at, len as u64, size, u64::MAX)?;
                if len == 0 {
                    return Ok(0);
                }
                let done = write_file(data, address, usize::try_from(len).unwrap_or(usize::MAX), at)?;
                if position == Position::Current {
                    state.pos = at + done as u64;
                }
                self.written();
                Ok(done)
            }),
            Kind::Text(node) => {
                let mut text = buffer(len)?;
                uaccess::read(address, &mut text)?;
                proc::store(node, &Kernel, &text)?;
                Ok(text.len())
            }
            Kind::Directory => Err(Errno::Ebadf),
            Kind::Path => Err(Errno::Ebadf),
        }
    }

    /// The file's times change.
    pub fn written(&self) {
        if let Ok(context) = context() {
            // The file exists as long as it is open; a disk that cannot take its times says so when it is synced.
            let _ = with_vfs(|vfs| vfs.wrote(self.place, &context));
        }
    }

    /// A file on a disk was read.
    fn was_read(&self) {
        if let (Node::Disk(_), Ok(context)) = (self.place.node, context()) {
            // Times of reading are not worth an error.
            let _ = with_vfs(|vfs| vfs.read(self.place, &context));
        }
    }

    /// fsync, fdatasync: what was written is kept. An error that happened since the last call, or since the file was opened, is told once
    /// (Linux: `file_check_and_advance_wb_err`).
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`, `EINVAL` for what cannot be synced.
    pub fn sync(&self) -> Result<(), Errno> {
        match self.kind {
            Kind::Regular(data) => sync::file(data, &self.wb_err),
            Kind::Block(device) => block::sync(device, &self.wb_err),
            Kind::Directory => sync::directory(self.place),
            Kind::Path => Err(Errno::Ebadf),
            Kind::Fifo(_) | Kind::Char(_) | Kind::Text(_) => Err(Errno::Einval),
        }
    }

    /// Tells of an error of a write once.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`.
    pub fn check_wb_error(&self) -> Result<(), Errno> {
        match self.kind {
            Kind::Regular(data) => backing::of(data).check_error(&self.wb_err),
            _ => Ok(()),
        }
    }

    /// Makes the file longer or shorter (Linux: `do_truncate`).
    ///
    /// # Errors
    /// Those of ftruncate(2).
    pub fn truncate(&self, len: i64) -> Result<(), Errno> {
        let Kind::Regular(data) = self.kind else { return Err(Errno::Einval) };
        let context = context()?;
        // In memory as long as the file is being cut.
        let tail = disk_file::hold_tail(data, len.cast_unsigned())?;
        let result = with_vfs(|vfs| vfs.truncate(&context, self.place, len));
        if let Some(pfn) = tail {
            mm_vma::put_page(&Spaces, pfn);
        }
        result
    }

    /// For a mapping of it, shared or private, to be written at once or not.
    ///
    /// # Errors
    /// `EBADF`, `ENOMEM`; `EPERM` for a seal, and for devices that are not to be written.
    pub fn map(&self, shared: bool, write: bool) -> Result<Mapped, Errno> {
        let flags = self.flags();
        let file = match self.kind {
            Kind::Regular(mapping) => MapFile::of(mapping),
            Kind::Char(device @ (Char::Frames | Char::Lapic)) => frames::map(device, write)?,
            Kind::Path => return Err(Errno::Ebadf),
            // mmap says so, when it has looked at everything else.
            _ => {
                // Linux mounts what pipes and /proc's files are on with SB_I_NOEXEC.
                let noexec = matches!(self.kind, Kind::Fifo(_) | Kind::Text(_));
                let file = MapFile { noexec, ..MapFile::unmappable() };
                return Ok(Mapped::of(MapFile { readable: flags.reads(), writable: flags.writes(), ..file }));
            }
        };
        let file = MapFile { readable: flags.reads(), writable: flags.writes(), ..file };
        mapped::remember(file.mapping, self.place)?;
        Mapped::sealed(file, shared, write)
    }

    /// Whether it may be written.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn check_writable(&self) -> Result<(), Errno> {
        if self.flags().writes() { Ok(()) } else { Err(Errno::Ebadf) }
    }

    /// What poll reports.
    pub fn poll(&self) -> PollFlags {
        match (&self.pipe, self.kind) {
            (Some(pipe), _) => pipe.poll(),
            (None, Kind::Char(device)) if device.is_tty() => console::poll(),
            (None, Kind::Path) => PollFlags::NVAL,
            _ => PollFlags::ALWAYS,
        }
    }

    /// Queues that are woken when [`OpenFile::poll`] may say something else; none for a file that is always ready (Linux:
    /// `poll_wait`).
    pub fn poll_queues(&self) -> [Option<&WaitQueue>; 2] {
        match (&self.pipe, self.kind) {
            (Some(pipe), _) => pipe.queues(),
            (None, Kind::Char(device)) if device.is_tty() => [Some(console::queue()), None],
            _ => [None, None],
        }
    }

    /// Bytes that can be read without waiting, of a pipe.
    pub fn pipe_len(&self) -> Option<usize> {
        self.pipe.as_ref().map(PipeEnd::len)
    }
}

/// Gives up a place.
fn put(place: Place) {
    // It was held, so there is a file system.
    let _ = with_vfs(|vfs| {
        vfs.put(place);
        Ok(())
    });
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.pipe = None;
        put(self.place);
    }
}

/// A buffer of up to a piece.
pub fn buffer(len: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len.min(PIECE)).map_err(|_| Errno::Enomem)?;
    buffer.resize(len.min(PIECE), 0);
    Ok(buffer)
}

/// Calls `f(done, piece)` until `len` bytes are done, it did less than it could, or it failed; what was done before counts.
pub(super) fn in_pieces(
    len: usize,
    mut f: impl FnMut(usize, &mut [u8]) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut buffer = buffer(len)?;
    let mut done = 0;
    while done < len {
        let piece = buffer.len().min(len - done);
        match f(done, &mut buffer[..piece]) {
            Ok(got) => {
                done += got;
                if got < piece {
                    break;
                }
            }
            Err(error) => return if done > 0 { Ok(done) } else { Err(error) },
        }
    }
    Ok(done)
}

fn read_file(data: Id<Mapping>, address: u64, len: usize, at: u64) -> Result<usize, Errno> {
    let left = usize::try_from(cache::size(data).saturating_sub(at)).unwrap_or(usize::MAX);
    in_pieces(len.min(left), |done, piece| {
        let got = cache::read(data, at + done as u64, piece)?;
        uaccess::write_some(address + done as u64, &piece[..got])
    })
}

/// A page of the file at a time (Linux: `generic_perform_write`).
fn write_file(data: Id<Mapping>, address: u64, len: usize, at: u64) -> Result<usize, Errno> {
    let written_back = cache::source(data).is_written_back();
    let mut buffer = buffer(len)?;
    let mut done = 0;
    while done < len {
        let (at, address) = (at + done as u64, address.wrapping_add(done as u64));
        let page = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(buffer.len());
        let room = page.min(buffer.len()).min(len - done);
        match write_piece(data, address, &mut buffer[..room], at) {
            Ok(0) => break,
            Ok(wrote) => {
                done += wrote;
                if written_back {
                    // Not with the inode's lock held.
                    writeback::balance_dirty_pages(&sched::task_context());
                }
            }
            Err(error) => return if done > 0 { Ok(done) } else { Err(error) },
        }
    }
    Ok(done)
}

/// As much as can be read of the program's memory, at least a byte. If nothing can, the file's page was begun all the same and the
/// file goes up to there (`shmem_write_end` of no bytes, Linux 6.18). Then it is tried again: the memory may be the file's.
fn write_piece(data: Id<Mapping>, address: u64, piece: &mut [u8], at: u64) -> Result<usize, Errno> {
    let got = match uaccess::read_some(address, piece) {
        Ok(got) => got,
        Err(_) => {
            cache::write_nothing(data, at)?;
            uaccess::read_some(address, piece)?
        }
    };
    cache::write(data, at, &piece[..got])
}

fn read_device(device: Char, address: u64, len: usize) -> Result<usize, Errno> {
    in_pieces(len, |done, piece| {
        let got = device.read(piece, random::fill)?;
        uaccess::write_some(address + done as u64, &piece[..got])
    })
}

fn write_device(device: Char, address: u64, len: usize) -> Result<usize, Errno> {
    if matches!(device, Char::Null | Char::Zero) {
        return Ok(len);
    }
    in_pieces(len, |done, piece| {
        uaccess::read(address + done as u64, piece)?;
        device.write(piece, random::mix_in)
    })
}

/// A message for the log (Linux: `devkmsg_write`).
fn write_log(address: u64, len: usize) -> Result<usize, Errno> {
    if len > LOG_LINE_MAX {
        return Err(Errno::Einval);
    }
    let mut text = buffer(len)?;
    uaccess::read(address, &mut text)?;
    printk::say(&text);
    Ok(len)
}

/// A word for each page, from byte `at` on (Linux: `pagemap_read`).
fn read_pagemap(who: Who, address: u64, (at, len): (u64, usize)) -> Result<usize, Errno> {
    /// Words copied at once.
    const BATCH: usize = 64;
    const WORD: usize = 8;
    if !at.is_multiple_of(WORD as u64) || !len.is_multiple_of(WORD) {
        return Err(Errno::Einval);
    }
    let mut done = 0;
    while done < len {
        let (mut words, mut count) = ([0; BATCH * WORD], 0);
        let wanted = ((len - done) / WORD).min(BATCH);
        Kernel.pagemap(who, (at + done as u64) / WORD as u64, &mut |word: u64| {
            if let Some(to) = words.chunks_exact_mut(WORD).nth(count) {
                to.copy_from_slice(&word.to_le_bytes());
                count += 1;
            }
            count < wanted
        })?;
        let bytes = count * WORD;
        uaccess::write(address + done as u64, words.get(..bytes).unwrap_or_default())?;
        done += bytes;
        if count < wanted {
            break;
        }
    }
    Ok(done)
}
