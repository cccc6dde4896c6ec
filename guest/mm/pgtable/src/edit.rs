//! Changing what is mapped: unmap, protect, split, merge.

use mm_core::{Pfn, PhysAddr, VirtAddr};

use crate::map::link_table;
use crate::walk::{Slot, Step, Visitor, walk};
use crate::{Entry, Gather, LeafSize, Levels, MapError, PageTable, Prot, PteFlags, TABLE_ENTRIES, TableMem};

/// Which tables an unmap takes out of the tree when they become empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepTables {
    /// Only the root stays: user space, and trees with one owner.
    Root,
    /// The tables that the root points to stay too: the kernel's half, whose top-level entries
    /// other roots copied.
    TopLevel,
    /// All stay: ranges whose translations are flushed later than they are unmapped. Nothing is put on the gather
    /// but the range, and neighbours may be mapped in the meantime (Linux never frees kernel tables).
    All,
}

impl PageTable {
    /// Unmaps `va..va + len`; holes are passed over. Large leaves at the edges are split. Calls
    /// `f(va, entry, level)` for every leaf, or piece of a split leaf, that was taken out, and
    /// for entries that are not present but not zero. The frames behind them may be in a TLB and
    /// must not be reused before `gather` is spent. Nor may the range be mapped again: a CPU that
    /// still walks an unlinked table would not see it.
    ///
    /// On `NoMemory` (a large leaf had to be split) everything below the address in the error is
    /// unmapped.
    pub fn unmap<M: TableMem>(
        self,
        mem: &mut M,
        va: VirtAddr,
        len: u64,
        keep: KeepTables,
        gather: &mut Gather,
        f: impl FnMut(VirtAddr, Entry, u8),
    ) -> Result<(), MapError> {
        let keep_level = match keep {
            KeepTables::Root => u8::MAX,
            KeepTables::TopLevel => self.levels.count(),
            KeepTables::All => 0,
        };
        self.edit(mem, va, len, gather, Unmap { keep_level, f })
    }

    /// Gives everything that is mapped in `va..va + len` the protection and cache mode `prot`;
    /// holes are passed over. Accessed, dirty and software bits stay. Large leaves at the edges
    /// are split; [`PageTable::merge`] undoes that. Returns how many bytes of the range are
    /// mapped.
    ///
    /// On `NoMemory` everything below the address in the error is changed.
    pub fn protect<M: TableMem>(
        self,
        mem: &mut M,
        va: VirtAddr,
        len: u64,
        prot: Prot,
        gather: &mut Gather,
    ) -> Result<u64, MapError> {
        let mut mapped = 0;
        self.edit(mem, va, len, gather, Protect { flags: prot.flags(), mapped: &mut mapped })?;
        Ok(mapped)
    }

    /// Splits every leaf that maps part of `va..va + len` until none in the range is larger than
    /// `largest`. What is mapped, and how, stays the same.
    pub fn split<M: TableMem>(
        self,
        mem: &mut M,
        va: VirtAddr,
        len: u64,
        largest: LeafSize,
        gather: &mut Gather,
    ) -> Result<(), MapError> {
        self.edit(mem, va, len, gather, Split { largest: largest.level() })
    }

    /// Replaces every table inside `va..va + len` whose 512 leaves map contiguous, aligned memory
    /// with equal flags by one leaf, up to `largest`; merged 2 MiB leaves may merge again. The
    /// leaf is accessed or dirty if any of the 512 was. Returns how many tables were replaced.
    ///
    /// Not for memory whose dirty bits matter while CPUs write to it: a bit that is set during
    /// the merge is lost. The same holds wherever a large leaf is split.
    pub fn merge<M: TableMem>(
        self,
        mem: &mut M,
        va: VirtAddr,
        len: u64,
        largest: LeafSize,
        gather: &mut Gather,
    ) -> Result<u64, MapError> {
        let mut merged = 0;
        self.edit(mem, va, len, gather, Merge { largest: largest.level(), merged: &mut merged })?;
        Ok(merged)
    }

    fn edit<M: TableMem, E: Edit>(
        self,
        mem: &mut M,
        va: VirtAddr,
        len: u64,
        gather: &mut Gather,
        edit: E,
    ) -> Result<(), MapError> {
        let Some(last) = self.check_range(va, PhysAddr::new(0), len)? else { return Ok(()) };
        walk(&mut Editor { mem, gather, edit }, self.root, self.levels, va.as_u64(), last)
    }
}

