//! Calls that change the address space (Linux: mm/mmap.c, mm/mprotect.c).

use mm_core::PAGE_SIZE;
use mm_vma::{
    Advised, Errno, MapFlags, MlockAll, MmapRequest, MremapFlags, MsyncFlags, Populate, ProtFlags, Space,
};

use super::error;
use crate::mm::space::{self, Spaces};
use crate::task::{self, Task};
use crate::uaccess;

/// Calls `f` with the address space of the process, whose mmap_lock is held.
fn change<R>(f: impl FnOnce(&Task, &Space<'_, Spaces>) -> Result<R, Errno>) -> Result<R, Errno> {
    let task = task::current().ok_or(Errno::Enomem)?;
    f(&task, &Space::lock(&Spaces, task.mm, task.limits))
}

/// [`change`], and brings in what `f` says afterwards (Linux: `mm_populate`).
fn change_and_populate(f: impl FnOnce(&Space<'_, Spaces>) -> Result<(u64, Populate), Errno>) -> u64 {
    value(change(|task, space| Ok((*task, f(space)?))).map(|(task, (result, populate))| {
        mm_vma::populate(&Spaces, task.mm, &task.limits, populate);
        result
    }))
}

/// [`change`], and brings in what `f` locked; that may fail.
fn lock(f: impl FnOnce(&Space<'_, Spaces>) -> Result<Populate, Errno>) -> u64 {
    nothing(
        change(|task, space| Ok((*task, f(space)?)))
            .and_then(|(task, populate)| mm_vma::populate_locked(&Spaces, task.mm, &task.limits, populate)),
    )
}

fn value(result: Result<u64, Errno>) -> u64 {
    result.unwrap_or_else(|errno| error(u64::from(errno.number().unsigned_abs())))
}

fn nothing(result: Result<(), Errno>) -> u64 {
    value(result.map(|()| 0))
}

/// mmap. There are no files yet: every descriptor is a bad one.
pub fn mmap(addr: u64, len: u64, prot: u64, flags: u64, _fd: u64, offset: u64) -> u64 {
    let prot = ProtFlags::from_bits_retain(prot);
    let flags = MapFlags::from_bits_retain(flags);
    if offset & (PAGE_SIZE - 1) != 0 {
        return value(Err(Errno::Einval));
    }
    if !flags.contains(MapFlags::ANONYMOUS) {
        return value(Err(Errno::Ebadf));
    }
    change_and_populate(|space| space.mmap(&MmapRequest { addr, len, prot, flags, file: None, offset }))
}

/// munmap.
pub fn munmap(addr: u64, len: u64) -> u64 {
    nothing(change(|_, space| space.munmap(addr, len)))
}

/// mprotect.
pub fn mprotect(addr: u64, len: u64, prot: u64) -> u64 {
    nothing(change(|_, space| space.mprotect(addr, len, ProtFlags::from_bits_retain(prot))))
}

/// brk.
pub fn brk(addr: u64) -> u64 {
    change_and_populate(|space| Ok(space.set_brk(addr)))
}

/// mremap.
pub fn mremap(addr: u64, old_len: u64, new_len: u64, flags: u64, new_addr: u64) -> u64 {
    let flags = MremapFlags::from_bits_retain(flags);
    change_and_populate(|space| space.mremap(addr, old_len, new_len, flags, new_addr))
}

/// madvise.
pub fn madvise(addr: u64, len: u64, advice: u32) -> u64 {
    let advised = change(|task, space| Ok((*task, space.madvise(addr, len, advice.into())?)));
    nothing(advised.and_then(|(task, advised)| match advised {
        Advised::Done => Ok(()),
        Advised::Populate(range, access) => {
            mm_vma::populate_exact(&Spaces, task.mm, &task.limits, range, access)
        }
        Advised::Remove(range) => mm_vma::madvise_remove(&Spaces, task.mm, range),
    }))
}

/// mlock2; mlock with no flags.
pub fn mlock(addr: u64, len: u64, flags: u32) -> u64 {
    lock(|space| space.mlock(addr, len, flags.into()))
}

/// munlock.
pub fn munlock(addr: u64, len: u64) -> u64 {
    nothing(change(|_, space| space.munlock(addr, len)))
}

/// mlockall.
pub fn mlockall(flags: u32) -> u64 {
    // What cannot be brought in is not locked, and that is no error.
    let flags = MlockAll::from_bits_retain(flags.into());
    change_and_populate(|space| space.mlockall(flags).map(|populate| (0, populate)))
}

/// munlockall.
pub fn munlockall() -> u64 {
    nothing(change(|_, space| {
        space.munlockall();
        Ok(())
    }))
}

/// msync.
pub fn msync(addr: u64, len: u64, flags: u32) -> u64 {
    nothing(change(|_, space| space.msync(addr, len, MsyncFlags::from_bits_retain(flags.into()))))
}

/// mincore: a byte a page to `vec`, bit 0 for a resident one.
pub fn mincore(addr: u64, len: u64, vec: u64) -> u64 {
    nothing(told_resident(addr, len, vec))
}

fn told_resident(addr: u64, len: u64, vec: u64) -> Result<(), Errno> {
    /// Pages a turn: mmap_lock is not held while the process's memory is written.
    const TURN: usize = 128;
    let task = task::current().ok_or(Errno::Enomem)?;
    let task_size = space::mm_of(task.mm).task_size();
    let pages = len.div_ceil(PAGE_SIZE);
    if addr & (PAGE_SIZE - 1) != 0 {
        return Err(Errno::Einval);
    }
    if len > task_size || addr > task_size - len {
        return Err(Errno::Enomem);
    }
    if vec.checked_add(pages).is_none_or(|end| end > task_size) {
        return Err(Errno::Efault);
    }
    let mut done = 0;
    while done < pages {
        let mut bytes = [0; TURN];
        let turn = (pages - done).min(TURN as u64);
        let mut told = 0;
        let result = change(|_, space| {
            space.mincore(addr + done * PAGE_SIZE, turn * PAGE_SIZE, |_, resident| {
                if let Some(byte) = bytes.get_mut(told) {
                    *byte = u8::from(resident);
                    told += 1;
                }
            })
        });
        let known = bytes.get(..told).unwrap_or_default();
        uaccess::copy_to_user(task.mm, &task.limits, vec + done, known).ok_or(Errno::Efault)?;
        result?;
        done += turn;
    }
    Ok(())
}
