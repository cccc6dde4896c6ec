//! An area goes out of use: everything in it comes back into memory first (Linux: `swapoff`, `try_to_unuse`).

use crate::slot::Slot;
use crate::swapon::enable;
use crate::{Swap, SwapEntry, SwapError};

/// Who brings pages back.
pub trait Unuse {
    /// Whether the rest of the machine may hold that many more pages (Linux: `security_vm_enough_memory_mm`). They are promised until
    /// [`Unuse::unpromise`].
    fn promise(&self, pages: u64) -> bool;

    /// Ends [`Unuse::promise`].
    fn unpromise(&self, pages: u64);

    /// Brings every page in that entries of shared memory and of page tables name in the area, and makes them name the page (Linux:
    /// `shmem_unuse`, `unuse_mm` of every address space). Entries that a fork copies meanwhile may be missed.
    ///
    /// # Errors
    /// [`SwapError::NoMemory`], [`SwapError::Io`].
    fn unuse_all(&self, area: u32) -> Result<(), SwapError>;

    /// The page of a slot is in memory and perhaps nobody names the slot: waits until it is written, locks it, calls
    /// [`crate::folio_free_swap`] and drops its reference (Linux: the loop after `unuse_mm`).
    fn free_cached(&self, entry: SwapEntry);

    /// Whether the caller is to stop (Linux: `signal_pending`).
    fn is_interrupted(&self) -> bool;

    /// Others get on.
    fn relax(&self);
}

/// Takes an area out of use. After it no slot is in use; the caller waits for lookups to end and frees the tables.
///
/// # Errors
/// [`SwapError::NoArea`] if it is not in use, or somebody else is at it; else why not all pages came in: the area is in use as before.
pub fn swapoff<M: Swap>(m: &M, area: u32, by: &impl Unuse) -> Result<(), SwapError> {
    let inuse = m.with_area(area, |info| info.is_writeok().then_some(info.inuse_pages())).flatten();
    let inuse = inuse.ok_or(SwapError::NoArea)?;
    if !by.promise(inuse) {
        return Err(SwapError::NoMemory);
    }
    let result = take_off(m, area).and_then(|prio| {
        try_to_unuse(m, area, by).inspect_err(|_| {
            let pages = m.with_area(area, |info| {
                info.writeok = true;
                info.pages()
            });
            // There was room for it before.
            let _ = enable(m, area, prio, pages.unwrap_or(0));
        })
    });
    by.unpromise(inuse);
    result
}

/// No slot of the area is given out any more; its priority.
fn take_off<M: Swap>(m: &M, area: u32) -> Result<i32, SwapError> {
    if !m.with_list(|list| list.remove(area)) {
        return Err(SwapError::NoArea);
    }
    let taken = m.with_area(area, |info| {
        info.writeok = false;
        (info.prio(), i64::try_from(info.pages()).unwrap_or(i64::MAX))
    });
    let (prio, pages) = taken.ok_or(SwapError::NoArea)?;
    // What is in use is added again slot by slot as it is freed.
    m.totals().add_free(-pages);
    m.totals().add_total(-pages);
    Ok(prio)
}

/// Linux: `try_to_unuse`.
fn try_to_unuse<M: Swap>(m: &M, area: u32, by: &impl Unuse) -> Result<(), SwapError> {
    while m.with_area(area, |info| info.inuse_pages()).is_some_and(|pages| pages > 0) {
        if by.is_interrupted() {
            return Err(SwapError::Interrupted);
        }
        by.unuse_all(area)?;
        for (word, offset) in m.slots(area).iter().zip(0u64..) {
            if Slot::of(word).cache().is_some()
                && let Some(entry) = SwapEntry::new(area, offset)
            {
                by.free_cached(entry);
            }
        }
        by.relax();
    }
    Ok(())
}
