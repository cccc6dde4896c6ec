//! mprotect (Linux: mm/mprotect.c).

use mm_core::{PAGE_SHIFT, PAGE_SIZE};
use mm_pgtable::{Entry, PteFlags, TableMem};

use crate::fault::{self, Access, FaultInfo};
use crate::gather::Gather;
use crate::id::Id;
use crate::pte::{self, Pte};
use crate::space::{is_page_aligned, page_align};
use crate::{Errno, Kernel, Mm, ProtFlags, Space, VmFlags, Vma, page};

impl<K: Kernel> Space<'_, K> {
    /// Gives a range another protection.
    ///
    /// # Errors
    /// `EINVAL` for a bad address, protection or GROWS flag; `ENOMEM` where nothing is mapped (what lies below is changed),
    /// or where the limits do not allow it; `EACCES` where a VMA may not be given the protection.
    pub fn mprotect(&self, start: u64, len: u64, prot: ProtFlags) -> Result<(), Errno> {
        let grows = prot & (ProtFlags::GROWSDOWN | ProtFlags::GROWSUP);
        let prot = prot - grows;
        if grows == ProtFlags::GROWSDOWN | ProtFlags::GROWSUP || !is_page_aligned(start) {
            return Err(Errno::Einval);
        }
        if len == 0 {
            return Ok(());
        }
        let end = start.wrapping_add(page_align(len));
        if end <= start {
            return Err(Errno::Enomem);
        }
        let known = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC | ProtFlags::SEM;
        if prot.bits() & !known.bits() != 0 {
            return Err(Errno::Einval);
        }
        let first = self.find(start).ok_or(Errno::Enomem)?;
        let vma = self.vma(first);
        let start = if grows.contains(ProtFlags::GROWSDOWN) {
            if vma.start() >= end {
                return Err(Errno::Enomem);
            }
            if !vma.flags().contains(VmFlags::GROWSDOWN) {
                return Err(Errno::Einval);
            }
            vma.start()
        } else {
            if vma.start() > start {
                return Err(Errno::Enomem);
            }
            if grows.contains(ProtFlags::GROWSUP) {
                return Err(Errno::Einval);
            }
            start
        };
        let mut gather = Gather::new(self.mm);
        let result = self.protect_vmas(first, start, end, prot, &mut gather);
        gather.finish(self.k, self.mm);
        result
    }

    fn protect_vmas(
        &self,
        first: Id<Vma>,
        start: u64,
        end: u64,
        prot: ProtFlags,
        gather: &mut Gather,
    ) -> Result<(), Errno> {
        let (mut next, mut at) = (Some(first), start);
        while at < end {
            let id = next.filter(|&id| self.vma(id).start() <= at).ok_or(Errno::Enomem)?;
            let vma = self.vma(id);
            let old = vma.flags();
            let flags = (old - VmFlags::ACCESS) | prot.vm_flags();
            // MAYREAD is READ four bits up, and so on.
            let may = VmFlags::from_bits_retain(old.bits() >> 4);
            if !((flags & VmFlags::ACCESS) - may).is_empty() {
                return Err(Errno::Eacces);
            }
            let stop = vma.end().min(end);
            let id = self.protect_one(id, at, stop, flags, gather)?;
            next = self.vma(id).next();
            at = stop;
            if self.vma(id).end() > stop {
                // Merged with what follows, which has the protection already.
                next = Some(id);
            }
        }
        Ok(())
    }

    /// Linux: `mprotect_fixup`.
    fn protect_one(
        &self,
        id: Id<Vma>,
        start: u64,
        end: u64,
        mut flags: VmFlags,
        gather: &mut Gather,
    ) -> Result<Id<Vma>, Errno> {
        let vma = self.vma(id);
        let old = vma.flags();
        if flags == old {
            return Ok(id);
        }
        let pages = (end - start) >> PAGE_SHIFT;
        let mut promised = 0;
        if flags.contains(VmFlags::WRITE) {
            if !self.limits.may_expand(self.mm, flags, pages) && self.limits.may_expand(self.mm, old, pages) {
                return Err(Errno::Enomem);
            }
            let charged =
                VmFlags::ACCOUNT | VmFlags::WRITE | VmFlags::HUGETLB | VmFlags::SHARED | VmFlags::NORESERVE;
            if !old.intersects(charged) {
                flags |= VmFlags::ACCOUNT;
                promised = self.charge(flags, pages)?;
            }
        } else if old.contains(VmFlags::ACCOUNT) && vma.is_anonymous() && vma.anon_vma().is_none() {
            flags -= VmFlags::ACCOUNT;
        }
        let modified = self.modify_flags(id, start, end, flags);
        let id = modified.inspect_err(|_| self.k.vm_unacct_memory(promised))?;
        if old.contains(VmFlags::ACCOUNT) && !flags.contains(VmFlags::ACCOUNT) {
            self.k.vm_unacct_memory(pages);
        }
        change_protection(self.k, self.mm, self.vma(id), start, end, gather);
        self.mm.account(old, -pages.cast_signed());
        self.mm.account(flags, pages.cast_signed());
        let mask = VmFlags::WRITE | VmFlags::SHARED | VmFlags::LOCKED;
        if old & mask == VmFlags::LOCKED
            && flags.contains(VmFlags::WRITE)
            && !flags.contains(VmFlags::LOCKONFAULT)
        {
            self.copy_locked(id, start, end);
        }
        Ok(id)
    }

    /// Locked pages that may be written from now on are copied now, so that no write has to wait; without memory they are
    /// copied later.
    fn copy_locked(&self, id: Id<Vma>, start: u64, end: u64) {
        let mut va = start;
        let what = |addr| FaultInfo { addr, access: Access::Write, present: true };
        while va < end && fault::in_vma(self.k, self.mm, Some(id), what(va)).is_ok() {
            va += PAGE_SIZE;
        }
    }
}

