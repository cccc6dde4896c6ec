//! LRU lists.
//!
//! L1  `lru.links`: a list links from head to tail and back without a cycle.
//! L2  `lru.count`: a list is as long as it says, and so are its parts by zone.
//! L3  `lru.page`: a page on a list is a page of programs or files that says so, with flags that name this list, in a zone of this node.
//! L4  `lru.listed`: a page that says it is on a list is on exactly one; a page of programs or files that is on none waits in a batch, and
//!     no other frame says either.
//! L5  `lru.lazyfree`: a page that has a slot of a swap area was not given away by MADV_FREE: it is SWAPBACKED.
//! L6  `lru.isolated`: at rest nobody has pages off the lists.
//!
//! With generations every list of one is a list, too, and has rules of its own besides: see [`crate::lrugen`].

use std::collections::{HashMap, HashSet};

use memvisor_abi::{LruKind, Lruvec, MAX_NR_ZONES, Page, PageFlags, PageKind};
use memvisor_inspect::LruWalk;

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::lrugen;
use crate::owner::for_each_ram_page;

pub(crate) const LINKS: Rule = Rule {
    name: "lru.links",
    invariant: "lists are doubly linked without a cycle",
    reads: "lruvecs, descriptors",
    seeded: &["lru-cycle"],
    hint: "lruvec_add_folio, lruvec_del_folio without the LRU lock; a page on two lists",
};
pub(crate) const COUNT: Rule = Rule {
    name: "lru.count",
    invariant: "count = pages on the list, by zone too",
    reads: "lruvecs, descriptors",
    seeded: &["lru-count", "lru-zone-count", "lrugen-count", "lrugen-zone-count"],
    hint: "update_lru_size beside insertion and removal",
};
pub(crate) const PAGE: Rule = Rule {
    name: "lru.page",
    invariant: "a page on a list is a user page of the node whose flags name the list",
    reads: "lruvecs, descriptors",
    seeded: &["lru-active", "lru-swapbacked"],
    hint: "flags changed on a listed page; __page_cache_release before the page is freed",
};
pub(crate) const LISTED: Rule = Rule {
    name: "lru.listed",
    invariant: "LRU: on one list; a user page is listed or in a batch; other frames say neither",
    reads: "lruvecs, lru_batches, descriptors",
    seeded: &["lru-lost", "lru-unlisted", "lru-batch-lost"],
    hint: "folio_add_lru, folio_putback_lru; an isolated page that nobody put back",
};
pub(crate) const LAZYFREE: Rule = Rule {
    name: "lru.lazyfree",
    invariant: "a page of the swap cache is SWAPBACKED: what MADV_FREE gave away has no slot",
    reads: "descriptors",
    seeded: &["swap-lazyfree"],
    hint: "madvise_free_pte_range before mark_page_lazyfree; lru_lazyfree_fn",
};
pub(crate) const ISOLATED: Rule = Rule {
    name: "lru.isolated",
    invariant: "at rest reclaim has no page in its hands",
    reads: "lruvecs",
    seeded: &["lru-isolated"],
    hint: "move_folios_to_lru; NR_ISOLATED_ANON, NR_ISOLATED_FILE",
};

const RULES: [&Rule; 8] = [&LINKS, &COUNT, &PAGE, &LISTED, &LAZYFREE, &ISOLATED, &lrugen::PAGE, &lrugen::SEQ];

/// Runs L1 to L6.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &RULES) {
        return;
    }
    let (Ok(lruvecs), Ok(batches)) = (context.guest.lruvecs(), context.guest.lru_batches()) else {
        RULES.iter().for_each(|rule| ledger.skip(rule, "the lists cannot be read"));
        return;
    };
    if lruvecs.is_empty() {
        RULES.iter().for_each(|rule| ledger.skip(rule, "the guest publishes no LRU lists"));
        return;
    }
    let mut listed: HashMap<u64, u32> = HashMap::new();
    let mut broken = false;
    for (node, lruvec) in lruvecs.iter().enumerate() {
        let Ok(walks) = context.guest.lru_lists(node, lruvec) else { continue };
        for walk in &walks {
            broken |= walk.problem.is_some();
            list(context, lruvec, walk, ledger);
            walk.pfns.iter().for_each(|pfn| *listed.entry(*pfn).or_default() += 1);
        }
        let Ok(walks) = context.guest.lru_gens(node, lruvec) else { continue };
        broken |= lrugen::run(context, lruvec, &walks, ledger);
        walks.iter().flat_map(|walk| &walk.pfns).for_each(|pfn| *listed.entry(*pfn).or_default() += 1);
        for (kind, isolated) in ["anonymous pages", "pages of files"].into_iter().zip(lruvec.isolated) {
            ledger.expect_eq(&ISOLATED, format_args!("node {node}: isolated {kind}"), isolated, 0);
        }
    }
    let noted = batches.iter().filter_map(|cpu| cpu.first()).flat_map(|batch| {
        let len = usize::try_from(batch.len).unwrap_or(usize::MAX);
        batch.pfns.iter().take(len).copied()
    });
    frames(context, (&listed, broken), &noted.collect(), ledger);
}

