//! Swap areas against what names their slots.
//!
//! W1  `swap.area`: the header cannot be given out; `inuse` counts the slots that are neither free nor bad, `pages` those that are not bad; at
//!     rest no slot is on its way to its area, and every one in use is named or cached.
//! W2  `swap.entry`: an entry of a page table that names a slot lies in a private VMA that has an anon_vma, and the slot is one of an
//!     area in use and itself in use. So is the slot of a value in the tree of shared memory.
//! W3  `swap.count`: a slot's count is the entries of page tables and the values of shared memory that name it.
//! W4  `swap.cache`: the frame that a slot's word has says in its descriptor that it is that slot's (SWAPCACHE, private); and no other frame
//!     says so.
//! W5  `swap.mapped`: a frame whose slot is named by others is written to by nobody: no entry that maps it allows writes. Else what is
//!     in memory and what the others would read were two things.

use std::collections::HashMap;

use memvisor_abi::{Page, PageFlags, PageKind, vm_flags};
use memvisor_inspect::{Entry, slot_of_value};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::owner::for_each_ram_page;
use crate::processes::Processes;

pub(crate) const AREA: Rule = Rule {
    name: "swap.area",
    invariant: "an area counts its slots, and each is free, bad or used",
    reads: "SwapAreas, words of slots",
    seeded: &["swap-inuse", "swap-freeing"],
    hint: "swap_alloc and swap_range_free; who saw Put::Last and did not give the slot back",
};
pub(crate) const ENTRY: Rule = Rule {
    name: "swap.entry",
    invariant: "what names a slot is private and names one in use",
    reads: "page tables, Vma lists, trees of shared memory, words of slots",
    seeded: &["swap-pte-free"],
    hint: "try_to_unmap, copy_page_range; swapoff that left an entry",
};
pub(crate) const COUNT: Rule = Rule {
    name: "swap.count",
    invariant: "a slot's count is what names it",
    reads: "words of slots, page tables, trees of shared memory",
    seeded: &["swap-count-lost", "swap-count-extra", "swap-shmem-lost"],
    hint: "swap_duplicate and swap_free: try_to_unmap, do_swap_page, fork, zap, shmem_writepage",
};
pub(crate) const CACHE: Rule = Rule {
    name: "swap.cache",
    invariant: "slot and frame of the swap cache name each other",
    reads: "words of slots, descriptors",
    seeded: &["swap-cache-frame", "swap-cache-flag"],
    hint: "add_to_swap_cache, delete_from_swap_cache, migration",
};
pub(crate) const MAPPED: Rule = Rule {
    name: "swap.mapped",
    invariant: "nobody writes to a frame whose slot others name",
    reads: "words of slots, page tables, descriptors",
    seeded: &["swap-writable"],
    hint: "do_swap_page and do_wp_page: who decides that a page may be reused",
};

type Slot = (u32, u64);

pub(crate) fn text((area, offset): Slot) -> String {
    format!("slot {offset:#x} of swap area {area}")
}

pub(crate) fn word(context: &Context<'_>, (area, offset): Slot) -> Option<memvisor_inspect::SlotWord> {
    let (_, _, words) = context.swap.iter().find(|(number, ..)| *number == area)?;
    words.get(usize::try_from(offset).ok()?).copied()
}

/// The slot that a descriptor says its page is of.
fn claimed(page: &Page) -> Option<Slot> {
    page.page_flags().contains(PageFlags::SWAPCACHE).then(|| slot_of_value(page.private))
}

/// Whether the swap cache has the page, and so a reference of it.
pub(crate) fn is_cached(context: &Context<'_>, pfn: u64, page: &Page) -> bool {
    claimed(page).and_then(|slot| word(context, slot)).is_some_and(|word| word.cache() == Some(pfn))
}

/// Runs W1 to W5.
pub(crate) fn run(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    areas(context, ledger);
    let mut named: HashMap<Slot, u64> = HashMap::new();
    entries(context, processes, &mut named, ledger);
    shared(context, &mut named, ledger);
    counts(context, &named, ledger);
    cache(context, ledger);
    mapped(context, processes, ledger);
}

/// W1.
fn areas(context: &Context<'_>, ledger: &mut Ledger) {
    for (number, area, words) in &context.swap {
        let bad = words.iter().filter(|word| word.is_bad()).count() as u64;
        let free = words.iter().filter(|word| word.is_free()).count() as u64;
        let all = words.len() as u64;
        let used = all - bad - free;
        ledger.expect_eq(&AREA, format_args!("swap area {number} slots in use"), area.inuse, used);
        ledger.expect_eq(&AREA, format_args!("swap area {number} pages"), area.pages, all - bad);
        ledger.checked(&AREA, all);
        if words.first().is_some_and(|word| !word.is_bad()) {
            let what = finding(&AREA, text((*number, 0)), "it can be given out", "it is the header");
            ledger.report(&AREA, what);
        }
        for (offset, word) in (0..).zip(words) {
            let in_use = word.count() > 0 || word.cache().is_some();
            if !word.is_free() && !word.is_bad() && !in_use {
                let claim = if word.is_freeing() { "it is about to be free" } else { "it is in use" };
                let what = finding(&AREA, text((*number, offset)), claim, "nobody names it or has its page");
                ledger.report(&AREA, what);
            }
        }
    }
}

