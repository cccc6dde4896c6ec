//! Nodes, zones and the page allocator, on top of mm-page-alloc.

use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use memvisor_abi::{
    MAX_NR_ZONES, MAX_NUMNODES, NR_VM_EVENTS, Node, VmEvent, Watermark, Zonelist, ZonelistOrder,
};
use mm_core::{CpuLocal, Gfp, MaySleep, MemMap, Migrate, Order, PageKind, Pfn, PolicyAt, ZoneKind};
use mm_page_alloc::{
    AllocFlags, Context, FreeError, Machine, NodeState, PageAllocator, Policy, TaskFlags, TaskPolicy, Zone,
    ZoneGlance, build_zonelist, fallback_order, set_high_and_batch, zone_batchsize, zone_extents,
    zone_highsize,
};

use crate::arch::regs;
use crate::drivers::memvisor;
use crate::mm::memmap::{self, Vmemmap};
use crate::mm::movable::Owners;
use crate::mm::reclaim::KernelReclaim;
use crate::mm::{cma, early, fault_inject, kmap, limits, oom, pcp, scope, sysctl, vmscan, vmstat};
use crate::sync::{Guard, Lock};
use crate::{cmdline, pr_info, pr_warn, printk, sched, task, topology};

/// Places for zones: those of nodes that do not exist stay empty.
pub const ZONES_MAX: usize = MAX_NUMNODES * MAX_NR_ZONES;

#[expect(clippy::cast_possible_truncation, reason = "the index is below 256")]
const fn new_zone(index: usize) -> Lock<Zone> {
    let kind = match index % MAX_NR_ZONES {
        0 => ZoneKind::Dma,
        1 => ZoneKind::Dma32,
        2 => ZoneKind::Normal,
        3 => ZoneKind::HighMem,
        _ => ZoneKind::Movable,
    };
    Lock::new(Zone::new((index / MAX_NR_ZONES) as u32, kind))
}

/// All zones, by node and kind.
pub static ZONES: [Lock<Zone>; ZONES_MAX] = {
    let mut zones = [const { new_zone(0) }; ZONES_MAX];
    let mut index = 0;
    while index < ZONES_MAX {
        zones[index] = new_zone(index);
        index += 1;
    }
    zones
};

const NO_NODE: Node = Node { id: 0, online: 0, start_pfn: 0, spanned_pages: 0, present_pages: 0 };
/// All nodes, by number.
pub static NODES: Lock<[Node; MAX_NUMNODES]> = Lock::new([NO_NODE; MAX_NUMNODES]);
static NR_NODES: AtomicUsize = AtomicUsize::new(0);
static ONLINE_NODES: AtomicUsize = AtomicUsize::new(0);

/// What an allocation sees of the zones without their locks.
static GLANCES: [ZoneGlance; ZONES_MAX] = [const { ZoneGlance::new() }; ZONES_MAX];

/// The page allocator.
pub static PAGES: PageAllocator<Kernel> = PageAllocator::new(Kernel);

/// One CPU at a time brings sections online.
static GROWING: AtomicU32 = AtomicU32::new(0);

/// Nodes of the machine.
pub fn nr_nodes() -> usize {
    NR_NODES.load(Ordering::Relaxed)
}

/// A zone that can be locked.
#[derive(Clone, Copy, Debug)]
pub struct ZoneLock(usize);

/// A locked zone. What others see of it is refreshed before the lock opens.
pub struct ZoneGuard {
    zone: Guard<'static, Zone>,
    index: usize,
}

impl ZoneLock {
    /// Takes the zone's lock.
    pub fn lock(self) -> ZoneGuard {
        ZoneGuard { zone: ZONES[self.0].lock(), index: self.0 }
    }
}

impl Deref for ZoneGuard {
    type Target = Zone;
    fn deref(&self) -> &Zone {
        &self.zone
    }
}

impl DerefMut for ZoneGuard {
    fn deref_mut(&mut self) -> &mut Zone {
        &mut self.zone
    }
}

impl Drop for ZoneGuard {
    fn drop(&mut self) {
        GLANCES[self.index].refresh(&self.zone);
    }
}

