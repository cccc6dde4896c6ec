//! The page cache: trees of mappings against descriptors and counts.
//!
//! P1  `cache.tree`: what a tree has at an index is a page that says it is there, and every page that says so is in the tree; `nrpages` is
//!     how many.
//! P2  `cache.marks`: of a mapping that is written back, a page that is dirty or being written has the tree's mark, and every node above
//!     repeats it, so that whoever writes or waits finds it. (A dirty page keeps its mark while it is locked.)
//! P3  `cache.counts`: the counts of pages in mappings, of dirty ones and of those being written are the pages and their flags.
//! P4  `cache.shadows`: a node at the bottom of a file's tree is on the list of shadow nodes if and only if all it holds are values, which
//!     it says itself; the list and what zones count of it are as long as it says.

use std::collections::{BTreeMap, BTreeSet};

use memvisor_abi::{Mapping, MappingNode, NodeStat, Page, PageFlags, PageKind};
use memvisor_inspect::CachedPage;

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::owner::for_each_ram_page;

pub(crate) const TREE: Rule = Rule {
    name: "cache.tree",
    invariant: "a tree has the pages that name its mapping, where they say",
    reads: "Mapping, MappingNode, descriptors",
    seeded: &["cache-nrpages", "cache-index"],
    hint: "filemap_add_folio, delete_from_page_cache, remove_mapping",
};
pub(crate) const MARKS: Rule = Rule {
    name: "cache.marks",
    invariant: "pages that are dirty or being written are marked in the tree",
    reads: "Mapping, MappingNode, descriptors",
    seeded: &["cache-unmarked", "cache-writeback-flag"],
    hint: "folio_mark_dirty, folio_start_writeback, folio_end_writeback",
};
pub(crate) const COUNTS: Rule = Rule {
    name: "cache.counts",
    invariant: "NR_FILE_PAGES, NR_FILE_DIRTY, NR_WRITEBACK are the pages and their flags",
    reads: "FileCounts, Mapping, descriptors",
    seeded: &["cache-dirty-count", "cache-writeback-count"],
    hint: "folio_account_dirtied, folio_account_cleaned",
};

pub(crate) const SHADOWS: Rule = Rule {
    name: "cache.shadows",
    invariant: "the nodes of files' trees that hold nothing but shadows are on the list that reclaim frees nodes from",
    reads: "ShadowNodes, MappingNode, Mapping, NodeStats",
    seeded: &["shadow-nodes-count", "shadow-node-values", "shadow-node-lost"],
    hint: "workingset_update_node, scan_shadow_nodes",
};

/// Dirty, writeback.
const MARK_OF: [(PageFlags, usize, &str); 2] =
    [(PageFlags::DIRTY, 0, "dirty"), (PageFlags::WRITEBACK, 1, "being written")];

/// Pages that name a mapping, by frame.
type Named = BTreeMap<u64, Page>;

/// Runs P1 to P4.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    shadows(context, ledger);
    if !context.needs_zones(ledger, &[&TREE, &MARKS, &COUNTS]) {
        return;
    }
    let mut mappings: BTreeMap<u64, Named> = BTreeMap::new();
    for_each_ram_page(context, &mut |pfn, page| {
        let is_file = page.kind == PageKind::User as u8 && page.mapping & Page::MAPPING_ANON == 0;
        if is_file && page.mapping != 0 && page.refcount > 0 {
            mappings.entry(page.mapping).or_default().insert(pfn, *page);
        }
    });
    for rule in [&TREE, &MARKS] {
        ledger.checked(rule, 1);
    }
    let (mut pages, mut dirty, mut writeback) = (0, 0, 0);
    for (gpa, named) in mappings {
        let mapping = match context.guest.mapping(gpa) {
            Ok(mapping) if mapping.flags & Mapping::HOLDS_PAGES != 0 => mapping,
            // It keeps no tree.
            Ok(_) => continue,
            Err(problem) => {
                let what = finding(&TREE, format!("mapping {gpa:#x}"), "has pages", problem.to_string());
                ledger.report(&TREE, what);
                continue;
            }
        };
        let found = context.guest.cached_pages(&mapping);
        tree(gpa, &mapping, (&named, &found), ledger);
        pages += found.len() as u64;
        if mapping.flags & Mapping::WRITTEN_BACK != 0 {
            unlisted(context, gpa, &mapping, ledger);
            marks(gpa, &named, &found, ledger);
            let with = |flag| named.values().filter(|page| page.page_flags().contains(flag)).count() as u64;
            dirty += with(PageFlags::DIRTY);
            writeback += with(PageFlags::WRITEBACK);
        }
    }
    let counts = context.guest.file_counts().ok().and_then(|counts| counts.first().copied());
    match counts {
        None => ledger.skip(&COUNTS, "the guest publishes no counts of its page cache"),
        Some(counts) if counts.busy != 0 => ledger.skip(&COUNTS, "somebody is changing a flag just now"),
        Some(counts) => {
            let all = [
                ("pages in mappings", counts.nr_file_pages, pages),
                ("dirty pages", counts.nr_file_dirty, dirty),
                ("pages being written", counts.nr_writeback, writeback),
            ];
            for (name, guest, outside) in all {
                ledger.expect_eq(&COUNTS, name, guest, outside);
            }
        }
    }
}

