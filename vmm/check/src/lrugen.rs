//! Generations of pages.
//!
//! G1  `lru.gen`: a page on the list of a generation says its place, and is a page of programs or files of the list's type, zone and node; no
//!     other page says a place.
//! G2  `lru.gen-seq`: a type has at least two generations and at most four, none of which began in the future of a younger one; pages are
//!     in no other.
//!
//! L1 and L2 hold for each list, and a zone counts the two youngest generations as active, the others as inactive.

use memvisor_abi::{
    LruGen, LruKind, Lruvec, MAX_NR_GENS, MAX_NR_ZONES, MIN_NR_GENS, NR_LRU_LISTS, Page, PageFlags, PageKind,
};
use memvisor_inspect::LruGenWalk;

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::lru::{COUNT, LINKS};

pub(crate) const PAGE: Rule = Rule {
    name: "lru.gen",
    invariant: "a page on a generation's list says its place, and is of the list's type, zone and node",
    reads: "lruvecs, descriptors",
    seeded: &["lrugen-place", "lrugen-active"],
    hint: "lru_gen_add_folio, lru_gen_del_folio; flags changed on a listed page",
};
pub(crate) const SEQ: Rule = Rule {
    name: "lru.gen-seq",
    invariant: "two to four generations of a type, begun one after the other; no page in another",
    reads: "lruvecs",
    seeded: &["lrugen-seq", "lrugen-time"],
    hint: "inc_max_seq, inc_min_seq, try_to_inc_min_seq; pages left behind in a generation that ended",
};

/// Runs the rules for a node; whether a list is broken.
pub(crate) fn run(context: &Context<'_>, lruvec: &Lruvec, walks: &[LruGenWalk], ledger: &mut Ledger) -> bool {
    if lruvec.lrugen.enabled == 0 {
        return false;
    }
    let node = walks.first().map_or(0, |walk| walk.node);
    seqs(&lruvec.lrugen, node, ledger);
    let mut broken = false;
    let mut sums = [[0_u64; NR_LRU_LISTS]; MAX_NR_ZONES];
    for walk in walks {
        let name = walk.name();
        ledger.checked(&LINKS, 1);
        if let Some(problem) = &walk.problem {
            broken = true;
            ledger.report(&LINKS, finding(&LINKS, &name, "well linked", problem.to_string()));
        } else {
            ledger.expect_eq(&COUNT, format_args!("{name}: count"), walk.list.count, walk.pfns.len() as u64);
        }
        for &pfn in &walk.pfns {
            let Some(page) = context.page(pfn) else { continue };
            ledger.checked(&PAGE, 1);
            if let Some(claim) = wrong(&page, walk) {
                ledger.report(&PAGE, finding(&PAGE, &name, claim, "it is on this list").frame(pfn));
            }
        }
        let kind = counted_as(&lruvec.lrugen, walk) as usize;
        if let Some(sum) = sums.get_mut(walk.zone).and_then(|zone| zone.get_mut(kind)) {
            *sum = sum.saturating_add(walk.pfns.len() as u64);
        }
    }
    if broken {
        return true;
    }
    for (zone, (sums, says)) in sums.iter().zip(&lruvec.zone_pages).enumerate() {
        for kind in LruKind::ALL.into_iter().filter(|kind| *kind != LruKind::Unevictable) {
            let what = format!("node {node}, {} of generations, zone {zone}", kind.name());
            ledger.expect_eq(&COUNT, format_args!("{what}"), says[kind as usize], sums[kind as usize]);
        }
    }
    false
}

/// What a zone counts the pages of a list as.
fn counted_as(lrugen: &LruGen, walk: &LruGenWalk) -> LruKind {
    match (walk.kind == 0, lrugen.is_active(walk.place)) {
        (true, false) => LruKind::InactiveAnon,
        (true, true) => LruKind::ActiveAnon,
        (false, false) => LruKind::InactiveFile,
        (false, true) => LruKind::ActiveFile,
    }
}

/// G2.
fn seqs(lrugen: &LruGen, node: usize, ledger: &mut Ledger) {
    for (kind, (name, min)) in memvisor_abi::LRU_GEN_TYPE_NAMES.iter().zip(lrugen.min_seq).enumerate() {
        ledger.checked(&SEQ, 1);
        let number = lrugen.nr_gens(kind);
        let what = format!("node {node}, {name}");
        if !(MIN_NR_GENS..=MAX_NR_GENS as u64).contains(&number) {
            let claim = format!("generations {min} to {}", lrugen.max_seq);
            ledger.report(&SEQ, finding(&SEQ, &what, claim, "that is not two to four"));
            continue;
        }
        let is_used = |place: usize| (min..=lrugen.max_seq).any(|seq| LruGen::place(seq) == place);
        for (place, types) in lrugen.lists.iter().enumerate().filter(|(place, _)| !is_used(*place)) {
            let pages = types[kind].iter().fold(0_u64, |sum, list| sum.saturating_add(list.count));
            if pages > 0 {
                let outside = format!("{pages} pages are at place {place}");
                ledger.report(&SEQ, finding(&SEQ, &what, "no generation there", outside));
            }
        }
        for seq in min..lrugen.max_seq {
            let [older, younger] = [seq, seq + 1].map(|seq| lrugen.timestamps[LruGen::place(seq)]);
            if older > younger {
                let claim = format!("generation {seq} began at {older} ns");
                let outside = format!("the next began at {younger} ns");
                ledger.report(&SEQ, finding(&SEQ, &what, claim, outside));
            }
        }
    }
}

/// What a page on a list says that it must not.
fn wrong(page: &Page, walk: &LruGenWalk) -> Option<String> {
    let flags = page.page_flags();
    if !flags.contains(PageFlags::LRU) {
        return Some("it says it is on no list".to_owned());
    }
    if page.kind != PageKind::User as u8 || page.refcount < 1 {
        let kind = PageKind::from_raw(page.kind).map_or("of undefined kind", PageKind::name);
        return Some(format!("it is {kind} with {} references", page.refcount));
    }
    match flags.lru_gen() {
        Some(place) if place == walk.place => {}
        Some(place) => return Some(format!("its flags name place {place}")),
        None => return Some("its flags name no generation".to_owned()),
    }
    if flags.intersects(PageFlags::ACTIVE | PageFlags::UNEVICTABLE) {
        return Some("it is active or unevictable, too".to_owned());
    }
    if usize::from(!flags.contains(PageFlags::SWAPBACKED)) != walk.kind {
        return Some("it is of the other type".to_owned());
    }
    if page.zone() as usize != walk.zone || page.node() as usize != walk.node {
        return Some(format!("it is of zone {} of node {}", page.zone(), page.node()));
    }
    None
}
