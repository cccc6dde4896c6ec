//! What must be flushed, and which tables wait for it (Linux: `struct mmu_gather`).
//!
//! A table that an operation takes out of the tree may still be walked by a CPU that cached a
//! pointer to it (SDM 3A, 4.10.3), so it is not given back but put on the gather's list, and
//! freed when the flush is done. The list has no limit and needs no memory: its links are in bits
//! 52 to 57 of the first entries of the tables themselves, which the CPU ignores (SDM 3A, table
//! 4-20), so a walk that still uses the table sees what it saw before.

use mm_core::{Pfn, VirtAddr};

use crate::{Entry, LeafSize, Levels, PteFlags, TABLE_ENTRIES, TableMem};

/// Addresses to flush one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PageList {
    pages: [VirtAddr; PageList::CAPACITY],
    len: u8,
}

impl PageList {
    /// Most addresses in a list; more become a range.
    pub const CAPACITY: usize = 8;

    /// The addresses, each the first of a leaf of any size.
    pub fn as_slice(&self) -> &[VirtAddr] {
        self.pages.get(..usize::from(self.len)).unwrap_or(&self.pages)
    }

    /// Adds `page`; false if there is no room.
    fn push(&mut self, page: VirtAddr) -> bool {
        if self.as_slice().contains(&page) {
            return true;
        }
        match self.pages.get_mut(usize::from(self.len)) {
            Some(slot) => {
                *slot = page;
                self.len += 1;
                true
            }
            None => false,
        }
    }
}

/// What every CPU that may use the tables must flush. The paging-structure caches need nothing
/// more: INVLPG of any address and a write of CR3 drop them all (SDM 3A, 4.10.4.1; APM 2, 5.5.2,
/// where EFER.TCE must be clear).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushRange {
    /// INVLPG each.
    Pages(PageList),
    /// INVLPG at `start` and every `stride` bytes up to and including `last`.
    Range {
        /// First address.
        start: VirtAddr,
        /// Last address to flush.
        last: VirtAddr,
        /// Bytes from one address to the next.
        stride: u64,
    },
    /// Everything. Global translations survive a write of CR3: with `global`, CR4.PGE must be
    /// toggled instead.
    All {
        /// Whether a global translation is among what changed.
        global: bool,
    },
}

/// Flush obligations and unlinked tables of one or more operations.
///
/// It must be spent by [`Gather::flush`], or by [`Gather::no_cpu_uses_it`] where that is so.
/// Frames that were mapped and came out of an unmap's callback must not be reused before that
/// either. A debug build panics when an unspent gather is dropped; a release build leaks its
/// tables, which is safe.
#[must_use = "stale translations and unfreed tables remain until a gather is flushed"]
#[derive(Debug, Default)]
pub struct Gather {
    pages: PageList,
    /// More than `pages` holds was recorded.
    spilled: bool,
    /// Bounds and smallest leaf of everything recorded; `stride` 0 means nothing.
    start: u64,
    last: u64,
    stride: u64,
    global: bool,
    /// See [`link`].
    head: u64,
    tail: Pfn,
}

impl Gather {
    /// More flushes than this cost more than starting with an empty TLB
    /// (Linux: `tlb_single_page_flush_ceiling`).
    pub const CEILING: u64 = 33;

    /// Nothing to flush, no tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to flush and no table waits.
    pub fn is_empty(&self) -> bool {
        self.stride == 0 && self.head == 0
    }

    /// What must be flushed; `None` if nothing.
    pub fn range(&self) -> Option<FlushRange> {
        if self.stride == 0 {
            return None;
        }
        let (start, last, stride) = (self.start, self.last, self.stride);
        Some(if !self.spilled {
            FlushRange::Pages(self.pages)
        } else if (last - start) / stride < Gather::CEILING {
            FlushRange::Range { start: VirtAddr::new(start), last: VirtAddr::new(last), stride }
        } else {
            FlushRange::All { global: self.global }
        })
    }

    /// Lets `flush` flush the range, if there is one, on every CPU that may use the tables; it
    /// returns when all have. Then gives the waiting tables back to `mem`, the same that the
    /// operations worked on.
    pub fn flush<M: TableMem>(mut self, mem: &mut M, flush: impl FnOnce(FlushRange)) {
        if let Some(range) = self.range() {
            flush(range);
        }
        self.release(mem);
    }

    /// Spends the obligations without a flush: no CPU has these tables in CR3, nor had since it
    /// last flushed everything. Returns how many tables were given back.
    pub fn no_cpu_uses_it<M: TableMem>(mut self, mem: &mut M) -> u64 {
        self.release(mem)
    }

