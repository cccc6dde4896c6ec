//! Calls that change the address space (Linux: mm/mmap.c, mm/mprotect.c).

use mm_vma::{Errno, MapFlags, MmapRequest, Populate, ProtFlags, Space};

use super::error;
use crate::mm::space::Spaces;
use crate::task::{self, Task};

/// Calls `f` with the address space of the process, whose mmap_lock is held, and brings in what it returns.
fn change<R>(f: impl FnOnce(&Space<'_, Spaces>) -> Result<(R, Option<Populate>), Errno>) -> Result<R, Errno> {
    let Task { mm, limits, .. } = task::current().ok_or(Errno::Enomem)?;
    let space = Space::lock(&Spaces, mm, limits);
    let (result, populate) = f(&space)?;
    drop(space);
    if let Some(populate) = populate {
        mm_vma::populate(&Spaces, mm, &limits, populate);
    }
    Ok(result)
}

fn value(result: Result<u64, Errno>) -> u64 {
    result.unwrap_or_else(|errno| error(u64::from((errno as i32).unsigned_abs())))
}

/// mmap. There are no files yet: every descriptor is a bad one.
pub fn mmap(addr: u64, len: u64, prot: u64, flags: u64, _fd: u64, offset: u64) -> u64 {
    let prot = ProtFlags::from_bits_retain(prot);
    let flags = MapFlags::from_bits_retain(flags);
    value(change(|space| {
        if offset & (mm_core::PAGE_SIZE - 1) != 0 {
            return Err(Errno::Einval);
        }
        if !flags.contains(MapFlags::ANONYMOUS) {
            return Err(Errno::Ebadf);
        }
        let request = MmapRequest { addr, len, prot, flags, file: None, offset };
        let (addr, populate) = space.mmap(&request)?;
        Ok((addr, Some(populate)))
    }))
}

/// munmap.
pub fn munmap(addr: u64, len: u64) -> u64 {
    value(change(|space| space.munmap(addr, len).map(|()| (0, None))))
}

/// mprotect.
pub fn mprotect(addr: u64, len: u64, prot: u64) -> u64 {
    value(change(|space| space.mprotect(addr, len, ProtFlags::from_bits_retain(prot)).map(|()| (0, None))))
}

/// brk.
pub fn brk(addr: u64) -> u64 {
    value(change(|space| {
        let (end, populate) = space.set_brk(addr);
        Ok((end, Some(populate)))
    }))
}