/// The zone of a node.
pub fn zone(node: u32, kind: ZoneKind) -> ZoneLock {
    ZoneLock(node as usize * MAX_NR_ZONES + kind as usize)
}

/// Zones of the nodes that exist.
pub fn zones() -> impl Iterator<Item = ZoneLock> {
    (0..nr_nodes() * MAX_NR_ZONES).map(ZoneLock)
}

/// Builds nodes and zones from memblock and the topology, and brings the sections online that are
/// needed at once (Linux: `free_area_init`, `memblock_free_all`).
pub fn init() {
    let count = topology::nr_nodes();
    NR_NODES.store(count, Ordering::Relaxed);
    decide_fresh_is_zero();
    limits::init_movable();
    for node in 0..u32::try_from(count).unwrap_or(0) {
        init_node(node);
    }
    pcp::init(count, build_zonelists);
    vmscan::init();
    vmstat::init(count);
    let fraction =
        cmdline::number("percpu_pagelist_high_fraction").and_then(|number| u32::try_from(number).ok());
    PCP_HIGH_FRACTION.store(fraction.unwrap_or(0), Ordering::Relaxed);
    cma::init();
    count_managed();
    sysctl::init();
    size_pcps();
    for index in 0..memmap::sections().len() {
        if memmap::is_needed(&memmap::sections()[index]) {
            memmap::bring_online(index);
        }
    }
    cma::bring_online();
}

fn init_node(node: u32) {
    let memblock = early::MEMBLOCK.lock();
    let extents = zone_extents(memblock.memory(), node, limits::of(node));
    let mut info = Node { id: node, ..NO_NODE };
    let ranges = || memblock.mem_pfn_ranges(Some(node));
    if let (Some(first), Some(end)) = (ranges().map(|r| r.0).min(), ranges().map(|r| r.1).max()) {
        info.start_pfn = first.as_u64();
        info.spanned_pages = end.as_u64() - first.as_u64();
        info.present_pages = ranges().map(|(start, end, _)| end.as_u64() - start.as_u64()).sum();
    }
    drop(memblock);
    info.online = u32::from(info.present_pages > 0 || topology::cpus_of(node) > 0);
    NODES.lock()[node as usize] = info;
    ONLINE_NODES.fetch_add(info.online as usize, Ordering::Relaxed);
    for (kind, extent) in ZoneKind::ALL.into_iter().zip(extents) {
        zone(node, kind).lock().set_extent(extent.start_pfn, extent.spanned, extent.present);
    }
}

/// Every free frame is managed, and deferred until its section is online.
fn count_managed() {
    memmap::for_each_free(Pfn::new(0), Pfn::new(u64::MAX), |first, last, node| {
        limits::of(node).for_each_part(first, last, |first, last, kind| {
            let pages = last.as_u64() - first.as_u64();
            let mut zone = zone(node, kind).lock();
            zone.add_managed(pages);
            zone.info_mut().deferred_pages += pages;
        });
    });
}

/// Whether RAM that nobody wrote to is zero. memvisor promises that of the RAM that it makes; what firmware or
/// another kernel left in a machine of others is unknown, unless `fresh_ram=zero` says so. `fresh_ram=unknown` turns it
/// off.
fn fresh_is_zero() -> bool {
    FRESH_IS_ZERO.load(Ordering::Relaxed)
}
static FRESH_IS_ZERO: AtomicBool = AtomicBool::new(false);

fn decide_fresh_is_zero() {
    let word = cmdline::value("fresh_ram", |value| match value {
        "zero" => Some(true),
        "unknown" => Some(false),
        _ => None,
    });
    if word == Some(None) {
        pr_warn!("page_alloc: fresh_ram= takes zero or unknown");
    }
    FRESH_IS_ZERO.store(word.flatten().unwrap_or_else(memvisor::present), Ordering::Relaxed);
}

/// Gives free frames to their zone.
pub fn hand_over(node: u32, kind: ZoneKind, start: Pfn, end: Pfn) {
    let mut zone = zone(node, kind).lock();
    let outcome = if fresh_is_zero() {
        zone.free_zero_range(&Vmemmap, start, end)
    } else {
        zone.free_range(&Vmemmap, start, end)
    };
    if let Err(error) = outcome {
        panic!("handing frames {start}..{end} to node {node} zone {}: {error}", kind.name());
    }
    zone.info_mut().deferred_pages -= end.as_u64() - start.as_u64();
}

