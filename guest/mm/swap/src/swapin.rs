//! Pages of slots come back into memory (Linux: `__read_swap_cache_async`, `swapin_readahead`).

use mm_core::{PageFlags, PageKind, Pfn, PolicyAt};

use crate::cache::{Lookup, add_to_swap_cache, swap_cache_get_folio};
use crate::slot::SlotError;
use crate::{Swap, SwapEntry};

/// The page of a slot, with a reference for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwappedIn {
    /// The frame. Its contents are there once it can be locked, and if it is UPTODATE then.
    pub pfn: Pfn,
    /// It has to be read from a device.
    pub major: bool,
}

/// Why there is no page of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapInError {
    /// Nobody uses the slot, or it is bad.
    Gone,
    /// No memory.
    NoMemory,
}

/// Reading slots, and the locks of pages, as faults see them.
pub trait SwapIo: Swap {
    /// The page of a slot; one that is not in memory begins to be read, with neighbours if that seems worth it, and is locked until it is;
    /// all of them come by the policy `at` (Linux: `swapin_readahead`). The caller looks at the page with its lock held: it may have left the swap cache meanwhile.
    ///
    /// # Errors
    /// [`SwapInError`].
    fn swapin_readahead(&self, entry: SwapEntry, at: PolicyAt) -> Result<SwappedIn, SwapInError>;

    /// Reads a page of the swap cache, which the caller has locked, from its slot alone: it is UPTODATE after that, or cannot be read. One that
    /// was read with others is not their error's victim (Linux reads page by page).
    fn swap_readpage(&self, pfn: Pfn);

    /// Takes the lock of a page, which may be that of a read on its way (Linux: `lock_page`).
    fn lock_page(&self, pfn: Pfn);

    /// Waits until a page is not being written; the caller has it locked (Linux: `folio_wait_writeback`).
    fn wait_on_page_writeback(&self, pfn: Pfn);
}

/// Finds the page of a slot, or makes a fresh frame of `alloc` its page: that comes back locked and as [`SwappedIn::major`], to be read (Linux:
/// the same name). `put` frees a frame that was not needed.
///
/// # Errors
/// [`SwapInError`].
pub fn read_swap_cache_async<M: Swap>(
    m: &M,
    entry: SwapEntry,
    alloc: impl Fn() -> Option<Pfn>,
    put: impl Fn(Pfn),
) -> Result<SwappedIn, SwapInError> {
    loop {
        match swap_cache_get_folio(m, entry) {
            Lookup::Page(pfn) => return Ok(SwappedIn { pfn, major: false }),
            Lookup::None => return Err(SwapInError::Gone),
            Lookup::Slot(_) => {}
        }
        let pfn = alloc().ok_or(SwapInError::NoMemory)?;
        let Some(page) = m.page(pfn) else { return Err(SwapInError::NoMemory) };
        page.set_owner(0, 0);
        page.set_kind(PageKind::User);
        page.remove(PageFlags::UPTODATE | PageFlags::DIRTY);
        page.insert(PageFlags::SWAPBACKED);
        // Nobody knows the frame yet.
        let locked = page.try_lock();
        debug_assert!(locked, "frame {pfn} is fresh and locked");
        match add_to_swap_cache(m, entry, pfn) {
            Ok(shadow) => {
                m.swapped_in(pfn, shadow);
                return Ok(SwappedIn { pfn, major: true });
            }
            Err(error) => {
                m.unlock_page(pfn);
                put(pfn);
                if error != SlotError::Cached {
                    return Err(SwapInError::Gone);
                }
            }
        }
    }
}
