//! A machine for tests: any zones on any nodes, CPUs that take turns in one thread, hooks that a test scripts.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, Range};

use memvisor_abi::{
    CpuEvents, EventId, MAX_NR_ZONES, NumaEvent, PFN_NONE, PerCpuPages, VmEvent, Zonelist, ZonelistOrder,
};
use mm_core::{
    CpuLocal, Event, Gfp, MaySleep, MemMap, Migrate, Order, Page, PageKind, Pageblock, Pfn, PhysMem, Trace,
    ZoneKind,
};
use mm_sim::SimMem;

use crate::{
    AllocFlags, CompactPriority, CompactResult, CpuPages, Machine, NodeState, OomOutcome, PageAllocator,
    Reclaim, Request, Zone, ZoneGlance, build_zonelist, fallback_order, init_range, set_high_and_batch,
    watermark,
};

/// What the slow path asked for, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Kswapd(usize),
    Reclaim,
    Compact(CompactPriority),
    Oom,
    Throttle,
}

type Hook = Box<dyn FnMut(&TestMachine) -> u64>;

/// Reclaim as a test wants it.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "it holds closures")]
pub struct Script {
    pub calls: RefCell<Vec<Call>>,
    /// Pages that each direct reclaim says it freed; the hook may free some.
    pub reclaim: RefCell<Option<Hook>>,
    pub compact: Cell<Option<CompactResult>>,
    /// Compaction is not scripted, but real.
    pub compacts: Cell<bool>,
    pub oom: Cell<Option<OomOutcome>>,
    /// The OOM killer chooses whoever asks it.
    pub kills_caller: Cell<bool>,
    victim: Cell<bool>,
    pub reclaimable: Cell<u64>,
}

/// CPU-local data, one thread.
#[derive(Debug)]
pub struct Cpus {
    current: Cell<usize>,
    cpus: Vec<RefCell<CpuPages>>,
}

impl CpuLocal<CpuPages> for Cpus {
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuPages) -> R) -> R {
        let cpu = self.current.get();
        f(
            u32::try_from(cpu).expect("few CPUs"),
            &mut self.cpus[cpu].try_borrow_mut().expect("CPU-local data is not entered twice"),
        )
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuPages)) {
        for (number, cpu) in (0..).zip(&self.cpus) {
            f(number, &mut cpu.try_borrow_mut().expect("a drain is not called from CPU-local data"));
        }
    }
}

/// Simulated memory that keeps the events of what works on it, once a test asks for them.
#[derive(Debug)]
pub struct Recorded {
    mem: SimMem,
    pub events: RefCell<Option<Vec<Event>>>,
}

impl Deref for Recorded {
    type Target = SimMem;
    fn deref(&self) -> &SimMem {
        &self.mem
    }
}

impl MemMap for Recorded {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.mem.page(pfn)
    }

    fn pages(&self, pfn: Pfn) -> &[Page] {
        self.mem.pages(pfn)
    }

    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock> {
        self.mem.pageblock(pfn)
    }
}

impl Trace for Recorded {
    fn wants(&self, _: EventId) -> bool {
        self.events.borrow().is_some()
    }

    fn is_tracing(&self) -> bool {
        self.events.borrow().is_some() || self.mem.is_tracing()
    }

    fn record(&self, event: &Event) {
        if let Some(events) = self.events.borrow_mut().as_mut() {
            events.push(*event);
        }
    }
}

/// The machine.
#[expect(missing_debug_implementations, reason = "it holds closures")]
pub struct TestMachine {
    pub mem: Recorded,
    pub zones: Vec<RefCell<Zone>>,
    pub glances: Vec<ZoneGlance>,
    zonelists: Vec<Zonelist>,
    pub cpus: Cpus,
    pub script: Script,
    /// Node of each CPU.
    cpu_nodes: Vec<u32>,
    pub lines: RefCell<Vec<String>>,
    pub may_report: Cell<bool>,
    /// The owner of movable pages.
    pub movable: super::movable::SimOwner,
    /// Requests until the one that is to fail; 0 for none.
    pub fail_nth: Cell<u32>,
}

