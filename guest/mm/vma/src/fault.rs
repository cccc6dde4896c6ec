//! Page faults (Linux: arch/x86/mm/fault.c, `do_user_addr_fault`; mm/memory.c, `handle_mm_fault`).
//!
//! A fault first tries to go on with the lock of its VMA alone; it takes mmap_lock when a writer is in the way, when the
//! stack must grow, or when the VMA needs its first `AnonVma`.

use mm_core::{Event, Gfp, Order, PAGE_SIZE, PageKind, Pfn};
use mm_pgtable::{Entry, FlushRange, PteFlags, TableMem};

use crate::id::Id;
use crate::mm::RssKind;
use crate::pte::{self, Pte};
use crate::{Arena, Errno, Kernel, Limits, MappedError, Mm, Space, VmFlags, Vma, anon, page};

/// What a CPU wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To fetch an instruction.
    Fetch,
}

/// Why a fault ends in a signal: `si_signo` and `si_code`; `si_addr` is the address of the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGSEGV, SEGV_MAPERR: nothing is mapped there.
    MapErr,
    /// SIGSEGV, SEGV_ACCERR: what is mapped there does not allow the access.
    AccErr,
    /// SIGBUS, BUS_ADRERR: past the end of a file.
    AdrErr,
    /// No signal: out of memory, the kernel decides who dies (Linux: `pagefault_out_of_memory`).
    NoMemory,
}

impl Fault {
    /// `si_signo`; 0 for none.
    pub const fn signo(self) -> i32 {
        match self {
            Fault::MapErr | Fault::AccErr => 11,
            Fault::AdrErr => 7,
            Fault::NoMemory => 0,
        }
    }

    /// `si_code`; 0 for none.
    pub const fn code(self) -> i32 {
        match self {
            Fault::MapErr => 1,
            Fault::AccErr | Fault::AdrErr => 2,
            Fault::NoMemory => 0,
        }
    }
}

/// How a fault was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Without I/O (Linux: a minor fault).
    Minor,
    /// With I/O.
    Major,
    /// There was nothing to do: another CPU was faster, or the translation was stale.
    Spurious,
    /// The page is being moved; the access is to be tried again later (Linux: `migration_entry_wait`).
    Wait,
}

/// What a step of the fault needs instead of going on.
enum Stop {
    Fault(Fault),
    /// mmap_lock.
    NeedsLock,
}

/// Deals with the fault at `addr` in user space. `present` is bit 0 of the CPU's error code: the entry was there and
/// refused.
///
/// # Errors
/// The signal to send.
pub fn handle_fault<K: Kernel>(
    k: &K,
    mm: Id<Mm>,
    limits: &Limits,
    addr: u64,
    access: Access,
    present: bool,
) -> Result<Done, Fault> {
    let at: &Mm = k.at(mm);
    k.emit(Event::HandleMmFault {
        address: addr,
        write: access == Access::Write,
        exec: access == Access::Fetch,
        present,
    });
    let result = match fault_unlocked(k, mm, addr, access, present) {
        Ok(done) => Ok(done),
        Err(Stop::Fault(fault)) => Err(fault),
        Err(Stop::NeedsLock) => fault_locked(k, mm, limits, addr, access, present),
    };
    if let Ok(done @ (Done::Minor | Done::Major | Done::Spurious)) = result {
        at.count_fault(done == Done::Major);
    }
    k.emit(Event::HandleMmFaultRet { outcome: outcome(result) });
    result
}

/// As the event `handle_mm_fault` has it.
const fn outcome(result: Result<Done, Fault>) -> u8 {
    match result {
        Ok(Done::Minor) => 1,
        Ok(Done::Major) => 2,
        Ok(Done::Spurious) => 3,
        Ok(Done::Wait) => 4,
        Err(Fault::MapErr) => 5,
        Err(Fault::AccErr) => 6,
        Err(Fault::AdrErr) => 7,
        Err(Fault::NoMemory) => 8,
    }
}

fn fault_unlocked<K: Kernel>(
    k: &K,
    mm: Id<Mm>,
    addr: u64,
    access: Access,
    present: bool,
) -> Result<Done, Stop> {
    let at: &Mm = k.at(mm);
    let read = at.lock_vma(k, mm, addr).ok_or(Stop::NeedsLock)?;
    found(k, read.vma(), addr);
    check_access(read.vma(), access, present).map_err(Stop::Fault)?;
    let fault = VmFault { k, mm: at, vma: read.vma(), addr, access };
    if read.vma().anon_vma().is_none() && fault.needs_anon_vma() {
        return Err(Stop::NeedsLock);
    }
    fault.handle().map_err(Stop::Fault)
}