/// P4: what is on the list belongs there.
fn shadows(context: &Context<'_>, ledger: &mut Ledger) {
    let (list, nodes) = match context.guest.shadow_nodes() {
        Ok(Some(found)) => found,
        Ok(None) => return ledger.skip(&SHADOWS, "the guest publishes no list of shadow nodes"),
        Err(problem) => return ledger.skip(&SHADOWS, &problem.to_string()),
    };
    if let Some(problem) = &nodes.problem {
        let what = finding(&SHADOWS, "the list of shadow nodes", "is a list", problem.to_string());
        ledger.report(&SHADOWS, what);
    }
    let found = nodes.items.len() as u64;
    ledger.expect_eq(&SHADOWS, "nodes on the list of shadow nodes", list.count, found);
    ledger.expect_eq(&SHADOWS, "its last node", list.tail, nodes.items.last().map_or(0, |last| last.gpa));
    if let Ok(counts) = context.guest.node_stats() {
        let counted: u64 = counts.iter().map(|counts| counts[NodeStat::WorkingsetNodes as usize]).sum();
        ledger.expect_eq(&SHADOWS, "workingset_nodes", counted, found);
    }
    for at in &nodes.items {
        ledger.checked(&SHADOWS, 1);
        let wrong = if !has_only_values(&at.node) {
            "it holds something else, or nothing"
        } else if !context.guest.is_in_its_tree(at) {
            "the mapping that it names does not have it"
        } else {
            continue;
        };
        let what =
            finding(&SHADOWS, format!("node {:#x}", at.gpa), "it is on the list of shadow nodes", wrong);
        ledger.report(&SHADOWS, what);
    }
}

/// P4: of a file on a disk, what belongs on the list says that it is there.
fn unlisted(context: &Context<'_>, gpa: u64, mapping: &Mapping, ledger: &mut Ledger) {
    for at in context.guest.leaves(mapping) {
        ledger.checked(&SHADOWS, 1);
        let expected = if has_only_values(&at.node) { gpa } else { 0 };
        if at.node.mapping != expected {
            let claim =
                if at.node.mapping == 0 { "it is on no list" } else { "it is on the list of shadow nodes" };
            let outside =
                format!("it holds {} values, {} entries", at.node.values.count_ones(), entries(&at.node));
            ledger.report(&SHADOWS, finding(&SHADOWS, format!("node {:#x}", at.gpa), claim, outside));
        }
    }
}

/// Slots in use, by what is in them.
fn entries(node: &MappingNode) -> usize {
    node.slots.iter().filter(|&&entry| entry != 0).count()
}

/// Whether a node's slots hold values and nothing else, and it says so.
fn has_only_values(node: &MappingNode) -> bool {
    let bits = |is: fn(u64) -> bool| {
        (0..).zip(node.slots).filter(|&(_, entry)| is(entry)).fold(0, |bits, (slot, _)| bits | 1_u64 << slot)
    };
    let values = bits(|entry| entry & 1 != 0);
    node.shift == 0 && values != 0 && values == bits(|entry| entry != 0) && values == node.values
}

fn tree(gpa: u64, mapping: &Mapping, (named, found): (&Named, &[CachedPage]), ledger: &mut Ledger) {
    ledger.expect_eq(&TREE, format_args!("mapping {gpa:#x}: nrpages"), mapping.nrpages, found.len() as u64);
    for cached in found {
        ledger.checked(&TREE, 1);
        let wrong = match named.get(&cached.pfn) {
            None => Some("names another mapping, or none".to_owned()),
            Some(page) if page.index != cached.index => Some(format!("says index {:#x}", page.index)),
            Some(_) => None,
        };
        if let Some(wrong) = wrong {
            let claim = format!("index {:#x} of mapping {gpa:#x}", cached.index);
            let what =
                finding(&TREE, format!("pfn {:#x}", cached.pfn), claim, format!("its descriptor {wrong}"));
            ledger.report(&TREE, what.frame(cached.pfn));
        }
    }
    let in_tree: BTreeSet<u64> = found.iter().map(|cached| cached.pfn).collect();
    for (pfn, page) in named.iter().filter(|(pfn, _)| !in_tree.contains(pfn)) {
        let claim = format!("index {:#x} of mapping {gpa:#x}", page.index);
        let what = finding(&TREE, format!("pfn {pfn:#x}"), claim, "the tree does not have it");
        ledger.report(&TREE, what.frame(*pfn));
    }
}

fn marks(gpa: u64, named: &Named, found: &[CachedPage], ledger: &mut Ledger) {
    for cached in found {
        let Some(page) = named.get(&cached.pfn) else { continue };
        let flags = page.page_flags();
        for (flag, mark, name) in MARK_OF {
            ledger.checked(&MARKS, 1);
            let marked = cached.marks & 1 << mark != 0;
            // The mark of a page that was just made clean for its write stays until that begins.
            let between = mark == 0 && marked && flags.contains(PageFlags::LOCKED);
            if flags.contains(flag) != marked && !between {
                let text = |is: bool| format!("{}{name}", if is { "" } else { "not " });
                let claim = format!("the descriptor says {}", text(!marked));
                let outside = format!(
                    "the tree of mapping {gpa:#x} says {} at index {:#x}",
                    text(marked),
                    cached.index
                );
                let what = finding(&MARKS, format!("pfn {:#x}", cached.pfn), claim, outside);
                ledger.report(&MARKS, what.frame(cached.pfn));
            }
        }
    }
}
