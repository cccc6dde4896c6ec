//! From pages to entries: counts and lists (Linux: mm/rmap.c).
//!
//! R1  `rmap.refcount`: a user page's references are the entries that map it, and one if its mapping holds its pages. What a
//!     mapping holds without an entry has that one. Whoever has it locked may have one more. (`memmap.refcount` has mapcount.)
//! R2  `rmap.lists`: lists from an anon_vma and from a mapping to VMAs can be followed both ways and lead to VMAs of
//!     address spaces; a VMA with an anon_vma or a mapping is on its list, and its own list of anon_vmas has it.
//! R3  `rmap.finds`: the lists of every page that an entry maps or waits for lead to that entry: through its owner, at its index. So no
//!     frame is in two address spaces but by fork (they are linked to one anon_vma) or by a mapping that both map.
//!
//! The zero page, and what VMAs of devices map (VM_PFNMAP, VM_MIXEDMAP, VM_IO), is not counted and has no lists.

use std::collections::BTreeSet;

use memvisor_abi::{Page, PageFlags, PageKind};
use memvisor_inspect::{MmSpace, RmapIndex, RmapPlace, VmaAt};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::owner::for_each_ram_page;
use crate::processes::{Process, Processes};
use crate::{swap, vma};

pub(crate) const REFCOUNT: Rule = Rule {
    name: "rmap.refcount",
    invariant: "a user page has as many references as entries and caches",
    reads: "descriptors, page tables, Mappings",
    seeded: &["refcount-lost", "refcount-leaked"],
    hint: "get_page and put_page: fork, copy on write, gather",
};
pub(crate) const LISTS: Rule = Rule {
    name: "rmap.lists",
    invariant: "anon_vma and mapping lists are whole and have every VMA",
    reads: "Vma lists, AnonVmas, AnonVmaChains, Mappings",
    seeded: &["anon-list"],
    hint: "anon_vma_prepare, anon_vma_clone, anon_vma_fork, unlink_anon_vmas",
};
pub(crate) const FINDS: Rule = Rule {
    name: "rmap.finds",
    invariant: "the lists of every mapped page lead to all its entries",
    reads: "descriptors, page tables, AnonVmas, Mappings",
    seeded: &["anon-index", "foreign-frame", "vma-merged"],
    hint: "page_add_new_anon_rmap, merging of VMAs (pgoff, anon_vma), mremap",
};

/// Runs R1 to R3.
pub(crate) fn run(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    references(context, processes, ledger);
    let spaces: Vec<MmSpace> = processes.list.iter().map(|process| process.at.clone()).collect();
    let mut index = RmapIndex::new(&spaces);
    lists(context, processes, &mut index, ledger);
    finds(context, processes, &mut index, ledger);
}

/// Whoever has a page locked has a reference: the flusher that waits for a write is one, wherever programs are.
fn lockers(page: &Page) -> i64 {
    i64::from(page.page_flags().contains(PageFlags::LOCKED))
}

fn references(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    for (pfn, entries) in processes.counted() {
        let Some(page) = processes.page(pfn).filter(|page| page.kind == PageKind::User as u8) else {
            continue;
        };
        ledger.checked(&REFCOUNT, 1);
        let held = is_cached(context, pfn, page);
        let outside = i64::from(entries) + i64::from(held);
        if i64::from(page.refcount) != outside && i64::from(page.refcount) != outside + lockers(page) {
            let words = if held { " and its mapping hold it" } else { " hold it" };
            let claim = format!("{} references", page.refcount);
            let what =
                finding(&REFCOUNT, format!("pfn {pfn:#x}"), claim, format!("{entries} entries{words}"));
            ledger.report(&REFCOUNT, what.frame(pfn));
        }
    }
    // What caches hold and nobody maps.
    for_each_ram_page(context, &mut |pfn, page| {
        let unmapped = page.kind == PageKind::User as u8 && processes.entries_of(pfn) == 0;
        let outside = 1 + lockers(page);
        if unmapped && i64::from(page.refcount) > outside && is_cached(context, pfn, page) {
            let claim = format!("{} references", page.refcount);
            let what = finding(&REFCOUNT, format!("pfn {pfn:#x}"), claim, "only its mapping holds it");
            ledger.report(&REFCOUNT, what.frame(pfn));
        }
    });
}

/// Whether the page's mapping has it, or the swap cache, and so a reference of it.
pub(crate) fn is_cached(context: &Context<'_>, pfn: u64, page: &Page) -> bool {
    swap::is_cached(context, pfn, page) || is_in_mapping(context, pfn, page)
}