/// A populated zone.
pub type ZoneSpec = (u32, ZoneKind, Range<u64>);

/// Two nodes: DMA32 and NORMAL on the first, NORMAL and MOVABLE on the second.
pub fn two_nodes() -> Vec<ZoneSpec> {
    vec![
        (0, ZoneKind::Dma32, 0x400..0x1400),
        (0, ZoneKind::Normal, 0x2000..0x3000),
        (1, ZoneKind::Normal, 0x4000..0x5000),
        (1, ZoneKind::Movable, 0x5000..0x5800),
    ]
}

pub fn one_zone(frames: u64) -> Vec<ZoneSpec> {
    vec![(0, ZoneKind::Normal, 0x1000..0x1000 + frames)]
}

impl TestMachine {
    pub fn new(specs: &[ZoneSpec], cpu_nodes: &[u32], order: ZonelistOrder) -> TestMachine {
        let ranges: Vec<Range<Pfn>> =
            specs.iter().map(|(_, _, range)| Pfn::new(range.start)..Pfn::new(range.end)).collect();
        let mem = SimMem::new(&ranges);
        let nr_nodes = specs.iter().map(|spec| spec.0 + 1).max().unwrap_or(1);
        let nodes = nr_nodes as usize;
        let mut zones: Vec<Zone> =
            (0..nr_nodes).flat_map(|node| ZoneKind::ALL.map(|kind| Zone::new(node, kind))).collect();
        for (node, kind, range) in specs {
            let zone = &mut zones[*node as usize * MAX_NR_ZONES + *kind as usize];
            let pages = range.end - range.start;
            let (start, end) = (Pfn::new(range.start), Pfn::new(range.end));
            zone.set_extent(start, pages, pages);
            zone.add_managed(pages);
            init_range(&mem, start, end, *node, *kind, PageKind::Tail);
            zone.free_range(&mem, start, end).expect("fresh frames");
        }
        // Marks that tests can reckon with: min 32, low 40, high 48 pages, whatever the size.
        for zone in &mut zones {
            let marks = if zone.info().managed_pages == 0 { [0; 3] } else { [32, 40, 48] };
            zone.info_mut().watermark = marks;
        }
        watermark::setup_per_zone_lowmem_reserve(&mut zones, watermark::LOWMEM_RESERVE_RATIO);
        let glances: Vec<ZoneGlance> = zones.iter().map(|_| ZoneGlance::new()).collect();
        for (zone, glance) in zones.iter().zip(&glances) {
            glance.refresh(zone);
        }
        let mut states = vec![NodeState::default(); nodes];
        for (node, state) in (0..).zip(&mut states) {
            state.has_memory = specs.iter().any(|spec| spec.0 == node);
            state.has_cpus = cpu_nodes.contains(&node);
        }
        let zonelists = (0..nr_nodes)
            .map(|node| {
                let mut sorted = [0; 64];
                let len = fallback_order(node, &[], nodes, &mut states, &mut sorted);
                let mut list = Zonelist::EMPTY;
                build_zonelist(&mut list, node, &sorted[..len], order, |zone| {
                    zones[zone].info().present_pages > 0
                });
                list
            })
            .collect();
        let cpus = cpu_nodes
            .iter()
            .map(|_| {
                let mut pcps = vec![PerCpuPages::EMPTY; zones.len()];
                pcps.iter_mut().for_each(|pcp| set_high_and_batch(pcp, 28, 7));
                RefCell::new(CpuPages { pcps: pcps.leak(), events: Box::leak(Box::new(CpuEvents::ZERO)) })
            })
            .collect();
        TestMachine {
            mem: Recorded { mem, events: RefCell::new(None) },
            zones: zones.into_iter().map(RefCell::new).collect(),
            glances,
            zonelists,
            cpus: Cpus { current: Cell::new(0), cpus },
            script: Script::default(),
            cpu_nodes: cpu_nodes.to_vec(),
            lines: RefCell::default(),
            may_report: Cell::new(true),
            movable: super::movable::SimOwner::default(),
            fail_nth: Cell::new(0),
        }
    }

