//! What reclaim does to pages of this machine (Linux: mm/vmscan.c, `pageout`, `__remove_mapping`; mm/rmap.c).
//!
//! Anonymous pages and shared memory go to swap (mm/swap), clean pages of files from their cache.

use core::sync::atomic::{AtomicU32, Ordering};

use memvisor_abi::NodeStat;
use mm_core::{MemMap, Page, PageFlags, Pfn, refcount};
use mm_vma::{Owner, VmFlags, Young, lru_gen_look_around, put_page};
use mm_vmscan::{Lru, PageOut, Pages, Referenced, Zones, folios_update_gen};

use crate::mm::space::{self, Spaces, tlb};
use crate::mm::{page_wait, swap, vmstat, writeback};
use crate::sched;

/// `vm.swappiness`.
static SWAPPINESS: AtomicU32 = AtomicU32::new(60);

/// `vm.swappiness`, 0 to 200.
pub fn swappiness() -> u32 {
    SWAPPINESS.load(Ordering::Relaxed)
}

/// Changes `vm.swappiness`, 0 to 200.
pub fn set_swappiness(to: u32) {
    SWAPPINESS.store(to.min(200), Ordering::Relaxed);
}

impl Pages for Spaces {
    fn folio_referenced(&self, pfn: Pfn, page: &Page) -> Referenced {
        let found = if self.lru_gen_enabled() {
            let mut young = Young::new(page.node());
            let found = lru_gen_look_around(self, pfn, &mut young);
            if !young.pfns().is_empty() {
                folios_update_gen(self, page.node(), young.pfns());
            }
            found
        } else {
            mm_vma::folio_referenced(self, pfn)
        };
        Referenced {
            ptes: found.ptes,
            is_locked: found.vm_flags.contains(VmFlags::LOCKED),
            is_exec: found.vm_flags.contains(VmFlags::EXEC),
            is_contended: false,
        }
    }

    fn walk_page_tables(&self, node: u32, used: &mut dyn FnMut(&[Pfn])) {
        space::for_each_mm_pinned(|mm| {
            mm_vma::walk_young(self, mm, node, &mut *used);
            self.cond_resched();
        });
    }

    fn add_to_swap(&self, pfn: Pfn, page: &Page) -> bool {
        swap::add_to_swap(pfn, page)
    }

    type Unflushed = tlb::Unflushed;

    fn try_to_unmap(&self, pfn: Pfn, _: &Page, unflushed: &mut tlb::Unflushed) -> bool {
        mm_vma::try_to_unmap(self, pfn, unflushed)
    }

    fn try_to_unmap_flush(&self, unflushed: &mut tlb::Unflushed) {
        tlb::flush_unmapped(unflushed);
    }

    type Plug = swap::Plug;

    fn pageout(&self, pfn: Pfn, page: &Page, plug: &mut swap::Plug) -> PageOut {
        let done =
            if page.has(PageFlags::SWAPBACKED) { write_swap(pfn, page, plug) } else { write_file(pfn, page) };
        if done == PageOut::Success {
            vmstat::mod_page_state(page, NodeStat::VmscanWrite, 1);
        }
        done
    }

    fn remove_mapping(&self, pfn: Pfn, page: &Page, shadow: impl FnOnce() -> u64) -> bool {
        if page.has(PageFlags::SWAPCACHE) {
            return swap::remove_from_swap_cache(pfn, shadow);
        }
        match mm_vma::owner(page) {
            Owner::None => refcount::freeze(page.references(), 1),
            // What is in shared memory is nowhere else.
            Owner::Mapped(_) if page.has(PageFlags::SWAPBACKED) => false,
            Owner::Mapped(_) => mm_filemap::remove_mapping(self, pfn, shadow),
            // Nobody maps it any more; its slot has gone, too.
            Owner::Anon(_) => page.mapcount() < 0 && refcount::freeze(page.references(), 1),
        }
    }

    fn free_folio(&self, pfn: Pfn) {
        if let Some(page) = self.page(pfn) {
            refcount::unfreeze(page.references(), 1);
            put_page(self, pfn);
        }
    }

    fn folio_free_swap(&self, pfn: Pfn, page: &Page) -> bool {
        swap::folio_free_swap(pfn, page)
    }

    fn unlock_page(&self, pfn: Pfn, page: &Page) {
        page_wait::unlock_page(pfn, page);
    }

    fn folio_put(&self, pfn: Pfn) {
        put_page(self, pfn);
    }

    fn nr_swap_pages(&self) -> u64 {
        swap::nr_swap_pages()
    }

    fn is_vm_swap_full(&self) -> bool {
        swap::is_vm_swap_full()
    }

    fn swappiness(&self) -> u32 {
        swappiness()
    }
}

/// An anonymous page, or one of shared memory.
fn write_swap(pfn: Pfn, page: &Page, plug: &mut swap::Plug) -> PageOut {
    // The end of its write puts it where it is reclaimed next.
    page.insert(PageFlags::RECLAIM);
    let done = swap::pageout(pfn, page, plug);
    if done != PageOut::Success {
        page.remove(PageFlags::RECLAIM);
    }
    done
}

/// A dirty page of a file on a disk (Linux: `pageout`).
fn write_file(pfn: Pfn, page: &Page) -> PageOut {
    let Some(context) = sched::might_sleep() else { return PageOut::Keep };
    if writeback::pageout(pfn, page, &context) { PageOut::Success } else { PageOut::Keep }
}
