//! Calls that change the address space (Linux: mm/mmap.c, mm/mprotect.c).

use alloc::vec::Vec;

use guest_fs::{Char, Kind};
use mm_core::PAGE_SIZE;
use mm_vma::{
    Advised, Errno, Id, Kernel, Limits, MapFlags, MapType, MlockAll, Mm, MmapRequest, MremapFlags,
    MsyncFlags, Populate, ProtFlags, Space,
};

use super::int;
use crate::arch::trap::TrapFrame;
use crate::fs;
use crate::mm::space::{self, Spaces, cache};
use crate::task;
use crate::uaccess;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, d, e, f] = super::arguments(frame);
    Some(match number {
        9 => mmap(a, b, c, d, e, f),
        10 => mprotect(a, b, c),
        11 => munmap(a, b),
        12 => brk(a),
        25 => mremap(a, b, c, d, e),
        26 => msync(a, b, int(c)),
        27 => mincore(a, b, c),
        28 => madvise(a, b, int(c)),
        149 => mlock(a, b, 0),
        150 => munlock(a, b),
        151 => mlockall(int(a)),
        152 => munlockall(),
        325 => mlock(a, b, int(c)),
        _ => return None,
    })
}

/// The address space of the process that runs here, and its limits.
#[derive(Clone, Copy)]
struct Own {
    mm: Id<Mm>,
    limits: Limits,
}

fn own() -> Result<Own, Errno> {
    let task = task::current().ok_or(Errno::Enomem)?;
    Ok(Own { mm: task.mm().ok_or(Errno::Enomem)?, limits: task.limits() })
}

