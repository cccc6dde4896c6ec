//! Slots given out, named and freed (Linux: `folio_alloc_swap`, `swap_duplicate`, `swap_free`).

use memvisor_abi::MAX_SWAPFILES;
use mm_core::Pfn;

use crate::area::{Freed, cluster_of, word};
use crate::slot::{self, Put, SlotError};
use crate::{CpuCluster, Swap, SwapEntry, cache};

/// Gives the page in `pfn` a slot and puts it in the swap cache; `None` if all areas are full. The caller has the page locked and a
/// reference of it. Nobody names the slot yet: [`cache::delete_from_swap_cache`] gives it back.
pub fn folio_alloc_swap<M: Swap>(m: &M, pfn: Pfn) -> Option<SwapEntry> {
    let entry = take_near(m, pfn).or_else(|| take_anywhere(m, pfn))?;
    m.totals().add_free(-1);
    cache::attach(m, pfn, entry);
    Some(entry)
}

/// From the cluster that this CPU takes slots of.
fn take_near<M: Swap>(m: &M, pfn: Pfn) -> Option<SwapEntry> {
    m.with(|_, cpu: &mut CpuCluster| {
        let CpuCluster { area, next } = *cpu;
        if next == 0 {
            return None;
        }
        let offset = m.with_area(area, |info| info.allocate_near(m.slots(area), next, pfn)).flatten();
        go_on(cpu, area, offset);
        SwapEntry::new(area, offset?)
    })
}

/// From the best area that has a slot; the others of its priority come before it next time.
fn take_anywhere<M: Swap>(m: &M, pfn: Pfn) -> Option<SwapEntry> {
    // The list may change between two looks: what is passed over then is found by the next caller.
    for place in 0..MAX_SWAPFILES {
        let area = m.with_list(|list| list.nth(place))?;
        let offset = m.with_area(area, |info| info.allocate(m.slots(area), pfn)).flatten();
        if let Some(offset) = offset {
            m.with_list(|list| list.requeue(area));
            m.with(|_, cpu: &mut CpuCluster| go_on(cpu, area, Some(offset)));
            return SwapEntry::new(area, offset);
        }
    }
    None
}

/// The CPU goes on after `offset`, while that is in the same cluster.
fn go_on(cpu: &mut CpuCluster, area: u32, offset: Option<u64>) {
    let next = offset.map(|offset| offset + 1).filter(|next| cluster_of(*next) == cluster_of(*next - 1));
    *cpu = CpuCluster { area, next: next.unwrap_or(0) };
}

/// One more entry names the slot (Linux: `swap_duplicate`). The caller knows that it is in use: by an entry under the page-table lock, or
/// by its locked page in the swap cache.
///
/// # Errors
/// See [`SlotError`].
pub fn swap_duplicate<M: Swap>(m: &M, entry: SwapEntry) -> Result<(), SlotError> {
    slot::duplicate(word(m.slots(entry.area()), entry.offset()).ok_or(SlotError::Bad)?)
}

/// One entry fewer names the slot, which goes back to its area with the last user (Linux: `swap_free`).
///
/// # Errors
/// See [`SlotError`]; the slot is as before then.
pub fn swap_free<M: Swap>(m: &M, entry: SwapEntry) -> Result<Put, SlotError> {
    let put = slot::put(word(m.slots(entry.area()), entry.offset()).ok_or(SlotError::Bad)?)?;
    if put == Put::Last {
        give_back(m, entry);
    }
    Ok(put)
}

/// The device could not write the slot: it is not given out again. The page stays in memory, dirty (Linux: `end_swap_bio_write`).
///
/// Differs from Linux: there the slot is given out again and fails again.
pub fn swap_write_failed<M: Swap>(m: &M, entry: SwapEntry) {
    if let Some(word) = word(m.slots(entry.area()), entry.offset()) {
        // A slot that was freed meanwhile is nobody's concern.
        let _ = slot::set_write_error(word);
    }
}

/// Gives a slot back that [`Put::Last`] was said of.
pub(crate) fn give_back<M: Swap>(m: &M, entry: SwapEntry) {
    m.invalidate_page(entry);
    let area = entry.area();
    let freed = m.with_area(area, |info| (info.give_back(m.slots(area), entry.offset()), info.is_writeok()));
    match freed {
        // Of an area that goes, all were subtracted at once.
        Some((Some(Freed::Bad), true)) => m.totals().add_total(-1),
        Some((Some(_), _)) => m.totals().add_free(1),
        Some((None, _)) | None => debug_assert!(false, "{entry} was not about to be freed"),
    }
}