/// Gives the pages of `start..end` what the VMA allows now. Private pages that others share become writable again by a fault, which
/// copies them; those that nobody shares at once (Linux: `change_protection`, `can_change_pte_writable`).
fn change_protection<K: Kernel>(k: &K, mm: &Mm, vma: &Vma, start: u64, end: u64, gather: &mut Gather) {
    let mut flags = vma.page_prot().flags();
    if vma.mapping().is_some_and(|mapping| k.mapping_wants_writenotify(mapping)) {
        // Writable again by a fault, which tells of the write.
        flags -= PteFlags::WRITE;
    }
    let accessible = vma.flags().is_accessible();
    let own = vma.flags() & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE;
    k.tables(mm, |tables| {
        pte::for_each_run(tables, mm.page_table(), start, end, |tables, run| {
            for (index, va) in run.used(tables) {
                let change = |old: Entry| {
                    let mut flags = flags;
                    flags
                        .set(PteFlags::WRITE, flags.contains(PteFlags::WRITE) || own && is_exclusive(k, old));
                    protected(old, flags, accessible)
                };
                let old = pte::update(tables, run.table, index, change);
                if loses_rights(old, Entry::new(tables.read(run.table, index))) {
                    gather.translation(va);
                }
            }
        });
    });
}

/// Whether the entry is that of an anonymous page that nobody else refers to.
fn is_exclusive<K: Kernel>(k: &K, entry: Entry) -> bool {
    match pte::decode(entry) {
        Pte::Page(pfn) => {
            !k.is_zero_page(pfn)
                && k.page(pfn).is_some_and(|page| page::is_anon(page) && page.refcount() == 1)
        }
        Pte::Migration(_) | Pte::Special(_) | Pte::Swap(_) | Pte::Empty => false,
    }
}

/// Whether a CPU with the old translation could do what the new one refuses. More rights need no flush: a stale refusal faults, and
/// the fault drops it (Linux: `pte_needs_flush`).
fn loses_rights(old: Entry, new: Entry) -> bool {
    let write = old.has(PteFlags::WRITE) && !new.has(PteFlags::WRITE);
    let fetch = !old.has(PteFlags::NX) && new.has(PteFlags::NX);
    old.is_present() && (!new.is_present() || write || fetch)
}

fn protected(old: Entry, flags: PteFlags, accessible: bool) -> Entry {
    match pte::decode(old) {
        Pte::Page(pfn) => {
            let kept = old.flags(1) & (PteFlags::ACCESSED | PteFlags::DIRTY);
            pte::page(pfn, (flags - PteFlags::ACCESSED) | kept, accessible)
        }
        Pte::Special(pfn) => {
            let keep = PteFlags::KEEP | PteFlags::PWT | PteFlags::PCD | PteFlags::PAT;
            let kept = old.flags(1) & (keep - PteFlags::SOFT);
            pte::special(pfn, (flags - PteFlags::ACCESSED) | kept, accessible)
        }
        // It comes back with what the VMA allows then.
        Pte::Migration(_) | Pte::Swap(_) | Pte::Empty => old,
    }
}