    /// Lists that keep up to `high` pages and move `batch` at once.
    pub fn size_pcps(&self, high: u32, batch: u32) {
        for cpu in &self.cpus.cpus {
            cpu.borrow_mut().pcps.iter_mut().for_each(|pcp| set_high_and_batch(pcp, high, batch));
        }
    }

    /// From now on that CPU runs.
    pub fn run_on(&self, cpu: usize) {
        self.cpus.current.set(cpu);
    }

    /// Free pages of all zones, those on per-CPU lists included.
    pub fn free_pages(&self) -> u64 {
        let zones: u64 = self.zones.iter().map(|zone| zone.borrow().info().free_pages).sum();
        zones + self.kept()
    }

    /// Pages on per-CPU lists.
    pub fn kept(&self) -> u64 {
        let of =
            |cpu: &RefCell<CpuPages>| cpu.borrow().pcps.iter().map(|pcp| u64::from(pcp.count)).sum::<u64>();
        self.cpus.cpus.iter().map(of).sum()
    }

    pub fn event(&self, event: VmEvent) -> u64 {
        self.cpus.cpus.iter().map(|cpu| cpu.borrow().events.events[event as usize]).sum()
    }

    pub fn numa(&self, node: u32, kind: ZoneKind, event: NumaEvent) -> u64 {
        let zone = node as usize * MAX_NR_ZONES + kind as usize;
        self.cpus.cpus.iter().map(|cpu| cpu.borrow().pcps[zone].numa[event as usize]).sum()
    }

    /// The invariants of zones and of per-CPU lists.
    pub fn audit(&self) {
        for (zone, glance) in self.zones.iter().zip(&self.glances) {
            zone.borrow().audit(&self.mem).expect("a zone is sound");
            zone.borrow().audit_compaction().expect("what compaction remembers is sound");
            assert_eq!(glance.free_pages(), zone.borrow().info().free_pages, "the glance is fresh");
        }
        for cpu in &self.cpus.cpus {
            for (zone, pcp) in cpu.borrow().pcps.iter().enumerate() {
                self.audit_pcp(zone, pcp);
            }
        }
    }

    fn audit_pcp(&self, zone: usize, pcp: &PerCpuPages) {
        let mut pages = 0;
        for (index, list) in pcp.lists.iter().enumerate() {
            let (mut from, mut pfn) = (PFN_NONE, list.head);
            while pfn != PFN_NONE {
                let page = self.mem.page(Pfn::new(pfn)).expect("a linked frame exists");
                assert_eq!((page.kind(), page.refcount()), (PageKind::Pcp, 0), "P2 at {pfn:#x}");
                assert_eq!(page.order().index(), PerCpuPages::order_of(index), "P2 at {pfn:#x}");
                assert_eq!(page.prev(), from, "P3 at {pfn:#x}");
                let of = page.node() as usize * MAX_NR_ZONES + page.zone() as usize;
                assert_eq!(of, zone, "P4 at {pfn:#x}");
                pages += page.order().pages();
                (from, pfn) = (pfn, page.next());
            }
            assert_eq!(list.tail, from, "P3");
        }
        assert_eq!(u64::from(pcp.count), pages, "P1");
    }
}

impl Reclaim for Script {
    fn wake_kswapd(&self, zone: usize, _: &Request) {
        self.calls.borrow_mut().push(Call::Kswapd(zone));
    }

    fn direct_reclaim(&self, _: &MaySleep<'_>, _: &Request) -> u64 {
        self.calls.borrow_mut().push(Call::Reclaim);
        CURRENT.with(|machine| {
            let machine = machine.get();
            let hook = self.reclaim.borrow_mut().take();
            match (hook, machine) {
                (Some(mut hook), Some(machine)) => {
                    let freed = hook(machine);
                    *self.reclaim.borrow_mut() = Some(hook);
                    freed
                }
                _ => 0,
            }
        })
    }

