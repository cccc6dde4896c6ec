//! A fault at an entry of a page table: what is there, and what takes its place (Linux: mm/memory.c, `handle_pte_fault`).

use memvisor_abi::mm_flags;
use mm_core::{Event, EventId, Gfp, PAGE_SIZE, PageFlags, PageKind, Pfn};
use mm_pgtable::{Entry, FlushRange, PteFlags, TableMem};
use mm_swap::SwapEntry;

use super::{Access, Done, Fault, FaultInfo};
use crate::id::Id;
use crate::mm::RssKind;
use crate::pte::{self, Pte};
use crate::swap::{self, Mapped, SwapFault, SwapPte};
use crate::{Kernel, MappedError, Mm, VmFlags, Vma, page};

/// A fault in a VMA that stays as it is (Linux: `struct vm_fault`).
pub(super) struct VmFault<'a, K> {
    pub k: &'a K,
    pub mm: &'a Mm,
    pub vma: &'a Vma,
    pub what: FaultInfo,
}

impl<K: Kernel> VmFault<'_, K> {
    pub(super) fn page_addr(&self) -> u64 {
        self.what.addr & !(PAGE_SIZE - 1)
    }

    fn is_write(&self) -> bool {
        self.what.access == Access::Write
    }

    /// Whether a page of its own may come into the VMA.
    pub(super) fn needs_anon_vma(&self) -> bool {
        let reads_own = self.vma.is_anonymous() && self.k.zero_page().is_none();
        (self.is_write() || reads_own) && !self.vma.flags().contains(VmFlags::SHARED)
    }

    /// Linux: `handle_pte_fault`.
    #[inline]
    pub(super) fn handle(&self) -> Result<Done, Fault> {
        // With pages in swap the entry may name one.
        if !self.what.present && self.vma.is_anonymous() && self.mm.swapents() == 0 {
            // Almost always nothing is there yet: one walk, under one lock, finds out and maps.
            self.k
                .emit_with(EventId::DoAnonymousPage, || Event::DoAnonymousPage { address: self.page_addr() });
            let result = self.anonymous_page();
            self.k
                .emit_with(EventId::DoAnonymousPageRet, || Event::DoAnonymousPageRet { pfn: self.mapped() });
            if result != Ok(Done::Spurious) {
                return result;
            }
        }
        self.handle_entry()
    }

    /// [`VmFault::handle`] after a look at the entry.
    #[inline(never)]
    fn handle_entry(&self) -> Result<Done, Fault> {
        let old = self.k.tables(self.mm, |tables| pte::read(tables, self.mm.page_table(), self.page_addr()));
        match pte::decode(old) {
            Pte::Empty => match self.vma.mapping() {
                None => {
                    self.k.emit(Event::DoAnonymousPage { address: self.page_addr() });
                    let result = self.anonymous_page();
                    self.k.emit(Event::DoAnonymousPageRet { pfn: self.mapped() });
                    result
                }
                Some(mapping) => {
                    let (pgoff, write) = (self.vma.index_of(self.what.addr), self.is_write());
                    self.k.emit(Event::DoFault { address: self.page_addr(), pgoff, write });
                    let result = self.mapped_page(mapping);
                    self.k.emit(Event::DoFaultRet { pfn: self.mapped() });
                    result
                }
            },
            Pte::Migration(_) => Ok(Done::Wait),
            Pte::Swap(entry) => self.swap_page(old, entry),
            Pte::Special(pfn) if self.is_write() && !old.has(PteFlags::WRITE) => self.special(old, pfn),
            Pte::Page(pfn) if self.is_write() && !old.has(PteFlags::WRITE) => {
                let mappings = self.k.page(pfn).map_or(0, |page| page.mapcount() + 1).cast_unsigned();
                self.k.emit(Event::DoWpPage { address: self.page_addr(), pfn, mappings: mappings.into() });
                let result = self.write_protected(old, pfn);
                let now = self.mapped();
                self.k.emit(Event::DoWpPageRet { reused: now == Some(pfn), pfn: now });
                result
            }
            Pte::Page(_) | Pte::Special(_) => self.touch(old),
        }
    }

    /// What is mapped at the address by now, for those who trace.
    fn mapped(&self) -> Option<Pfn> {
        if !self.k.is_tracing() {
            return None;
        }
        let entry =
            self.k.tables(self.mm, |tables| pte::read(tables, self.mm.page_table(), self.page_addr()));
        match pte::decode(entry) {
            Pte::Page(pfn) | Pte::Special(pfn) => Some(pfn),
            _ => None,
        }
    }

    /// The entry allows the access already: it is only marked, and a stale translation dropped.
    fn touch(&self, old: Entry) -> Result<Done, Fault> {
        let mut flags = old.flags(1) | PteFlags::ACCESSED;
        flags.set(PteFlags::DIRTY, flags.contains(PteFlags::DIRTY) || self.is_write());
        // Soft bits stay: it may be a device's.
        let new = pte::page(old.table_pfn(), flags, self.vma.flags().is_accessible());
        self.replace(old, new);
        Ok(Done::Spurious)
    }

    /// Writes `new` if the entry is still `old`.
    fn replace(&self, old: Entry, new: Entry) -> bool {
        self.k.tables(self.mm, |tables| {
            pte::locate(tables, self.mm.page_table(), self.page_addr()).is_ok_and(|(table, index)| {
                tables.compare_exchange(table, index, old.as_u64(), new.as_u64()).is_ok()
            })
        })
    }

    /// What was there may be gone, and must not read as zeroes (Linux: `check_stable_address_space`).
    pub(super) fn is_unstable(&self) -> bool {
        self.mm.oom() & mm_flags::UNSTABLE != 0
    }

    /// Maps a page where nothing is, if `valid` says so with the tables locked; false if something is there by now.
    fn install(
        &self,
        new: Entry,
        kind: Option<RssKind>,
        valid: impl Fn() -> bool,
        counted: impl Fn(),
    ) -> Result<bool, Fault> {
        loop {
            match self.try_install(new, kind, &valid, &counted) {
                Some(installed) => return installed,
                None if self.k.wait_for_memory() => {}
                None => return Err(Fault::NoMemory),
            }
        }
    }

    /// [`VmFault::install`]; `None` if there was no memory for a table.
    #[inline(always)]
    fn try_install(
        &self,
        new: Entry,
        kind: Option<RssKind>,
        valid: impl Fn() -> bool,
        counted: impl Fn(),
    ) -> Option<Result<bool, Fault>> {
        self.k.tables(self.mm, |tables| {
            if self.is_unstable() {
                return Some(Err(Fault::AdrErr));
            }
            let (table, index) = pte::make(tables, self.mm, self.page_addr())?;
            // No CPU reads what was here before beside writes to the new page.
            self.k.flush_deferred(self.mm);
            if !valid() || tables.compare_exchange(table, index, 0, new.as_u64()).is_err() {
                return Some(Ok(false));
            }
            if let Some(kind) = kind {
                self.mm.add_rss(kind, 1);
            }
            self.k.emit_with(EventId::SetPte, || set_pte(self.page_addr(), new));
            counted();
            Some(Ok(true))
        })
    }

    /// Takes a reference of the page if the entry is still `old`, which maps it.
    fn hold(&self, old: Entry, pfn: Pfn) -> bool {
        self.k.tables(self.mm, |tables| {
            let mapped = pte::read(tables, self.mm.page_table(), self.page_addr()) == old;
            if mapped {
                page::get(self.k, pfn);
            }
            mapped
        })
    }

    pub(super) fn flags(&self, write: bool, dirty: bool) -> PteFlags {
        let mut flags = self.vma.page_prot().flags();
        flags.set(PteFlags::WRITE, write);
        flags.set(PteFlags::DIRTY, dirty);
        flags
    }

    fn alloc(&self, zero: bool) -> Result<Pfn, Fault> {
        let gfp = if zero { Gfp::HIGHUSER_MOVABLE | Gfp::ZERO } else { Gfp::HIGHUSER_MOVABLE };
        self.k.alloc_page_policy(gfp, self.vma.policy_at(self.what.addr)).ok_or(Fault::NoMemory)
    }

    /// Linux: `do_anonymous_page`.
    fn anonymous_page(&self) -> Result<Done, Fault> {
        if !self.is_write()
            && let Some(zero) = self.k.zero_page()
        {
            let entry = pte::page(zero, self.flags(false, false), true);
            let installed = self.install(entry, None, || true, || {})?;
            return Ok(if installed { Done::Minor } else { Done::Spurious });
        }
        let pfn = self.alloc(true)?;
        self.install_anon(pfn, || true)
    }

    /// Maps a fresh page of its own where nothing is, if `valid` says so.
    fn install_anon(&self, pfn: Pfn, valid: impl Fn() -> bool) -> Result<Done, Fault> {
        // A read that found no zero page may be in a VMA that is not to be written.
        let write = self.vma.flags().contains(VmFlags::WRITE);
        let entry = pte::page(pfn, self.flags(write, write), true);
        let anon = self.vma.anon_vma().ok_or(Fault::NoMemory)?;
        let installed = self.install(entry, Some(RssKind::Anon), valid, || {
            if let Some(page) = self.k.page(pfn) {
                self.add_new_anon((pfn, page), anon);
            }
        });
        if !matches!(installed, Ok(true)) {
            page::put(self.k, pfn);
        }
        installed.map(|installed| if installed { Done::Minor } else { Done::Spurious })
    }

    fn add_new_anon(&self, page: (Pfn, &mm_core::Page), anon: Id<crate::AnonVma>) {
        page::add_new_anon(self.k, page, anon, (self.vma, self.vma.index_of(self.page_addr())));
    }

    /// Linux: `do_read_fault`, `do_cow_fault`, `do_shared_fault`.
    fn mapped_page(&self, mapping: Id<crate::Mapping>) -> Result<Done, Fault> {
        if !self.is_write() && self.map_around(mapping) {
            return Ok(Done::Minor);
        }
        let at = self.vma.policy_at(self.what.addr);
        let index = at.index;
        let found = self.k.mapping_page(mapping, at).map_err(|error| match error {
            MappedError::Sigbus => Fault::AdrErr,
            MappedError::NoMemory => Fault::NoMemory,
        })?;
        let done = |installed| match installed {
            true if found.major => Done::Major,
            true => Done::Minor,
            false => Done::Spurious,
        };
        // Whoever took it out of the page cache since does not unmap it any more.
        let valid = || self.k.page(found.pfn).is_some_and(|page| page::is_at(page, mapping, index));
        if self.needs_anon_vma() {
            let copy = self.alloc(false).inspect_err(|_| page::put(self.k, found.pfn))?;
            self.k.copy_page(copy, found.pfn);
            let how = self.install_anon(copy, valid);
            page::put(self.k, found.pfn);
            return how.map(|how| done(how == Done::Minor));
        }
        let notify = self.k.mapping_wants_writenotify(mapping);
        if notify && self.is_write() {
            self.mkwrite(mapping, found.pfn).inspect_err(|_| page::put(self.k, found.pfn))?;
        }
        let write = self.vma.page_prot().write && (!notify || self.is_write());
        let entry = pte::page(found.pfn, self.flags(write, self.is_write()), true);
        let installed = self.install(entry, Some(RssKind::File), valid, || {
            page::add_rmap(self.k, found.pfn);
            if let Some(page) = self.k.page(found.pfn).filter(|_| page::is_locked(self.vma)) {
                self.k.set_unevictable(found.pfn, page, true);
            }
            if notify && self.is_write() {
                self.dirtied(found.pfn);
            }
        });
        if !matches!(installed, Ok(true)) {
            page::put(self.k, found.pfn);
        }
        installed.map(done)
    }

    /// Linux: `do_page_mkwrite`.
    fn mkwrite(&self, mapping: Id<crate::Mapping>, pfn: Pfn) -> Result<(), Fault> {
        self.k.page_mkwrite(mapping, pfn).map_err(|error| match error {
            MappedError::Sigbus => Fault::AdrErr,
            MappedError::NoMemory => Fault::NoMemory,
        })
    }

    /// The page is writable from now on, and with the tables locked still: whoever writes it back after this sees the entry (Linux:
    /// `fault_dirty_shared_page`).
    fn dirtied(&self, pfn: Pfn) {
        if let Some(page) = self.k.page(pfn) {
            self.k.page_dirtied(pfn, page);
        }
    }

    /// Linux: `wp_page_shared`.
    fn write_shared(&self, old: Entry, pfn: Pfn, mapping: Id<crate::Mapping>) -> Result<Done, Fault> {
        if !self.hold(old, pfn) {
            return Ok(Done::Spurious);
        }
        let told = self.mkwrite(mapping, pfn);
        let new = pte::page(pfn, self.flags(true, true), self.vma.flags().is_accessible());
        let replaced = told.map(|()| {
            self.k.tables(self.mm, |tables| {
                let replaced = pte::locate(tables, self.mm.page_table(), self.page_addr()).is_ok_and(
                    |(table, index)| {
                        tables.compare_exchange(table, index, old.as_u64(), new.as_u64()).is_ok()
                    },
                );
                if replaced {
                    self.dirtied(pfn);
                }
                replaced
            })
        });
        page::put(self.k, pfn);
        replaced.map(|replaced| if replaced { Done::Minor } else { Done::Spurious })
    }

    /// As the event `do_swap_page` has it.
    fn swapped_in(&self, mapped: Result<Mapped, SwapFault>) -> Event {
        let (pfn, major) = match mapped {
            Ok(Mapped::Yes { pfn, major, .. }) => (Some(pfn), major),
            _ => (None, false),
        };
        let is_cached = |page: &mm_core::Page| page.has(mm_core::PageFlags::SWAPCACHE);
        let slot_kept = pfn.and_then(|pfn| self.k.page(pfn)).is_some_and(is_cached);
        Event::DoSwapPageRet { pfn, major, slot_kept }
    }

    /// Linux: `do_swap_page`.
    fn swap_page(&self, old: Entry, entry: SwapEntry) -> Result<Done, Fault> {
        let (mm, vma, va) = (self.mm, self.vma, self.page_addr());
        self.k.emit_with(EventId::DoSwapPage, || Event::DoSwapPage {
            address: va,
            area: u8::try_from(entry.area()).unwrap_or(u8::MAX),
            write: self.is_write(),
            offset: entry.offset(),
        });
        let mapped = swap::swap_in(self.k, SwapPte { mm, vma, va, old, entry }, self.is_write());
        self.k.emit_with(EventId::DoSwapPageRet, || self.swapped_in(mapped));
        match mapped {
            Ok(Mapped::Changed) => Ok(Done::Spurious),
            Ok(Mapped::Yes { entry, pfn, major }) => {
                self.k.emit_with(EventId::SetPte, || set_pte(va, entry));
                if self.is_write() && !entry.has(PteFlags::WRITE) {
                    // Others have the page, too: it is copied.
                    self.write_protected(entry, pfn)?;
                }
                Ok(if major { Done::Major } else { Done::Minor })
            }
            Err(SwapFault::NoMemory) => Err(Fault::NoMemory),
            Err(SwapFault::Io) => Err(Fault::AdrErr),
        }
    }

    /// Whether nobody but the entry `old` has its anonymous page, so that it may be written; a slot of a swap area that nobody else names
    /// is given up for that.
    fn is_alone(&self, old: Entry, pfn: Pfn) -> bool {
        if self.k.is_zero_page(pfn) {
            return false;
        }
        let Some(page) = self.k.page(pfn).filter(|page| page::is_anon(page)) else { return false };
        if page.has(PageFlags::SWAPCACHE) && page.mapcount() == 0 {
            // The page might go while it is looked at.
            if !self.hold(old, pfn) {
                return false;
            }
            let reused = swap::reuse(self.k, pfn, page);
            page::put(self.k, pfn);
            return reused && page.refcount() == 1;
        }
        page.refcount() == 1
    }

    /// Linux: `do_wp_page`.
    fn write_protected(&self, old: Entry, pfn: Pfn) -> Result<Done, Fault> {
        let accessible = self.vma.flags().is_accessible();
        let shared = self.vma.flags().contains(VmFlags::SHARED);
        if shared && let Some(mapping) = self.vma.mapping().filter(|id| self.k.mapping_wants_writenotify(*id))
        {
            return self.write_shared(old, pfn, mapping);
        }
        let alone = !shared && self.is_alone(old, pfn);
        if shared || alone {
            // More rights need no flush: a stale refusal faults, and the fault drops it.
            let new = pte::page(pfn, self.flags(true, true), accessible);
            let replaced = self.replace(old, new);
            return Ok(if replaced { Done::Minor } else { Done::Spurious });
        }
        self.copy(old, pfn)
    }

    /// A write to a device's frame: shared, it is allowed; private, it goes to a copy (Linux: `wp_pfn_shared`, `do_wp_page`).
    ///
    /// Differs from Linux: registers are not copied; a driver does not allow private writes to them.
    fn special(&self, old: Entry, pfn: Pfn) -> Result<Done, Fault> {
        if self.vma.flags().contains(VmFlags::SHARED) {
            let flags = old.flags(1) | PteFlags::WRITE | PteFlags::DIRTY | PteFlags::ACCESSED;
            let replaced = self.replace(old, pte::special(pfn, flags, true));
            return Ok(if replaced { Done::Minor } else { Done::Spurious });
        }
        if self.k.page(pfn).is_none_or(|page| page.kind() == PageKind::None) {
            return Err(Fault::AdrErr);
        }
        self.copy(old, pfn)
    }

    /// Linux: `wp_page_copy`.
    fn copy(&self, old: Entry, pfn: Pfn) -> Result<Done, Fault> {
        let anon = self.vma.anon_vma().ok_or(Fault::NoMemory)?;
        let is_zero = self.k.is_zero_page(pfn);
        // Nobody counts it.
        let uncounted = is_zero || matches!(pte::decode(old), Pte::Special(_));
        let copy = self.alloc(is_zero)?;
        // Without a reference it could be moved, freed and somebody else's meanwhile.
        if !uncounted && !self.hold(old, pfn) {
            page::put(self.k, copy);
            return Ok(Done::Spurious);
        }
        if !is_zero {
            self.k.copy_page(copy, pfn);
        }
        let new = pte::page(copy, self.flags(true, true), true);
        let replaced = self.k.tables(self.mm, |tables| {
            let Ok((table, index)) = pte::locate(tables, self.mm.page_table(), self.page_addr()) else {
                return false;
            };
            // Between two pages there is a moment of none: no CPU sees the old page beside writes to the new one.
            if tables.compare_exchange(table, index, old.as_u64(), 0).is_err() {
                return false;
            }
            let va = mm_core::VirtAddr::new(self.page_addr());
            self.k.flush_tlb(self.mm, FlushRange::Range { start: va, last: va, stride: PAGE_SIZE });
            if let Some(page) = self.k.page(copy) {
                self.add_new_anon((copy, page), anon);
            }
            tables.write(table, index, new.as_u64());
            self.k.emit(set_pte(self.page_addr(), new));
            if uncounted {
                self.mm.add_rss(RssKind::Anon, 1);
            } else {
                let kind = crate::zap::kind_of(self.k, pfn);
                self.mm.add_rss(kind, -1);
                self.mm.add_rss(RssKind::Anon, 1);
                page::remove_rmap(self.k, pfn);
                if let Some(page) = self.k.page(pfn) {
                    page::munlock(self.k, pfn, page);
                }
            }
            true
        });
        if !uncounted {
            page::put(self.k, pfn);
        }
        if !replaced {
            page::put(self.k, copy);
            return Ok(Done::Spurious);
        }
        if !uncounted {
            // The entry's reference.
            page::put_and_free_swap(self.k, pfn);
        }
        Ok(Done::Minor)
    }
}

/// An entry was written.
pub(super) fn set_pte(address: u64, entry: Entry) -> Event {
    Event::SetPte { address, pfn: entry.table_pfn(), write: entry.has(PteFlags::WRITE) }
}