fn fault_locked<K: Kernel>(
    k: &K,
    mm: Id<Mm>,
    limits: &Limits,
    addr: u64,
    access: Access,
    present: bool,
) -> Result<Done, Fault> {
    let at: &Mm = k.at(mm);
    k.mmap_read_lock(at);
    let found = at.find(k, addr);
    let inside = found.is_some_and(|id| Arena::<Vma>::at(k, id).start() <= addr);
    if !inside {
        // Only a writer moves bounds.
        k.mmap_read_unlock(at);
        let grows = found.is_some_and(|id| Arena::<Vma>::at(k, id).flags().contains(VmFlags::GROWSDOWN));
        if !grows || addr >= at.task_size() {
            return Err(Fault::MapErr);
        }
        Space::lock(k, mm, *limits).expand_stack(addr).map_err(|_| Fault::MapErr)?;
        return handle_fault_grown(k, mm, addr, access, present);
    }
    let result = in_vma(k, at, found, addr, access, present);
    k.mmap_read_unlock(at);
    result
}

/// Once more, after the stack grew; a writer may have changed everything in between.
fn handle_fault_grown<K: Kernel>(
    k: &K,
    mm: Id<Mm>,
    addr: u64,
    access: Access,
    present: bool,
) -> Result<Done, Fault> {
    let at: &Mm = k.at(mm);
    k.mmap_read_lock(at);
    let found = at.find(k, addr).filter(|&id| Arena::<Vma>::at(k, id).start() <= addr);
    let result = in_vma(k, at, found, addr, access, present);
    k.mmap_read_unlock(at);
    result
}

/// With mmap_lock held.
pub(crate) fn in_vma<K: Kernel>(
    k: &K,
    mm: &Mm,
    id: Option<Id<Vma>>,
    addr: u64,
    access: Access,
    present: bool,
) -> Result<Done, Fault> {
    let id = id.ok_or(Fault::MapErr)?;
    let vma: &Vma = k.at(id);
    found(k, vma, addr);
    check_access(vma, access, present)?;
    let fault = VmFault { k, mm, vma, addr, access };
    if fault.needs_anon_vma() {
        if vma.anon_vma().is_none() {
            k.emit(Event::AnonVmaPrepare { start: vma.start() });
        }
        anon::prepare(k, id).map_err(|_| Fault::NoMemory)?;
    }
    fault.handle()
}

fn found<K: Kernel>(k: &K, vma: &Vma, address: u64) {
    let flags = vma.flags();
    k.emit(Event::VmaFound {
        address,
        start: vma.start(),
        end: vma.end(),
        write: flags.contains(VmFlags::WRITE),
        exec: flags.contains(VmFlags::EXEC),
    });
}

/// Linux: `access_error`.
fn check_access(vma: &Vma, access: Access, present: bool) -> Result<(), Fault> {
    let flags = vma.flags();
    let allowed = match access {
        Access::Write => flags.contains(VmFlags::WRITE),
        // Fetches from memory that is not executable bring the page in first, and fault again.
        Access::Fetch if present => flags.contains(VmFlags::EXEC),
        Access::Read | Access::Fetch => flags.is_accessible(),
    };
    if allowed { Ok(()) } else { Err(Fault::AccErr) }
}

/// A fault in a VMA that stays as it is (Linux: `struct vm_fault`).
struct VmFault<'a, K> {
    k: &'a K,
    mm: &'a Mm,
    vma: &'a Vma,
    addr: u64,
    access: Access,
}

