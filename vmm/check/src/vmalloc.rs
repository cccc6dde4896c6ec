//! The vmalloc range, kernel stacks and the windows onto single frames.
//!
//! A1  `vmalloc.areas`: free, busy and lazy areas begin at the range's start and follow each other without gap or overlap,
//!     inside the range; a busy area is longer than its mapped pages.
//! A2  `vmalloc.mapped`: every page of a busy area is mapped; a device area maps its physical range with its cache mode,
//!     and no RAM.
//! A3  `vmalloc.guard`: nothing is mapped behind the pages of a busy area, up to its end.
//! A4  `vmalloc.outside`: nothing else is mapped in the range.
//! A5  `vmalloc.owner`: a frame behind an area that owns its frames has the area's kind, address and its own page
//!     number in its descriptor. That no frame is behind two areas is `owner.single`.
//! A6  `stack.guard`: every task's stack is mapped, in a stack area or in its CPU's area; the pages below and above are not;
//!     the saved stack pointer lies inside; no two tasks share one.
//! A7  `kmap.slots`: a slot of a window maps its frame exactly if its count is not 0, nothing else is mapped in
//!     the window, and no frame is in two slots of the blocking window.

use std::collections::BTreeMap;

use memvisor_abi::{
    KmapKind, LayoutKind, PAGE_SIZE, PFN_NONE, PageKind, TaskState, VmArea, VmFlags, VmState,
};

use crate::Rule;
use crate::claims::Owner;
use crate::context::Context;
use crate::frames::{Frames, clip, count};
use crate::ledger::{Ledger, finding};
use crate::paging::{Paging, Run};

pub(crate) const AREAS: Rule = Rule {
    name: "vmalloc.areas",
    invariant: "areas tile the range without gap or overlap",
    reads: "vm_areas, layout",
    seeded: &["vmalloc-overlap"],
    hint: "alloc_vmap_area, merge_or_add_vmap_area",
};
pub(crate) const MAPPED: Rule = Rule {
    name: "vmalloc.mapped",
    invariant: "every page of a busy area is mapped, a device's with its address and cache mode",
    reads: "vm_areas, page tables; E820 map",
    seeded: &["vmalloc-unmapped"],
    hint: "vmap_pages_range, ioremap_page_range",
};
pub(crate) const GUARD: Rule = Rule {
    name: "vmalloc.guard",
    invariant: "guard pages of areas are unmapped",
    reads: "vm_areas, page tables",
    seeded: &["vmalloc-guard"],
    hint: "who mapped past the end of the area",
};
pub(crate) const OUTSIDE: Rule = Rule {
    name: "vmalloc.outside",
    invariant: "nothing is mapped in the range outside busy areas",
    reads: "vm_areas, page tables, layout",
    seeded: &["vmalloc-outside"],
    hint: "vunmap_range, or a mapping made without an area",
};
pub(crate) const OWNER: Rule = Rule {
    name: "vmalloc.owner",
    invariant: "frames behind an area name it in their descriptors",
    reads: "vm_areas, page tables, descriptors",
    seeded: &["vmalloc-owner"],
    hint: "who else writes mapping and index of the frame",
};
pub(crate) const STACK: Rule = Rule {
    name: "stack.guard",
    invariant: "kernel stacks are mapped, disjoint and between unmapped pages",
    reads: "tasks, vm_areas, page tables",
    seeded: &["stack-guard"],
    hint: "alloc_thread_stack_node",
};
pub(crate) const SLOTS: Rule = Rule {
    name: "kmap.slots",
    invariant: "windows map exactly what their slots count",
    reads: "kmaps, page tables",
    seeded: &["kmap-count", "fixmap-stale"],
    hint: "kmap_high, kunmap_local, set_fixmap",
};

const RULES: [&Rule; 7] = [&AREAS, &MAPPED, &GUARD, &OUTSIDE, &OWNER, &STACK, &SLOTS];

/// Kernel mappings by address.
struct Mappings<'p> {
    runs: Vec<&'p Run>,
}

