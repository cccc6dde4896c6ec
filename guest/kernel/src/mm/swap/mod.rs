//! Swap of this machine: areas on disks, behind mm-swap (Linux: mm/swapfile.c, mm/page_io.c, mm/swap_state.c).
//!
//! What reclaim calls is here; `areas.rs` has the tables, `io.rs` reads and writes slots, `onoff.rs` has the system calls,
//! `zswap/` the pool of compressed pages in front of the devices.
//!
//! K1  a page that is read into is locked until the read ends, and UPTODATE after it if it succeeded;
//! K2  a page that is written out is not locked meanwhile; it has WRITEBACK, and stays in the swap cache, whose reference keeps it,
//!     until that goes;
//! K3  what zswap keeps of a slot's page is what the device would have; while it does, no write to the slot is on its way.

mod areas;
mod io;
mod onoff;
mod pageout;
mod unuse;
pub mod zswap;

pub use areas::{table, write_swaps};
pub use io::PAGE_CLUSTER;
pub use io::Plug;
pub use onoff::{swapoff, swapon, swapon_disk};
pub use pageout::reclaim_pages;

use memvisor_abi::NodeStat;
use mm_core::{Event, EventId, Page, PageFlags, Pfn, Trace};
use mm_swap::{Swap, SwapEntry, folio_swap_entry};
use mm_vmscan::PageOut;

use crate::mm::space::Spaces;
use crate::mm::vmstat;
use crate::trace::KernelTrace;

/// Pages of the swap cache (Linux: `NR_SWAPCACHE`).
pub fn nr_swapcache_pages() -> u64 {
    vmstat::global(NodeStat::SwapCache)
}

/// Free slots (Linux: `get_nr_swap_pages`).
pub fn nr_swap_pages() -> u64 {
    Spaces.totals().nr_swap_pages()
}

/// Slots (Linux: `total_swap_pages`).
pub fn total_swap_pages() -> u64 {
    Spaces.totals().total_swap_pages()
}

/// Whether more than half of the slots are in use (Linux: `vm_swap_full`).
pub fn is_vm_swap_full() -> bool {
    Spaces.totals().is_vm_swap_full()
}

/// Gives an anonymous page a slot and puts it, dirty, in the swap cache; false without a slot. The caller has it locked and a reference of
/// it (Linux: the same name).
pub fn add_to_swap(pfn: Pfn, page: &Page) -> bool {
    let slot = mm_swap::folio_alloc_swap(&Spaces, pfn);
    KernelTrace.emit_with(EventId::AddToSwap, || Event::AddToSwap {
        pfn,
        area: slot.and_then(|slot| u8::try_from(slot.area()).ok()).unwrap_or(u8::MAX),
        ok: slot.is_some(),
        offset: slot.map_or(0, SwapEntry::offset),
    });
    if slot.is_none() {
        return false;
    }
    // Whoever finds it through an entry finds its contents, too.
    page.insert(PageFlags::UPTODATE | PageFlags::DIRTY | PageFlags::SWAPBACKED);
    true
}

/// Begins to write a page of the swap cache, or of shared memory, which gets a slot then, that nobody maps; when `plug` is dropped at the latest. With
/// [`PageOut::Success`] it is unlocked. The caller has it locked and a reference of it (Linux: `pageout` with `swap_writepage`).
pub fn pageout(pfn: Pfn, page: &Page, plug: &mut Plug) -> PageOut {
    if folio_swap_entry(page).is_none() && !mm_filemap::shmem::move_to_swap(&Spaces, pfn) {
        return PageOut::Activate;
    }
    if !page.has(PageFlags::DIRTY) {
        return PageOut::Clean;
    }
    io::swap_writepage(pfn, page, plug);
    PageOut::Success
}

/// Takes a clean page out of the swap cache that nobody has but the cache and the caller; `shadow` gives what is remembered of it. It has no
/// references after that (Linux: `__remove_mapping`). The caller has it locked.
pub fn remove_from_swap_cache(pfn: Pfn, shadow: impl FnOnce() -> u64) -> bool {
    mm_swap::remove_from_swap_cache(&Spaces, pfn, shadow)
}

/// Gives up the page's slot if nobody names it (Linux: the same name). The caller has it locked and a reference of it.
pub fn folio_free_swap(pfn: Pfn, _page: &Page) -> bool {
    mm_swap::folio_free_swap(&Spaces, pfn)
}