impl<K: Kernel> VmFault<'_, K> {
    fn page_addr(&self) -> u64 {
        self.addr & !(PAGE_SIZE - 1)
    }

    fn is_write(&self) -> bool {
        self.access == Access::Write
    }

    /// Whether a page of its own may come into the VMA.
    fn needs_anon_vma(&self) -> bool {
        let reads_own = self.vma.is_anonymous() && self.k.zero_page().is_none();
        (self.is_write() || reads_own) && !self.vma.flags().contains(VmFlags::SHARED)
    }

    /// Linux: `handle_pte_fault`.
    fn handle(&self) -> Result<Done, Fault> {
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
                    let (pgoff, write) = (self.vma.index_of(self.addr), self.is_write());
                    self.k.emit(Event::DoFault { address: self.page_addr(), pgoff, write });
                    let result = self.mapped_page(mapping);
                    self.k.emit(Event::DoFaultRet { pfn: self.mapped() });
                    result
                }
            },
            Pte::Migration(_) => Ok(Done::Wait),
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

    /// Maps a page where nothing is, if `valid` says so with the tables locked; false if something is there by now.
    fn install(
        &self,
        new: Entry,
        kind: Option<RssKind>,
        valid: impl FnOnce() -> bool,
        counted: impl FnOnce(),
    ) -> Result<bool, Fault> {
        self.k.tables(self.mm, |tables| {
            let slot = pte::make(tables, self.mm, self.page_addr());
            let (table, index) = slot.ok_or(Fault::NoMemory)?;
            if !valid() || tables.compare_exchange(table, index, 0, new.as_u64()).is_err() {
                return Ok(false);
            }
            if let Some(kind) = kind {
                self.mm.add_rss(kind, 1);
            }
            self.k.emit(set_pte(self.page_addr(), new));
            counted();
            Ok(true)
        })
    }

    fn flags(&self, write: bool, dirty: bool) -> PteFlags {
        let mut flags = self.vma.page_prot().flags();
        flags.set(PteFlags::WRITE, write);
        flags.set(PteFlags::DIRTY, dirty);
        flags
    }

    fn alloc(&self, zero: bool) -> Result<Pfn, Fault> {
        let gfp = if zero { Gfp::HIGHUSER_MOVABLE | Gfp::ZERO } else { Gfp::HIGHUSER_MOVABLE };
        self.k.alloc_pages(gfp, Order::ZERO, None).ok_or(Fault::NoMemory)
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
    fn install_anon(&self, pfn: Pfn, valid: impl FnOnce() -> bool) -> Result<Done, Fault> {
        // A read that found no zero page may be in a VMA that is not to be written.
        let write = self.vma.flags().contains(VmFlags::WRITE);
        let entry = pte::page(pfn, self.flags(write, write), true);
        let anon = self.vma.anon_vma().ok_or(Fault::NoMemory)?;
        let installed = self.install(entry, Some(RssKind::Anon), valid, || {
            if let Some(page) = self.k.page(pfn) {
                page::add_new_anon(page, anon, self.vma.index_of(self.page_addr()));
            }
        });
        if !matches!(installed, Ok(true)) {
            page::put(self.k, pfn);
        }
        installed.map(|installed| if installed { Done::Minor } else { Done::Spurious })
    }

    /// Linux: `do_read_fault`, `do_cow_fault`, `do_shared_fault`.
    fn mapped_page(&self, mapping: Id<crate::Mapping>) -> Result<Done, Fault> {
        let index = self.vma.index_of(self.addr);
        let found = self.k.mapping_page(mapping, index).map_err(|error| match error {
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
        let prot = self.vma.page_prot();
        let entry = pte::page(found.pfn, self.flags(prot.write, self.is_write()), true);
        let installed = self.install(entry, Some(RssKind::File), valid, || page::add_rmap(self.k, found.pfn));
        if !matches!(installed, Ok(true)) {
            page::put(self.k, found.pfn);
        }
        installed.map(done)
    }

    /// Linux: `do_wp_page`.
    fn write_protected(&self, old: Entry, pfn: Pfn) -> Result<Done, Fault> {
        let accessible = self.vma.flags().is_accessible();
        let shared = self.vma.flags().contains(VmFlags::SHARED);
        let alone = !self.k.is_zero_page(pfn)
            && self.k.page(pfn).is_some_and(|page| page::is_anon(page) && page.refcount() == 1);
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
                page::add_new_anon(page, anon, self.vma.index_of(self.page_addr()));
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
            }
            true
        });
        if !replaced {
            page::put(self.k, copy);
            return Ok(Done::Spurious);
        }
        if !uncounted {
            page::put(self.k, pfn);
        }
        Ok(Done::Minor)
    }
}

/// An entry was written.
fn set_pte(address: u64, entry: Entry) -> Event {
    Event::SetPte { address, pfn: entry.table_pfn(), write: entry.has(PteFlags::WRITE) }
}

impl<K: Kernel> Space<'_, K> {
    /// Grows the stack above `addr` down to it (Linux: `expand_downwards`).
    ///
    /// # Errors
    /// `EFAULT` without a stack, `EPERM` below `mmap_min_addr`, `ENOMEM` where limits or another mapping are in the way,
    /// `EAGAIN` for RLIMIT_MEMLOCK.
    pub fn expand_stack(&self, addr: u64) -> Result<(), Errno> {
        let start = self.find(addr).map_or(0, |id| self.vma(id).start());
        let result = self.expand_downwards(addr);
        self.k.emit(Event::ExpandStack { start, address: addr, ok: result.is_ok() });
        result
    }

    fn expand_downwards(&self, addr: u64) -> Result<(), Errno> {
        let addr = addr & !(PAGE_SIZE - 1);
        let id = self.find(addr).ok_or(Errno::Efault)?;
        let vma = self.vma(id);
        if vma.start() <= addr {
            return Ok(());
        }
        if !vma.flags().contains(VmFlags::GROWSDOWN) {
            return Err(Errno::Efault);
        }
        if addr < self.limits.mmap_min_addr {
            return Err(Errno::Eperm);
        }
        if let Some(below) = vma.prev().map(|prev| self.vma(prev)) {
            let flags = below.flags();
            if !flags.contains(VmFlags::GROWSDOWN)
                && flags.is_accessible()
                && addr - below.end() < crate::STACK_GUARD_GAP
            {
                return Err(Errno::Enomem);
            }
        }
        anon::prepare(self.k, id)?;
        let grow = (vma.start() - addr) >> mm_core::PAGE_SHIFT;
        let Some(pgoff) = vma.pgoff().checked_sub(grow) else { return Err(Errno::Enomem) };
        let flags = vma.flags();
        if !self.limits.may_expand(self.mm, flags, grow) || vma.end() - addr > self.limits.stack {
            return Err(Errno::Enomem);
        }
        if !self.limits.mlock_future_ok(self.mm, flags, grow << mm_core::PAGE_SHIFT) {
            return Err(Errno::Enomem);
        }
        self.resize(id, addr, vma.end(), pgoff);
        if flags.contains(VmFlags::LOCKED) {
            self.mm.set_locked_vm(self.mm.locked_vm() + grow);
        }
        self.mm.account(flags, grow.cast_signed());
        Ok(())
    }
}
