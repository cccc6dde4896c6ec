//! mincore and msync (Linux: mm/mincore.c, mm/msync.c).

use bitflags::bitflags;
use mm_core::{PAGE_SHIFT, PAGE_SIZE, PageFlags};
use mm_pgtable::Entry;
use mm_swap::{Lookup, SwapEntry, swap_cache_get_folio};

use crate::id::Id;
use crate::pte::{self, Pte};
use crate::space::{is_page_aligned, page_align};
use crate::{Errno, Kernel, Mapping, Space, VmFlags, page};

bitflags! {
    /// `MS_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MsyncFlags: u64 {
        /// Soon.
        const ASYNC = 1;
        /// Others' copies are dropped.
        const INVALIDATE = 2;
        /// Now.
        const SYNC = 4;
        const _ = !0;
    }
}

impl<K: Kernel> Space<'_, K> {
    /// Tells for every page of the range whether it is in memory, by `f(page number from 0, resident)`.
    ///
    /// # Errors
    /// `EINVAL` for a bad address, `ENOMEM` for a range outside user space, and at the first hole, after all below it was
    /// told.
    pub fn mincore(&self, start: u64, len: u64, mut f: impl FnMut(u64, bool)) -> Result<(), Errno> {
        if !is_page_aligned(start) {
            return Err(Errno::Einval);
        }
        let task_size = self.mm.task_size();
        if len > task_size || start > task_size - len {
            return Err(Errno::Enomem);
        }
        let end = start + page_align(len);
        let mut va = start;
        while va < end {
            let vma = self.vma(self.lookup(va).ok_or(Errno::Enomem)?);
            let stop = vma.end().min(end);
            while va < stop {
                let entry = self.k.tables(self.mm, |tables| pte::read(tables, self.mm.page_table(), va));
                let resident = match (pte::decode(entry), vma.mapping()) {
                    (Pte::Page(_) | Pte::Migration(_) | Pte::Special(_), _) => true,
                    (Pte::Empty, Some(mapping)) => self.k.mapping_has_page(mapping, vma.index_of(va)),
                    (Pte::Empty, None) => false,
                    (Pte::Swap(entry), _) => self.is_cached(entry),
                };
                f((va - start) >> PAGE_SHIFT, resident);
                va += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// Tells of every page of user space from page number `first` on what /proc/PID/pagemap says of it, until `f` says no (Linux:
    /// `pagemap_read`, with its bits).
    pub fn pagemap(&self, first: u64, mut f: impl FnMut(u64) -> bool) {
        let mut va = first.saturating_mul(PAGE_SIZE);
        while va < self.mm.task_size() {
            let mapped = self.lookup(va).is_some();
            let entry =
                mapped.then(|| self.k.tables(self.mm, |tables| pte::read(tables, self.mm.page_table(), va)));
            if !f(entry.map_or(0, |entry| self.pagemap_entry(entry))) {
                return;
            }
            va += PAGE_SIZE;
        }
    }

    /// Linux: `pte_to_pagemap_entry`.
    fn pagemap_entry(&self, entry: Entry) -> u64 {
        const EXCLUSIVE: u64 = 1 << 56;
        const FILE: u64 = 1 << 61;
        const SWAP: u64 = 1 << 62;
        const PRESENT: u64 = 1 << 63;
        match pte::decode(entry) {
            Pte::Empty => 0,
            Pte::Page(pfn) if self.k.is_zero_page(pfn) => pfn.as_u64() | PRESENT,
            Pte::Page(pfn) => {
                let page = self.k.page(pfn);
                let file = page.is_some_and(|page| !page::is_anon(page));
                let alone = page.is_some_and(|page| page::mappers(page) == 1);
                let mark = |set, bit| if set { bit } else { 0 };
                pfn.as_u64() | PRESENT | mark(file, FILE) | mark(alone, EXCLUSIVE)
            }
            Pte::Special(pfn) => pfn.as_u64() | PRESENT,
            // Differs from Linux: the frame is not a slot of an area that no other number has.
            Pte::Migration(_) => SWAP,
            Pte::Swap(entry) => u64::from(entry.area()) | entry.offset() << 5 | SWAP,
        }
    }

    /// Calls `f` for every mapping that a VMA of the range shares, until it says no (Linux: `msync`, with `VM_SHARED`).
    pub fn for_each_shared(&self, start: u64, len: u64, mut f: impl FnMut(Id<Mapping>) -> bool) {
        let end = start.saturating_add(page_align(len));
        let mut at = start;
        while at < end
            && let Some(vma) = self.find(at).map(|id| self.vma(id))
            && vma.start() < end
        {
            if let Some(mapping) = vma.mapping().filter(|_| vma.flags().contains(VmFlags::SHARED))
                && !f(mapping)
            {
                return;
            }
            at = vma.end();
        }
    }

    /// Whether the page of a slot is in memory (Linux: `mincore_page` of the swap cache).
    fn is_cached(&self, entry: SwapEntry) -> bool {
        let Lookup::Page(pfn) = swap_cache_get_folio(self.k, entry) else { return false };
        let ready = self.k.page(pfn).is_some_and(|page| page.has(PageFlags::UPTODATE));
        page::put(self.k, pfn);
        ready
    }

    /// Checks a range for msync. Writing files back is the caller's, for each VMA of a file; shared anonymous memory has
    /// nowhere to be written to.
    ///
    /// # Errors
    /// `EINVAL` for bad arguments, `EBUSY` for INVALIDATE of what is mlocked, `ENOMEM` for holes.
    pub fn msync(&self, start: u64, len: u64, flags: MsyncFlags) -> Result<(), Errno> {
        let known = MsyncFlags::ASYNC | MsyncFlags::INVALIDATE | MsyncFlags::SYNC;
        if flags.bits() & !known.bits() != 0
            || !is_page_aligned(start)
            || flags.contains(MsyncFlags::ASYNC | MsyncFlags::SYNC)
        {
            return Err(Errno::Einval);
        }
        let end = start.wrapping_add(page_align(len));
        if end < start {
            return Err(Errno::Enomem);
        }
        let mut at = start;
        let mut holes = Ok(());
        while at < end {
            let vma = self.vma(self.find(at).ok_or(Errno::Enomem)?);
            if at < vma.start() {
                if flags == MsyncFlags::ASYNC || vma.start() >= end {
                    return Err(Errno::Enomem);
                }
                holes = Err(Errno::Enomem);
            }
            if flags.contains(MsyncFlags::INVALIDATE) && vma.flags().contains(VmFlags::LOCKED) {
                return Err(Errno::Ebusy);
            }
            at = vma.end();
        }
        holes
    }
}
