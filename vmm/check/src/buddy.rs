//! Free lists of the buddy allocator.
//!
//! B1  `buddy.alignment`: a free block of order n starts at a multiple of 2^n.
//! B2  `buddy.merge`: two free buddies never coexist below the largest order in one zone.
//! B3  `buddy.list`: links lead from head to tail and back without a cycle, and the first frame of
//!     each block is described as a free block of the list's order.
//! B4  `buddy.zone`: the block's node and zone bits are those of the list.
//! B5  `buddy.nr_free`: the list's counter is the number of its blocks.
//! B6  `buddy.in-ram`: every frame of a free block is E820 RAM.

use std::collections::HashSet;

use memvisor_abi::{NR_ORDERS, PageKind};
use memvisor_inspect::{FreeList, ListProblem};

use crate::Rule;
use crate::context::Context;
use crate::frames::{Frames, gaps};
use crate::ledger::{Ledger, finding};
use crate::zones::{zone_kind, zone_name, zone_node};

pub(crate) const ALIGNMENT: Rule = Rule {
    name: "buddy.alignment",
    invariant: "a free block of order n starts at a multiple of 2^n",
    reads: "free lists",
    seeded: &["buddy-misaligned"],
    hint: "splitting and merging: pfn arithmetic",
};
pub(crate) const MERGE: Rule = Rule {
    name: "buddy.merge",
    invariant: "no two free buddies of one order below the largest",
    reads: "free lists",
    seeded: &["buddy-unmerged"],
    hint: "__free_one_page: the merge loop's conditions",
};
pub(crate) const LIST: Rule = Rule {
    name: "buddy.list",
    invariant: "lists are doubly linked without a cycle; blocks are marked free",
    reads: "free lists, descriptors",
    seeded: &["buddy-cycle"],
    hint: "list insertion and removal; a write to a free frame's descriptor",
};
pub(crate) const ZONE: Rule = Rule {
    name: "buddy.zone",
    invariant: "a free block's node and zone bits are those of its list",
    reads: "free lists, descriptors",
    seeded: &["buddy-wrong-zone"],
    hint: "page_zone() of the freed page",
};
pub(crate) const NR_FREE: Rule = Rule {
    name: "buddy.nr_free",
    invariant: "nr_free = blocks on the list",
    reads: "zones, free lists",
    seeded: &["buddy-nr-free"],
    hint: "the counter's update beside list insertion and removal",
};
pub(crate) const IN_RAM: Rule = Rule {
    name: "buddy.in-ram",
    invariant: "every frame of a free block is E820 RAM",
    reads: "free lists; E820 map",
    seeded: &[],
    hint: "hand-over from memblock; pfn_valid in the merge loop",
};

/// Runs B1 to B6.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &[&ALIGNMENT, &MERGE, &LIST, &ZONE, &NR_FREE, &IN_RAM]) {
        return;
    }
    for list in &context.free_lists {
        links(list, ledger);
        blocks(context, list, ledger);
        buddies(list, ledger);
    }
}

/// Whether `blocks` of the list is not all of it, so that nothing may be concluded from its length.
pub(crate) fn breaks_the_walk(list: &FreeList) -> bool {
    match list.problem {
        None | Some(ListProblem::Tail { .. } | ListProblem::Count { .. }) => false,
        Some(_) => true,
    }
}

/// The frames of a block of a list.
pub(crate) fn block_frames(list: &FreeList, first: u64) -> Frames {
    Frames::from_count(first, 1 << list.order.min(NR_ORDERS))
}

fn list_name(list: &FreeList) -> String {
    format!("{} order {} {}", zone_name(list.zone_index), list.order, list.migratetype.name())
}

fn links(list: &FreeList, ledger: &mut Ledger) {
    ledger.checked(&LIST, 1);
    match &list.problem {
        None | Some(ListProblem::Count { .. }) => {}
        Some(problem) => {
            let frame = match *problem {
                ListProblem::NoDescriptor { from, .. } if list.blocks.last() == Some(&from) => Some(from),
                ListProblem::Cycle { pfn, .. } | ListProblem::BackLink { pfn, .. } => Some(pfn),
                ListProblem::Tail { last, .. } => list.blocks.last().copied().filter(|&block| block == last),
                _ => None,
            };
            let claim = format!("{} blocks, well linked", list.nr_free);
            let mut what = finding(&LIST, list_name(list), claim, problem.to_string());
            what.frame = frame;
            ledger.report(&LIST, what);
        }
    }
    if !breaks_the_walk(list) {
        let walked = list.blocks.len() as u64;
        ledger.expect_eq(&NR_FREE, format_args!("{}: nr_free", list_name(list)), list.nr_free, walked);
    }
}

fn blocks(context: &Context<'_>, list: &FreeList, ledger: &mut Ledger) {
    let walked = list.blocks.len() as u64;
    for rule in [&ALIGNMENT, &LIST, &ZONE, &IN_RAM] {
        ledger.checked(rule, walked);
    }
    let (node, kind) = (zone_node(list.zone_index), zone_kind(list.zone_index));
    for &pfn in &list.blocks {
        let frames = block_frames(list, pfn);
        let name = list_name(list);
        if !pfn.is_multiple_of(frames.len()) {
            let outside = format!("{pfn:#x} is no multiple of {:#x}", frames.len());
            let claim = format!("{pfn:#x} is a free block");
            ledger.report(&ALIGNMENT, finding(&ALIGNMENT, &name, claim, outside).frame(pfn));
        }
        for hole in gaps(&context.machine.ram, frames) {
            let what =
                finding(&IN_RAM, &name, "a free block", format!("{hole} of it not RAM")).frame(hole.start);
            ledger.report(&IN_RAM, what);
        }
        let Some(page) = context.page(pfn) else { continue };
        if page.kind != PageKind::Buddy as u8 || usize::from(page.order) != list.order {
            let kind = PageKind::from_raw(page.kind).map_or("of undefined kind", PageKind::name);
            let claim = format!("the descriptor is {kind}, order {}", page.order);
            let outside = format!("it is on the list of order {}", list.order);
            ledger.report(&LIST, finding(&LIST, &name, claim, outside).frame(pfn));
        }
        if page.node() != node || page.zone() != kind as u32 {
            let claim = format!("the block belongs to node {} zone {}", page.node(), page.zone());
            let outside = format!("it is on a list of {}", zone_name(list.zone_index));
            ledger.report(&ZONE, finding(&ZONE, &name, claim, outside).frame(pfn));
        }
    }
}

fn buddies(list: &FreeList, ledger: &mut Ledger) {
    // Blocks of the largest order have no buddy to merge with.
    if list.order + 1 >= NR_ORDERS {
        return;
    }
    ledger.checked(&MERGE, list.blocks.len() as u64);
    let size = 1_u64 << list.order;
    let free: HashSet<u64> = list.blocks.iter().copied().collect();
    for &pfn in &list.blocks {
        let buddy = pfn ^ size;
        if pfn.is_multiple_of(size) && pfn < buddy && free.contains(&buddy) {
            let claim = format!("{pfn:#x} and {buddy:#x} are two blocks");
            let what = finding(
                &MERGE,
                list_name(list),
                claim,
                "they are buddies, and must be one of the next order",
            );
            ledger.report(&MERGE, what.frame(pfn));
        }
    }
}
