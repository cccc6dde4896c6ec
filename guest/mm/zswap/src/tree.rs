//! From slots to entries: a row of words for each area, each of which leads to a leaf with the entries of 256 slots (Linux: `struct zswap_tree`).
//!
//! A cluster of slots, which is given out in order, has a leaf of its own. It comes with its first entry and goes with its last.

use memvisor_abi::{TableRef, ZSWAP_LEAF_SLOTS, ZswapEntry};
use mm_core::{PAGE_SIZE, Pfn, PhysAddr, PhysMem};
use mm_swap::SwapEntry;

use crate::spare::Spare;

/// The count of entries in the word of a leaf.
const USED: u64 = PAGE_SIZE - 1;
const ENTRY: u64 = size_of::<ZswapEntry>() as u64;

/// Words that an area of so many slots needs.
pub fn words_for(slots: u64) -> u64 {
    slots.div_ceil(ZSWAP_LEAF_SLOTS)
}

/// Where the word of a slot's leaf is; `None` if its area has no tree.
fn word(trees: &[TableRef], slot: SwapEntry) -> Option<PhysAddr> {
    let tree = trees.get(usize::try_from(slot.area()).ok()?)?;
    let index = slot.offset() / ZSWAP_LEAF_SLOTS;
    (index < u64::from(tree.count)).then(|| PhysAddr::new(tree.gpa + index * 8))
}

fn place(leaf: u64, slot: SwapEntry) -> PhysAddr {
    PhysAddr::new((leaf & !USED) + slot.offset() % ZSWAP_LEAF_SLOTS * ENTRY)
}

/// The entry of a slot; one that is not present if there is none.
pub(crate) fn get<M: PhysMem>(m: &M, trees: &[TableRef], slot: SwapEntry) -> ZswapEntry {
    let leaf = word(trees, slot).map_or(0, |word| m.read_u64(word));
    if leaf == 0 {
        return ZswapEntry::default();
    }
    let at = place(leaf, slot);
    ZswapEntry { place: m.read_u64(at), value: m.read_u64(PhysAddr::new(at.as_u64() + 8)) }
}

/// Whether a slot's area has a tree, and if so whether a leaf is needed for an entry.
pub(crate) fn is_leaf_needed<M: PhysMem>(m: &M, trees: &[TableRef], slot: SwapEntry) -> Option<bool> {
    word(trees, slot).map(|word| m.read_u64(word) == 0)
}

/// Gives a slot that has none an entry, in a frame of `spare` if need be; whether that was taken.
pub(crate) fn insert<M: PhysMem>(
    m: &M,
    trees: &[TableRef],
    slot: SwapEntry,
    entry: ZswapEntry,
    spare: &mut Spare,
) -> Option<bool> {
    let word = word(trees, slot)?;
    let (leaf, is_new) = match m.read_u64(word) {
        0 => {
            let frame = spare.take()?;
            m.zero_frame(frame);
            (frame.phys().as_u64(), true)
        }
        leaf => (leaf, false),
    };
    write(m, place(leaf, slot), entry);
    m.write_u64(word, leaf + 1);
    Some(is_new)
}

/// Takes the entry of a slot, which has one, away; its leaf if that is empty now.
pub(crate) fn remove<M: PhysMem>(m: &M, trees: &[TableRef], slot: SwapEntry) -> Option<Pfn> {
    let word = word(trees, slot)?;
    let leaf = m.read_u64(word);
    write(m, place(leaf, slot), ZswapEntry::default());
    let is_empty = leaf & USED == 1;
    m.write_u64(word, if is_empty { 0 } else { leaf - 1 });
    is_empty.then(|| PhysAddr::new(leaf & !USED).pfn())
}

fn write<M: PhysMem>(m: &M, at: PhysAddr, entry: ZswapEntry) {
    m.write_u64(at, entry.place);
    m.write_u64(PhysAddr::new(at.as_u64() + 8), entry.value);
}
