//! Memory of processes, from the kernel's side (Linux: arch/x86/lib/usercopy_64.c). A user pointer is followed through the
//! page tables and never dereferenced, so SMAP stays on; pages come in by the same faults as for the process itself.

use core::ops::Range;

use mm_core::{Event, MemMap, PAGE_SIZE, PageKind, PhysAddr, Trace};
use mm_vma::{Access, Done, Errno, FaultInfo, Id, Kernel, Limits, Mm, handle_fault, with_user_byte};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::mm::kmap;
use crate::mm::space::{self, Spaces};
use crate::task;
use crate::trace::KernelTrace;

/// Copies from the memory of the process that runs here.
///
/// # Errors
/// `EFAULT`; then `bytes` is partly written.
pub fn read(va: u64, bytes: &mut [u8]) -> Result<(), Errno> {
    let task = task::current().ok_or(Errno::Efault)?;
    let mm = task.mm().ok_or(Errno::Efault)?;
    copy_from_user(mm, &task.limits(), va, bytes).ok_or(Errno::Efault)
}

/// Copies to the memory of the process that runs here.
///
/// # Errors
/// `EFAULT`; what lies before the bad address is written then.
pub fn write(va: u64, bytes: &[u8]) -> Result<(), Errno> {
    let task = task::current().ok_or(Errno::Efault)?;
    let mm = task.mm().ok_or(Errno::Efault)?;
    copy_to_user(mm, &task.limits(), va, bytes).ok_or(Errno::Efault)
}

/// Copies from the memory of the process that runs here, up to the first bad address; how many bytes (Linux: `copy_from_iter`).
///
/// # Errors
/// `EFAULT` if not a byte could be read.
pub fn read_some(va: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
    some(bytes.len(), va, |va, range| read(va, bytes.get_mut(range).unwrap_or_default()))
}

/// Copies to the memory of the process that runs here, up to the first bad address; how many bytes (Linux: `copy_to_iter`).
///
/// # Errors
/// `EFAULT` if not a byte could be written.
pub fn write_some(va: u64, bytes: &[u8]) -> Result<usize, Errno> {
    some(bytes.len(), va, |va, range| write(va, bytes.get(range).unwrap_or_default()))
}

