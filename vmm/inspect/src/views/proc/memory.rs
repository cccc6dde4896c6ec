//! /proc/meminfo, /proc/swaps and /proc/iomem.

use std::fmt::{self, Write};

use memvisor_abi::{E820Entry, E820Type, LruKind, NodeStat, PAGE_SIZE, Root, Watermark, Zone};

use super::counts::Counts;
use crate::views::SwapView;
use crate::{Guest, GuestError, MemorySource};

const KIB: u64 = PAGE_SIZE / 1024;

/// What /proc/meminfo is made of; pages.
pub(super) struct Meminfo {
    zones: Vec<Zone>,
    counts: Counts,
    /// All, free.
    swap: [u64; 2],
    /// Of the pool, of what is kept there.
    zswap: [u64; 2],
    committed: u64,
    percpu: u64,
}

impl Meminfo {
    /// `None` of a guest that does not count.
    pub(super) fn read<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
    ) -> Result<Option<Meminfo>, GuestError> {
        let Some(counts) = Counts::read(guest)? else { return Ok(None) };
        let oom = guest.oom()?;
        let committed = oom.and_then(|oom| guest.word(oom.committed)).unwrap_or(0);
        let areas = SwapView::new(guest)?.areas;
        let total: u64 = areas.iter().filter(|area| area.writeok).map(|area| area.pages).sum();
        let free: u64 =
            areas.iter().filter(|area| area.writeok).map(|area| area.pages.saturating_sub(area.used)).sum();
        let zswap = guest.zswap()?.map_or([0; 2], |zswap| [zswap.pool.pages, zswap.stored_pages]);
        let percpu = guest.cpus()?.iter().map(|cpu| cpu.percpu_len / PAGE_SIZE).sum();
        Ok(Some(Meminfo { zones: guest.zones()?, counts, swap: [total, free], zswap, committed, percpu }))
    }
}

/// Lines that are derived from outside: without `Buffers` and `Cached`, which are apart only by which mapping is a disk's, and `CommitLimit`.
pub(super) fn meminfo(text: &mut String, all: &Meminfo) -> fmt::Result {
    let sum = |of: fn(&Zone) -> u64| all.zones.iter().map(of).fold(0, u64::saturating_add);
    let (list, stat) = (|kind| all.counts.list(kind), |stat| all.counts.stat(stat));
    let slab = all.counts.slab().unwrap_or_default();
    let active = list(LruKind::ActiveAnon) + list(LruKind::ActiveFile);
    let inactive = list(LruKind::InactiveAnon) + list(LruKind::InactiveFile);
    let lines = [
        ("MemTotal", sum(|zone| zone.managed_pages)),
        ("MemFree", sum(|zone| zone.free_pages)),
        ("MemAvailable", available(all, slab[0])),
        ("SwapCached", stat(NodeStat::SwapCache)),
        ("Active", active),
        ("Inactive", inactive),
        ("Active(anon)", list(LruKind::ActiveAnon)),
        ("Inactive(anon)", list(LruKind::InactiveAnon)),
        ("Active(file)", list(LruKind::ActiveFile)),
        ("Inactive(file)", list(LruKind::InactiveFile)),
        ("Unevictable", list(LruKind::Unevictable)),
        ("Mlocked", list(LruKind::Unevictable)),
        ("SwapTotal", all.swap[0]),
        ("SwapFree", all.swap[1]),
        ("Zswap", all.zswap[0]),
        ("Zswapped", all.zswap[1]),
        ("Dirty", stat(NodeStat::Dirty)),
        ("Writeback", stat(NodeStat::Writeback)),
        ("AnonPages", stat(NodeStat::AnonMapped)),
        ("Mapped", stat(NodeStat::FileMapped)),
        ("Shmem", stat(NodeStat::Shmem)),
        ("KReclaimable", slab[0]),
        ("Slab", slab[0] + slab[1]),
        ("SReclaimable", slab[0]),
        ("SUnreclaim", slab[1]),
        ("KernelStack", stat(NodeStat::KernelStack)),
        ("PageTables", stat(NodeStat::PageTable)),
        ("SecPageTables", 0),
        ("NFS_Unstable", 0),
        ("Bounce", 0),
        ("WritebackTmp", 0),
        ("Committed_AS", all.committed),
        // All of the range, but for its last KiB.
        ("VmallocTotal", 0),
        ("VmallocUsed", stat(NodeStat::Vmalloc) + stat(NodeStat::KernelStack)),
        ("VmallocChunk", 0),
        ("Percpu", all.percpu),
        ("CmaTotal", sum(|zone| zone.cma_pages)),
        ("CmaFree", sum(|zone| zone.nr_free_cma)),
    ];
    for (name, pages) in lines {
        let kib = if name == "VmallocTotal" { (32 << 40) / 1024 - 1 } else { pages.saturating_mul(KIB) };
        let width = 15_usize.saturating_sub(name.len());
        writeln!(text, "{name}:{:width$}{kib:>8} kB", "")?;
    }
    Ok(())
}

