//! Whether the lists agree with the pages.

use memvisor_abi::{LruKind, PFN_NONE};
use mm_core::{PageFlags, Pfn};

use crate::Lru;
use crate::list::folio_lru_list;

/// The first thing found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// L1: a page on a list does not say so, or says another list or node.
    Page {
        /// The list.
        kind: LruKind,
        /// The page.
        pfn: Pfn,
    },
    /// L2: a list does not link back, or ends in nothing.
    Link {
        /// The list.
        kind: LruKind,
        /// Where.
        pfn: u64,
    },
    /// L2: a list counts wrong.
    Count {
        /// The list.
        kind: LruKind,
        /// What it says.
        says: u64,
        /// What is there.
        found: u64,
    },
    /// L2: a zone counts wrong.
    ZoneCount {
        /// The list.
        kind: LruKind,
        /// Index of the zone in the node.
        zone: usize,
    },
}

/// Checks the lists of a node.
///
/// # Errors
/// What is wrong.
pub fn audit<M: Lru>(m: &M, node: u32) -> Result<(), Broken> {
    m.lruvec(node, |lruvec| {
        for kind in LruKind::ALL {
            let list = &lruvec.lists[kind as usize];
            let (mut prev, mut next, mut found) = (PFN_NONE, list.head, 0);
            let mut zones = [0; memvisor_abi::MAX_NR_ZONES];
            while next != PFN_NONE {
                let pfn = Pfn::new(next);
                let Some(page) = m.page(pfn).filter(|page| page.prev() == prev && found <= list.count) else {
                    return Err(Broken::Link { kind, pfn: next });
                };
                if !page.has(PageFlags::LRU) || folio_lru_list(page) != kind || page.node() != node {
                    return Err(Broken::Page { kind, pfn });
                }
                if let Some(zone) = zones.get_mut(page.zone() as usize) {
                    *zone += 1;
                }
                (prev, next, found) = (next, page.next(), found + 1);
            }
            if list.tail != prev {
                return Err(Broken::Link { kind, pfn: list.tail });
            }
            if list.count != found {
                return Err(Broken::Count { kind, says: list.count, found });
            }
            let counts = lruvec.zone_pages.iter().map(|zone| zone[kind as usize]);
            if let Some(zone) = zones.iter().zip(counts).position(|(found, says)| *found != says) {
                return Err(Broken::ZoneCount { kind, zone });
            }
        }
        Ok(())
    })
}
