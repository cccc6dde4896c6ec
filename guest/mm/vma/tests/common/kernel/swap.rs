//! Swap of the kernel on the host: two areas in memory, reads that can be made to fail.

use std::sync::atomic::Ordering::Relaxed;

use mm_core::{Gfp, MemMap, Order, PageAlloc, PageFlags, Pfn, PolicyAt, VirtAddr, refcount};
use mm_swap::{Swap, SwapEntry, SwapInError, SwapIo, SwappedIn, folio_swap_entry, read_swap_cache_async};
use mm_vma::{Arena, Id, Kernel, Mm, put_page, try_to_unmap};

use super::{SWAP_SLOTS, TestKernel};

mm_sim::swap_by_field!(TestKernel, swap);

impl SwapIo for TestKernel {
    fn swapin_readahead(&self, entry: SwapEntry, _at: PolicyAt) -> Result<SwappedIn, SwapInError> {
        assert!(
            self.tables.try_lock().is_ok() && self.rmap.try_lock().is_ok(),
            "a read with a spin lock held"
        );
        let alloc = || PageAlloc::alloc_pages(self, Gfp::HIGHUSER_MOVABLE, Order::ZERO, None);
        let found = read_swap_cache_async(self, entry, alloc, |pfn| put_page(self, pfn))?;
        if found.major {
            // What is read with others may fail with them.
            if !self.swap_readahead_fails.load(Relaxed) {
                self.swap_readpage(found.pfn);
            }
            self.unlock_page(found.pfn);
        }
        Ok(found)
    }

    fn swap_readpage(&self, pfn: Pfn) {
        let page = MemMap::page(self, pfn).unwrap();
        assert!(page.has(PageFlags::LOCKED));
        if !self.swap_reads_fail.load(Relaxed) {
            let words = self.swap.read(folio_swap_entry(page).unwrap()).expect("the slot was written");
            self.ram.frame(pfn).iter().zip(words).for_each(|(to, word)| to.store(word, Relaxed));
            page.insert(PageFlags::UPTODATE);
        }
    }

    fn lock_page(&self, pfn: Pfn) {
        assert!(MemMap::page(self, pfn).unwrap().try_lock(), "{pfn} is locked");
    }

    fn wait_on_page_writeback(&self, pfn: Pfn) {
        assert!(
            !MemMap::page(self, pfn).unwrap().has(PageFlags::WRITEBACK),
            "nobody ends the write of {pfn}"
        );
    }
}

impl TestKernel {
    /// Writes a page of the swap cache to its slot (Linux: `swap_writepage`).
    pub fn swap_writepage(&self, pfn: Pfn) {
        let page = MemMap::page(self, pfn).unwrap();
        let entry = folio_swap_entry(page).expect("a page of the swap cache");
        let words = core::array::from_fn(|i| self.ram.frame(pfn)[i].load(Relaxed));
        self.swap.write(entry, words);
        page.remove(PageFlags::DIRTY);
    }

    /// Swaps a page out as reclaim does, as far as it goes; whether its frame is free now. `write` is whether it gets as far as the disk.
    pub fn swap_out(&self, pfn: Pfn, write: bool) -> bool {
        refcount::get(MemMap::page(self, pfn).unwrap().references());
        self.swap_out_held(pfn, write)
    }

    /// [`TestKernel::swap_out`] of a page that the caller has a reference of, which is dropped.
    pub fn swap_out_held(&self, pfn: Pfn, write: bool) -> bool {
        let page = MemMap::page(self, pfn).unwrap();
        self.lock_page(pfn);
        if folio_swap_entry(page).is_none() && mm_swap::folio_alloc_swap(self, pfn).is_some() {
            page.insert(PageFlags::UPTODATE | PageFlags::DIRTY);
        }
        let mut gone = false;
        let mut unflushed = Vec::new();
        let is_out = try_to_unmap(self, pfn, &mut unflushed);
        self.try_to_unmap_flush(&mut unflushed);
        if is_out && folio_swap_entry(page).is_some() && write {
            if page.has(PageFlags::DIRTY) {
                self.swap_writepage(pfn);
            }
            gone = mm_swap::remove_from_swap_cache(self, pfn, || 0);
        }
        page.unlock();
        if gone {
            // As whoever frees what was removed with its references frozen.
            refcount::unfreeze(page.references(), 1);
        }
        put_page(self, pfn);
        gone
    }

    /// The entry of an address.
    pub fn tables_entry(&self, mm: Id<Mm>, va: u64) -> u64 {
        let mm: &Mm = self.at(mm);
        let mut found = 0;
        Kernel::tables(self, mm, |tables| {
            mm.page_table().walk(tables, VirtAddr::new(va), |level, _, _, entry| {
                if level == 1 {
                    found = entry.as_u64();
                }
            });
        });
        found
    }

    /// S1 to S5 of all areas.
    pub fn audit_swap(&self) {
        for area in 0..SWAP_SLOTS.len() {
            assert_eq!(mm_swap::audit(self, u32::try_from(area).unwrap()), Ok(()));
        }
    }
}
