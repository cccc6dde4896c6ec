//! What waits for a flush: pages and tables that CPUs may still reach through stale translations (Linux:
//! `struct mmu_gather`, mm/mmu_gather.c).
//!
//! Invariants:
//! G1  a page whose last translation was removed goes here, and is freed by [`Gather::flush`] after
//!     [`Kernel::flush_tlb`] returned;
//! G2  so does a table that was unlinked;
//! G3  between the removal and the flush the range is not mapped again: the caller holds mmap_lock for writing, or
//!     keeps the tables and replaces entries that stay the same pages.
//!
//! `Mm::tlb_flush_pending` counts the gathers that are not finished, for whoever looks from outside.
//!
//! Pages are kept in a few words here and then in frames of 511 each; if there is no frame, the gather is
//! finished early and goes on empty.

use core::mem::ManuallyDrop;

use mm_core::{Gfp, Order, PAGE_SIZE, PFN_NONE, Pfn, PhysAddr, VirtAddr};
use mm_filemap::Puts;
use mm_pgtable::{FlushRange, Gather as TableGather};

use crate::{Kernel, Mm, page};

/// Pages kept without a frame (Linux: `MMU_GATHER_BUNDLE`).
const BUNDLE: usize = 8;
/// Pages of a frame, whose first word names the next frame.
const BATCH: u64 = PAGE_SIZE / 8 - 1;
/// Frames (Linux: `MAX_GATHER_BATCH_COUNT`).
const MAX_BATCHES: u32 = 20;

/// See the module. It must be finished.
#[derive(Debug)]
pub(crate) struct Gather {
    /// Leaks rather than panics if whoever holds the gather panics first.
    pub tables: ManuallyDrop<TableGather>,
    start: u64,
    last: u64,
    bundle: [u64; BUNDLE],
    bundled: usize,
    batch: u64,
    in_batch: u64,
    batches: u32,
}

impl Gather {
    pub(crate) fn new(mm: &Mm) -> Gather {
        mm.begin_removal();
        Gather {
            tables: ManuallyDrop::new(TableGather::new()),
            start: u64::MAX,
            last: 0,
            bundle: [0; BUNDLE],
            bundled: 0,
            batch: PFN_NONE,
            in_batch: BATCH,
            batches: 0,
        }
    }

    /// The translation of `va` changed.
    pub(crate) fn translation(&mut self, va: u64) {
        self.start = self.start.min(va);
        self.last = self.last.max(va);
    }

    /// How many pages fit as it is.
    pub(crate) fn left(&self) -> u64 {
        (BUNDLE - self.bundled) as u64 + (BATCH - self.in_batch)
    }

    /// Makes room where there is none; false if the gather must be flushed first.
    pub(crate) fn grow<K: Kernel>(&mut self, k: &K) -> bool {
        if self.batches >= MAX_BATCHES {
            return false;
        }
        let Some(frame) = k.alloc_pages(Gfp::NOWAIT | Gfp::NOWARN, Order::ZERO, None) else { return false };
        k.write_u64(frame.phys(), self.batch);
        self.batch = frame.as_u64();
        self.in_batch = 0;
        self.batches += 1;
        true
    }

    /// Ends the current frame, so that [`Gather::drain`] knows how many pages it has.
    fn fill_rest<K: Kernel>(&self, k: &K) {
        if self.batch != PFN_NONE && self.in_batch < BATCH {
            k.write_u64(slot(self.batch, self.in_batch), PFN_NONE);
        }
    }

    /// Takes a page; there is room.
    pub(crate) fn page<K: Kernel>(&mut self, k: &K, pfn: Pfn) {
        if self.in_batch < BATCH {
            k.write_u64(slot(self.batch, self.in_batch), pfn.as_u64());
            self.in_batch += 1;
        } else if let Some(word) = self.bundle.get_mut(self.bundled) {
            *word = pfn.as_u64();
            self.bundled += 1;
        } else {
            debug_assert!(false, "a gather had no room for a page");
        }
    }

    /// Flushes, then frees all that waited, for the last time; `mm` is the one that it was made for.
    pub(crate) fn finish<K: Kernel>(mut self, k: &K, mm: &Mm) {
        self.flush(k, mm);
        mm.end_removal();
    }

    /// Flushes, then frees all that waited. The gather goes on.
    pub(crate) fn flush<K: Kernel>(&mut self, k: &K, mm: &Mm) {
        // What reclaim took out in this range is not among what changed here.
        k.flush_deferred(mm);
        let tables = core::mem::take(&mut *self.tables);
        if let Some(range) = self.range(&tables) {
            if tables.is_empty() { k.flush_tlb(mm, range) } else { k.flush_tlb_and_tables(mm, range) }
        }
        if !tables.is_empty() {
            // Flushed above, with everything else.
            let freed = k.tables(mm, |mem| tables.no_cpu_uses_it(mem));
            mm.add_tables(-freed.cast_signed());
        }
        self.drain(k);
        (self.start, self.last) = (u64::MAX, 0);
    }

    /// Everything that changed, tables included.
    fn range(&self, tables: &TableGather) -> Option<FlushRange> {
        let (mut start, mut last) = (self.start, self.last);
        match tables.range() {
            None => {}
            Some(FlushRange::Pages(pages)) => {
                for page in pages.as_slice() {
                    start = start.min(page.as_u64());
                    last = last.max(page.as_u64());
                }
            }
            Some(FlushRange::Range { start: s, last: l, .. }) => {
                start = start.min(s.as_u64());
                last = last.max(l.as_u64());
            }
            Some(all @ FlushRange::All { .. }) => return Some(all),
        }
        if start > last {
            None
        } else if (last - start) / PAGE_SIZE < TableGather::CEILING {
            Some(FlushRange::Range {
                start: VirtAddr::new(start),
                last: VirtAddr::new(last),
                stride: PAGE_SIZE,
            })
        } else {
            Some(FlushRange::All { global: false })
        }
    }

    fn drain<K: Kernel>(&mut self, k: &K) {
        let mut puts = Puts::default();
        for &pfn in self.bundle.iter().take(self.bundled) {
            page::put_one_and_free_swap(k, &mut puts, Pfn::new(pfn));
        }
        self.bundled = 0;
        self.fill_rest(k);
        while self.batch != PFN_NONE {
            for i in 0..BATCH {
                let pfn = k.read_u64(slot(self.batch, i));
                if pfn == PFN_NONE {
                    break;
                }
                page::put_one_and_free_swap(k, &mut puts, Pfn::new(pfn));
            }
            let frame = Pfn::new(self.batch);
            self.batch = k.read_u64(frame.phys());
            k.free_pages(frame, Order::ZERO);
        }
        puts.finish(k);
        (self.in_batch, self.batches) = (BATCH, 0);
    }
}

fn slot(frame: u64, i: u64) -> PhysAddr {
    PhysAddr::new(Pfn::new(frame).phys().as_u64() + 8 * (i + 1))
}