/// W2 of page tables.
fn entries(
    context: &Context<'_>,
    processes: &Processes,
    named: &mut HashMap<Slot, u64>,
    ledger: &mut Ledger,
) {
    for process in &processes.list {
        for (entry, vma) in process.with_vmas() {
            let Some(slot) = entry.swap_slot() else { continue };
            ledger.checked(&ENTRY, 1);
            *named.entry(slot).or_default() += 1;
            // Without a VMA it is pte.vma's.
            let is_private =
                vma.is_none_or(|at| at.vma.flags & vm_flags::SHARED == 0 && at.vma.anon_vma != 0);
            let outside = match word(context, slot) {
                None => "there is no such slot",
                Some(word) if word.is_bad() || word.is_free() || word.is_freeing() => {
                    "the slot is not in use"
                }
                Some(_) if !is_private => "its VMA has no pages of its own",
                Some(_) => continue,
            };
            let what = format!("pid {} {:#x}", process.pid(), entry.va);
            let what = finding(&ENTRY, what, format!("it names {}", text(slot)), outside);
            ledger.report(&ENTRY, what.address(entry.va));
        }
    }
}

/// W2 of shared memory.
fn shared(context: &Context<'_>, named: &mut HashMap<Slot, u64>, ledger: &mut Ledger) {
    let (slots, problem) = match context.guest.shmem_slots() {
        Ok(found) => found,
        Err(error) => {
            let what = finding(&ENTRY, "shared memory in swap", "the list can be read", error.to_string());
            ledger.report(&ENTRY, what);
            return;
        }
    };
    if let Some(problem) = problem {
        let what = finding(&ENTRY, "shared memory in swap", "the list is whole", problem.to_string());
        ledger.report(&ENTRY, what);
    }
    for value in slots {
        ledger.checked(&ENTRY, 1);
        *named.entry(value.slot).or_default() += 1;
        if word(context, value.slot).is_none_or(|word| word.count() == 0) {
            let what = format!("mapping {:#x}, page {:#x}", value.mapping, value.index);
            let claim = format!("it names {}", text(value.slot));
            ledger.report(&ENTRY, finding(&ENTRY, what, claim, "the slot is not in use"));
        }
    }
}

/// W3.
fn counts(context: &Context<'_>, named: &HashMap<Slot, u64>, ledger: &mut Ledger) {
    for (number, _, words) in &context.swap {
        for (offset, word) in (0..).zip(words) {
            let slot = (*number, offset);
            let outside = named.get(&slot).copied().unwrap_or(0);
            // Of a slot that nobody uses, entries that name it are W2's.
            if word.count() > 0 {
                ledger.expect_eq(&COUNT, format_args!("{}: who names it", text(slot)), word.count(), outside);
            } else if outside > 0 && word.cache().is_some() {
                ledger.expect_eq(&COUNT, format_args!("{}: who names it", text(slot)), 0, outside);
            }
        }
    }
}

/// W4.
fn cache(context: &Context<'_>, ledger: &mut Ledger) {
    for (number, _, words) in &context.swap {
        for (offset, pfn) in (0..).zip(words).filter_map(|(offset, word)| Some((offset, word.cache()?))) {
            ledger.checked(&CACHE, 1);
            let slot = (*number, offset);
            let said = context.page(pfn).map(|page| claimed(&page));
            let outside = match said {
                Some(Some(other)) if other == slot => continue,
                Some(Some(other)) => format!("the frame says that it is {}'s", text(other)),
                Some(None) => "the frame is in no swap cache".to_owned(),
                None => "there is no such frame".to_owned(),
            };
            let what = finding(&CACHE, text(slot), format!("its page is in pfn {pfn:#x}"), outside);
            ledger.report(&CACHE, what.frame(pfn));
        }
    }
    for_each_ram_page(context, &mut |pfn, page| {
        if page.kind != PageKind::User as u8 || page.refcount <= 0 {
            return;
        }
        let Some(slot) = claimed(page) else { return };
        ledger.checked(&CACHE, 1);
        if !is_cached(context, pfn, page) {
            let claim = format!("it has the page of {}", text(slot));
            let what = finding(&CACHE, format!("pfn {pfn:#x}"), claim, "the slot does not say so");
            ledger.report(&CACHE, what.frame(pfn));
        }
    });
}

/// W5.
fn mapped(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    if context.swap.is_empty() {
        return;
    }
    for process in &processes.list {
        for (entry, _) in process.with_vmas().filter(|(entry, _)| entry.kind.is_mapping()) {
            let slot = processes.page(entry.pfn).and_then(claimed);
            let Some((slot, word)) = slot.and_then(|slot| Some((slot, word(context, slot)?))) else {
                continue;
            };
            ledger.checked(&MAPPED, 1);
            if word.count() > 0 && entry.entry.has(Entry::WRITE) {
                let what = format!("pid {} {:#x} (pfn {:#x})", process.pid(), entry.va, entry.pfn);
                let outside = format!("{} entries name {}", word.count(), text(slot));
                let what = finding(&MAPPED, what, "the page may be written", outside);
                ledger.report(&MAPPED, what.frame(entry.pfn).address(entry.va));
            }
        }
    }
}
