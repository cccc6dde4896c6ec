//! `alloc_pages` and its family (Linux 6.1: mm/page_alloc.c).
//!
//! [`PageAllocator`] stands on a [`Machine`]: the memmap, zones behind their locks, each CPU's lists, the order of
//! zones by node, and what reclaims. An allocation goes, in Linux's order,
//!
//! ```text
//! prepare          flags checked; highest zone, type, zonelist (freelist.rs, Request)
//! fast path        each zone of the list above its low watermark: per-CPU list, else the buddy (freelist.rs)
//! slow path        wake kswapd; again down to the min watermark; compaction; reserves; direct reclaim;
//!                  compaction; retries; OOM (slowpath.rs)
//! prep_new_page    reference, order, zeroes, compound page (prepare.rs)
//! ```
//!
//! and a free through a check of the descriptor to the CPU's list of the block's own zone, whatever its node (free.rs).
//!
//! Locks: CPU-local data first, then a zone; one zone at a time. Reclaim hooks are called with neither.

mod bulk;
mod exact;
mod free;
mod freelist;
mod hot;
mod prepare;
mod reclaim;
mod report;
mod run;
mod slowpath;

use core::fmt;

use memvisor_abi::{EventId, MAX_NR_ZONES, VmEvent, Zonelist};
use mm_core::{
    CpuLocal, Event, Gfp, MaySleep, MemMap, Migrate, NoMigrate, Order, PAGE_SIZE, Pfn, PhysAddr, PolicyAt,
    Trace, ZoneId, ZoneKind,
};

use crate::gfp::Context;
use crate::pcp::CpuPages;
use crate::policy::{self, Placement, TaskPolicy};
use crate::{Zone, ZoneGlance, check_gfp};

pub use bulk::PageList;
pub use freelist::Request;
pub use reclaim::{CompactPriority, CompactResult, NoReclaim, OomOutcome, Reclaim};

/// The machine as the allocator needs it. Zones are numbered node * `MAX_NR_ZONES` + kind.
pub trait Machine {
    /// See [`Machine::map`].
    type Map: MemMap + ?Sized;
    /// See [`Machine::local`].
    type Local: CpuLocal<CpuPages>;
    /// See [`Machine::reclaim`].
    type Reclaim: Reclaim;

    /// The descriptors.
    fn map(&self) -> &Self::Map;

    /// Per-CPU lists and events.
    fn local(&self) -> &Self::Local;

    /// What reclaims, compacts and kills.
    fn reclaim(&self) -> &Self::Reclaim;

    /// Copies of what the zones say, by zone index.
    fn glances(&self) -> &[ZoneGlance];

    /// Calls `f` with the zone locked. Whoever implements it need not refresh the glance.
    fn with_zone<R>(&self, index: usize, f: impl FnOnce(&mut Zone) -> R) -> R;

    /// The order of zones for each node.
    fn zonelists(&self) -> &[Zonelist];

    /// Node of the CPU that asks (Linux: `numa_mem_id`).
    fn local_node(&self) -> u32;

    /// Nodes of the machine that are online.
    fn nr_online_nodes(&self) -> usize;

    /// Fills frames with zeroes.
    fn zero_frames(&self, first: Pfn, count: u64);

    /// Brings more of a zone's deferred frames online; `false` if there were none (Linux:
    /// `deferred_grow_zone`).
    fn grow(&self, _zone: usize) -> bool {
        false
    }

    /// Whether somebody reclaims in the zone, so that per-CPU lists are kept short (Linux:
    /// `ZONE_RECLAIM_ACTIVE`).
    fn is_reclaiming(&self, _zone: usize) -> bool {
        false
    }

    /// The owners of movable pages; none by default.
    fn migrate(&self) -> &dyn Migrate {
        &NoMigrate
    }

