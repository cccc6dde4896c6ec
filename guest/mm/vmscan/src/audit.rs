//! Whether the lists agree with the pages.

use memvisor_abi::{LruGen, LruKind, Lruvec, MAX_NR_GENS, MAX_NR_ZONES, MIN_NR_GENS, PFN_NONE};
use mm_core::{PageFlags, Pfn};

use crate::list::folio_lru_list;
use crate::{Lru, lrugen};

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
    /// G1: a page on the list of a generation does not say so, or is of another type, zone or node.
    GenPage {
        /// Place of the generation.
        place: usize,
        /// The page.
        pfn: Pfn,
    },
    /// L2: a list of a generation does not link back, or counts wrong.
    GenList {
        /// Place of the generation.
        place: usize,
        /// Index of the type.
        kind: usize,
        /// Index of the zone in the node.
        zone: usize,
    },
    /// G2: there are too few generations of a type, or too many, or pages where there is none.
    Generations {
        /// Index of the type.
        kind: usize,
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
                if page.flags().lru_gen().is_some() {
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
            if lruvec.lrugen.enabled != 0 && kind != LruKind::Unevictable {
                if found != 0 {
                    return Err(Broken::Count { kind, says: 0, found });
                }
                continue;
            }
            let counts = lruvec.zone_pages.iter().map(|zone| zone[kind as usize]);
            if let Some(zone) = zones.iter().zip(counts).position(|(found, says)| *found != says) {
                return Err(Broken::ZoneCount { kind, zone });
            }
        }
        if lruvec.lrugen.enabled != 0 { generations(m, node, lruvec) } else { Ok(()) }
    })
}

/// G1 to G3.
fn generations<M: Lru>(m: &M, node: u32, lruvec: &Lruvec) -> Result<(), Broken> {
    let lrugen = &lruvec.lrugen;
    for (kind, min) in lrugen.min_seq.iter().enumerate() {
        let is_used = |place: usize| (*min..=lrugen.max_seq).any(|seq| LruGen::place(seq) == place);
        let mut places = lrugen.lists.iter().enumerate();
        let number = lrugen.nr_gens(kind);
        if !(MIN_NR_GENS..=MAX_NR_GENS as u64).contains(&number)
            || places.any(|(place, types)| !is_used(place) && types[kind].iter().any(|list| list.count > 0))
        {
            return Err(Broken::Generations { kind });
        }
    }
    let mut sums = [[0; memvisor_abi::NR_LRU_LISTS]; MAX_NR_ZONES];
    for (place, types) in lrugen.lists.iter().enumerate() {
        for (kind, zones) in types.iter().enumerate() {
            for (zone, list) in zones.iter().enumerate() {
                let (mut prev, mut next, mut found) = (PFN_NONE, list.head, 0);
                while next != PFN_NONE {
                    let pfn = Pfn::new(next);
                    let page = m.page(pfn).filter(|page| page.prev() == prev && found <= list.count);
                    let page = page.ok_or(Broken::GenList { place, kind, zone })?;
                    let flags = page.flags();
                    let says = (flags.lru_gen(), lrugen::type_of(page), page.zone() as usize, page.node());
                    let gone = PageFlags::ACTIVE | PageFlags::UNEVICTABLE | PageFlags::LRU_ADD;
                    if says != (Some(place), kind, zone, node)
                        || !flags.contains(PageFlags::LRU)
                        || flags.intersects(gone)
                    {
                        return Err(Broken::GenPage { place, pfn });
                    }
                    (prev, next, found) = (next, page.next(), found + 1);
                }
                if list.tail != prev || list.count != found {
                    return Err(Broken::GenList { place, kind, zone });
                }
                sums[zone][lrugen::kind_at(lrugen, place, kind) as usize] += found;
            }
        }
    }
    for (zone, (sums, says)) in sums.iter().zip(&lruvec.zone_pages).enumerate() {
        let mut evictable = LruKind::ALL.into_iter().filter(|kind| *kind != LruKind::Unevictable);
        if let Some(kind) = evictable.find(|kind| sums[*kind as usize] != says[*kind as usize]) {
            return Err(Broken::ZoneCount { kind, zone });
        }
    }
    Ok(())
}
