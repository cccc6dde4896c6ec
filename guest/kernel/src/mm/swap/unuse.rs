//! Everything in an area comes back into memory (Linux: `try_to_unuse`).

use mm_core::MemMap;
use mm_swap::{Lookup, Swap, SwapEntry, SwapError, SwapIo, Unuse, folio_swap_entry, swap_cache_get_folio};
use mm_vma::{Kernel, put_page, unuse_mm};

use crate::mm::page_alloc;
use crate::mm::space::{self, Spaces};
use crate::task;

/// Who brings pages back: the caller of swapoff.
#[derive(Clone, Copy, Debug)]
pub(super) struct Back;

impl Unuse for Back {
    fn promise(&self, pages: u64) -> bool {
        // Linux: `__vm_enough_memory` where overcommit is guessed.
        pages <= page_alloc::managed_and_free().0 + Spaces.totals().total_swap_pages()
    }

    fn unpromise(&self, _pages: u64) {}

    fn unuse_all(&self, area: u32) -> Result<(), SwapError> {
        space::swapped::unuse(area)?;
        let users = space::mm_get_all().ok_or(SwapError::NoMemory)?;
        let mut result = Ok(());
        for mm in users {
            if result.is_ok() {
                result = unuse_mm(&Spaces, mm, area);
            }
            space::mm_put(mm);
        }
        result
    }

    fn free_cached(&self, entry: SwapEntry) {
        let Lookup::Page(pfn) = swap_cache_get_folio(&Spaces, entry) else { return };
        Spaces.lock_page(pfn);
        Spaces.wait_on_page_writeback(pfn);
        if MemMap::page(&Spaces, pfn).and_then(folio_swap_entry) == Some(entry) {
            mm_swap::folio_free_swap(&Spaces, pfn);
        }
        Spaces.unlock_page(pfn);
        put_page(&Spaces, pfn);
    }

    fn is_interrupted(&self) -> bool {
        task::signal_pending()
    }

    fn relax(&self) {
        Kernel::relax(&Spaces);
    }
}
