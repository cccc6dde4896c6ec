//! Pages that a program wants out (Linux: mm/vmscan.c, `reclaim_pages`).

use mm_core::{MemMap, Page, PageFlags, Pfn, refcount};
use mm_swap::folio_swap_entry;
use mm_vma::{put_page, try_to_unmap};
use mm_vmscan::PageOut;

use super::Plug;
use crate::mm::page_wait;
use crate::mm::space::{Spaces, tlb};
use crate::sched;

/// Swaps anonymous pages out and frees them, as far as that can be done, and drops the caller's references. First all are unmapped, then one flush of
/// translations is for all of them, then all writes begin, then they are waited for. With a page's lock held only locks of others are tried.
///
/// Differs from Linux: it waits for the writes; there the pages are freed by the next reclaim that comes by.
pub fn reclaim_pages(pages: &[Pfn]) {
    pages.chunks(u32::BITS as usize).for_each(reclaim_batch);
}

fn reclaim_batch(pages: &[Pfn]) {
    let all = || pages.iter().filter_map(|pfn| Some((*pfn, MemMap::page(&Spaces, *pfn)?)));
    // A bit for each page that nobody maps any more, and that is locked.
    let (mut out, mut unflushed) = (0_u32, tlb::Unflushed::default());
    for (number, (pfn, page)) in all().enumerate() {
        out |= u32::from(unmap(pfn, page, &mut unflushed)) << number;
    }
    tlb::flush_unmapped(&mut unflushed);
    let mut plug = Plug::default();
    for (_, (pfn, page)) in all().enumerate().filter(|(number, _)| out & 1 << number != 0) {
        if super::pageout(pfn, page, &mut plug) != PageOut::Success {
            page_wait::unlock_page(pfn, page);
        }
    }
    drop(plug);
    all().for_each(|(pfn, page)| end(pfn, page));
}

/// Unmaps a page that can be swapped; whether nobody maps it now, and it is locked.
fn unmap(pfn: Pfn, page: &Page, unflushed: &mut tlb::Unflushed) -> bool {
    if !page_wait::trylock_page(page) {
        return false;
    }
    let is_anon = page.mapping() & memvisor_abi::Page::MAPPING_ANON != 0;
    let stays = page.has(PageFlags::WRITEBACK)
        || is_anon && folio_swap_entry(page).is_none() && !super::add_to_swap(pfn, page);
    let is_out = !stays && try_to_unmap(&Spaces, pfn, unflushed);
    if !is_out {
        // Whoever still maps it may free it as soon as it is unlocked.
        tlb::flush_unmapped(unflushed);
        page_wait::unlock_page(pfn, page);
    }
    is_out
}

/// Frees a page whose write succeeded and that nobody wanted meanwhile. What failed among others is written once more, alone.
fn end(pfn: Pfn, page: &Page) {
    page_wait::wait_on_page_writeback(pfn, page, &sched::task_context());
    let mut is_locked = page_wait::trylock_page(page);
    if is_locked && is_out(page) && page.has(PageFlags::DIRTY) {
        let begun = super::pageout(pfn, page, &mut Plug::default()) == PageOut::Success;
        if begun {
            page_wait::wait_on_page_writeback(pfn, page, &sched::task_context());
            is_locked = page_wait::trylock_page(page);
        }
    }
    let mut gone = false;
    if is_locked {
        gone = is_out(page) && super::remove_from_swap_cache(pfn, || 0);
        page_wait::unlock_page(pfn, page);
    }
    if gone {
        // The caller's again, and the last.
        refcount::unfreeze(page.references(), 1);
    }
    put_page(&Spaces, pfn);
}

/// Whether nobody maps the page and it has a slot.
fn is_out(page: &Page) -> bool {
    page.mapcount() < 0 && folio_swap_entry(page).is_some()
}
