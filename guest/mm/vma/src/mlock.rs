//! mlock, munlock, mlockall, munlockall, and bringing pages in (Linux: mm/mlock.c; mm/gup.c, `__mm_populate`).

use core::ops::Range;

use bitflags::bitflags;
use mm_core::{PAGE_SHIFT, PAGE_SIZE, PageFlags};
use mm_pgtable::{Entry, TableMem};

use crate::fault::{Access, Done, Fault, FaultInfo, handle_fault};
use crate::id::Id;
use crate::pte::{self, Pte};
use crate::space::{Populate, page_align};
use crate::{Errno, Kernel, Limits, Mm, Space, VmFlags, Vma};

bitflags! {
    /// `MCL_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MlockAll: u64 {
        /// What is mapped now.
        const CURRENT = 1;
        /// What will be mapped.
        const FUTURE = 2;
        /// Pages as they come.
        const ONFAULT = 4;
        const _ = !0;
    }
}

/// `MLOCK_ONFAULT`.
pub const MLOCK_ONFAULT: u64 = 1;

impl<K: Kernel> Space<'_, K> {
    /// Locks a range; the caller then brings it in with [`populate_locked`]. `flags` is 0 for mlock, else mlock2's.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM` without RLIMIT_MEMLOCK, `ENOMEM` past it and for holes.
    pub fn mlock(&self, start: u64, len: u64, flags: u64) -> Result<Populate, Errno> {
        if flags & !MLOCK_ONFAULT != 0 {
            return Err(Errno::Einval);
        }
        let lock = if flags == 0 { VmFlags::LOCKED } else { VmFlags::LOCKED | VmFlags::LOCKONFAULT };
        self.limits.can_do_mlock()?;
        let (start, len) = whole_pages(start, len);
        let limit = self.limits.memlock >> PAGE_SHIFT;
        let mut locked = (len >> PAGE_SHIFT).saturating_add(self.mm.locked_vm());
        if locked > limit && !self.limits.ipc_lock {
            locked -= self.locked_in(start, len);
        }
        if locked > limit && !self.limits.ipc_lock {
            return Err(Errno::Enomem);
        }
        self.apply_lock(start, len, lock)?;
        Ok(Populate { start, len })
    }

    /// Unlocks a range.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM` for holes.
    pub fn munlock(&self, start: u64, len: u64) -> Result<(), Errno> {
        let (start, len) = whole_pages(start, len);
        self.apply_lock(start, len, VmFlags::empty())
    }

    /// Locks what is mapped, or what will be; the caller then brings everything in, if that is asked for.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM`, `ENOMEM` past RLIMIT_MEMLOCK.
    pub fn mlockall(&self, flags: MlockAll) -> Result<Populate, Errno> {
        let known = MlockAll::CURRENT | MlockAll::FUTURE | MlockAll::ONFAULT;
        if flags.is_empty() || flags.bits() & !known.bits() != 0 || flags == MlockAll::ONFAULT {
            return Err(Errno::Einval);
        }
        self.limits.can_do_mlock()?;
        let current = flags.contains(MlockAll::CURRENT);
        if current && self.mm.total_vm() > self.limits.memlock >> PAGE_SHIFT && !self.limits.ipc_lock {
            return Err(Errno::Enomem);
        }
        let mut lock = VmFlags::LOCKED;
        lock.set(VmFlags::LOCKONFAULT, flags.contains(MlockAll::ONFAULT));
        let future = if flags.contains(MlockAll::FUTURE) { lock } else { VmFlags::empty() };
        self.mm.set_def_flags((self.mm.def_flags() - VmFlags::LOCKED_MASK) | future);
        if !current {
            return Ok(Populate::NOTHING);
        }
        self.lock_all(lock);
        Ok(Populate { start: 0, len: self.mm.task_size() })
    }

    /// Unlocks everything, now and to come.
    pub fn munlockall(&self) {
        self.mm.set_def_flags(self.mm.def_flags() - VmFlags::LOCKED_MASK);
        self.lock_all(VmFlags::empty());
    }

    /// Linux: `apply_mlockall_flags`, which ignores errors.
    fn lock_all(&self, lock: VmFlags) {
        let mut next = self.mm.first();
        while let Some(id) = next {
            let vma = self.vma(id);
            let done = self.lock_one(id, vma.start(), vma.end(), lock);
            next = self.vma(done.unwrap_or(id)).next();
        }
    }

    /// Linux: `apply_vma_lock_flags`.
    fn apply_lock(&self, start: u64, len: u64, lock: VmFlags) -> Result<(), Errno> {
        let end = start.wrapping_add(len);
        if end < start {
            return Err(Errno::Einval);
        }
        let mut at = start;
        while at < end {
            let id = self.lookup(at).ok_or(Errno::Enomem)?;
            let stop = self.vma(id).end().min(end);
            self.lock_one(id, at, stop, lock)?;
            at = stop;
        }
        Ok(())
    }

    /// Linux: `mlock_fixup`.
    fn lock_one(&self, id: Id<Vma>, start: u64, end: u64, lock: VmFlags) -> Result<Id<Vma>, Errno> {
        let old = self.vma(id).flags();
        let new = (old - VmFlags::LOCKED_MASK) | lock;
        if new == old || old.intersects(VmFlags::SPECIAL | VmFlags::HUGETLB) {
            return Ok(id);
        }
        let id = self.modify_flags(id, start, end, new)?;
        let pages = (end - start) >> PAGE_SHIFT;
        let locked = self.mm.locked_vm();
        match (old.contains(VmFlags::LOCKED), new.contains(VmFlags::LOCKED)) {
            (false, true) => {
                self.mm.set_locked_vm(locked + pages);
                self.mlock_vma_pages_range(start..end, true);
            }
            (true, false) => {
                self.mm.set_locked_vm(locked.saturating_sub(pages));
                self.mlock_vma_pages_range(start..end, false);
            }
            _ => {}
        }
        Ok(id)
    }

    /// Tells the pages that are there already, after the VMA's flags changed (Linux: the same name).
    ///
    /// Differs from Linux: nobody counts how many VMAs lock a page. Unlocked by one, it can be reclaimed until reclaim comes across it and
    /// finds the others.
    fn mlock_vma_pages_range(&self, range: Range<u64>, locked: bool) {
        let Range { start: mut va, end } = range;
        while va < end {
            va = self.k.tables(self.mm, |tables| {
                let Some(run) = pte::next_run(tables, self.mm.page_table(), va, end) else { return end };
                let next = run.va + run.count as u64 * PAGE_SIZE;
                let table = run.table;
                for (index, _) in run.used(tables) {
                    let Pte::Page(pfn) = pte::decode(Entry::new(tables.read(table, index))) else { continue };
                    let page = self.k.page(pfn).filter(|_| !self.k.is_zero_page(pfn));
                    if let Some(page) = page.filter(|page| page.has(PageFlags::UNEVICTABLE) != locked) {
                        self.k.set_unevictable(pfn, page, locked);
                    }
                }
                next
            });
        }
    }

    /// Pages of the range that are locked already (Linux: `count_mm_mlocked_page_nr`).
    fn locked_in(&self, start: u64, len: u64) -> u64 {
        let end = start.saturating_add(len);
        let mut pages = 0;
        let mut next = self.intersection(start, end);
        while let Some(id) = next {
            let vma = self.vma(id);
            if vma.start() >= end {
                break;
            }
            if vma.flags().contains(VmFlags::LOCKED) {
                pages += (vma.end().min(end) - vma.start().max(start)) >> PAGE_SHIFT;
            }
            next = vma.next();
        }
        pages
    }
}