/// Calls `copy` for the part of each page, until it fails.
fn some(
    len: usize,
    va: u64,
    mut copy: impl FnMut(u64, Range<usize>) -> Result<(), Errno>,
) -> Result<usize, Errno> {
    let mut done = 0;
    while done < len {
        let at = va.wrapping_add(done as u64);
        let page = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(usize::MAX);
        let end = done.saturating_add(page).min(len);
        match copy(at, done..end) {
            Ok(()) => done = end,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Reads a value from the process that runs here (Linux: `get_user`, `copy_from_user`).
///
/// # Errors
/// `EFAULT`.
pub fn get_user<T: FromBytes + IntoBytes>(va: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    read(va, value.as_mut_bytes())?;
    Ok(value)
}

/// Writes a value to the process that runs here (Linux: `put_user`, `copy_to_user`).
///
/// # Errors
/// `EFAULT`.
pub fn put_user<T: IntoBytes + Immutable>(va: u64, value: T) -> Result<(), Errno> {
    write(va, value.as_bytes())
}

/// Reads a text that ends with NUL from the process that runs here into `buffer`; returns its length without the NUL, or `None` if
/// it does not fit with it (Linux: `strncpy_from_user`).
///
/// # Errors
/// `EFAULT`.
pub fn read_text(va: u64, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        let at = va.checked_add(done as u64).ok_or(Errno::Efault)?;
        // Not past the page: the next need not be there.
        let page = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).map_err(|_| Errno::Efault)?;
        let len = page.min(buffer.len() - done);
        let piece = buffer.get_mut(done..done + len).ok_or(Errno::Efault)?;
        read(at, piece)?;
        if let Some(end) = piece.iter().position(|&byte| byte == 0) {
            return Ok(Some(done + end));
        }
        done += len;
    }
    Ok(None)
}

/// Calls `f` with where the word at `va` of the process that runs here is, once the process may use it so. The word stays there until `f`
/// returns: the page tables are locked.
///
/// # Errors
/// `EFAULT`.
pub fn with_word<R>(va: u64, access: Access, f: impl FnMut(PhysAddr) -> R) -> Result<R, Errno> {
    let task = task::current().ok_or(Errno::Efault)?;
    let mm = task.mm().ok_or(Errno::Efault)?;
    with_byte(mm, &task.limits(), va, access, f).ok_or(Errno::Efault)
}

/// Calls `f` with where the byte at `va` is once the process may use it so; `None` where it may not. Its page tables are locked
/// meanwhile, so that the page is not unmapped and freed, moved, or shared by a fork under `f`, as the MMU sees to it for a
/// program (Linux copies through the program's own addresses).
fn with_byte<R>(
    mm: Id<Mm>,
    limits: &Limits,
    va: u64,
    access: Access,
    mut f: impl FnMut(PhysAddr) -> R,
) -> Option<R> {
    let at = space::mm_of(mm);
    if va >= at.task_size() {
        return None;
    }
    loop {
        // Differs from Linux: the kernel does not copy from and to a device's registers.
        let found = with_user_byte(&Spaces, at, va, access == Access::Write, |phys| {
            let is_ram = |page: &mm_core::Page| page.kind() != PageKind::None;
            MemMap::page(&Spaces, phys.pfn()).is_some_and(is_ram).then(|| f(phys))
        });
        if let Some(result) = found {
            return result;
        }
        // A page that is there and may not be written, or nothing.
        let present = access == Access::Write && space::translate(at, va, false).is_some();
        let what = FaultInfo { addr: va, access, present };
        if handle_fault(&Spaces, mm, what, || *limits).ok()? == Done::Wait {
            Spaces.relax();
        }
    }
}

/// Calls `f(position, frame address, bytes)` for each piece of `len` bytes at `va` that lies in one frame.
fn for_each_piece(
    mm: Id<Mm>,
    limits: &Limits,
    (va, len): (u64, u64),
    access: Access,
    mut f: impl FnMut(u64, PhysAddr, u64),
) -> Option<()> {
    let mut done = 0;
    while done < len {
        let at = va.checked_add(done)?;
        let piece = (PAGE_SIZE - at % PAGE_SIZE).min(len - done);
        with_byte(mm, limits, at, access, |phys| f(done, phys, piece))?;
        done += piece;
    }
    Some(())
}

fn tell_copy(to_user: bool, addr: u64, len: usize) {
    KernelTrace.emit(Event::CopyUser { to_user, addr, bytes: len as u64 });
}

/// Copies from the process's memory. `None` for a bad address; then `bytes` is partly written.
pub fn copy_from_user(mm: Id<Mm>, limits: &Limits, va: u64, bytes: &mut [u8]) -> Option<()> {
    tell_copy(false, va, bytes.len());
    for_each_piece(mm, limits, (va, bytes.len() as u64), Access::Read, |done, phys, piece| {
        let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
        if let Some(part) = bytes.get_mut(at(done)..at(done + piece)) {
            kmap::copy_from_page(phys.pfn(), phys.page_offset(), part);
        }
    })
}

/// Copies to the process's memory. `None` for a bad address; what lies before it is written then.
pub fn copy_to_user(mm: Id<Mm>, limits: &Limits, va: u64, bytes: &[u8]) -> Option<()> {
    tell_copy(true, va, bytes.len());
    for_each_piece(mm, limits, (va, bytes.len() as u64), Access::Write, |done, phys, piece| {
        let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
        if let Some(part) = bytes.get(at(done)..at(done + piece)) {
            kmap::copy_to_page(phys.pfn(), phys.page_offset(), part);
        }
    })
}

/// Fills the process's memory with zeroes. `None` for a bad address; what lies before it is filled then.
pub fn clear_user(mm: Id<Mm>, limits: &Limits, va: u64, len: u64) -> Option<()> {
    const ZEROES: [u8; 64] = [0; 64];
    for_each_piece(mm, limits, (va, len), Access::Write, |_, phys, piece| {
        let mut done = 0;
        while done < piece {
            let part = usize::try_from(piece - done).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            kmap::copy_to_page(phys.pfn(), phys.page_offset() + done, &ZEROES[..part]);
            done += part as u64;
        }
    })
}
