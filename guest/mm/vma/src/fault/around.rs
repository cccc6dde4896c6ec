//! Pages of a file that are in memory are mapped beside the one that a read wants, so that they need no faults of their own (Linux: mm/memory.c,
//! `do_fault_around`; mm/filemap.c, `filemap_map_pages`).

use mm_core::{EventId, PAGE_SIZE, Pfn};
use mm_pgtable::TableMem;

use super::entry::{VmFault, set_pte};
use crate::id::Id;
use crate::mm::RssKind;
use crate::{Kernel, Mapping, page, pte};

/// Pages of the block that is mapped at once, which lies in one table (Linux: `fault_around_bytes`, 64 KiB).
const AROUND: usize = 16;
const BLOCK: u64 = AROUND as u64 * PAGE_SIZE;

impl<K: Kernel> VmFault<'_, K> {
    /// Maps what is ready of the block around the address, as far as the VMA reaches; true if the page of the fault is among it.
    pub(super) fn map_around(&self, mapping: Id<Mapping>) -> bool {
        let here = self.page_addr();
        let start = (here & !(BLOCK - 1)).max(self.vma.start());
        let end = ((here | (BLOCK - 1)) + 1).min(self.vma.end());
        let mut pages = [None; AROUND];
        let empty = self.empty_entries(start, end);
        for (step, slot) in pages.iter_mut().enumerate().filter(|(step, _)| empty & 1 << step != 0) {
            let index = self.vma.index_of(start + step as u64 * PAGE_SIZE);
            *slot = self.k.mapping_ready_page(mapping, index);
        }
        let done = pages.iter().any(Option::is_some) && self.install_ready(mapping, start, &mut pages);
        for pfn in pages.into_iter().flatten() {
            page::put(self.k, pfn);
        }
        done
    }

    /// Which entries of the block have nothing, one bit each.
    fn empty_entries(&self, start: u64, end: u64) -> u32 {
        let count = usize::try_from((end - start) / PAGE_SIZE).unwrap_or(0).min(AROUND);
        self.k.tables(self.mm, |tables| {
            let located = pte::locate(tables, self.mm.page_table(), start);
            (0..count).fold(0, |empty, step| {
                // Without a table nothing is mapped.
                let used = located.is_ok_and(|(table, first)| tables.read(table, first + step) != 0);
                empty | u32::from(!used) << step
            })
        })
    }

    /// Maps those of `pages` that are still where they were, and takes their references; true if that of the fault was one.
    fn install_ready(&self, mapping: Id<Mapping>, start: u64, pages: &mut [Option<Pfn>; AROUND]) -> bool {
        let write = self.vma.page_prot().write && !self.k.mapping_wants_writenotify(mapping);
        let flags = self.flags(write, false);
        self.k.tables(self.mm, |tables| {
            // Whoever finds a reason not to map the page says so when it is mapped alone.
            if self.is_unstable() {
                return false;
            }
            let Some((table, first)) = pte::make(tables, self.mm, start) else { return false };
            self.k.flush_deferred(self.mm);
            let (mut mapped, mut done) = (0, false);
            for (step, slot) in pages.iter_mut().enumerate() {
                let va = start + step as u64 * PAGE_SIZE;
                let Some(pfn) = *slot else { continue };
                let Some(page) = self.k.page(pfn) else { continue };
                let entry = pte::page(pfn, flags, true);
                // Whoever took it out of the page cache since does not unmap it any more.
                if !page::is_at(page, mapping, self.vma.index_of(va))
                    || tables.compare_exchange(table, first + step, 0, entry.as_u64()).is_err()
                {
                    continue;
                }
                *slot = None;
                mapped += 1;
                done |= va == self.page_addr();
                page::add_rmap(self.k, pfn);
                if page::is_locked(self.vma) {
                    self.k.set_unevictable(pfn, page, true);
                }
                self.k.emit_with(EventId::SetPte, || set_pte(va, entry));
            }
            self.mm.add_rss(RssKind::File, mapped);
            done
        })
    }
}