    /// Takes over the obligations and tables of `other`, which worked on the same `mem`.
    pub fn append<M: TableMem>(&mut self, mem: &M, mut other: Gather) {
        if other.head != 0 {
            if self.head == 0 {
                self.head = other.head;
            } else {
                write_link(mem, self.tail, other.head);
            }
            self.tail = other.tail;
        }
        if other.stride != 0 {
            self.global |= other.global;
            self.widen(other.start, other.last, other.stride);
            self.spilled |= other.spilled;
            for &page in other.pages.as_slice() {
                self.spilled |= !self.pages.push(page);
            }
        }
        other.forget();
    }

    /// Records that the leaf of `level` at `start` changed.
    pub(crate) fn leaf(&mut self, start: u64, level: u8, entry: Entry) {
        self.global |= entry.has(PteFlags::GLOBAL);
        self.widen(start, start, Levels::page_size(level));
        if !self.spilled {
            self.spilled = !self.pages.push(VirtAddr::new(start));
        }
    }

    /// Records that all 512 leaves of a table of `level` at `start` changed.
    pub(crate) fn leaves(&mut self, start: u64, level: u8, entry: Entry) {
        self.global |= entry.has(PteFlags::GLOBAL);
        let size = Levels::page_size(level);
        self.widen(start, start + size * (TABLE_ENTRIES as u64 - 1), size);
        self.spilled = true;
    }

    /// Takes `table`, which nothing links any more, and through which `va` was reached. `zero`
    /// if all its entries are.
    pub(crate) fn table<M: TableMem>(&mut self, mem: &M, table: Pfn, va: u64, zero: bool) {
        if self.stride == 0 {
            // No leaf changed, but cached pointers to the table must go.
            self.leaf(va, LeafSize::Size4K.level(), Entry::EMPTY);
        }
        write_link(mem, table, self.head);
        if self.head == 0 {
            self.tail = table;
        }
        self.head = link(table, zero);
    }

    fn widen(&mut self, start: u64, last: u64, stride: u64) {
        if self.stride == 0 {
            (self.start, self.last, self.stride) = (start, last, stride);
        } else {
            self.start = self.start.min(start);
            self.last = self.last.max(last);
            self.stride = self.stride.min(stride);
        }
    }

    fn release<M: TableMem>(&mut self, mem: &mut M) -> u64 {
        let mut tables = 0;
        let mut head = self.head;
        while head != 0 {
            let table = Pfn::new(head >> 2);
            let next = read_link(mem, table);
            if head & LINK_ZERO == 0 {
                mem.fill(table, 0, TABLE_ENTRIES, 0, 0);
            } else if next != 0 {
                mem.fill(table, 0, LINK_ENTRIES, 0, 0);
            }
            mem.free_table(table);
            head = next;
            tables += 1;
        }
        self.forget();
        tables
    }

    fn forget(&mut self) {
        (self.stride, self.head) = (0, 0);
    }
}

impl Drop for Gather {
    fn drop(&mut self) {
        // A second panic would abort the test that panicked first.
        #[cfg(test)]
        if std::thread::panicking() {
            return;
        }
        debug_assert!(self.is_empty(), "a gather was dropped unspent: flush it");
    }
}

/// Bits of a link in each entry, from [`LINK_SHIFT`] up.
const LINK_BITS: usize = 6;
const LINK_SHIFT: u32 = 52;
/// Entries that hold a link: 7 times 6 bits are a frame number of 40 bits and two flags.
const LINK_ENTRIES: usize = 7;
const LINK_VALID: u64 = 1;
const LINK_ZERO: u64 = 2;
const LINK_MASK: u64 = ((1 << LINK_BITS) - 1) << LINK_SHIFT;

/// A list element as a number; 0 ends a list.
fn link(table: Pfn, zero: bool) -> u64 {
    table.as_u64() << 2 | if zero { LINK_ZERO } else { 0 } | LINK_VALID
}

fn write_link<M: TableMem>(mem: &M, table: Pfn, link: u64) {
    for index in 0..LINK_ENTRIES {
        let old = mem.read(table, index);
        let part = link >> (index * LINK_BITS) << LINK_SHIFT & LINK_MASK;
        if old & LINK_MASK != part {
            mem.write(table, index, old & !LINK_MASK | part);
        }
    }
}

fn read_link<M: TableMem>(mem: &M, table: Pfn) -> u64 {
    (0..LINK_ENTRIES).fold(0, |link, index| {
        link | (mem.read(table, index) & LINK_MASK) >> LINK_SHIFT << (index * LINK_BITS)
    })
}