fn is_in_mapping(context: &Context<'_>, pfn: u64, page: &Page) -> bool {
    page.mapping != 0
        && page.mapping & Page::MAPPING_ANON == 0
        && context.guest.cached_page(page.mapping, page.index) == Some(pfn)
}

fn lists(context: &Context<'_>, processes: &Processes, index: &mut RmapIndex, ledger: &mut Ledger) {
    let guest = &context.guest;
    let mut known = BTreeSet::new();
    let broken = |ledger: &mut Ledger, what: String, outside: String, va: u64| {
        ledger.report(&LISTS, finding(&LISTS, what, "the lists are whole", outside).address(va));
    };
    for process in &processes.list {
        for at in &process.at.vmas.items {
            ledger.checked(&LISTS, 1);
            let name = vma::text(process.pid(), at);
            let anons = guest.vma_anon_vmas(at);
            if let Some(problem) = anons.problem {
                broken(ledger, name.clone(), problem.to_string(), at.vma.start);
            }
            if at.vma.anon_vma != 0 && !anons.items.contains(&at.vma.anon_vma) {
                let outside = format!("its own list has not its anon_vma {:#x}", at.vma.anon_vma);
                broken(ledger, name.clone(), outside, at.vma.start);
            }
            let mut owners: Vec<u64> = anons.items.iter().map(|gpa| gpa | Page::MAPPING_ANON).collect();
            owners.extend((at.vma.mapping != 0).then_some(at.vma.mapping));
            for owner in owners {
                if known.insert(owner) {
                    owner_list(context, owner, index, ledger);
                }
                if !index.list(guest, owner).items.contains(&at.gpa) {
                    broken(
                        ledger,
                        name.clone(),
                        format!("the list of {} has it not", owner_text(owner)),
                        at.vma.start,
                    );
                }
            }
        }
    }
}

/// The list of one anon_vma or mapping by itself.
fn owner_list(context: &Context<'_>, owner: u64, index: &mut RmapIndex, ledger: &mut Ledger) {
    let list = index.list(&context.guest, owner).clone();
    let mut problems: Vec<String> = list.problem.iter().map(ToString::to_string).collect();
    let stray = list.items.iter().filter(|gpa| index.vma(**gpa).is_none());
    problems.extend(stray.map(|gpa| format!("the VMA at {gpa:#x} is on the list, and in no address space")));
    for outside in problems {
        ledger.report(&LISTS, finding(&LISTS, owner_text(owner), "the lists are whole", outside));
    }
}

fn owner_text(owner: u64) -> String {
    if owner & Page::MAPPING_ANON != 0 {
        format!("anon_vma {:#x}", owner & !Page::MAPPING_ANON)
    } else {
        format!("mapping {owner:#x}")
    }
}

fn finds(context: &Context<'_>, processes: &Processes, index: &mut RmapIndex, ledger: &mut Ledger) {
    for (space, process) in processes.list.iter().enumerate() {
        for (entry, vma) in process.with_vmas().filter(|(entry, _)| processes.is_counted(entry)) {
            // Without a VMA it is E1's, without a user's descriptor the owner map's.
            let Some(page) = context.page(entry.pfn).filter(|page| page.kind == PageKind::User as u8) else {
                continue;
            };
            let Some(at) = vma else { continue };
            ledger.checked(&FINDS, 1);
            if !index.places(&context.guest, &page).contains(&RmapPlace { space, va: entry.va }) {
                let what = format!("pid {} {:#x} (pfn {:#x})", process.pid(), entry.va, entry.pfn);
                let claim = claim(&page);
                let outside =
                    format!("mapped in VMA {:#x}-{:#x}, {}", at.vma.start, at.vma.end, place(process, at));
                ledger
                    .report(&FINDS, finding(&FINDS, what, claim, outside).frame(entry.pfn).address(entry.va));
            }
        }
    }
}

fn claim(page: &Page) -> String {
    if page.mapping == 0 {
        "nobody finds the page's entries".to_owned()
    } else {
        format!("{} at index {:#x} leads elsewhere", owner_text(page.mapping), page.index)
    }
}

fn place(_process: &Process, at: &VmaAt) -> String {
    let mapping =
        if at.vma.mapping == 0 { String::new() } else { format!(", mapping {:#x}", at.vma.mapping) };
    format!("pgoff {:#x}, anon_vma {:#x}{mapping}", at.vma.pgoff, at.vma.anon_vma)
}