/// Linux: `si_mem_available`.
fn available(all: &Meminfo, reclaimable: u64) -> u64 {
    let (mut free, mut low, mut reserve) = (0_u64, 0_u64, 0_u64);
    for zone in &all.zones {
        free = free.saturating_add(zone.free_pages);
        low = low.saturating_add(zone.watermark[Watermark::Low as usize]);
        let kept = zone.lowmem_reserve.into_iter().max().unwrap_or(0);
        let kept = kept.saturating_add(zone.watermark[Watermark::High as usize]);
        reserve = reserve.saturating_add(kept.min(zone.managed_pages));
    }
    let part = |pages: u64| pages - low.min(pages / 2);
    let files = all.counts.list(LruKind::ActiveFile).saturating_add(all.counts.list(LruKind::InactiveFile));
    free.saturating_sub(reserve).saturating_add(part(files)).saturating_add(part(reclaimable))
}

/// /proc/swaps.
pub(super) fn swaps(text: &mut String, view: &SwapView) -> fmt::Result {
    writeln!(text, "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority")?;
    for row in &view.areas {
        let (size, used) = (row.pages.saturating_mul(KIB), row.used.saturating_mul(KIB));
        let tab = |kib: u64| if kib < 10_000_000 { "\t" } else { "" };
        let (path, prio) = (format!("/dev/{}", row.disk), row.prio);
        writeln!(text, "{path:<40}partition\t{size}\t{}{used}\t{}{prio}", tab(size), tab(used))?;
    }
    Ok(())
}

/// /proc/iomem: what firmware said, with the parts of the kernel's image and the interrupt controllers.
pub(super) fn iomem(text: &mut String, root: &Root, map: &[E820Entry]) -> fmt::Result {
    let (image, end) = (root.kernel_gpa, root.kernel_len.next_multiple_of(PAGE_SIZE));
    let parts = [
        (image, image.wrapping_add(root.text_len), "Kernel code"),
        (image.wrapping_add(root.text_len), image.wrapping_add(root.rodata_end), "Kernel rodata"),
        (image.wrapping_add(root.rodata_end), image.wrapping_add(end), "Kernel data"),
    ];
    let controllers =
        [(0xfec0_0000_u64, 0xfec0_0400_u64, "IOAPIC 0"), (0xfee0_0000, 0xfee0_1000, "Local APIC")];
    let mut todo = controllers.iter().peekable();
    let put = |text: &mut String, depth: usize, (start, end, name): (u64, u64, &str)| {
        writeln!(text, "{:width$}{start:08x}-{:08x} : {name}", "", end.wrapping_sub(1), width = depth * 2)
    };
    for entry in map.iter().filter(|entry| entry.size != 0) {
        let (start, end) = (entry.addr, entry.addr.saturating_add(entry.size));
        while let Some(line) = todo.next_if(|line| line.1 <= start) {
            put(text, 0, *line)?;
        }
        put(text, 0, (start, end, E820Type::iomem_name(entry.kind)))?;
        for part in parts.iter().filter(|part| part.0 >= start && part.1 <= end) {
            put(text, 1, *part)?;
        }
        while let Some(line) = todo.next_if(|line| line.0 >= start && line.1 <= end) {
            put(text, 1, *line)?;
        }
    }
    for line in todo {
        put(text, 0, *line)?;
    }
    Ok(())
}