/// Brings the next deferred section with frames of that zone online (Linux: `deferred_grow_zone`).
fn grow(node: u32, kind: ZoneKind) -> bool {
    while GROWING.swap(1, Ordering::Acquire) == 1 {
        core::hint::spin_loop();
    }
    let (start, end) = {
        let zone = zone(node, kind).lock();
        (zone.info().start_pfn, zone.info().start_pfn + zone.info().spanned_pages)
    };
    let next = memmap::sections().iter().position(|section| {
        let (first, last) = memmap::span(section);
        !section.is_online() && first.as_u64() < end && last.as_u64() > start
    });
    if let Some(index) = next {
        memmap::bring_online(index);
    }
    GROWING.store(0, Ordering::Release);
    next.is_some()
}

/// Whether only the reserve is left: no zone gives a request of the kernel a frame above its min watermark and what it keeps from requests
/// that higher zones could serve, `lowmem_reserve` (Linux: only `ALLOC_HARDER` and `ALLOC_HIGH` find any then).
pub fn is_below_min() -> bool {
    let flags = AllocFlags::WMARK_MIN;
    !GLANCES[..nr_nodes() * MAX_NR_ZONES].iter().filter(|glance| glance.managed_pages() > 0).any(|glance| {
        let free = glance.free_pages();
        glance.watermark_ok(Order::ZERO, glance.mark(flags), ZoneKind::Normal, flags, free)
    })
}

/// Frames of all zones, and how many of them are free, those on the CPUs' lists not counted.
pub fn managed_and_free() -> (u64, u64) {
    zones().fold((0, 0), |(managed, free), zone| {
        let zone = zone.lock();
        (managed + zone.info().managed_pages, free + zone.info().free_pages)
    })
}

/// Frames that the page allocator of a node was given (Linux: `node_managed_pages`).
pub fn managed_pages(node: u32) -> u64 {
    let first = node as usize * MAX_NR_ZONES;
    ZONES.iter().skip(first).take(MAX_NR_ZONES).map(|zone| zone.lock().info().managed_pages).sum()
}

/// Linux: `build_all_zonelists`, with `numa_zonelist_order=` of Linux before 4.14.
fn build_zonelists(lists: &mut [Zonelist]) {
    let count = lists.len();
    let order = cmdline::value("numa_zonelist_order", |value| match value {
        "zone" | "Zone" | "z" | "Z" => Some(ZonelistOrder::Zone),
        "node" | "Node" | "n" | "N" | "default" | "d" | "D" => Some(ZonelistOrder::Node),
        _ => None,
    });
    if order == Some(None) {
        pr_warn!("page_alloc: numa_zonelist_order= takes node or zone; node is used");
    }
    let order = order.flatten().unwrap_or_default();
    let mut states = [NodeState::default(); MAX_NUMNODES];
    for (node, state) in (0..).zip(&mut states[..count]) {
        state.has_memory = NODES.lock()[node as usize].present_pages > 0;
        state.has_cpus = topology::cpus_of(node) > 0;
    }
    for (node, list) in (0..).zip(lists) {
        let mut nodes = [0; MAX_NUMNODES];
        let len = topology::with_distances(|distances| {
            fallback_order(node, distances, count, &mut states[..count], &mut nodes)
        });
        build_zonelist(list, node, &nodes[..len], order, |zone| ZONES[zone].lock().info().present_pages > 0);
    }
}

/// Sizes every CPU's lists, before the other CPUs run (Linux: `setup_per_cpu_pageset`).
fn size_pcps() {
    for (index, _) in zones().enumerate() {
        if let Some((high, batch)) = pcp_limits(index) {
            pcp::for_each_at_boot(index, |pcp| set_high_and_batch(pcp, high, batch));
        }
    }
}

/// Sizes the lists of every CPU anew, each by its own CPU, because watermarks changed (Linux: `zone_pcp_update`). What is
/// too long then shrinks with the next free.
pub fn resize_pcps() {
    pcp::Local.for_each(|_, cpu| {
        for (index, pcp) in cpu.pcps.iter_mut().enumerate() {
            if let Some((high, batch)) = pcp_limits(index) {
                set_high_and_batch(pcp, high, batch);
            }
        }
    });
}

