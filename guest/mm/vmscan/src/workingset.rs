//! How soon evicted pages come back (Linux: mm/workingset.c).
//!
//! A node counts evictions and activations. What stays behind in the place of an evicted page, its shadow, has the count of that moment; when
//! the page comes back, the difference says how many more inactive pages would have kept it. If that is no more than what the
//! other pages are, the page was in use as much as they, and becomes active.
//!
//! ```text
//! shadow   39 ... 8   7 ... 2   1            0
//!          age        node      workingset   1
//! ```
//!
//! With generations there is the number of the oldest generation in place of the age, and how often the page was used: see
//! the module of generations.

use memvisor_abi::{LruKind, Lruvec};
use mm_core::{Page, PageFlags};

use crate::list::is_file_lru;
use crate::{Lru, lrugen};

const AGE_BITS: u32 = 32;
const AGE_MASK: u64 = (1 << AGE_BITS) - 1;

/// What a shadow says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shadow {
    node: u32,
    age: u64,
    workingset: bool,
}

impl Shadow {
    const fn pack(self) -> u64 {
        (self.age & AGE_MASK) << 8 | ((self.node & 0x3f) as u64) << 2 | (self.workingset as u64) << 1 | 1
    }

    const fn unpack(raw: u64) -> Option<Shadow> {
        if raw & 1 == 0 || raw >> (AGE_BITS + 8) != 0 {
            return None;
        }
        let node = ((raw >> 2) & 0x3f) as u32;
        Some(Shadow { node, age: raw >> 8, workingset: raw & 2 != 0 })
    }
}

/// The clock goes on (Linux: `workingset_age_nonresident`).
pub(crate) fn age_nonresident(lruvec: &mut Lruvec, pages: u64) {
    lruvec.nonresident_age = lruvec.nonresident_age.wrapping_add(pages);
}

/// The page, which is locked and off the lists, is evicted: its shadow, 40 bits, never 0.
pub fn workingset_eviction<M: Lru>(m: &M, page: &Page) -> u64 {
    let (node, workingset) = (page.node(), page.has(PageFlags::WORKINGSET));
    m.lruvec(node, |lruvec| {
        if lrugen::is_enabled(lruvec) {
            let workingset = page.flags().lru_refs() > 0;
            return Shadow { node, age: lrugen::lru_gen_eviction(lruvec, page), workingset }.pack();
        }
        let age = lruvec.nonresident_age;
        age_nonresident(lruvec, 1);
        Shadow { node, age, workingset }.pack()
    })
}

/// What a page that came back was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refault {
    /// Nothing is known.
    Unknown,
    /// Evicted too long ago to matter.
    Cold,
    /// In use as much as those that are here: it is active now.
    Activated,
    /// The same, and it was in the working set before it was evicted: memory is too small.
    Restored,
}

/// A page comes back for which `shadow` was left; it is locked and on no list yet (Linux: the same name).
pub fn workingset_refault<M: Lru>(m: &M, page: &Page, shadow: u64, nr_swap_pages: u64) -> Refault {
    let Some(shadow) = Shadow::unpack(shadow) else { return Refault::Unknown };
    let file = is_file_lru(page);
    m.lruvec(shadow.node, |lruvec| {
        if lrugen::is_enabled(lruvec) {
            return lrugen::lru_gen_refault(lruvec, page, (shadow.age, AGE_MASK, shadow.workingset));
        }
        let distance = lruvec.nonresident_age.wrapping_sub(shadow.age) & AGE_MASK;
        if distance > competitors(lruvec, file, nr_swap_pages) {
            return Refault::Cold;
        }
        page.insert(PageFlags::ACTIVE);
        age_nonresident(lruvec, 1);
        lruvec.activated[usize::from(file)] = lruvec.activated[usize::from(file)].wrapping_add(1);
        if !shadow.workingset {
            return Refault::Activated;
        }
        page.insert(PageFlags::WORKINGSET);
        lru_note_cost(lruvec, file, 1);
        Refault::Restored
    })
}

/// Pages that a refault has to compete with.
fn competitors(lruvec: &Lruvec, file: bool, nr_swap_pages: u64) -> u64 {
    let count = |kind: LruKind| lruvec.lists[kind as usize].count;
    let mut pages = count(LruKind::ActiveFile);
    if !file {
        pages += count(LruKind::InactiveFile);
    }
    if nr_swap_pages > 0 {
        pages += count(LruKind::ActiveAnon);
        if file {
            pages += count(LruKind::InactiveAnon);
        }
    }
    pages
}

/// Reclaim of one kind cost I/O for that many pages (Linux: the same name). Older costs fade.
pub fn lru_note_cost(lruvec: &mut Lruvec, file: bool, pages: u64) {
    let cost = &mut lruvec.cost[usize::from(file)];
    *cost = cost.saturating_add(pages);
    let evictable = LruKind::ALL.into_iter().filter(|kind| *kind != LruKind::Unevictable);
    let size: u64 = evictable.map(|kind| lruvec.lists[kind as usize].count).sum();
    if lruvec.cost[0].saturating_add(lruvec.cost[1]) > size / 4 {
        lruvec.cost = lruvec.cost.map(|cost| cost / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_keeps_what_it_is_given_in_40_bits() {
        for shadow in [
            Shadow { node: 63, age: AGE_MASK, workingset: true },
            Shadow { node: 0, age: 0, workingset: false },
            Shadow { node: 5, age: 1 << 31, workingset: false },
        ] {
            assert_eq!(Shadow::unpack(shadow.pack()), Some(shadow));
            assert!(shadow.pack() != 0 && shadow.pack() >> 40 == 0);
        }
        assert_eq!(Shadow::unpack(0), None);
        assert_eq!(Shadow::unpack(1 << 40 | 1), None);
    }

    #[test]
    fn costs_fade_once_they_are_a_quarter_of_the_pages() {
        let mut lruvec = Lruvec::EMPTY;
        lruvec.lists[LruKind::ActiveAnon as usize].count = 400;
        lru_note_cost(&mut lruvec, true, 60);
        lru_note_cost(&mut lruvec, false, 40);
        assert_eq!(lruvec.cost, [40, 60]);
        lru_note_cost(&mut lruvec, false, 1);
        assert_eq!(lruvec.cost, [20, 30]);
    }
}
