//! /proc/slabinfo (Linux: mm/slab_common.c `cache_show`) and /proc/vmallocinfo (Linux: mm/vmalloc.c `s_show`).

use memvisor_abi::{CacheNode, PFN_NONE, SlabCounters, SlabKind, SlabListKind, VmFlags};
use mm_core::{MemMap, Pfn};
use mm_slab::{CacheId, Machine as _};
use mm_vmalloc::Machine as _;

use super::{Out, line, put};
use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc;
use crate::mm::slab::{self, KMEM};
use crate::mm::vmalloc;

/// What the nodes say of a cache (Linux: `struct slabinfo`).
#[derive(Default)]
struct SlabInfo {
    active_objs: u64,
    num_objs: u64,
    active_slabs: u64,
    num_slabs: u64,
    shared_avail: u64,
}

/// SLOB has no such file, as in Linux.
pub fn slabinfo(out: &mut Out<'_>) {
    let kind = slab::kind();
    if kind == SlabKind::Slob {
        line!(out, "slob counts no objects");
        return;
    }
    line!(out, "slabinfo - version: 2.1");
    line!(
        out,
        "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>"
    );
    for id in CacheId::all() {
        let cache = KMEM.cache(id);
        if !cache.is_used() {
            continue;
        }
        let record = cache.load();
        let mut info = SlabInfo::default();
        for node in (0..).take(page_alloc::nr_nodes()) {
            slab::Kernel.with_node(id, node, |node| info.add(kind, node));
        }
        let len = record.name.iter().position(|&byte| byte == 0).unwrap_or(record.name.len());
        put!(out, "{:<17} ", core::str::from_utf8(&record.name[..len]).unwrap_or("?"));
        put!(out, "{:>6} {:>6} {:>6} ", info.active_objs, info.num_objs, record.size);
        put!(out, "{:>4} {:>4} : ", record.objects, 1_u64 << record.order.min(10));
        put!(out, "tunables {:>4} {:>4} {:>4} : ", record.limit, record.batchcount, record.shared);
        line!(out, "slabdata {:>6} {:>6} {:>6}", info.active_slabs, info.num_slabs, info.shared_avail);
    }
}

impl SlabInfo {
    /// Linux: `get_slabinfo`. What CPUs hold counts as active; SLUB's active slabs are all slabs.
    fn add(&mut self, kind: SlabKind, node: &CacheNode) {
        let (free_slabs, free_objects) = match kind {
            SlabKind::Slab => (node.lists[SlabListKind::Free as usize].nr, node.free_objects),
            _ => (0, count_partial_free(node)),
        };
        self.num_objs += node.total_objects;
        self.active_objs += node.total_objects.saturating_sub(free_objects);
        self.num_slabs += node.nr_slabs;
        self.active_slabs += node.nr_slabs.saturating_sub(free_slabs);
        self.shared_avail += u64::from(node.shared_avail);
    }
}

/// Free objects of the slabs on the partial list (Linux: `count_partial` with `count_free`).
fn count_partial_free(node: &CacheNode) -> u64 {
    let mut free = 0;
    let mut pfn = node.lists[SlabListKind::Partial as usize].head;
    while pfn != PFN_NONE {
        let Some(page) = Vmemmap.page(Pfn::new(pfn)) else { break };
        let counters = SlabCounters::from_raw(page.mapcount());
        free += u64::from(counters.objects.saturating_sub(counters.inuse));
        pfn = page.next();
    }
    free
}

/// Linux prints a caller's symbol; here is its place in the source.
pub fn vmallocinfo(out: &mut Out<'_>) {
    const WORDS: [(VmFlags, &str); 4] = [
        (VmFlags::IOREMAP, " ioremap"),
        (VmFlags::ALLOC, " vmalloc"),
        (VmFlags::MAP, " vmap"),
        (VmFlags::USERMAP, " user"),
    ];
    vmalloc::Kernel.with_areas(|areas| {
        areas.for_each_busy(&vmalloc::Kernel, |area| {
            let (start, end) = (area.start.as_u64(), area.start.as_u64() + area.len);
            put!(out, "{start:#018x}-{end:#018x} {:>7}", area.len);
            let (file, line) = areas.caller(&vmalloc::Kernel, &area);
            let len = file.iter().position(|&byte| byte == 0).unwrap_or(file.len());
            put!(out, " {}:{line}", core::str::from_utf8(&file[..len]).unwrap_or("?"));
            if area.nr_pages != 0 {
                put!(out, " pages={}", area.nr_pages);
            }
            if area.phys != 0 {
                put!(out, " phys={:#018x}", area.phys);
            }
            for (_, word) in WORDS.iter().filter(|(flag, _)| area.flags.contains(*flag)) {
                put!(out, "{word}");
            }
            line!(out);
        });
        areas.for_each_lazy(&vmalloc::Kernel, |start, end| {
            line!(out, "{start:#018x}-{end:#018x} {:>7} unpurged vm_area", end - start);
        });
    });
}
