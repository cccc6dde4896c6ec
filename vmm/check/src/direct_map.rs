//! The direct map.
//!
//! D1  `pgtable.direct-map`: it maps every frame of low RAM, each at its own address, and nothing of ZONE_HIGHMEM.

use memvisor_abi::{LayoutKind, PAGE_SHIFT};

use crate::Rule;
use crate::context::Context;
use crate::frames::{Frames, clip, gaps, normalize};
use crate::ledger::{Ledger, finding};
use crate::paging::Paging;

pub(crate) const RULE: Rule = Rule {
    name: "pgtable.direct-map",
    invariant: "the direct map has all of low RAM, each frame at its place",
    reads: "page tables, layout, Root.page_offset; E820 map, lowmem=",
    seeded: &["direct-map-hole"],
    hint: "kernel_physical_mapping_init; who unmaps or remaps parts of it",
};

/// Runs D1.
pub(crate) fn run(context: &Context<'_>, paging: &Paging, ledger: &mut Ledger) {
    let Some(range) = context.layout.iter().find(|range| range.kind == LayoutKind::DirectMap as u32) else {
        ledger.skip(&RULE, "the guest publishes no range for the direct map");
        return;
    };
    let offset = context.root.page_offset;
    let low = Frames::new(0, context.machine.borders.lowmem_end);
    let mut mapped = Vec::new();
    for run in paging.runs.iter().filter(|run| (range.start..=range.last).contains(&run.va)) {
        ledger.checked(&RULE, 1);
        let place = offset.wrapping_add(run.frames.start << PAGE_SHIFT);
        if run.va != place {
            let (claim, outside) = (format!("at {:#x}", run.va), format!("its place is {place:#x}"));
            ledger.report(&RULE, finding(&RULE, run.frames, claim, outside).frame(run.frames.start));
            continue;
        }
        let high = run.frames.and(Frames::new(low.end, u64::MAX));
        if !high.is_empty() {
            let what = finding(&RULE, high, "in the direct map", "ZONE_HIGHMEM, which it leaves out");
            ledger.report(&RULE, what.frame(high.start));
        }
        mapped.push(run.frames);
    }
    let mapped = normalize(mapped);
    for ram in clip(&context.machine.ram, low) {
        ledger.checked(&RULE, 1);
        for hole in gaps(&mapped, ram) {
            let what = finding(&RULE, hole, "RAM below the end of low memory", "not in the direct map");
            ledger.report(&RULE, what.frame(hole.start));
        }
    }
}