/// How many pages a CPU may keep of a zone, and how many it moves at once; `None` for an empty zone (Linux:
/// `zone_set_pageset_high_and_batch`).
fn pcp_limits(index: usize) -> Option<(u32, u32)> {
    let (node, managed, low) = {
        let zone = ZONES[index].lock();
        let info = zone.info();
        (info.node, info.managed_pages, info.watermark[Watermark::Low as usize])
    };
    let fraction = PCP_HIGH_FRACTION.load(Ordering::Relaxed);
    let near = topology::cpus_of(node);
    let cpus = u32::try_from(if near == 0 { topology::CPUS.lock().count } else { near }).unwrap_or(1);
    let batch = zone_batchsize(managed).max(1);
    (managed > 0).then(|| (zone_highsize(managed, low, batch, cpus, fraction), batch))
}

/// `percpu_pagelist_high_fraction=`.
static PCP_HIGH_FRACTION: AtomicU32 = AtomicU32::new(0);

/// The machine that [`PAGES`] stands on.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

impl Machine for Kernel {
    type Map = Vmemmap;
    type Local = pcp::Local;
    type Reclaim = KernelReclaim;

    fn map(&self) -> &Vmemmap {
        &Vmemmap
    }

    fn local(&self) -> &pcp::Local {
        &pcp::Local
    }

    fn reclaim(&self) -> &KernelReclaim {
        &KernelReclaim
    }

    fn glances(&self) -> &[ZoneGlance] {
        &GLANCES[..nr_nodes() * MAX_NR_ZONES]
    }

    fn with_zone<R>(&self, index: usize, f: impl FnOnce(&mut Zone) -> R) -> R {
        f(&mut ZONES[index].lock())
    }

    #[inline(always)]
    fn is_injecting(&self) -> bool {
        fault_inject::is_enabled()
    }

    fn should_fail_alloc_page(&self, gfp: Gfp, order: Order) -> bool {
        fault_inject::should_fail_alloc_page(gfp, order)
    }

    fn zonelists(&self) -> &[Zonelist] {
        pcp::zonelists()
    }

    fn local_node(&self) -> u32 {
        topology::current_node()
    }

    fn nr_online_nodes(&self) -> usize {
        ONLINE_NODES.load(Ordering::Relaxed)
    }

    fn zero_frames(&self, first: Pfn, count: u64) {
        (0..count).for_each(|index| kmap::clear_highpage(first.offset(index)));
    }

    fn migrate(&self) -> &dyn Migrate {
        &Owners
    }

    fn cond_resched(&self, token: &MaySleep<'_>) {
        sched::yield_now(token);
    }

    fn grow(&self, zone: usize) -> bool {
        let kind = u32::try_from(zone % MAX_NR_ZONES).ok().and_then(ZoneKind::from_raw);
        let node = u32::try_from(zone / MAX_NR_ZONES).ok();
        let deferred = GLANCES[zone].deferred_pages() > 0;
        deferred && node.zip(kind).is_some_and(|(node, kind)| grow(node, kind))
    }

    /// Ten reports in a few seconds at most (Linux: `DEFAULT_RATELIMIT_BURST` in five).
    fn may_report(&self) -> bool {
        const WINDOW: u64 = 1 << 33;
        const BURST: u32 = 10;
        static BEGIN: AtomicU64 = AtomicU64::new(0);
        static REPORTS: AtomicU32 = AtomicU32::new(0);
        let now = regs::rdtsc();
        if now.wrapping_sub(BEGIN.load(Ordering::Relaxed)) > WINDOW {
            BEGIN.store(now, Ordering::Relaxed);
            REPORTS.store(0, Ordering::Relaxed);
        }
        REPORTS.fetch_add(1, Ordering::Relaxed) < BURST
    }

    fn report(&self, line: fmt::Arguments<'_>) {
        oom::with_comm(|comm| pr_warn!("{comm}: {line}"));
    }

    fn show_mem(&self, highest: ZoneKind) {
        oom::dump_stack();
        oom::show_mem(highest);
    }
}

