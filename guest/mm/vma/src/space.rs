//! An address space that is being changed, and the elementary changes.

use core::sync::atomic::Ordering::{Relaxed, Release};

use mm_core::{Event, PAGE_SIZE, Policy};

use crate::id::Id;
use crate::{Arena, Errno, Kernel, Limits, Mapping, Mm, VmFlags, Vma, anon, rmap};

/// An address space whose mmap_lock is held for writing, until this is dropped.
#[derive(Debug)]
pub struct Space<'k, K: Kernel> {
    pub(crate) k: &'k K,
    pub(crate) id: Id<Mm>,
    pub(crate) mm: &'k Mm,
    pub(crate) limits: Limits,
}

/// What the system-call layer does after it dropped mmap_lock: bring pages in (Linux: `mm_populate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the range must be populated once mmap_lock is dropped"]
pub struct Populate {
    /// First address.
    pub start: u64,
    /// Bytes; 0 for nothing to do.
    pub len: u64,
}

impl Populate {
    pub(crate) const NOTHING: Populate = Populate { start: 0, len: 0 };
}

/// Rounds up to pages; 0 past the end of the number range (Linux: `PAGE_ALIGN`).
pub(crate) const fn page_align(bytes: u64) -> u64 {
    bytes.wrapping_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1)
}

pub(crate) const fn is_page_aligned(addr: u64) -> bool {
    addr & (PAGE_SIZE - 1) == 0
}

impl<'k, K: Kernel> Space<'k, K> {
    /// Takes mmap_lock for writing.
    pub fn lock(k: &'k K, id: Id<Mm>, limits: Limits) -> Space<'k, K> {
        let mm: &Mm = k.at(id);
        k.mmap_write_lock(mm);
        // Odd: VMAs with this stamp are locked.
        let seq = mm.lock_seq.fetch_add(1, Relaxed);
        debug_assert!(seq.is_multiple_of(2), "mmap_lock was taken twice");
        Space { k, id, mm, limits }
    }

    /// The address space.
    pub fn mm(&self) -> &'k Mm {
        self.mm
    }