/// The pages that a range touches.
fn whole_pages(start: u64, len: u64) -> (u64, u64) {
    (start & !(PAGE_SIZE - 1), page_align(len.wrapping_add(start & (PAGE_SIZE - 1))))
}

/// Brings in what mmap, brk or mremap said; failures do not matter (Linux: `mm_populate`).
pub fn populate<K: Kernel>(k: &K, mm: Id<Mm>, limits: &Limits, range: Populate) {
    let _ = bring_in(k, mm, limits, range, true);
}

/// Brings in what mlock locked (Linux: `__mm_populate`, `__mlock_posix_error_return`).
///
/// # Errors
/// `ENOMEM` where the VMA allows no access, `EAGAIN` without memory.
pub fn populate_locked<K: Kernel>(k: &K, mm: Id<Mm>, limits: &Limits, range: Populate) -> Result<(), Errno> {
    bring_in(k, mm, limits, range, false).map_err(|error| match error {
        Errno::Efault => Errno::Enomem,
        Errno::Enomem => Errno::Eagain,
        other => other,
    })
}

fn bring_in<K: Kernel>(
    k: &K,
    mm: Id<Mm>,
    limits: &Limits,
    range: Populate,
    ignore: bool,
) -> Result<(), Errno> {
    let at: &Mm = k.at(mm);
    let end = range.start.saturating_add(range.len);
    let mut va = range.start;
    while va < end {
        let Some((start, stop, flags)) = vma_at(k, at, va) else { break };
        va = va.max(start);
        let stop = stop.min(end);
        if flags.intersects(VmFlags::IO | VmFlags::PFNMAP) || flags.contains(VmFlags::LOCKONFAULT) {
            va = stop;
            continue;
        }
        while va < stop {
            // Private pages are brought in as their writer will need them.
            let write = flags & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE;
            let access = if write { Access::Write } else { Access::Read };
            let result =
                if flags.is_accessible() { touch(k, mm, limits, va, access) } else { Err(Errno::Efault) };
            match result {
                Ok(()) => va += PAGE_SIZE,
                Err(_) if ignore => va = stop,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Bounds and flags of the first VMA that ends after `va`.
fn vma_at<K: Kernel>(k: &K, mm: &Mm, va: u64) -> Option<(u64, u64, VmFlags)> {
    k.mmap_read_lock(mm);
    let found = mm.find(k, va).map(|id| {
        let vma: &Vma = k.at(id);
        (vma.start(), vma.end(), vma.flags())
    });
    k.mmap_read_unlock(mm);
    found
}

/// MADV_POPULATE_READ and _WRITE (Linux: `madvise_populate`).
///
/// # Errors
/// `ENOMEM` for holes and without memory, `EINVAL` where the VMA does not allow the access, `EFAULT` for SIGBUS.
pub fn populate_exact<K: Kernel>(
    k: &K,
    mm: Id<Mm>,
    limits: &Limits,
    range: Populate,
    access: Access,
) -> Result<(), Errno> {
    let at: &Mm = k.at(mm);
    let needed = if access == Access::Write { VmFlags::WRITE } else { VmFlags::READ };
    for va in (range.start..range.start + range.len).step_by(usize::try_from(PAGE_SIZE).unwrap_or(1)) {
        let (start, _, flags) = vma_at(k, at, va).ok_or(Errno::Enomem)?;
        if start > va {
            return Err(Errno::Enomem);
        }
        if !flags.contains(needed) || flags.intersects(VmFlags::IO | VmFlags::PFNMAP) {
            return Err(Errno::Einval);
        }
        touch(k, mm, limits, va, access)?;
    }
    Ok(())
}

/// Faults one page in unless its entry allows the access already.
fn touch<K: Kernel>(k: &K, mm: Id<Mm>, limits: &Limits, va: u64, access: Access) -> Result<(), Errno> {
    let at: &Mm = k.at(mm);
    loop {
        let entry = k.tables(at, |tables| pte::read(tables, at.page_table(), va));
        let there = matches!(pte::decode(entry), Pte::Page(_)) && entry.is_present();
        if there && (access == Access::Read || entry.has(mm_pgtable::PteFlags::WRITE)) {
            return Ok(());
        }
        return match handle_fault(k, mm, FaultInfo { addr: va, access, present: there }, || *limits) {
            Ok(Done::Wait) => {
                k.relax();
                continue;
            }
            Ok(_) => Ok(()),
            Err(Fault::NoMemory) => Err(Errno::Enomem),
            Err(Fault::MapErr | Fault::AccErr | Fault::AdrErr) => Err(Errno::Efault),
        };
    }
}