/// Calls `f` with the address space of the process, whose mmap_lock is held.
fn change<R>(f: impl FnOnce(&Own, &Space<'_, Spaces>) -> Result<R, Errno>) -> Result<R, Errno> {
    let task = own()?;
    f(&task, &Space::lock(&Spaces, task.mm, task.limits))
}

/// [`change`], and brings in what `f` says afterwards (Linux: `mm_populate`).
fn change_and_populate(
    f: impl FnOnce(&Space<'_, Spaces>) -> Result<(u64, Populate), Errno>,
) -> Result<u64, Errno> {
    change(|task, space| Ok((*task, f(space)?))).map(|(task, (result, populate))| {
        mm_vma::populate(&Spaces, task.mm, &task.limits, populate);
        result
    })
}

/// [`change`], and brings in what `f` locked; that may fail.
fn lock(f: impl FnOnce(&Space<'_, Spaces>) -> Result<Populate, Errno>) -> Result<u64, Errno> {
    nothing(
        change(|task, space| Ok((*task, f(space)?)))
            .and_then(|(task, populate)| mm_vma::populate_locked(&Spaces, task.mm, &task.limits, populate)),
    )
}

fn nothing(result: Result<(), Errno>) -> Result<u64, Errno> {
    result.map(|()| 0)
}

/// mmap.
pub fn mmap(addr: u64, len: u64, prot: u64, flags: u64, fd: u64, offset: u64) -> Result<u64, Errno> {
    let prot = ProtFlags::from_bits_retain(prot);
    let flags = MapFlags::from_bits_retain(flags);
    if offset & (PAGE_SIZE - 1) != 0 {
        return Err(Errno::Einval);
    }
    if flags.contains(MapFlags::ANONYMOUS) {
        return change_and_populate(|space| {
            space.mmap(&MmapRequest { addr, len, prot, flags, file: None, offset })
        });
    }
    let file = task::current().ok_or(Errno::Ebadf)?.files.get(int(fd))?;
    if matches!(file.kind, Kind::Char(Char::Zero)) {
        // Differs from Linux: /proc/PID/maps does not say that a private mapping came from there.
        let flags = flags | MapFlags::ANONYMOUS;
        return change_and_populate(|space| {
            space.mmap(&MmapRequest { addr, len, prot, flags, file: None, offset })
        });
    }
    let shared = matches!(flags.map_type(), Some(MapType::Shared | MapType::SharedValidate));
    let mapped = file.map(shared, prot.contains(ProtFlags::WRITE))?;
    // Seals are kept away until it is mapped.
    let request = MmapRequest { addr, len, prot, flags, file: Some(mapped.file), offset };
    change_and_populate(|space| space.mmap(&request))
}

/// munmap.
pub fn munmap(addr: u64, len: u64) -> Result<u64, Errno> {
    nothing(change(|_, space| space.munmap(addr, len)))
}

/// mprotect.
pub fn mprotect(addr: u64, len: u64, prot: u64) -> Result<u64, Errno> {
    nothing(change(|_, space| space.mprotect(addr, len, ProtFlags::from_bits_retain(prot))))
}

/// brk.
pub fn brk(addr: u64) -> Result<u64, Errno> {
    change_and_populate(|space| Ok(space.set_brk(addr)))
}

/// mremap.
pub fn mremap(addr: u64, old_len: u64, new_len: u64, flags: u64, new_addr: u64) -> Result<u64, Errno> {
    let flags = MremapFlags::from_bits_retain(flags);
    change_and_populate(|space| space.mremap(addr, old_len, new_len, flags, new_addr))
}

/// madvise.
pub fn madvise(addr: u64, len: u64, advice: u32) -> Result<u64, Errno> {
    let advised = change(|task, space| Ok((*task, space.madvise(addr, len, advice.into())?)));
    nothing(advised.and_then(|(task, advised)| match advised {
        Advised::Done => Ok(()),
        Advised::Populate(range, access) => {
            mm_vma::populate_exact(&Spaces, task.mm, &task.limits, range, access)
        }
        Advised::PageOut(range) => {
            mm_vma::madvise_pageout(&Spaces, task.mm, range);
            Ok(())
        }
        Advised::Remove(range) => mm_vma::madvise_remove(&Spaces, task.mm, range),
    }))
}

/// mlock2; mlock with no flags.
pub fn mlock(addr: u64, len: u64, flags: u32) -> Result<u64, Errno> {
    lock(|space| space.mlock(addr, len, flags.into()))
}

/// munlock.
pub fn munlock(addr: u64, len: u64) -> Result<u64, Errno> {
    nothing(change(|_, space| space.munlock(addr, len)))
}

/// mlockall.
pub fn mlockall(flags: u32) -> Result<u64, Errno> {
    // What cannot be brought in is not locked, and that is no error.
    let flags = MlockAll::from_bits_retain(flags.into());
    change_and_populate(|space| space.mlockall(flags).map(|populate| (0, populate)))
}

/// munlockall.
pub fn munlockall() -> Result<u64, Errno> {
    nothing(change(|_, space| {
        space.munlockall();
        Ok(())
    }))
}

/// msync.
pub fn msync(addr: u64, len: u64, flags: u32) -> Result<u64, Errno> {
    let flags = MsyncFlags::from_bits_retain(flags.into());
    let mut files = Vec::new();
    let checked = change(|_, space| {
        let result = space.msync(addr, len, flags);
        let mut room = true;
        if flags.contains(MsyncFlags::SYNC) && result != Err(Errno::Einval) {
            space.for_each_shared(addr, len, |mapping| {
                room = files.try_reserve(1).is_ok();
                if room && cache::source(mapping).is_written_back() {
                    Spaces.mapping_get(mapping);
                    files.push(mapping);
                }
                room
            });
        }
        Ok(if room { result } else { Err(Errno::Enomem) })
    });
    // mmap_lock is not held: a write may need what a fault holds.
    let mut synced = Ok(());
    for mapping in files {
        synced = synced.and(fs::sync::mapping(mapping));
        Spaces.mapping_put(mapping);
    }
    nothing(checked?.and(synced))
}

/// mincore: a byte a page to `vec`, bit 0 for a resident one.
pub fn mincore(addr: u64, len: u64, vec: u64) -> Result<u64, Errno> {
    nothing(told_resident(addr, len, vec))
}

fn told_resident(addr: u64, len: u64, vec: u64) -> Result<(), Errno> {
    /// Pages a turn: mmap_lock is not held while the process's memory is written.
    const TURN: usize = 128;
    let task = own()?;
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