    /// Lets others run in the midst of long work (Linux: `cond_resched`).
    fn cond_resched(&self, _: &MaySleep<'_>) {}

    /// Whether requests may be made to fail. Inlined, and one relaxed load at most: the short paths ask it.
    #[inline(always)]
    fn is_injecting(&self) -> bool {
        false
    }

    /// Whether a request is to fail though there is memory (Linux: `should_fail_alloc_page`).
    fn should_fail_alloc_page(&self, _gfp: Gfp, _order: Order) -> bool {
        false
    }

    /// Whether a report may be printed now (Linux: `__ratelimit`).
    fn may_report(&self) -> bool;

    /// Prints one line of a report.
    fn report(&self, line: fmt::Arguments<'_>);

    /// Prints what there is of memory, after a request for zones up to `highest` failed (Linux: `show_mem`). Any context without locks.
    fn show_mem(&self, _highest: ZoneKind) {}
}

/// The page allocator.
#[derive(Clone, Copy, Debug)]
pub struct PageAllocator<M> {
    pub(crate) machine: M,
}

impl<M: Machine> PageAllocator<M> {
    /// The allocator of that machine, whose zones, lists and zonelists are set up.
    pub const fn new(machine: M) -> PageAllocator<M> {
        PageAllocator { machine }
    }

    /// The machine.
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    /// A block of `2^order` frames, from `node` if possible (default: this CPU's) (Linux: `alloc_pages_node`,
    /// and `alloc_pages` of a task without policy). Its first frame has one reference. `None` if nothing that `gfp`
    /// and `context` allow makes one free, or if they contradict each other.
    #[inline]
    pub fn alloc_pages(
        &self,
        context: Context<'_>,
        gfp: Gfp,
        order: Order,
        node: Option<u32>,
    ) -> Option<Pfn> {
        let node = match node {
            Some(node) => node,
            None => self.machine.local_node(),
        };
        if let Some(pfn) = self.alloc_hot(context, gfp, order, node) {
            return Some(pfn);
        }
        self.alloc_pages_anywhere(context, gfp, order, node)
    }

    #[inline(never)]
    fn alloc_pages_anywhere(&self, context: Context<'_>, gfp: Gfp, order: Order, node: u32) -> Option<Pfn> {
        self.alloc_pages_placed(context, gfp, order, Placement::from(node))
    }

    /// [`PageAllocator::alloc_pages`] for an order from outside: `None` above 10 (Linux warns once and returns
    /// NULL).
    pub fn alloc_pages_raw(
        &self,
        context: Context<'_>,
        gfp: Gfp,
        order: u32,
        node: Option<u32>,
    ) -> Option<Pfn> {
        let known = u8::try_from(order).ok().and_then(Order::new);
        if known.is_none() && !gfp.contains(Gfp::NOWARN) && self.machine.may_report() {
            self.machine.report(format_args!("page allocation of order {order}: the largest is 10"));
        }
        self.alloc_pages(context, gfp, known?, node)
    }

    /// A block by the task's memory policy (Linux: `alloc_pages` with CONFIG_NUMA). Requests for this
    /// node only have no policy.
    pub fn alloc_pages_policy(
        &self,
        context: Context<'_>,
        gfp: Gfp,
        order: Order,
        policy: &mut TaskPolicy,
    ) -> Option<Pfn> {
        let local = self.machine.local_node();
        if gfp.contains(Gfp::THISNODE) {
            return self.alloc_pages(context, gfp, order, Some(local));
        }
        let placement = policy.place(gfp, local, self.policy_zone());
        self.alloc_pages_chosen(context, gfp, order, placement)
    }

    /// A page for an area by a policy, the area's or else the task's, at a page offset there (Linux: `vma_alloc_folio`).
    pub fn alloc_page_at(&self, context: Context<'_>, gfp: Gfp, at: PolicyAt) -> Option<Pfn> {
        let local = self.machine.local_node();
        let placement = policy::place_at(at.policy, at.index, gfp, local, self.policy_zone());
        self.alloc_pages_chosen(context, gfp, Order::ZERO, placement)
    }

    /// What a policy chose, in up to two tries (Linux: `alloc_pages_preferred_many`).
    fn alloc_pages_chosen(
        &self,
        context: Context<'_>,
        gfp: Gfp,
        order: Order,
        placement: Placement,
    ) -> Option<Pfn> {
        if placement.or_any {
            let at_once = (gfp | Gfp::NOWARN) - (Gfp::DIRECT_RECLAIM | Gfp::NOFAIL);
            let near = self.alloc_pages_placed(context, at_once, order, placement);
            return near
                .or_else(|| self.alloc_pages_placed(context, gfp, order, Placement::from(placement.node)));
        }
        self.alloc_pages_placed(context, gfp, order, placement)
    }

    /// Address of a zero page of the direct map (Linux: `get_zeroed_page`).
    pub fn get_zeroed_page(&self, context: Context<'_>, gfp: Gfp) -> Option<PhysAddr> {
        self.get_free_pages(context, gfp | Gfp::ZERO, Order::ZERO)
    }

    /// Physical address of a block that the direct map reaches (Linux: `__get_free_pages`): never from
    /// ZONE_HIGHMEM, whatever `gfp` says.
    pub fn get_free_pages(&self, context: Context<'_>, gfp: Gfp, order: Order) -> Option<PhysAddr> {
        let map = self.machine.map();
        map.emit(Event::GetFreePages { gfp, order });
        let phys = self.alloc_pages(context, gfp - Gfp::HIGHMEM, order, None).map(Pfn::phys);
        map.emit(Event::GetFreePagesRet { phys: phys.map_or(0, PhysAddr::as_u64) });
        phys
    }

    /// Linux: `__alloc_pages`.
    #[inline]
    fn alloc_pages_placed(
        &self,
        context: Context<'_>,
        gfp: Gfp,
        order: Order,
        placement: Placement,
    ) -> Option<Pfn> {
        let map = self.machine.map();
        map.emit(Event::AllocPages { gfp, order, node: Some(placement.node) });
        let pfn = self.try_alloc_pages(context, gfp, order, placement);
        map.emit(Event::AllocPagesRet { pfn });
        pfn
    }

    #[inline]
    fn try_alloc_pages(
        &self,
        context: Context<'_>,
        gfp: Gfp,
        order: Order,
        placement: Placement,
    ) -> Option<Pfn> {
        if let Err(error) = check_gfp(context, gfp) {
            return self.refuse(gfp, order, placement.node, &error);
        }
        let request = self.prepare(context.scoped(gfp), order, placement)?;
        let flags = request.fast_flags(&self.machine);
        let block = match self.get_page_from_freelist(&request, flags) {
            Some(block) => block,
            None => self.slow_path(context, &request)?,
        };
        let pfn = self.prep_new_page(&request, block);
        let migratetype = request.migratetype as u8;
        self.machine.map().emit(Event::MmPageAlloc { pfn, order, migratetype, gfp_flags: request.gfp });
        Some(pfn)
    }

    /// [`Request::new`], told as Linux's `prepare_alloc_pages`.
    #[inline]
    fn prepare(&self, gfp: Gfp, order: Order, placement: Placement) -> Option<Request> {
        let map = self.machine.map();
        map.emit(Event::PrepareAllocPages { gfp, order, node: Some(placement.node) });
        let injected = self.machine.is_injecting() && self.machine.should_fail_alloc_page(gfp, order);
        let request = if injected { None } else { Request::new(&self.machine, gfp, order, placement) };
        if map.wants(EventId::PrepareAllocPagesRet) {
            self.tell_request(request.as_ref(), gfp);
        }
        request
    }

    #[cold]
    fn tell_request(&self, request: Option<&Request>, gfp: Gfp) {
        self.machine.map().emit(Event::PrepareAllocPagesRet {
            ok: request.is_some(),
            highest_zone: request.map_or_else(|| crate::gfp::highest_zone(gfp), |request| request.highest),
            preferred_zone: zone_id(request.map_or(0, |request| request.preferred)),
            migratetype: crate::gfp::migratetype(gfp) as u8,
            alloc_flags: request.map_or(0, |request| request.fast_flags(&self.machine).bits()),
        });
    }

    #[cold]
    fn refuse(&self, gfp: Gfp, order: Order, node: u32, error: &dyn fmt::Display) -> Option<Pfn> {
        self.machine.map().emit(Event::PrepareAllocPages { gfp, order, node: Some(node) });
        self.tell_request(None, gfp);
        if !gfp.contains(Gfp::NOWARN) && self.machine.may_report() {
            self.machine.report(format_args!("page allocation refused: {error}"));
        }
        self.count(VmEvent::AllocFail, 1);
        None
    }

    /// Highest zone that is populated somewhere, MOVABLE aside (Linux: `policy_zone`).
    fn policy_zone(&self) -> ZoneKind {
        let populated = |kind: ZoneKind| {
            let glances = self.machine.glances();
            glances.iter().skip(kind as usize).step_by(MAX_NR_ZONES).any(|glance| glance.managed_pages() > 0)
        };
        [ZoneKind::HighMem, ZoneKind::Normal, ZoneKind::Dma32]
            .into_iter()
            .find(|&kind| populated(kind))
            .unwrap_or(ZoneKind::Dma)
    }

    /// Counts an event on this CPU (Linux: `count_vm_events`).
    pub fn count(&self, event: VmEvent, delta: u64) {
        self.machine.local().with(|_, cpu| cpu.count(event, delta));
    }

    /// Calls `f` with a zone locked, and refreshes what others see of its free blocks.
    #[inline]
    pub(crate) fn with_zone<R>(&self, index: usize, f: impl FnOnce(&mut Zone) -> R) -> R {
        let glance = self.machine.glances().get(index);
        self.machine.with_zone(index, |zone| {
            let result = f(zone);
            if let Some(glance) = glance {
                glance.refresh_free(zone);
            }
            result
        })
    }
}

/// Bytes as whole pages.
const fn pages_for(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_SIZE)
}

/// The zone of a page as an index.
#[inline]
pub(crate) fn zone_index(page: &mm_core::Page) -> usize {
    page.node() as usize * MAX_NR_ZONES + page.zone() as usize
}

/// The zone of an index, in events.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "64 nodes of 5 zones")]
pub(crate) const fn zone_id(index: usize) -> ZoneId {
    ZoneId::new((index / MAX_NR_ZONES) as u32, (index % MAX_NR_ZONES) as u32)
}

/// Event of pages allocated from a zone kind (Linux: `PGALLOC_*`).
#[inline]
pub(crate) const fn pgalloc(kind: usize) -> VmEvent {
    match kind {
        0 => VmEvent::PgallocDma,
        1 => VmEvent::PgallocDma32,
        2 => VmEvent::PgallocNormal,
        3 => VmEvent::PgallocHigh,
        _ => VmEvent::PgallocMovable,
    }
}
