//! Mapping.

use mm_core::{Pfn, PhysAddr, VirtAddr};

use crate::walk::{Slot, Step, Visitor, walk};
use crate::{Entry, LeafSize, Levels, MapError, PageTable, Prot, PteFlags, TABLE_ENTRIES, TableMem};

impl PageTable {
    /// Maps `len` bytes of `pa` at `va`, with the largest leaves up to `largest` that the
    /// alignment of both allows. `len` 0 does nothing.
    ///
    /// Nothing needs to be flushed: an entry that was not present is not cached (SDM 3A,
    /// 4.10.2.3). On `AlreadyMapped` and `NoMemory` everything below the address in the error is
    /// mapped and stays so, because another CPU may use it already; unmap it with a gather. No
    /// empty table is left behind.
    pub fn map<M: TableMem>(
        self,
        mem: &mut M,
        va: VirtAddr,
        pa: PhysAddr,
        len: u64,
        prot: Prot,
        largest: LeafSize,
    ) -> Result<(), MapError> {
        let Some(last) = self.check_range(va, pa, len)? else { return Ok(()) };
        if pa.checked_add(len).is_none_or(|end| end.as_u64() > 1 << memvisor_abi::MAX_PHYSMEM_BITS) {
            return Err(MapError::PhysTooHigh { pa, len });
        }
        let mut mapper = Mapper {
            mem,
            to_pa: pa.as_u64().wrapping_sub(va.as_u64()),
            flags: prot.flags(),
            user: prot.user,
            largest: largest.level(),
            fresh: 0,
        };
        walk(&mut mapper, self.root, self.levels, va.as_u64(), last)
    }

    /// Gives every top-level entry that `va..va + len` touches a table, so that roots that copy
    /// these entries ([`PageTable::share_upper_half`]) see whatever is mapped under them later
    /// (Linux: `preallocate_vmalloc_pages`). On `NoMemory` the tables made so far stay.
    pub fn populate_top<M: TableMem>(self, mem: &mut M, va: VirtAddr, len: u64) -> Result<(), MapError> {
        let Some(last) = self.check_range(va, PhysAddr::new(0), len)? else { return Ok(()) };
        walk(&mut Populate { mem }, self.root, self.levels, va.as_u64(), last)
    }
}

/// Links a table that is complete (T1).
pub(crate) fn link_table<M: TableMem>(mem: &M, slot: &Slot, table: Pfn, user: bool) {
    mem.write(slot.table, slot.index, Entry::table(table, user).as_u64());
}

struct Mapper<'m, M> {
    mem: &'m mut M,
    /// Physical minus virtual address.
    to_pa: u64,
    flags: PteFlags,
    user: bool,
    largest: u8,
    /// Level of the topmost table on the way that this call made; 0 if none. Everything at and
    /// below it is empty ahead of the walk.
    fresh: u8,
}

impl<M: TableMem> Mapper<'_, M> {
    /// How many of `run` entries from `slot` on are empty.
    fn empty_run(&self, slot: &Slot, run: usize) -> usize {
        if slot.level <= self.fresh {
            return run;
        }
        (0..run).find(|i| self.mem.read(slot.table, slot.index + i) != 0).unwrap_or(run)
    }
}

impl<M: TableMem> Visitor for Mapper<'_, M> {
    type Error = MapError;
    const EMPTY: bool = true;

    #[inline]
    fn read(&self, table: Pfn, index: usize) -> Entry {
        Entry::new(self.mem.read(table, index))
    }

    #[inline]
    fn pass(&self, entry: Entry, level: u8) -> Option<Pfn> {
        let granted = !self.user || entry.has(PteFlags::USER);
        (granted && entry.is_table(level)).then(|| entry.table_pfn())
    }

    fn entry(&mut self, slot: &Slot) -> Result<Step, MapError> {
        if slot.entry.is_table(slot.level) {
            if self.user && !slot.entry.has(PteFlags::USER) {
                // T4. More rights need no flush: a stale refusal faults, and the fault drops it.
                let entry = slot.entry.with(PteFlags::USER);
                self.mem.write(slot.table, slot.index, entry.as_u64());
            }
            return Ok(Step::Enter(slot.entry.table_pfn()));
        }
        if !slot.entry.is_empty() {
            return Err(MapError::AlreadyMapped { va: slot.va() });
        }
        let size = Levels::page_size(slot.level);
        let pa = slot.first.wrapping_add(self.to_pa);
        if slot.level <= self.largest && pa & (size - 1) == 0 {
            let run = slot.run();
            if run > 0 {
                let run = self.empty_run(slot, run);
                let first = Entry::leaf(slot.level, PhysAddr::new(pa), self.flags);
                self.mem.fill(slot.table, slot.index, run, first.as_u64(), size);
                return Ok(Step::Next(run));
            }
        }
        let table = self.mem.alloc_table().ok_or(MapError::NoMemory { va: slot.va() })?;
        if self.fresh == 0 {
            self.fresh = slot.level - 1;
        }
        Ok(Step::Enter(table))
    }

    fn leave(&mut self, slot: &Slot, table: Pfn, result: Result<(), MapError>) -> Result<(), MapError> {
        if slot.entry.is_empty() {
            if self.fresh == slot.level - 1 {
                self.fresh = 0;
            }
            if result.is_err() && (0..TABLE_ENTRIES).all(|i| self.mem.read(table, i) == 0) {
                self.mem.free_table(table);
            } else {
                link_table(self.mem, slot, table, self.user);
            }
        }
        result
    }
}

struct Populate<'m, M> {
    mem: &'m mut M,
}

impl<M: TableMem> Visitor for Populate<'_, M> {
    type Error = MapError;
    const EMPTY: bool = true;

    fn read(&self, table: Pfn, index: usize) -> Entry {
        Entry::new(self.mem.read(table, index))
    }

    fn entry(&mut self, slot: &Slot) -> Result<Step, MapError> {
        if slot.entry.is_empty() {
            let table = self.mem.alloc_table().ok_or(MapError::NoMemory { va: slot.va() })?;
            link_table(self.mem, slot, table, false);
        } else if !slot.entry.is_table(slot.level) {
            return Err(MapError::AlreadyMapped { va: slot.va() });
        }
        Ok(Step::Next(1))
    }
}
