//! /proc/slabinfo and /proc/vmallocinfo.

use std::fmt::{self, Write};

use memvisor_abi::SlabKind;

use crate::views::VmallocView;
use crate::{Slabs, cache_name};

/// What CPUs hold counts as active here, as in Linux, and unlike in `inspect slab`.
pub(super) fn slabinfo(text: &mut String, all: &Slabs) -> fmt::Result {
    if all.kind() == Some(SlabKind::Slob) {
        return writeln!(text, "slob counts no objects");
    }
    writeln!(text, "slabinfo - version: 2.1")?;
    writeln!(
        text,
        "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>"
    )?;
    for (index, cache) in all.used() {
        let slabs = || all.of(index);
        let objects: u64 = slabs().map(|slab| u64::from(slab.counters.objects)).sum();
        // A slab that a CPU owns is on no list of the node.
        let free: u64 = slabs()
            .filter(|slab| !slab.counters.frozen)
            .map(|slab| u64::from(slab.counters.objects.saturating_sub(slab.counters.inuse)))
            .sum();
        let all_slabs = slabs().count();
        let active_slabs = match all.kind() {
            Some(SlabKind::Slab) => slabs().filter(|slab| slab.counters.inuse != 0).count(),
            _ => all_slabs,
        };
        let nodes = all.nodes.iter().filter_map(|caches| caches.get(index));
        let shared: u64 = nodes.map(|node| u64::from(node.shared_avail)).sum();
        write!(text, "{:<17} {:>6} {objects:>6} ", cache_name(cache), objects - free)?;
        write!(text, "{:>6} {:>4} {:>4} : ", cache.size, cache.objects, 1_u64 << cache.order.min(10))?;
        write!(text, "tunables {:>4} {:>4} {:>4} : ", cache.limit, cache.batchcount, cache.shared)?;
        writeln!(text, "slabdata {active_slabs:>6} {all_slabs:>6} {shared:>6}")?;
    }
    Ok(())
}

pub(super) fn vmallocinfo(text: &mut String, view: &VmallocView) -> fmt::Result {
    let (busy, lazy): (Vec<_>, Vec<_>) = view.areas.iter().partition(|area| area.state == "busy");
    for area in busy {
        let (start, end) = (area.start, area.end);
        write!(text, "{start:#018x}-{end:#018x} {:>7} {}", end.wrapping_sub(start), area.place)?;
        if area.pages != 0 {
            write!(text, " pages={}", area.pages)?;
        }
        if area.phys != 0 {
            write!(text, " phys={:#018x}", area.phys)?;
        }
        for word in ["ioremap", "vmalloc", "vmap", "user"] {
            if area.flags.contains(&word) {
                write!(text, " {word}")?;
            }
        }
        writeln!(text)?;
    }
    // The order of the purge list shows in no view: by address.
    for area in lazy {
        let (start, end) = (area.start, area.end);
        writeln!(text, "{start:#018x}-{end:#018x} {:>7} unpurged vm_area", end.wrapping_sub(start))?;
    }
    Ok(())
}
