//! Corruptions of the LRU lists.

use memvisor_abi::{LruGen, LruKind, LruList, Lruvec, MAX_NR_GENS, PFN_NONE};
use mm_core::{MemMap, Page, PageFlags, Pfn};
use mm_vmscan::{Lru, folio_isolate_lru, lru_add_drain_all};

use crate::mm::page_alloc;
use crate::mm::space::Spaces;

type Outcome = Result<(), &'static str>;

const NO_PAGES: &str = "no list has enough pages";

/// Calls `f` with the place, type and zone of the generation's list with most pages, at least `least`.
fn with_generation(least: u64, f: impl Fn(&mut Lruvec, (usize, usize, usize))) -> Outcome {
    lru_add_drain_all(&Spaces);
    for node in 0..u32::try_from(page_alloc::nr_nodes()).unwrap_or(0) {
        let found = Spaces.lruvec(node, |lruvec| {
            if lruvec.lrugen.enabled == 0 {
                return false;
            }
            let lists = lruvec.lrugen.lists.iter().enumerate().flat_map(|(place, types)| {
                types.iter().enumerate().flat_map(move |(kind, zones)| {
                    zones.iter().enumerate().map(move |(zone, list)| ((place, kind, zone), list.count))
                })
            });
            let longest = lists.max_by_key(|(_, count)| *count).filter(|(_, count)| *count >= least);
            longest.map(|(list, _)| f(lruvec, list)).is_some()
        });
        if found {
            return Ok(());
        }
    }
    Err("no list of a generation has enough pages: is it lru=gen?")
}

/// The list of a generation counts one page too many.
pub fn gen_count() -> Outcome {
    with_generation(1, |lruvec, (place, kind, zone)| lruvec.lrugen.lists[place][kind][zone].count += 1)
}

/// A zone counts as inactive what is in a young generation.
pub fn gen_zone_count() -> Outcome {
    with_generation(1, |lruvec, (_, _, zone)| {
        lruvec.zone_pages[zone][LruKind::InactiveAnon as usize] += 1;
    })
}

fn first_of_generation(f: impl Fn(&Page, usize)) -> Outcome {
    with_generation(1, |lruvec, (place, kind, zone)| {
        if let Some(page) = page(lruvec.lrugen.lists[place][kind][zone].head) {
            f(page, place);
        }
    })
}

/// A page on the list of a generation says it is in the next.
pub fn gen_place() -> Outcome {
    first_of_generation(|page, place| {
        page.update_flags(|flags| {
            flags.difference(PageFlags::LRU_GEN) | PageFlags::of_lru_gen((place + 1) % MAX_NR_GENS)
        });
    })
}

/// A page on the list of a generation says it is active, as on the lists of the other policy.
pub fn gen_active() -> Outcome {
    first_of_generation(|page, _| page.insert(PageFlags::ACTIVE))
}

/// The number of the youngest generation runs away from the oldest.
pub fn gen_seq() -> Outcome {
    with_generation(0, |lruvec, _| lruvec.lrugen.max_seq += MAX_NR_GENS as u64)
}

/// A generation began before the one that it follows.
pub fn gen_time() -> Outcome {
    with_generation(0, |lruvec, _| {
        let before = LruGen::place(lruvec.lrugen.max_seq - 1);
        lruvec.lrugen.timestamps[before] = u64::MAX;
    })
}

/// Calls `f` with the lists of a node, and the one of them with most pages, at least `least`.
fn with_list(least: u64, f: impl Fn(&mut Lruvec, LruKind)) -> Outcome {
    lru_add_drain_all(&Spaces);
    for node in 0..u32::try_from(page_alloc::nr_nodes()).unwrap_or(0) {
        let found = Spaces.lruvec(node, |lruvec| {
            let longest = LruKind::ALL.into_iter().max_by_key(|kind| lruvec.lists[*kind as usize].count);
            let longest = longest.filter(|kind| lruvec.lists[*kind as usize].count >= least);
            longest.map(|kind| f(lruvec, kind)).is_some()
        });
        if found {
            return Ok(());
        }
    }
    Err(NO_PAGES)
}

fn list_of(lruvec: &Lruvec, kind: LruKind) -> LruList {
    lruvec.lists[kind as usize]
}

fn page(pfn: u64) -> Option<&'static Page> {
    static SPACES: Spaces = Spaces;
    if pfn == PFN_NONE { None } else { SPACES.page(Pfn::new(pfn)) }
}

/// A page in the middle of a list.
fn listed() -> Result<&'static Page, &'static str> {
    let found = core::cell::Cell::new(PFN_NONE);
    with_list(3, |lruvec, kind| {
        let second = page(list_of(lruvec, kind).head).map_or(PFN_NONE, Page::next);
        found.set(second);
    })?;
    page(found.get()).ok_or(NO_PAGES)
}

/// The last page of a list links to the first.
pub fn cycle() -> Outcome {
    with_list(2, |lruvec, kind| {
        let list = list_of(lruvec, kind);
        if let Some(last) = page(list.tail) {
            last.set_next(list.head);
        }
    })
}

/// A list counts one page too many.
pub fn count() -> Outcome {
    with_list(1, |lruvec, kind| lruvec.lists[kind as usize].count += 1)
}

/// A zone that has none of a node's pages counts one.
pub fn zone_count() -> Outcome {
    with_list(1, |lruvec, kind| {
        let last = lruvec.zone_pages.len() - 1;
        lruvec.zone_pages[last][kind as usize] += 1;
    })
}

/// A page on an inactive list says it is active.
pub fn active() -> Outcome {
    let page = listed()?;
    if page.has(PageFlags::ACTIVE) {
        page.remove(PageFlags::ACTIVE);
    } else {
        page.insert(PageFlags::ACTIVE);
    }
    Ok(())
}

/// A page of programs on a list says it is one of a file, or the other way round.
pub fn swapbacked() -> Outcome {
    let page = listed()?;
    if page.has(PageFlags::SWAPBACKED) {
        page.remove(PageFlags::SWAPBACKED);
    } else {
        page.insert(PageFlags::SWAPBACKED);
    }
    Ok(())
}

fn isolated_page() -> Result<&'static Page, &'static str> {
    let page = listed()?;
    if folio_isolate_lru(&Spaces, page) { Ok(page) } else { Err(NO_PAGES) }
}

/// A page says it is on a list, and is on none.
pub fn lost() -> Outcome {
    isolated_page()?.insert(PageFlags::LRU);
    Ok(())
}

/// A page that somebody took off its list and forgot.
pub fn unlisted() -> Outcome {
    isolated_page().map(|_| ())
}

/// A page says it waits in a batch, and no batch has it.
pub fn batch_lost() -> Outcome {
    isolated_page()?.insert(PageFlags::LRU_ADD);
    Ok(())
}

/// A node counts a page in reclaim's hands that nobody has.
pub fn isolated() -> Outcome {
    with_list(0, |lruvec, _| lruvec.isolated[1] += 1)
}