fn list(context: &Context<'_>, lruvec: &Lruvec, walk: &LruWalk, ledger: &mut Ledger) {
    let name = format!("node {}, {}", walk.node, walk.kind.name());
    ledger.checked(&LINKS, 1);
    if let Some(problem) = &walk.problem {
        ledger.report(&LINKS, finding(&LINKS, &name, "well linked", problem.to_string()));
        return;
    }
    ledger.expect_eq(&COUNT, format_args!("{name}: count"), walk.list.count, walk.pfns.len() as u64);
    let mut zones = [0_u64; MAX_NR_ZONES];
    for &pfn in &walk.pfns {
        let Some(page) = context.page(pfn) else { continue };
        ledger.checked(&PAGE, 1);
        if let Some(zone) = zones.get_mut(page.zone() as usize) {
            *zone += 1;
        }
        if let Some(claim) = wrong(&page, walk) {
            ledger.report(&PAGE, finding(&PAGE, &name, claim, "it is on this list").frame(pfn));
        }
    }
    if lruvec.lrugen.enabled != 0 && walk.kind != LruKind::Unevictable {
        // The zones count what generations have.
        ledger.expect_eq(&COUNT, format_args!("{name}: pages beside the generations"), walk.list.count, 0);
        return;
    }
    for (zone, (counts, found)) in lruvec.zone_pages.iter().zip(zones).enumerate() {
        let says = counts.get(walk.kind as usize).copied().unwrap_or(0);
        ledger.expect_eq(&COUNT, format_args!("{name}: pages of zone {zone}"), says, found);
    }
}

/// What a page on a list says that it must not.
fn wrong(page: &Page, walk: &LruWalk) -> Option<String> {
    let flags = page.page_flags();
    let says = kind_of(flags);
    if !flags.contains(PageFlags::LRU) {
        return Some("it says it is on no list".to_owned());
    }
    if page.kind != PageKind::User as u8 || page.refcount < 1 {
        let kind = PageKind::from_raw(page.kind).map_or("of undefined kind", PageKind::name);
        return Some(format!("it is {kind} with {} references", page.refcount));
    }
    if says != walk.kind {
        return Some(format!("its flags name {}", says.name()));
    }
    (page.node() as usize != walk.node).then(|| format!("it is of node {}", page.node()))
}

/// The list that flags name.
fn kind_of(flags: PageFlags) -> LruKind {
    let (active, anon) = (flags.contains(PageFlags::ACTIVE), flags.contains(PageFlags::SWAPBACKED));
    match (active, anon) {
        _ if flags.contains(PageFlags::UNEVICTABLE) => LruKind::Unevictable,
        (false, true) => LruKind::InactiveAnon,
        (true, true) => LruKind::ActiveAnon,
        (false, false) => LruKind::InactiveFile,
        (true, false) => LruKind::ActiveFile,
    }
}

/// L4: from the frames to the lists. A broken list says nothing about what is not on it.
fn frames(
    context: &Context<'_>,
    (listed, broken): (&HashMap<u64, u32>, bool),
    noted: &HashSet<u64>,
    ledger: &mut Ledger,
) {
    let (mut checked, mut cached, mut wrong) = (0, 0, Vec::new());
    for_each_ram_page(context, &mut |pfn, page| {
        let flags = page.page_flags();
        // Pages of programs and files have an owner; the kernel's own tests have user pages without.
        let is_user = page.kind == PageKind::User as u8 && page.mapping != 0;
        let (lru, add) = (flags.contains(PageFlags::LRU), flags.contains(PageFlags::LRU_ADD));
        let lists = listed.get(&pfn).copied().unwrap_or(0);
        if !is_user && !lru && !add {
            return;
        }
        checked += 1;
        if flags.contains(PageFlags::SWAPCACHE) {
            cached += 1;
            if !flags.contains(PageFlags::SWAPBACKED) {
                wrong.push((&LAZYFREE, pfn, "given away", "it has a slot of a swap area".to_owned()));
            }
        }
        let (claim, outside) = match (lru, add, lists) {
            (true, true, _) => ("both on a list and in a batch", "one of them".to_owned()),
            (false, _, _) if flags.lru_gen().is_some() => {
                ("on a generation's list", "it says it is on no list".to_owned())
            }
            (true, false, 0) if !broken => ("on a list", "it is on none".to_owned()),
            (_, _, 2..) => ("on a list", format!("it is on {lists}")),
            (false, true, _) if !noted.contains(&pfn) => ("in a batch", "it is in none".to_owned()),
            (true, _, _) | (_, true, _) if page.refcount < 1 => {
                ("on a list or in a batch", "it is free".to_owned())
            }
            (false, false, _) if !flags.contains(PageFlags::ISOLATED) => {
                ("a page of programs or files", "it is neither on a list nor in a batch".to_owned())
            }
            _ => return,
        };
        wrong.push((&LISTED, pfn, claim, outside));
    });
    ledger.checked(&LISTED, checked);
    ledger.checked(&LAZYFREE, cached);
    for (rule, pfn, claim, outside) in wrong {
        ledger.report(rule, finding(rule, format_args!("frame {pfn:#x}"), claim, outside).frame(pfn));
    }
}
