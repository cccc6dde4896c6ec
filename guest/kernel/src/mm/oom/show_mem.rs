//! What there is of memory, for reports of allocations that failed (Linux: lib/show_mem.c, `show_free_areas`).
//!
//! The lines are Linux 6.1's, configured without huge pages and hardware poison.

use memvisor_abi::{LruKind, MAX_NR_ZONES, Migratetype, NodeStat, Watermark, Zone};
use mm_core::{PAGE_SIZE, ZoneKind};

use crate::mm::page_alloc::{ZONES, nr_nodes};
use crate::mm::vmscan::kswapd;
use crate::mm::{pcp, slab, swap, vmscan, vmstat};
use crate::{pr_warn, printk};

const KIB: u64 = PAGE_SIZE / 1024;

/// Letters of the types that free blocks have (Linux: `show_migration_types`).
const LETTERS: [(Migratetype, char); 6] = [
    (Migratetype::Unmovable, 'U'),
    (Migratetype::Movable, 'M'),
    (Migratetype::Reclaimable, 'E'),
    (Migratetype::HighAtomic, 'H'),
    (Migratetype::Cma, 'C'),
    (Migratetype::Isolate, 'I'),
];

/// Zones with pages, up to a kind, with their index.
fn zones(highest: ZoneKind) -> impl Iterator<Item = usize> {
    (0..nr_nodes() * MAX_NR_ZONES).filter(move |&index| {
        index % MAX_NR_ZONES <= highest as usize && with(index, |zone| zone.present_pages > 0)
    })
}

fn with<R>(index: usize, f: impl FnOnce(&Zone) -> R) -> R {
    f(ZONES[index].lock().info())
}

fn sum(highest: ZoneKind, of: impl Fn(&Zone) -> u64) -> u64 {
    zones(highest).map(|index| with(index, &of)).sum()
}

fn name(zone: &Zone) -> &'static str {
    ZoneKind::from_raw(zone.kind).map_or("?", ZoneKind::name)
}

/// Prints it, of zones up to `highest` (Linux: the same name).
pub fn show_mem(highest: ZoneKind) {
    const ALL: ZoneKind = ZoneKind::Movable;
    pr_warn!("Mem-Info:");
    totals(ALL);
    let mut told = None;
    for node in zones(highest).filter_map(|index| u32::try_from(index / MAX_NR_ZONES).ok()) {
        if told.replace(node) != Some(node) {
            show_node(node);
        }
    }
    for index in zones(highest) {
        show_zone(index);
    }
    for index in zones(highest) {
        show_free_area(index);
    }
    pr_warn!("{} total pagecache pages", vmstat::global(NodeStat::FilePages));
    pr_warn!("{} pages in swap cache", swap::nr_swapcache_pages());
    pr_warn!("Free swap  = {}kB", swap::nr_swap_pages() * KIB);
    pr_warn!("Total swap = {}kB", swap::total_swap_pages() * KIB);
    let high = [ZoneKind::HighMem as u32, ZoneKind::Movable as u32];
    pr_warn!("{} pages RAM", sum(ALL, |zone| zone.present_pages));
    pr_warn!(
        "{} pages HighMem/MovableOnly",
        sum(ALL, |zone| if high.contains(&zone.kind) { zone.managed_pages } else { 0 })
    );
    pr_warn!("{} pages reserved", sum(ALL, |zone| zone.present_pages - zone.managed_pages));
    pr_warn!("{} pages cma reserved", sum(ALL, |zone| zone.cma_pages));
}

/// All nodes, in pages.
fn totals(all: ZoneKind) {
    let (lists, stats) = (vmscan::counts(), vmstat::total());
    let stat = |stat: NodeStat| stats[stat as usize];
    let list = |kind| lists.list(kind);
    pr_warn!(
        "active_anon:{} inactive_anon:{} isolated_anon:{}",
        list(LruKind::ActiveAnon),
        list(LruKind::InactiveAnon),
        lists.isolated[0]
    );
    pr_warn!(
        " active_file:{} inactive_file:{} isolated_file:{}",
        list(LruKind::ActiveFile),
        list(LruKind::InactiveFile),
        lists.isolated[1]
    );
    pr_warn!(
        " unevictable:{} dirty:{} writeback:{}",
        list(LruKind::Unevictable),
        stat(NodeStat::Dirty),
        stat(NodeStat::Writeback)
    );
    if let Some([reclaimable, unreclaimable]) = slab::nr_pages() {
        pr_warn!(" slab_reclaimable:{reclaimable} slab_unreclaimable:{unreclaimable}");
    }
    pr_warn!(
        " mapped:{} shmem:{} pagetables:{}",
        stat(NodeStat::FileMapped),
        stat(NodeStat::Shmem),
        stat(NodeStat::PageTable)
    );
    pr_warn!(" sec_pagetables:0 bounce:0");
    pr_warn!(" kernel_misc_reclaimable:0");
    pr_warn!(
        " free:{} free_pcp:{} free_cma:{}",
        sum(all, |zone| zone.free_pages),
        zones(all).map(pcp::free_pcp).sum::<u64>(),
        sum(all, |zone| zone.nr_free_cma)
    );
}