    pub(crate) fn vma(&self, id: Id<Vma>) -> &'k Vma {
        self.k.at(id)
    }

    /// Linux: `find_vma`.
    pub(crate) fn find(&self, addr: u64) -> Option<Id<Vma>> {
        self.mm.find(self.k, addr)
    }

    /// Linux: `vma_lookup`.
    pub(crate) fn lookup(&self, addr: u64) -> Option<Id<Vma>> {
        self.find(addr).filter(|&id| self.vma(id).start() <= addr)
    }

    /// Linux: `find_vma_intersection`.
    pub(crate) fn intersection(&self, start: u64, end: u64) -> Option<Id<Vma>> {
        self.find(start).filter(|&id| self.vma(id).start() < end)
    }

    /// The last VMA that begins below `addr`.
    pub(crate) fn before(&self, addr: u64) -> Option<Id<Vma>> {
        self.mm.tree.find_before(self.k, addr)
    }

    /// Promises pages to a VMA with these flags, if such are counted; how many were.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn charge(&self, flags: VmFlags, pages: u64) -> Result<u64, Errno> {
        if !flags.contains(VmFlags::ACCOUNT) {
            return Ok(0);
        }
        if self.k.vm_enough_memory(self.mm, pages) { Ok(pages) } else { Err(Errno::Enomem) }
    }

    /// A VMA in no tree.
    pub(crate) fn new_vma(
        &self,
        range: (u64, u64),
        pgoff: u64,
        flags: VmFlags,
        mapping: Option<Id<Mapping>>,
    ) -> Result<Id<Vma>, Errno> {
        let id = Arena::<Vma>::alloc(self.k).ok_or(Errno::Enomem)?;
        let vma = self.vma(id);
        vma.set_start(range.0);
        vma.set_end(range.1);
        vma.set_pgoff(pgoff);
        vma.set_flags(flags);
        vma.set_policy(Policy::Default);
        vma.mapping.store(mapping);
        vma.anon_vma.store(None);
        vma.chain_first.store(None);
        vma.chain_last.store(None);
        if let Some(mapping) = mapping {
            self.k.mapping_get(mapping);
        }
        Ok(id)
    }

    /// Puts a VMA into the tree, whose nodes were reserved (Linux: `vma_link`).
    pub(crate) fn insert(&self, id: Id<Vma>) {
        let vma = self.vma(id);
        let below = self.before(vma.start());
        let above = below.map_or(self.mm.first.load(), |below| self.vma(below).next());
        vma.prev.store(below);
        vma.next.store(above);
        match below {
            Some(below) => self.vma(below).next.store(Some(id)),
            None => self.mm.first.store(Some(id)),
        }
        if let Some(above) = above {
            self.vma(above).prev.store(Some(id));
        }
        rmap::share(self.k, id);
        // Locked before anybody can find it.
        vma.lock_seq.store(self.mm.lock_seq.load(Relaxed), Relaxed);
        vma.attach(self.id);
        self.mm.tree.insert(self.k, vma.start(), vma.end(), id);
        self.mm.set_map_count(self.mm.map_count() + 1);
    }

    /// Takes a VMA out of the tree; it keeps its `AnonVma`s and its mapping.
    pub(crate) fn remove(&self, id: Id<Vma>) {
        let vma = self.vma(id);
        vma.start_write(self.k, self.mm);
        let (prev, next) = (vma.prev(), vma.next());
        match prev {
            Some(prev) => self.vma(prev).next.store(next),
            None => self.mm.first.store(next),
        }
        if let Some(next) = next {
            self.vma(next).prev.store(prev);
        }
        let found = self.mm.tree.remove(self.k, vma.start());
        debug_assert!(found, "a VMA was not in the tree");
        vma.detach(self.k);
        self.mm.set_map_count(self.mm.map_count() - 1);
    }

    /// Frees a VMA that is in no tree (Linux: `vm_area_free`, with `unlink_anon_vmas` and `fput`).
    pub(crate) fn free(&self, id: Id<Vma>) {
        anon::unlink(self.k, id);
        let mapping = self.vma(id).mapping();
        rmap::unshare(self.k, id);
        self.vma(id).mm.store(None);
        self.k.free(id);
        if let Some(mapping) = mapping {
            self.k.mapping_put(mapping);
        }
    }

    /// Moves the bounds of a VMA without passing a neighbour; `pgoff` is that of the new start.
    pub(crate) fn resize(&self, id: Id<Vma>, start: u64, end: u64, pgoff: u64) {
        let vma = self.vma(id);
        vma.start_write(self.k, self.mm);
        self.k.rmap_lock(|| {
            let found = self.mm.tree.resize(self.k, vma.start(), start, end);
            debug_assert!(found, "a VMA was not in the tree");
            vma.set_start(start);
            vma.set_end(end);
            vma.set_pgoff(pgoff);
        });
    }

    pub(crate) fn set_flags(&self, id: Id<Vma>, flags: VmFlags) {
        let vma = self.vma(id);
        vma.start_write(self.k, self.mm);
        vma.set_flags(flags);
    }

    pub(crate) fn set_policy(&self, id: Id<Vma>, policy: Policy) {
        let vma = self.vma(id);
        vma.start_write(self.k, self.mm);
        vma.set_policy(policy);
    }

    /// A copy of `id` for another range, in no tree, linked to the same `AnonVma`s (Linux: `vm_area_dup`, `anon_vma_clone`).
    pub(crate) fn duplicate(&self, id: Id<Vma>, start: u64, end: u64, pgoff: u64) -> Result<Id<Vma>, Errno> {
        let old = self.vma(id);
        let new = self.new_vma((start, end), pgoff, old.flags(), old.mapping())?;
        self.vma(new).set_policy(old.policy());
        self.vma(new).anon_vma.store(old.anon_vma());
        anon::clone(self.k, new, id).inspect_err(|_| {
            self.vma(new).anon_vma.store(None);
            self.free(new);
        })?;
        Ok(new)
    }

    /// Splits a VMA at `addr`, inside it; the upper part is new and is returned. Does not look at `max_map_count`
    /// (Linux: `__split_vma`).
    ///
    /// # Errors
    /// `ENOMEM`; nothing changed.
    pub(crate) fn split_unlimited(&self, id: Id<Vma>, addr: u64) -> Result<Id<Vma>, Errno> {
        let vma = self.vma(id);
        let (start, end) = (vma.start(), vma.end());
        debug_assert!(start < addr && addr < end && is_page_aligned(addr));
        self.k.emit(Event::SplitVma { start, address: addr, end });
        self.mm.tree.reserve(self.k, 1)?;
        let upper = self.duplicate(id, addr, end, vma.index_of(addr))?;
        self.resize(id, start, addr, vma.pgoff());
        self.insert(upper);
        Ok(upper)
    }

    /// Linux: `split_vma`.
    pub(crate) fn split(&self, id: Id<Vma>, addr: u64) -> Result<Id<Vma>, Errno> {
        if self.mm.map_count() >= self.limits.max_map_count {
            return Err(Errno::Enomem);
        }
        self.split_unlimited(id, addr)
    }
}

impl<K: Kernel> Drop for Space<'_, K> {
    fn drop(&mut self) {
        self.mm.lock_seq.fetch_add(1, Release);
        self.k.mmap_write_unlock(self.mm);
    }
}