    fn reclaimable_pages(&self, _: usize) -> u64 {
        self.reclaimable.get()
    }

    fn compact(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        priority: CompactPriority,
    ) -> CompactResult {
        self.calls.borrow_mut().push(Call::Compact(priority));
        if let Some(machine) = CURRENT.get().filter(|_| self.compacts.get()) {
            return PageAllocator::new(machine).try_to_compact_pages(token, request, flags, priority);
        }
        self.compact.get().unwrap_or(CompactResult::Skipped)
    }

    fn is_compaction_suitable(&self, _: &Request, _: AllocFlags) -> bool {
        false
    }

    fn is_oom_victim(&self) -> bool {
        self.victim.get()
    }

    fn out_of_memory(&self, _: &MaySleep<'_>, _: &Request) -> OomOutcome {
        self.calls.borrow_mut().push(Call::Oom);
        self.victim.set(self.kills_caller.get());
        self.oom.get().unwrap_or(OomOutcome::NoVictim)
    }

    fn throttle(&self, _: &MaySleep<'_>, _: &Request) {
        self.calls.borrow_mut().push(Call::Throttle);
    }
}

thread_local! {
    static CURRENT: Cell<Option<&'static TestMachine>> = const { Cell::new(None) };
}

/// An allocator on a machine that lives for the rest of the test run.
pub fn start(specs: &[ZoneSpec], cpu_nodes: &[u32]) -> PageAllocator<&'static TestMachine> {
    start_by(specs, cpu_nodes, ZonelistOrder::Node)
}

pub fn start_by(
    specs: &[ZoneSpec],
    cpu_nodes: &[u32],
    order: ZonelistOrder,
) -> PageAllocator<&'static TestMachine> {
    let machine: &'static TestMachine = Box::leak(Box::new(TestMachine::new(specs, cpu_nodes, order)));
    CURRENT.set(Some(machine));
    PageAllocator::new(machine)
}

pub fn order(raw: u8) -> Order {
    Order::new(raw).expect("tests use orders that exist")
}

impl Machine for &TestMachine {
    type Map = Recorded;
    type Local = Cpus;
    type Reclaim = Script;

    fn map(&self) -> &Recorded {
        &self.mem
    }

    fn local(&self) -> &Cpus {
        &self.cpus
    }

    fn reclaim(&self) -> &Script {
        &self.script
    }

    fn glances(&self) -> &[ZoneGlance] {
        &self.glances
    }

    fn with_zone<R>(&self, index: usize, f: impl FnOnce(&mut Zone) -> R) -> R {
        f(&mut self.zones[index].try_borrow_mut().expect("one zone lock at a time"))
    }

    fn zonelists(&self) -> &[Zonelist] {
        &self.zonelists
    }

    fn local_node(&self) -> u32 {
        self.cpu_nodes[self.cpus.current.get()]
    }

    fn nr_online_nodes(&self) -> usize {
        self.zonelists.len()
    }

    fn zero_frames(&self, first: Pfn, count: u64) {
        (0..count).for_each(|index| self.mem.zero_frame(first.offset(index)));
    }

    fn migrate(&self) -> &dyn Migrate {
        *self
    }

    fn is_injecting(&self) -> bool {
        self.fail_nth.get() != 0
    }

    fn should_fail_alloc_page(&self, gfp: Gfp, _: Order) -> bool {
        let counted = !gfp.contains(Gfp::NOFAIL) && self.fail_nth.get() > 0;
        self.fail_nth.set(self.fail_nth.get() - u32::from(counted));
        counted && self.fail_nth.get() == 0
    }

    fn may_report(&self) -> bool {
        self.may_report.get()
    }

    fn report(&self, line: fmt::Arguments<'_>) {
        self.lines.borrow_mut().push(line.to_string());
    }

    fn show_mem(&self, highest: ZoneKind) {
        self.lines.borrow_mut().push(format!("show_mem up to {}", highest.name()));
    }
}