impl<'p> Mappings<'p> {
    fn new(paging: &'p Paging) -> Mappings<'p> {
        let mut runs: Vec<&Run> = paging.runs.iter().filter(|run| run.upper).collect();
        runs.sort_by_key(|run| run.va);
        runs.dedup();
        Mappings { runs }
    }

    /// What is mapped in `start..end`, cut to it: address, frames, run.
    fn inside(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, Frames, &'p Run)> + '_ {
        let last = |run: &Run| run.va.wrapping_add((run.frames.len() * PAGE_SIZE).wrapping_sub(1));
        let first = self.runs.partition_point(|run| last(run) < start);
        let runs = self.runs.get(first..).unwrap_or_default().iter().take_while(move |run| run.va < end);
        runs.map(move |&run| {
            let skip = start.saturating_sub(run.va) / PAGE_SIZE;
            let va = run.va.saturating_add(skip * PAGE_SIZE);
            let pages = run.frames.len().saturating_sub(skip).min(end.saturating_sub(va).div_ceil(PAGE_SIZE));
            (va, Frames::from_count(run.frames.start + skip, pages), run)
        })
    }

    /// The first address of `start..end` that is not mapped.
    fn hole(&self, start: u64, end: u64) -> Option<u64> {
        let mut at = start;
        for (va, frames, _) in self.inside(start, end) {
            if va > at {
                break;
            }
            at = at.max(va.saturating_add(frames.len() * PAGE_SIZE));
        }
        (at < end).then_some(at)
    }
}

/// The frames of areas that own them, for the owner map.
pub(crate) fn owned(context: &Context<'_>, paging: &Paging) -> Vec<(Frames, Owner)> {
    let mappings = Mappings::new(paging);
    let mut found = Vec::new();
    for area in busy(context).filter(|area| flags(area).contains(VmFlags::ALLOC)) {
        let stack = flags(area).contains(VmFlags::KERNEL_STACK);
        let owner = if stack { Owner::KernelStack } else { Owner::Vmalloc };
        found.extend(mappings.inside(area.start, mapped_end(area)).map(|(_, frames, _)| (frames, owner)));
    }
    found
}

fn busy<'c>(context: &'c Context<'_>) -> impl Iterator<Item = &'c VmArea> {
    context.vm_areas.iter().map(|at| &at.area).filter(|area| area.state == VmState::Busy as u32)
}

const fn flags(area: &VmArea) -> VmFlags {
    VmFlags::from_bits_retain(area.flags)
}

/// End of the pages that are mapped; never past the area, whatever it claims.
fn mapped_end(area: &VmArea) -> u64 {
    let end = area.end.max(area.start);
    area.start.saturating_add(area.nr_pages.saturating_mul(PAGE_SIZE)).min(end)
}

/// Runs A1 to A7.
pub(crate) fn run(context: &Context<'_>, paging: &Paging, ledger: &mut Ledger) {
    let range = context.layout.iter().find(|range| range.kind == LayoutKind::Vmalloc as u32);
    let Some(range) = range.filter(|_| !context.vm_areas.is_empty()) else {
        for rule in RULES {
            ledger.skip(rule, "the guest publishes no areas yet");
        }
        return;
    };
    let mappings = Mappings::new(paging);
    areas(context, range.start, range.last, ledger);
    for area in busy(context) {
        if !flags(area).contains(VmFlags::PKMAP) {
            mapped(context, &mappings, area, ledger);
            guard(&mappings, area, ledger);
            owner(context, &mappings, area, ledger);
        }
    }
    outside(context, &mappings, range.start, range.last, ledger);
    stacks(context, &mappings, ledger);
    slots(context, &mappings, ledger);
}

fn text(area: &VmArea) -> String {
    let file: Vec<u8> = area.caller_file.iter().copied().take_while(|&byte| byte != 0).collect();
    format!(
        "the area {:#x}..{:#x} of {}:{}",
        area.start,
        area.end,
        String::from_utf8_lossy(&file),
        area.caller_line
    )
}

fn areas(context: &Context<'_>, first: u64, last: u64, ledger: &mut Ledger) {
    let mut at = first;
    for area in context.vm_areas.iter().map(|at| &at.area) {
        ledger.checked(&AREAS, 1);
        let guard = if flags(area).contains(VmFlags::NO_GUARD) { 0 } else { PAGE_SIZE };
        let room = area.end.saturating_sub(area.start);
        let wrong = if VmState::from_raw(area.state).is_none() {
            Some((format!("state {}", area.state), "no such state".to_owned()))
        } else if area.start != at {
            Some((format!("it begins at {:#x}", area.start), format!("the one below ends at {at:#x}")))
        } else if area.end <= area.start || area.end - 1 > last {
            Some((format!("it ends at {:#x}", area.end), format!("the range ends at {last:#x}")))
        } else if area.state == VmState::Busy as u32
            && area.nr_pages.saturating_mul(PAGE_SIZE).saturating_add(guard) > room
        {
            Some((format!("{} pages", area.nr_pages), format!("{room:#x} bytes with the guard page")))
        } else {
            None
        };
        if let Some((claim, outside)) = wrong {
            ledger.report(&AREAS, finding(&AREAS, text(area), claim, outside).address(area.start));
        }
        at = area.end;
    }
}

fn mapped(context: &Context<'_>, mappings: &Mappings<'_>, area: &VmArea, ledger: &mut Ledger) {
    let end = mapped_end(area);
    ledger.checked(&MAPPED, (end - area.start) / PAGE_SIZE);
    if let Some(hole) = mappings.hole(area.start, end) {
        let claim = format!("{} pages are mapped", area.nr_pages);
        let what = finding(&MAPPED, text(area), claim, format!("{hole:#x} is not")).address(hole);
        ledger.report(&MAPPED, what);
    }
    if !flags(area).contains(VmFlags::IOREMAP) {
        return;
    }
    for (va, frames, run) in mappings.inside(area.start, end) {
        let wanted = area.phys.wrapping_add(va - area.start) / PAGE_SIZE;
        let ram: Vec<Frames> = clip(&context.machine.ram, frames).collect();
        let wrong = if frames.start != wanted {
            Some((format!("physical {:#x}", wanted * PAGE_SIZE), format!("frame {:#x}", frames.start)))
        } else if u32::from(run.pat) != area.cache {
            Some((format!("cache mode {}", area.cache), format!("PAT index {}", run.pat)))
        } else if !ram.is_empty() {
            Some(("a device".to_owned(), format!("{} frames of RAM", count(&ram))))
        } else {
            None
        };
        if let Some((claim, outside)) = wrong {
            let what = finding(&MAPPED, text(area), claim, outside).address(va).frame(frames.start);
            ledger.report(&MAPPED, what);
        }
    }
}

fn guard(mappings: &Mappings<'_>, area: &VmArea, ledger: &mut Ledger) {
    let end = mapped_end(area);
    ledger.checked(&GUARD, (area.end.max(end) - end) / PAGE_SIZE);
    if let Some((va, frames, _)) = mappings.inside(end, area.end.max(end)).next() {
        let claim = format!("{} pages, then nothing", area.nr_pages);
        let outside = format!("{va:#x} is mapped");
        ledger.report(&GUARD, finding(&GUARD, text(area), claim, outside).address(va).frame(frames.start));
    }
}

/// What is mapped between busy areas. Windows are inside theirs.
fn outside(context: &Context<'_>, mappings: &Mappings<'_>, first: u64, last: u64, ledger: &mut Ledger) {
    let mut at = first;
    let end = last.saturating_add(1);
    let mut gaps = Vec::new();
    for area in busy(context) {
        if area.start > at {
            gaps.push((at, area.start));
        }
        at = at.max(area.end);
    }
    gaps.push((at, end.max(at)));
    for (start, stop) in gaps {
        ledger.checked(&OUTSIDE, 1);
        for (va, frames, _) in mappings.inside(start, stop) {
            let outside = format!("{frames} are mapped there");
            let what = finding(&OUTSIDE, format_args!("{va:#x}"), "no busy area", outside);
            ledger.report(&OUTSIDE, what.address(va).frame(frames.start));
        }
    }
}

fn owner(context: &Context<'_>, mappings: &Mappings<'_>, area: &VmArea, ledger: &mut Ledger) {
    if !flags(area).contains(VmFlags::ALLOC) {
        return;
    }
    let stack = flags(area).contains(VmFlags::KERNEL_STACK);
    let kind = if stack { PageKind::KernelStack } else { PageKind::Vmalloc };
    for (va, frames, _) in mappings.inside(area.start, mapped_end(area)) {
        // A hostile guest can map one frame very often; more than all of a large machine need not be looked at.
        for pfn in (frames.start..frames.end).take(1 << 20) {
            ledger.checked(&OWNER, 1);
            let index = (va - area.start) / PAGE_SIZE + (pfn - frames.start);
            let Some(page) = context.page(pfn) else { continue };
            if (page.kind, page.mapping, page.index) == (kind as u8, area.start, index) {
                continue;
            }
            let name = PageKind::from_raw(page.kind).map_or("of undefined kind", PageKind::name);
            let claim = format!("{name}, page {} of {:#x}", page.index, page.mapping);
            let outside = format!("{}, page {index} of {:#x}", kind.name(), area.start);
            let what = finding(&OWNER, text(area), claim, outside);
            ledger.report(&OWNER, what.frame(pfn).address(area.start.wrapping_add(index * PAGE_SIZE)));
        }
    }
}

fn stacks(context: &Context<'_>, mappings: &Mappings<'_>, ledger: &mut Ledger) {
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    for task in context.tasks.iter().filter(|task| task.stack != 0) {
        ledger.checked(&STACK, 1);
        let name: Vec<u8> = task.name.iter().copied().take_while(|&byte| byte != 0).collect();
        let name = format!("task {} ({})", task.pid, String::from_utf8_lossy(&name));
        let (start, end) = (task.stack, task.stack.saturating_add(task.stack_len));
        let claim = format!("its stack is {start:#x}..{end:#x}");
        let mut wrong = |outside: String, at: u64| {
            ledger.report(&STACK, finding(&STACK, &name, claim.clone(), outside).address(at));
        };
        if let Some(hole) = mappings.hole(start, end) {
            wrong(format!("{hole:#x} is not mapped"), hole);
        }
        for (low, side) in [(start.saturating_sub(PAGE_SIZE), "below"), (end, "above")] {
            if mappings.inside(low, low.saturating_add(PAGE_SIZE)).next().is_some() {
                wrong(format!("the page {side} it is mapped"), low);
            }
        }
        let area = busy(context).find(|area| area.start == start);
        if task.idle == 0 && area.is_none_or(|area| !flags(area).contains(VmFlags::KERNEL_STACK)) {
            wrong("no area of a kernel stack begins there".to_owned(), start);
        }
        if let Some(other) = seen.insert(start, task.pid) {
            wrong(format!("task {other} has the same"), start);
        }
        let waits = task.state != TaskState::Running as u32 && task.state != TaskState::Unused as u32;
        if waits && task.rsp != 0 && !(start..end).contains(&task.rsp) {
            wrong(format!("its stack pointer is {:#x}", task.rsp), task.rsp);
        }
    }
}

fn slots(context: &Context<'_>, mappings: &Mappings<'_>, ledger: &mut Ledger) {
    for window in &context.kmap_windows {
        let kind = KmapKind::from_raw(window.window.kind);
        let name = kind.map_or("a window of undefined kind", KmapKind::name);
        let mut frames: BTreeMap<u64, usize> = BTreeMap::new();
        for (index, slot) in window.slots.iter().enumerate() {
            ledger.checked(&SLOTS, 1);
            let va = window.window.va.wrapping_add(index as u64 * PAGE_SIZE);
            let mapped =
                mappings.inside(va, va.saturating_add(PAGE_SIZE)).next().map(|(_, frames, _)| frames.start);
            let wanted = (slot.count != 0).then_some(slot.pfn);
            let mut wrong = |claim: String, outside: String| {
                let what = finding(&SLOTS, format_args!("{name} slot {index} at {va:#x}"), claim, outside);
                ledger.report(&SLOTS, what.address(va));
            };
            let words = |pfn: Option<u64>| pfn.map_or("nothing".to_owned(), |pfn| format!("frame {pfn:#x}"));
            if mapped != wanted {
                wrong(
                    format!("count {}, maps {}", slot.count, words(wanted)),
                    format!("maps {}", words(mapped)),
                );
            }
            if slot.count == 0 && slot.pfn != PFN_NONE && kind == Some(KmapKind::Pkmap) {
                wrong(format!("count 0, frame {:#x}", slot.pfn), "an empty slot has no frame".to_owned());
            }
            if kind == Some(KmapKind::Pkmap)
                && slot.count != 0
                && let Some(other) = frames.insert(slot.pfn, index)
            {
                wrong(format!("frame {:#x}", slot.pfn), format!("slot {other} has it, too"));
            }
        }
    }
}
