//! Second chances (Linux: `folio_check_references`).

use memvisor_abi::VmEvent;
use mm_core::{Page, PageFlags, Pfn};

use crate::list::is_file_lru;
use crate::{Pages, Referenced};

/// What is to become of a page at the end of an inactive list (Linux: `enum folio_references`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum References {
    /// It goes.
    Reclaim,
    /// It goes if it is clean.
    ReclaimClean,
    /// Another round on the inactive list.
    Keep,
    /// It is in use.
    Activate,
}

/// Asks who used the page since.
pub(crate) fn folio_check_references<M: Pages>(m: &M, pfn: Pfn, page: &Page) -> References {
    let Referenced { ptes, is_locked, is_exec, is_contended } = m.folio_referenced(pfn, page);
    let was_referenced = page.take(PageFlags::REFERENCED);
    if is_locked {
        // It is off the lists of what can be reclaimed when it comes back (Linux: `mlock_vma_folio` of the walk).
        page.insert(PageFlags::UNEVICTABLE);
        m.count_vm_events(VmEvent::UnevictablePgsCulled, 1);
        return References::Activate;
    }
    let file = is_file_lru(page);
    match ptes {
        _ if is_contended => References::Keep,
        0 if was_referenced && file => References::ReclaimClean,
        0 => References::Reclaim,
        ptes => {
            page.insert(PageFlags::REFERENCED);
            // Used once may have been read once; code is used more than its entries say.
            if was_referenced || ptes > 1 || is_exec && file {
                References::Activate
            } else {
                References::Keep
            }
        }
    }
}