/// What an edit does to leaves and tables; [`Editor`] does the rest.
trait Edit {
    /// Whether leaves are replaced, and not only split or merged.
    const LEAVES: bool;

    /// The range ends inside leaves that must be split, and these may be.
    fn splits(&self, slot: &Slot) -> bool {
        !slot.is_whole()
    }

    /// Whether tables on the way must grant USER.
    fn user(&self) -> bool {
        false
    }

    /// The entry to write instead of `entry`: a leaf, or something that is not present, that is
    /// wholly inside the range. Not called without [`Edit::LEAVES`].
    fn replace(&self, entry: Entry, _level: u8) -> Entry {
        entry
    }

    /// `entry` was in `slot` and inside the range; it was replaced, if that changes it.
    fn replaced(&mut self, _slot: &Slot, _entry: Entry) {}

    /// What becomes of `table`, which was visited through `slot`.
    fn leave<M: TableMem>(&mut self, _mem: &M, _slot: &Slot, _table: Pfn) -> Leave {
        Leave::Keep
    }
}

/// What becomes of a table that was visited.
enum Leave {
    Keep,
    /// It is all zero: take it out.
    Empty,
    /// This leaf replaces it and its 512 leaves.
    Merge(Entry),
}

struct Editor<'m, M, E> {
    mem: &'m mut M,
    gather: &'m mut Gather,
    edit: E,
}

impl<M: TableMem, E: Edit> Editor<'_, M, E> {
    /// Replaces the entry of `slot` and returns the last one that was there: the CPU may set
    /// ACCESSED and DIRTY until the exchange, and they must not be lost.
    fn exchange(&mut self, slot: &Slot) -> Entry {
        let mut old = slot.entry;
        loop {
            let new = self.edit.replace(old, slot.level);
            if new == old {
                return old;
            }
            match self.mem.compare_exchange(slot.table, slot.index, old.as_u64(), new.as_u64()) {
                Ok(()) => break,
                Err(now) => old = Entry::new(now),
            }
        }
        if old.is_present() {
            self.gather.leaf(slot.start, slot.level, old);
        }
        old
    }
}

impl<M: TableMem, E: Edit> Visitor for Editor<'_, M, E> {
    type Error = MapError;
    const EMPTY: bool = false;

    #[inline]
    fn read(&self, table: Pfn, index: usize) -> Entry {
        Entry::new(self.mem.read(table, index))
    }

    fn entry(&mut self, slot: &Slot) -> Result<Step, MapError> {
        let Slot { entry, level, .. } = *slot;
        if entry.is_table(level) {
            if self.edit.user() && !entry.has(PteFlags::USER) {
                self.mem.write(slot.table, slot.index, entry.with(PteFlags::USER).as_u64());
            }
            return Ok(Step::Enter(entry.table_pfn()));
        }
        if level > 1 && self.edit.splits(slot) {
            if !entry.is_leaf(level) {
                return Err(MapError::Malformed { va: slot.va(), level });
            }
            let table = self.mem.alloc_table().ok_or(MapError::NoMemory { va: slot.va() })?;
            let first = entry.first_of_split(level);
            self.mem.fill(table, 0, TABLE_ENTRIES, first.as_u64(), Levels::page_size(level - 1));
            return Ok(Step::Enter(table));
        }
        if !E::LEAVES {
            return Ok(Step::Next(if level == 1 { TABLE_ENTRIES } else { 1 }));
        }
        let old = self.exchange(slot);
        self.edit.replaced(slot, old);
        Ok(Step::Next(1))
    }

    fn leave(&mut self, slot: &Slot, table: Pfn, result: Result<(), MapError>) -> Result<(), MapError> {
        let Slot { entry, level, .. } = *slot;
        if entry.is_leaf(level) {
            // A split. Linked now, with the changes in it: one write changes it all.
            let user = entry.has(PteFlags::USER) || self.edit.user();
            link_table(self.mem, slot, table, user);
            self.gather.leaf(slot.start, level, entry);
            return result;
        }
        match self.edit.leave(self.mem, slot, table) {
            Leave::Keep => {}
            Leave::Empty => {
                self.mem.write(slot.table, slot.index, 0);
                self.gather.table(self.mem, table, slot.first, true);
            }
            Leave::Merge(leaf) => {
                self.mem.write(slot.table, slot.index, leaf.as_u64());
                self.gather.leaves(slot.start, level - 1, leaf);
                self.gather.table(self.mem, table, slot.first, false);
            }
        }
        result
    }
}