/// A node that has memory.
fn show_node(node: u32) {
    let (lruvec, stats) = (vmscan::lruvec(node), vmstat::of_node(node as usize));
    let stat = |stat: NodeStat| stats[stat as usize] * KIB;
    let list = |kind: LruKind| lruvec.lists[kind as usize].count * KIB;
    printk!(
        Warning,
        "Node {node} active_anon:{}kB inactive_anon:{}kB active_file:{}kB inactive_file:{}kB unevictable:{}kB ",
        list(LruKind::ActiveAnon),
        list(LruKind::InactiveAnon),
        list(LruKind::ActiveFile),
        list(LruKind::InactiveFile),
        list(LruKind::Unevictable),
    );
    printk!(
        Warning,
        "isolated(anon):{}kB isolated(file):{}kB mapped:{}kB dirty:{}kB writeback:{}kB shmem:{}kB ",
        lruvec.isolated[0] * KIB,
        lruvec.isolated[1] * KIB,
        stat(NodeStat::FileMapped),
        stat(NodeStat::Dirty),
        stat(NodeStat::Writeback),
        stat(NodeStat::Shmem),
    );
    pr_warn!(
        "writeback_tmp:0kB kernel_stack:{}kB pagetables:{}kB sec_pagetables:0kB all_unreclaimable? {}",
        stat(NodeStat::KernelStack),
        stat(NodeStat::PageTable),
        if kswapd::is_hopeless(node) { "yes" } else { "no" },
    );
}

fn show_zone(index: usize) {
    let pcp = pcp::free_pcp(index);
    let lists =
        vmscan::lruvec(u32::try_from(index / MAX_NR_ZONES).unwrap_or(0)).zone_pages[index % MAX_NR_ZONES];
    let list = |kind: LruKind| lists[kind as usize] * KIB;
    let stats = vmstat::of_zone(index);
    with(index, |zone| {
        let mark = |mark: Watermark| (zone.watermark[mark as usize] + zone.watermark_boost) * KIB;
        printk!(
            Warning,
            "Node {} {} free:{}kB boost:{}kB min:{}kB low:{}kB high:{}kB reserved_highatomic:{}KB ",
            zone.node,
            name(zone),
            zone.free_pages * KIB,
            zone.watermark_boost * KIB,
            mark(Watermark::Min),
            mark(Watermark::Low),
            mark(Watermark::High),
            zone.nr_reserved_highatomic * KIB,
        );
        printk!(
            Warning,
            "active_anon:{}kB inactive_anon:{}kB active_file:{}kB inactive_file:{}kB unevictable:{}kB writepending:{}kB ",
            list(LruKind::ActiveAnon),
            list(LruKind::InactiveAnon),
            list(LruKind::ActiveFile),
            list(LruKind::InactiveFile),
            list(LruKind::Unevictable),
            (stats[NodeStat::Dirty as usize] + stats[NodeStat::Writeback as usize]) * KIB,
        );
        pr_warn!(
            "present:{}kB managed:{}kB mlocked:{}kB bounce:0kB free_pcp:{}kB local_pcp:{}kB free_cma:{}kB",
            zone.present_pages * KIB,
            zone.managed_pages * KIB,
            list(LruKind::Unevictable),
            pcp * KIB,
            pcp::local_pcp(index) * KIB,
            zone.nr_free_cma * KIB,
        );
        printk!(Warning, "lowmem_reserve[]:");
        for reserve in zone.lowmem_reserve {
            printk!(Warning, " {reserve}");
        }
        pr_warn!("");
    });
}

fn show_free_area(index: usize) {
    with(index, |zone| {
        printk!(Warning, "Node {} {}: ", zone.node, name(zone));
        let mut total = 0;
        for (order, area) in (0..).zip(&zone.free_area) {
            let blocks = area.nr_free();
            total += blocks << order;
            printk!(Warning, "{blocks}*{}kB ", KIB << order);
            if blocks > 0 {
                printk!(Warning, "(");
                for (_, letter) in LETTERS.iter().filter(|(kind, _)| area.lists[*kind as usize].nr_free > 0) {
                    printk!(Warning, "{letter}");
                }
                printk!(Warning, ") ");
            }
        }
        pr_warn!("= {}kB", total * KIB);
    });
    // Frames whose descriptors are not made yet are free, too.
    let deferred = with(index, |zone| zone.deferred_pages);
    if deferred > 0 {
        pr_warn!("Node {} deferred:{}kB", index / MAX_NR_ZONES, deferred * KIB);
    }
}
