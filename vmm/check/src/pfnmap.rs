//! Frames that drivers map into processes (Linux: `remap_pfn_range`, `vm_normal_page`).
//!
//! D1  `pfnmap.vma`: an entry marked PTE_SPECIAL lies in a VMA with VM_PFNMAP, VM_IO, VM_DONTEXPAND and VM_DONTDUMP; there every
//!     other entry is of a private, writable mapping's own copy: an anonymous page.
//! D2  `pfnmap.frames`: such an entry maps the frame that its VMA says: of a mapping that is copied on write, frame `pgoff` at its
//!     start; of all others the same device frame at the same offset of the device, wherever it is mapped.
//! D3  `pfnmap.uncounted`: nobody counts the frame: its descriptor, if it has one, is no user page's and has no mappings.
//! D4  `pfnmap.cow`: a device's frame is not writable in a private mapping; a copy may be.
//! D5  `pfnmap.cache`: memory is cached, and what is no memory is not.

use std::collections::BTreeMap;

use memvisor_abi::{PAGE_SHIFT, PTE_SPECIAL, Page, PageKind, Vma, vm_flags};
use memvisor_inspect::{Entry, EntryKind, PageSize, UserEntry, VmaAt};

use crate::Rule;
use crate::context::Context;
use crate::frames::find;
use crate::ledger::{Ledger, finding};
use crate::processes::Processes;

pub(crate) const VMA: Rule = Rule {
    name: "pfnmap.vma",
    invariant: "uncounted entries and PFNMAP VMAs belong together",
    reads: "page tables, Vma lists, descriptors",
    seeded: &["pfnmap-unmarked", "pfnmap-elsewhere"],
    hint: "remap_pfn_range; who writes an entry without its mark: mprotect, mremap, fork",
};
pub(crate) const FRAMES: Rule = Rule {
    name: "pfnmap.frames",
    invariant: "a device's frame is where its VMA says",
    reads: "page tables, Vma lists",
    seeded: &["pfnmap-shifted"],
    hint: "pgoff of a VMA that was split or moved",
};
pub(crate) const UNCOUNTED: Rule = Rule {
    name: "pfnmap.uncounted",
    invariant: "nobody counts a device's frames",
    reads: "page tables, descriptors",
    seeded: &["pfnmap-counted"],
    hint: "vm_normal_page: a path that takes the entry for a page's",
};
pub(crate) const COW: Rule = Rule {
    name: "pfnmap.cow",
    invariant: "a private mapping does not write to a device",
    reads: "page tables, Vma lists",
    seeded: &["pfnmap-writable"],
    hint: "wp_pfn_shared, vm_page_prot of a private VMA",
};
pub(crate) const CACHE: Rule = Rule {
    name: "pfnmap.cache",
    invariant: "memory is mapped cached, registers are not",
    reads: "page tables; E820 map",
    seeded: &["pfnmap-cached"],
    hint: "mprotect keeps PWT, PCD and PAT; io_remap_pfn_range",
};

const MARKS: u64 = vm_flags::PFNMAP | vm_flags::IO | vm_flags::DONTEXPAND | vm_flags::DONTDUMP;

/// Linux: `is_cow_mapping`.
const fn is_cow(vma: &Vma) -> bool {
    vma.flags & (vm_flags::SHARED | vm_flags::MAYWRITE) == vm_flags::MAYWRITE
}

/// Runs D1 to D5.
pub(crate) fn run(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    // Frame of offset 0 by mapping, as the first entry has it.
    let mut bases = BTreeMap::new();
    for process in &processes.list {
        let mapped = process.with_vmas().filter(|(entry, _)| entry.kind.is_mapping());
        // Without a VMA it is E1's.
        for (entry, at) in mapped.filter_map(|(entry, vma)| vma.map(|at| (entry, at))) {
            let special = entry.entry.has(PTE_SPECIAL);
            if !special && at.vma.flags & vm_flags::PFNMAP == 0 {
                continue;
            }
            for rule in [&VMA, &FRAMES, &UNCOUNTED, &COW, &CACHE] {
                ledger.checked(rule, 1);
            }
            let mut report = |rule: &'static Rule, claim: &str, outside: String| {
                let what = format!("pid {} {:#x} (pfn {:#x})", process.pid(), entry.va, entry.pfn);
                let what = finding(rule, what, claim, outside);
                ledger.report(rule, what.frame(entry.pfn).address(entry.va));
            };
            let page = context.page(entry.pfn).filter(|_| is_ram(context, entry.pfn));
            if let Some(outside) = misplaced(special, &at.vma, page.as_ref()) {
                report(&VMA, if special { "a device's frame" } else { "a page" }, outside);
                continue;
            }
            if !special {
                continue;
            }
            if let Some(outside) = shifted(entry, at, &mut bases) {
                report(&FRAMES, "the frame that the VMA maps here", outside);
            }
            if let Some(page) = page.filter(|page| page.kind == PageKind::User as u8 || page.mapcount != -1) {
                let outside =
                    format!("its descriptor has {} mappings, kind {}", page.mapcount + 1, page.kind);
                report(&UNCOUNTED, "nobody counts the frame", outside);
            }
            if entry.entry.has(Entry::WRITE) && at.vma.flags & vm_flags::SHARED == 0 {
                report(&COW, "private", "a write would reach the device".to_owned());
            }
            let cached = entry.entry.pat_index(PageSize::Size4K) == 0;
            if entry.kind == EntryKind::Present && cached != is_ram(context, entry.pfn) {
                let (claim, outside) =
                    if cached { ("cached", "it is no memory") } else { ("uncached", "it is memory") };
                report(&CACHE, claim, outside.to_owned());
            }
        }
    }
}

fn is_ram(context: &Context<'_>, pfn: u64) -> bool {
    find(&context.machine.ram, pfn).is_some()
}

/// Why an entry may not lie in its VMA.
fn misplaced(special: bool, vma: &Vma, page: Option<&Page>) -> Option<String> {
    if special {
        let missing = MARKS & !vma.flags;
        return (missing != 0).then(|| format!("its VMA's flags {:#x} lack {missing:#x}", vma.flags));
    }
    let own = page.is_some_and(|page| page.mapping & Page::MAPPING_ANON != 0);
    (!own || !is_cow(vma)).then(|| "in a VMA of a device, and no copy of its own".to_owned())
}

/// Why the frame is another than the VMA's.
fn shifted(entry: &UserEntry, at: &VmaAt, bases: &mut BTreeMap<u64, u64>) -> Option<String> {
    let index = at.vma.pgoff.wrapping_add((entry.va - at.vma.start) >> PAGE_SHIFT);
    let base = entry.pfn.wrapping_sub(index);
    let wanted = if is_cow(&at.vma) { 0 } else { *bases.entry(at.vma.mapping).or_insert(base) };
    (base != wanted).then(|| format!("that is frame {:#x}", wanted.wrapping_add(index)))
}
