//! Whether entries, frames and counts agree with each other.

use core::mem::offset_of;

use memvisor_abi::{PFN_NONE, ZBUD_CHUNK, ZBUD_CHUNKS, ZBUD_MAX, ZSWAP_LEAF_SLOTS, ZbudHeader, ZswapEntry};
use mm_core::{PAGE_SIZE, Pfn, PhysAddr, PhysMem};
use mm_swap::SwapEntry;

use crate::Zswap;
use crate::zbud::is_first;

/// The first thing found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Z1: the bytes of an entry are nowhere, or another's.
    Entry {
        /// Its slot.
        slot: SwapEntry,
    },
    /// Z2: a frame has no user, or one that is not known, or is on the wrong list.
    Frame {
        /// Its number.
        pfn: u64,
    },
    /// Z3: a count is wrong; which, what it says, and what there is.
    Counts(&'static str, u64, u64),
}

fn word<M: PhysMem>(m: &M, pfn: u64, offset: usize) -> u64 {
    m.read_u64(PhysAddr::new(Pfn::new(pfn).phys().as_u64() + offset as u64))
}

/// Checks all; nobody changes it meanwhile.
///
/// # Errors
/// What is wrong.
pub fn audit<M: PhysMem>(m: &M, zswap: &Zswap) -> Result<(), Broken> {
    let state = zswap.state();
    let (mut stored, mut same, mut leaves, mut packed) = (0, 0, 0, 0);
    for (tree, area) in state.trees.iter().zip(0..) {
        for index in 0..u64::from(tree.count) {
            let leaf = m.read_u64(PhysAddr::new(tree.gpa + index * 8));
            if leaf == 0 {
                continue;
            }
            leaves += 1;
            let mut used = 0;
            for slot in 0..ZSWAP_LEAF_SLOTS {
                let at = (leaf & !(PAGE_SIZE - 1)) + slot * 16;
                let entry = ZswapEntry {
                    place: m.read_u64(PhysAddr::new(at)),
                    value: m.read_u64(PhysAddr::new(at + 8)),
                };
                if !entry.is_present() {
                    continue;
                }
                used += 1;
                if entry.is_same_filled() {
                    same += 1;
                    continue;
                }
                packed += 1;
                let Some(slot) = SwapEntry::new(area, index * ZSWAP_LEAF_SLOTS + slot) else { continue };
                if !has_bytes(m, slot, entry) {
                    return Err(Broken::Entry { slot });
                }
            }
            expect("leaf", leaf & (PAGE_SIZE - 1), used)?;
            stored += used;
        }
    }
    expect("stored_pages", state.stored_pages, stored)?;
    expect("same_filled_pages", state.same_filled_pages, same)?;
    expect("leaf_pages", state.leaf_pages, leaves)?;
    frames(m, zswap, packed)
}

fn expect(what: &'static str, says: u64, found: u64) -> Result<(), Broken> {
    if says == found { Ok(()) } else { Err(Broken::Counts(what, says, found)) }
}

/// Z1.
fn has_bytes<M: PhysMem>(m: &M, slot: SwapEntry, entry: ZswapEntry) -> bool {
    let at = PhysAddr::new(entry.gpa());
    let first = is_first(at);
    let (chunks, named) = if first {
        (offset_of!(ZbudHeader, first_chunks), offset_of!(ZbudHeader, first_slot))
    } else {
        (offset_of!(ZbudHeader, last_chunks), offset_of!(ZbudHeader, last_slot))
    };
    let pfn = at.pfn().as_u64();
    let chunks = word(m, pfn, chunks);
    word(m, pfn, named) == slot.as_value()
        && (1..=ZBUD_MAX).contains(&entry.len_bytes())
        && chunks == entry.len_bytes().div_ceil(ZBUD_CHUNK)
        && (first || at.page_offset() == PAGE_SIZE - chunks * ZBUD_CHUNK)
}

/// Z2. With as many halves as entries, each of which has one of its own, every half is an entry's.
fn frames<M: PhysMem>(m: &M, zswap: &Zswap, packed: u64) -> Result<(), Broken> {
    let pool = &zswap.state().pool;
    let (mut pages, mut halves, mut alone, mut listed) = (0, 0, 0, 0);
    let (mut pfn, mut last) = (pool.lru_first, PFN_NONE);
    while pfn != PFN_NONE {
        let users = [offset_of!(ZbudHeader, first_chunks), offset_of!(ZbudHeader, last_chunks)]
            .map(|offset| word(m, pfn, offset));
        let used = users.iter().filter(|chunks| **chunks > 0).count() as u64;
        let back = word(m, pfn, offset_of!(ZbudHeader, lru_prev));
        if used == 0 || users.iter().sum::<u64>() > ZBUD_CHUNKS || back != last || pages > pool.pages {
            return Err(Broken::Frame { pfn });
        }
        (pages, halves, alone) = (pages + 1, halves + used, alone + u64::from(used == 1));
        (last, pfn) = (pfn, word(m, pfn, offset_of!(ZbudHeader, lru_next)));
    }
    for (free, &first) in (0..).zip(&pool.unbuddied) {
        let (mut pfn, mut last) = (first, PFN_NONE);
        while pfn != PFN_NONE {
            let users = [offset_of!(ZbudHeader, first_chunks), offset_of!(ZbudHeader, last_chunks)]
                .map(|offset| word(m, pfn, offset));
            let back = word(m, pfn, offset_of!(ZbudHeader, buddy_prev));
            let is_here = users.contains(&0) && ZBUD_CHUNKS - users.iter().sum::<u64>() == free;
            if !is_here || back != last || listed > alone {
                return Err(Broken::Frame { pfn });
            }
            listed += 1;
            (last, pfn) = (pfn, word(m, pfn, offset_of!(ZbudHeader, buddy_next)));
        }
    }
    expect("lru_last", pool.lru_last, if pages == 0 { PFN_NONE } else { last })?;
    expect("pool.pages", pool.pages, pages)?;
    expect("frames with one user", alone, listed)?;
    expect("halves", halves, packed)
}
