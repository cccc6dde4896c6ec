//! Whether an area's tables agree with each other.

use crate::cluster::{CLUSTER_SLOTS, On};
use crate::slot::Slot;
use crate::{Swap, SwapEntry, folio_swap_entry};

/// The first thing found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// S1: the header can be given out.
    Header,
    /// S2: a cluster counts wrong, or is on the wrong list.
    Cluster {
        /// Its index.
        cluster: u32,
    },
    /// S2: the lists and the clusters do not agree.
    Lists,
    /// S3: the area counts wrong.
    Counts {
        /// What it says is in use.
        inuse: u64,
        /// What is.
        found: u64,
    },
    /// S4: a slot is neither free, bad, named nor cached, and nobody is freeing it.
    Slot {
        /// Its number.
        offset: u64,
    },
    /// S5: the page of a slot does not say so.
    Page {
        /// The slot's number.
        offset: u64,
    },
}

/// Checks an area; nobody changes it meanwhile.
///
/// # Errors
/// What is wrong. An area that does not exist is fine.
pub fn audit<M: Swap>(m: &M, area: u32) -> Result<(), Broken> {
    let words = m.slots(area);
    if words.first().is_some_and(|word| !Slot::of(word).is_bad()) {
        return Err(Broken::Header);
    }
    for (word, offset) in words.iter().zip(0u64..) {
        let slot = Slot::of(word);
        let is_known = slot.is_free() || slot.is_bad() || slot.count() > 0 || slot.cache().is_some();
        if !is_known {
            return Err(Broken::Slot { offset });
        }
        let page = slot.cache().map(|pfn| m.page(pfn).and_then(folio_swap_entry));
        if page.is_some_and(|entry| entry != SwapEntry::new(area, offset)) {
            return Err(Broken::Page { offset });
        }
    }
    m.with_area(area, |info| {
        let runs = words.chunks(CLUSTER_SLOTS);
        for ((cluster, run), index) in info.clusters.iter().zip(runs).zip(0u32..) {
            let used = run.iter().filter(|word| !Slot::of(*word).is_free()).count();
            let on = match used {
                0 => On::Free,
                used if used < run.len() => On::Nonfull,
                _ => On::Full,
            };
            if usize::try_from(cluster.used) != Ok(used) || cluster.on != on {
                return Err(Broken::Cluster { cluster: index });
            }
        }
        for (list, on) in [(&info.free, On::Free), (&info.nonfull, On::Nonfull)] {
            let listed = list.iter(&info.clusters).count();
            let sound = list.iter(&info.clusters).all(|index| {
                usize::try_from(index)
                    .ok()
                    .and_then(|index| info.clusters.get(index))
                    .is_some_and(|at| at.on == on)
            });
            let runs = words.len().div_ceil(CLUSTER_SLOTS);
            let meant = info.clusters.iter().take(runs).filter(|cluster| cluster.on == on).count();
            if !sound || listed != meant {
                return Err(Broken::Lists);
            }
        }
        let bad = words.iter().filter(|word| Slot::of(*word).is_bad()).count() as u64;
        let free = words.iter().filter(|word| Slot::of(*word).is_free()).count() as u64;
        let found = words.len() as u64 - bad - free;
        if info.inuse_pages() != found || info.pages() != found + free {
            return Err(Broken::Counts { inuse: info.inuse_pages(), found });
        }
        Ok(())
    })
    .unwrap_or(Ok(()))
}