/// Allocates a block for `kind`, near `node` (default: this CPU's node), for callers that hold locks: nothing sleeps, and the
/// min watermark is kept.
pub fn alloc_pages(order: Order, node: Option<u32>, kind: PageKind) -> Option<Pfn> {
    let gfp = match kind {
        PageKind::User => Gfp::NOWAIT | Gfp::HIGHMEM | Gfp::MOVABLE,
        _ => Gfp::NOWAIT,
    };
    let pfn = alloc_gfp(Context::ATOMIC, gfp | Gfp::NOWARN, order, node)?;
    set_kind(pfn, kind);
    Some(pfn)
}

/// [`alloc_pages`] of one frame of zeroes.
pub fn alloc_zeroed(kind: PageKind) -> Option<Pfn> {
    let pfn = alloc_gfp(Context::ATOMIC, Gfp::NOWAIT | Gfp::NOWARN | Gfp::ZERO, Order::ZERO, None)?;
    set_kind(pfn, kind);
    Some(pfn)
}

/// Gives a frame back that is all zero again.
pub fn free_zeroed(pfn: Pfn) {
    // The allocator's own again, so that it takes it without a closer look.
    set_kind(pfn, PageKind::Allocated);
    if let Err(error) = PAGES.free_zeroed_page(pfn) {
        panic!("free of {pfn}: {error}");
    }
}

/// Allocates a block by gfp flags (Linux: `alloc_pages_node`). A node that does not exist has no memory.
pub fn alloc_gfp(context: Context<'_>, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
    PAGES.alloc_pages(context, gfp, order, node)
}

/// [`alloc_gfp`] for allocators that carry no right to sleep: where the caller is in task context, with interrupts on and so without
/// locks, a GFP that may reclaim does (Linux: `might_alloc`). Anywhere else nothing sleeps.
///
/// Differs from Linux: `GFP_KERNEL` where nothing may sleep is served like `GFP_NOWAIT` and not reported as a bug: areas of vmalloc take
/// their frames under their lock.
pub fn alloc_here(gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
    if node.is_none() && POLICIES.load(Ordering::Relaxed) && gfp.contains(Gfp::MOVABLE) {
        return alloc_by_policy(gfp, order);
    }
    alloc_near(gfp, order, node)
}

/// [`alloc_here`] without a look at policies.
#[inline]
fn alloc_near(gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
    // Whether anything may sleep matters only where there is something to wait for.
    if let Some(pfn) = PAGES.alloc_from_lists(gfp, order, node) {
        return Some(pfn);
    }
    let token = if gfp.contains(Gfp::DIRECT_RECLAIM) { sched::might_sleep() } else { None };
    match &token {
        Some(token) => alloc_gfp(Context { may_sleep: Some(token), task: task_flags() }, gfp, order, node),
        None => alloc_gfp(Context::ATOMIC, gfp - Gfp::DIRECT_RECLAIM, order, node),
    }
}

/// Some task has a policy, so that every page of a program is looked for by one.
static POLICIES: AtomicBool = AtomicBool::new(false);

/// From now on the policies of tasks count.
pub fn use_policies() {
    POLICIES.store(true, Ordering::Relaxed);
}

/// The policy of the task that runs here (Linux: `get_task_policy`).
pub fn task_policy() -> Policy {
    if !POLICIES.load(Ordering::Relaxed) {
        return Policy::Default;
    }
    task::current().map_or(Policy::Default, |task| task.mempolicy.lock().policy())
}

/// A page of an area, by the area's policy, else by the task's (Linux: `vma_alloc_folio`). Where there is neither, no lock is taken for it.
pub fn alloc_page_policy(gfp: Gfp, at: PolicyAt) -> Option<Pfn> {
    let policy = if at.policy == Policy::Default { task_policy() } else { at.policy };
    if matches!(policy, Policy::Default | Policy::Local) {
        return alloc_near(gfp, Order::ZERO, None);
    }
    alloc_page_at(gfp, PolicyAt { policy, ..at })
}

