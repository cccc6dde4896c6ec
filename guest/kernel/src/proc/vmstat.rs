//! /proc/vmstat, and the lines about a node in /proc/zoneinfo (Linux: mm/vmstat.c, `vmstat_start`, `zoneinfo_show_print`).

use memvisor_abi::proc_text::{EVENT_LINES, NODE_LINES, NodeLine, ZONE_LINES, ZoneLine, is_linux_event};
use memvisor_abi::{LruKind, Lruvec, MAX_NR_ZONES, NR_NUMA_EVENTS, NodeStat, NumaEvent, VmEvent};
use mm_core::{CpuLocal, PAGE_SIZE};

use super::{Out, line};
use crate::drivers::block::{self, Direction};
use crate::mm::{page_alloc, pcp, slab, vmscan, vmstat as counts, writeback};

const KIB: u64 = PAGE_SIZE / 1024;

/// What there is to say about a node, or about all of them.
pub struct NodeState {
    stats: counts::Counts,
    slab: Option<[u64; 2]>,
    lists: vmscan::Counts,
}

impl NodeState {
    /// One node.
    pub fn of(node: u32) -> NodeState {
        let lruvec = vmscan::lruvec(node);
        let lists =
            vmscan::Counts { lists: LruKind::ALL.map(|kind| lruvec.pages(kind)), isolated: lruvec.isolated };
        NodeState { stats: counts::of_node(node as usize), slab: slab::nr_pages_of(node), lists }
    }

    /// All nodes.
    pub fn total() -> NodeState {
        NodeState { stats: counts::total(), slab: slab::nr_pages(), lists: vmscan::counts() }
    }

    /// A line; `None` of what is not counted: SLOB does not count its pages.
    fn value(&self, what: NodeLine) -> Option<u64> {
        Some(match what {
            NodeLine::Lru(kind) => self.lists.list(kind),
            NodeLine::SlabReclaimable => self.slab?[0],
            NodeLine::SlabUnreclaimable => self.slab?[1],
            NodeLine::Isolated(kind) => *self.lists.isolated.get(kind)?,
            NodeLine::Stat(stat) => self.stats[stat as usize],
            NodeLine::Kib(stat) => self.stats[stat as usize] * KIB,
            NodeLine::Zero => 0,
        })
    }

    /// Calls `f` with each line.
    pub fn lines(&self, mut f: impl FnMut(&str, u64)) {
        for (name, what) in NODE_LINES {
            if let Some(value) = self.value(what) {
                f(name, value);
            }
        }
    }
}

/// What there is to say about a zone, or about all of them, besides free pages.
pub struct ZoneState {
    lists: [u64; LruKind::ALL.len()],
    write_pending: u64,
}

impl ZoneState {
    fn new(lists: [u64; LruKind::ALL.len()], stats: &counts::Counts) -> ZoneState {
        ZoneState {
            lists,
            write_pending: stats[NodeStat::Dirty as usize] + stats[NodeStat::Writeback as usize],
        }
    }

    /// One zone, by its index.
    pub fn of(index: usize) -> ZoneState {
        let node = u32::try_from(index / MAX_NR_ZONES).unwrap_or(0);
        let lruvec: Lruvec = vmscan::lruvec(node);
        ZoneState::new(lruvec.zone_pages[index % MAX_NR_ZONES], &counts::of_zone(index))
    }

    fn total() -> ZoneState {
        ZoneState::new(vmscan::counts().lists, &counts::total())
    }

    /// Calls `f` with each line.
    pub fn lines(&self, mut f: impl FnMut(&str, u64)) {
        for (name, what) in ZONE_LINES {
            f(
                name,
                match what {
                    ZoneLine::Lru(kind) => self.lists[kind as usize],
                    ZoneLine::WritePending => self.write_pending,
                    ZoneLine::Zero => 0,
                },
            );
        }
    }
}

/// /proc/vmstat.
pub fn vmstat(out: &mut Out<'_>) {
    let (mut free, mut cma) = (0, 0);
    for zone in page_alloc::zones() {
        let zone = zone.lock();
        free += zone.info().free_pages;
        cma += zone.info().nr_free_cma;
    }
    line!(out, "nr_free_pages {free}");
    ZoneState::total().lines(|name, value| line!(out, "{name} {value}"));
    line!(out, "nr_free_cma {cma}");
    let mut numa = [0_u64; NR_NUMA_EVENTS];
    pcp::Local.for_each(|_, cpu| {
        for pcp in cpu.pcps.iter() {
            for (sum, count) in numa.iter_mut().zip(pcp.numa) {
                *sum = sum.wrapping_add(count);
            }
        }
    });
    for (name, count) in NumaEvent::NAMES.iter().zip(numa) {
        line!(out, "{name} {count}");
    }
    NodeState::total().lines(|name, value| line!(out, "{name} {value}"));
    let limits = writeback::limits();
    line!(out, "nr_dirty_threshold {}", limits.dirty);
    line!(out, "nr_dirty_background_threshold {}", limits.background);
    // In KiB, of all disks (Linux: PGPGIN, PGPGOUT).
    let kib = |direction| block::all().map(|disk| disk.stats().of(direction)[1]).sum::<u64>() / 2;
    line!(out, "pgpgin {}", kib(Direction::Read));
    line!(out, "pgpgout {}", kib(Direction::Write));
    let events = pcp::sum_events();
    for (name, event) in EVENT_LINES {
        line!(out, "{name} {}", event.map_or(0, |event| events[event as usize]));
    }
    line!(out, "nr_unstable 0");
    for (name, count) in VmEvent::NAMES.iter().zip(events).filter(|(name, _)| !is_linux_event(name)) {
        line!(out, "{name} {count}");
    }
}
