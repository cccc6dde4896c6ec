//! Corruptions of zswap: entries, frames of the pool, counts. They need a disk, as those of swap do.

use core::mem::offset_of;

use memvisor_abi::{PAGE_SIZE, PFN_NONE, TableRef, ZSWAP_LEAF_SLOTS, ZbudPool, Zswap, ZswapEntry};
use mm_swap::SwapEntry;

use super::swap;
use super::victim::{Outcome, add, read, write};
use crate::mm::swap::zswap;
use crate::sched;

/// What is published, with pages of the living process in the pool, and the slot of one.
fn kept() -> Outcome<(u64, SwapEntry)> {
    zswap::enable(&sched::task_context());
    let slot = swap::swapped_slot()?;
    let state = zswap::table().gpa;
    if read(state, offset_of!(Zswap, stored_pages)) == 0 {
        return Err("no page is kept");
    }
    Ok((state, slot))
}

/// Where the word of the slot's leaf is, and where its entry.
fn places((state, slot): (u64, SwapEntry)) -> (u64, u64) {
    // As many areas as there are places.
    let tree = offset_of!(Zswap, trees) as u64 + u64::from(slot.area()) * size_of::<TableRef>() as u64;
    let words = read(state + tree, offset_of!(TableRef, gpa));
    let word = words + slot.offset() / ZSWAP_LEAF_SLOTS * 8;
    let leaf = read(word, 0) & !(PAGE_SIZE - 1);
    (word, leaf + slot.offset() % ZSWAP_LEAF_SLOTS * size_of::<ZswapEntry>() as u64)
}

/// A count of entries that is one too high.
pub fn stored_count() -> Outcome {
    let (state, _) = kept()?;
    add(state, offset_of!(Zswap, stored_pages), 1);
    Ok(())
}

/// A leaf that is said to have an entry more than it has: it never goes.
pub fn leaf_count() -> Outcome {
    let (word, _) = places(kept()?);
    add(word, 0, 1);
    Ok(())
}

/// An entry that is a slot's that nobody uses.
pub fn entry_slot() -> Outcome {
    let (_, entry) = places(kept()?);
    // The last slot of the leaf is not in use: an area has fewer pages here.
    let unused = entry / PAGE_SIZE * PAGE_SIZE + (swap::SLOTS - 1) * size_of::<ZswapEntry>() as u64;
    write(unused, 0, read(entry, 0));
    write(entry, 0, 0);
    Ok(())
}

/// An entry whose bytes are in a frame of somebody else.
pub fn entry_frame() -> Outcome {
    let (_, entry) = places(kept()?);
    // The leaf that the entry itself lies in.
    let place = read(entry, 0);
    let leaf = entry / PAGE_SIZE * PAGE_SIZE;
    let frame = ZswapEntry { place, value: 0 }.gpa() / PAGE_SIZE * PAGE_SIZE;
    write(entry, 0, place - frame + leaf);
    Ok(())
}

/// An entry with more bytes than its chunks hold: what is read of them is the next one's.
pub fn entry_length() -> Outcome {
    let (_, entry) = places(kept()?);
    add(entry, 0, 2000 << ZswapEntry::LEN_SHIFT);
    Ok(())
}

/// Frames that the list by age has lost: they are never written back.
pub fn lru_lost() -> Outcome {
    let (state, _) = kept()?;
    let pool = offset_of!(Zswap, pool);
    write(state, pool + offset_of!(ZbudPool, lru_first), PFN_NONE);
    write(state, pool + offset_of!(ZbudPool, lru_last), PFN_NONE);
    Ok(())
}