#[inline(never)]
fn alloc_page_at(gfp: Gfp, at: PolicyAt) -> Option<Pfn> {
    let token = if gfp.contains(Gfp::DIRECT_RECLAIM) { sched::might_sleep() } else { None };
    match &token {
        Some(token) => PAGES.alloc_page_at(Context { may_sleep: Some(token), task: task_flags() }, gfp, at),
        None => PAGES.alloc_page_at(Context::ATOMIC, gfp - Gfp::DIRECT_RECLAIM, at),
    }
}

/// A page of a file, by the policy of the task that asks (Linux: `folio_alloc`).
fn alloc_by_policy(gfp: Gfp, order: Order) -> Option<Pfn> {
    let token = if gfp.contains(Gfp::DIRECT_RECLAIM) { sched::might_sleep() } else { None };
    let task = task::current();
    // Not under its lock: this may sleep. Nobody else changes it.
    let mut policy = task.as_ref().map_or_else(TaskPolicy::default, |task| *task.mempolicy.lock());
    let (context, gfp) = match &token {
        Some(token) => (Context { may_sleep: Some(token), task: task_flags() }, gfp),
        None => (Context::ATOMIC, gfp - Gfp::DIRECT_RECLAIM),
    };
    let block = PAGES.alloc_pages_policy(context, gfp, order, &mut policy);
    if let Some(task) = task {
        *task.mempolicy.lock() = policy;
    }
    block
}

/// State of the current task that changes what it may allocate (Linux: `current->flags`, `tsk_is_oom_victim`).
pub fn task_flags() -> TaskFlags {
    let victim = if oom::is_victim() { TaskFlags::OOM_VICTIM } else { TaskFlags::empty() };
    victim | scope::current_flags()
}

/// The first frame says whose the block is.
fn set_kind(pfn: Pfn, kind: PageKind) {
    if let Some(page) = Vmemmap.page(pfn) {
        page.set_kind(kind);
    }
}

/// Free pages of all zones, as they stand (Linux: `nr_free_pages`).
pub fn nr_free_pages() -> u64 {
    Kernel.glances().iter().map(ZoneGlance::free_pages).sum()
}

/// Gives a block back. A wrong free is a bug of the caller and ends the kernel, with the frame named.
pub fn free_pages(pfn: Pfn, order: Order) {
    if let Err(error) = try_free_pages(pfn, order) {
        panic!("free of {pfn}, order {}: {error}", order.as_u8());
    }
}

/// [`free_pages`] of `count` frames from `first` on.
pub fn free_run(first: Pfn, count: u64) {
    if let Err(error) = PAGES.free_run(first, count) {
        panic!("free of {count} frames from {first} on: {error}");
    }
}

/// [`free_pages`] that says what is wrong.
pub fn try_free_pages(pfn: Pfn, order: Order) -> Result<(), FreeError> {
    PAGES.free_pages(pfn, order)
}

/// Pages allocated and freed so far.
pub fn pgalloc_pgfree() -> (u64, u64) {
    let events = pcp::sum_events();
    let allocated = events[VmEvent::PgallocDma as usize..=VmEvent::PgallocMovable as usize].iter().sum();
    (allocated, events[VmEvent::Pgfree as usize])
}

const _: () = assert!(NR_VM_EVENTS > VmEvent::Pgfree as usize);

/// Prints zones as Linux's boot log and /proc/zoneinfo do, and free blocks as /proc/buddyinfo.
pub fn print() {
    for zone in zones() {
        let zone = zone.lock();
        let info = zone.info();
        if info.present_pages == 0 {
            continue;
        }
        let name = ZoneKind::from_raw(info.kind).map_or("?", ZoneKind::name);
        pr_info!(
            "Node {}, zone {name:>8}: start_pfn {:#x} spanned {} present {} managed {} free {} deferred {} min {} low {} high {} protection {:?}",
            info.node,
            info.start_pfn,
            info.spanned_pages,
            info.present_pages,
            info.managed_pages,
            info.free_pages,
            info.deferred_pages,
            info.watermark[0],
            info.watermark[1],
            info.watermark[2],
            info.lowmem_reserve,
        );
        printk!(Info, "Node {}, zone {name:>8}: free blocks by order", info.node);
        for area in &info.free_area {
            printk!(Info, " {}", area.nr_free());
        }
        pr_info!("");
    }
}