struct Unmap<F> {
    /// Level of the entries whose tables stay; 0 if all do.
    keep_level: u8,
    f: F,
}

impl<F: FnMut(VirtAddr, Entry, u8)> Edit for Unmap<F> {
    const LEAVES: bool = true;

    fn replace(&self, _entry: Entry, _level: u8) -> Entry {
        Entry::EMPTY
    }

    fn replaced(&mut self, slot: &Slot, entry: Entry) {
        (self.f)(slot.va(), entry, slot.level);
    }

    fn leave<M: TableMem>(&mut self, mem: &M, slot: &Slot, table: Pfn) -> Leave {
        if slot.level == self.keep_level || self.keep_level == 0 {
            return Leave::Keep;
        }
        // Errors come from entries that the range covers partly, and so not from below a table
        // that it covers wholly.
        let mut indices = 0..TABLE_ENTRIES;
        if slot.is_whole() || indices.all(|index| mem.read(table, index) == 0) {
            Leave::Empty
        } else {
            Leave::Keep
        }
    }
}

struct Protect<'a> {
    flags: PteFlags,
    mapped: &'a mut u64,
}

impl Edit for Protect<'_> {
    const LEAVES: bool = true;

    fn user(&self) -> bool {
        self.flags.contains(PteFlags::USER)
    }

    fn replace(&self, entry: Entry, level: u8) -> Entry {
        if !entry.is_leaf(level) {
            return entry;
        }
        let kept = entry.flags(level) & PteFlags::KEEP;
        Entry::leaf(level, entry.phys(level), self.flags | kept)
    }

    fn replaced(&mut self, slot: &Slot, entry: Entry) {
        if entry.is_leaf(slot.level) {
            *self.mapped += Levels::page_size(slot.level);
        }
    }
}

struct Split {
    largest: u8,
}

impl Edit for Split {
    const LEAVES: bool = false;

    fn splits(&self, slot: &Slot) -> bool {
        slot.level > self.largest && slot.entry.is_leaf(slot.level)
    }
}

struct Merge<'a> {
    largest: u8,
    merged: &'a mut u64,
}

impl Edit for Merge<'_> {
    const LEAVES: bool = false;

    fn splits(&self, _slot: &Slot) -> bool {
        false
    }

    fn leave<M: TableMem>(&mut self, mem: &M, slot: &Slot, table: Pfn) -> Leave {
        if slot.level > self.largest || !slot.is_whole() {
            return Leave::Keep;
        }
        match merged_leaf(mem, slot, table) {
            Some(leaf) => {
                *self.merged += 1;
                Leave::Merge(leaf)
            }
            None => Leave::Keep,
        }
    }
}

/// The leaf that maps what the 512 leaves of `table` map; `None` if there is no such leaf.
fn merged_leaf<M: TableMem>(mem: &M, slot: &Slot, table: Pfn) -> Option<Entry> {
    let level = slot.level - 1;
    let touched = PteFlags::ACCESSED | PteFlags::DIRTY;
    let first = Entry::new(mem.read(table, 0));
    let phys = first.phys(level);
    if !first.is_leaf(level) || !phys.is_aligned(Levels::page_size(slot.level)) {
        return None;
    }
    let mut expect = first.as_u64() & !touched.bits();
    let mut seen = PteFlags::empty();
    for index in 0..TABLE_ENTRIES {
        let raw = mem.read(table, index);
        if raw & !touched.bits() != expect {
            return None;
        }
        seen |= PteFlags::from_bits_truncate(raw) & touched;
        expect = expect.wrapping_add(Levels::page_size(level));
    }
    let mut flags = first.flags(level) | seen;
    // The leaf takes the table entry's place, so what that refused must be refused by the leaf.
    if !slot.entry.has(PteFlags::WRITE) {
        flags -= PteFlags::WRITE;
    }
    if !slot.entry.has(PteFlags::USER) {
        flags -= PteFlags::USER;
    }
    if slot.entry.has(PteFlags::NX) {
        flags |= PteFlags::NX;
    }
    Some(Entry::leaf(slot.level, phys, flags))
}
