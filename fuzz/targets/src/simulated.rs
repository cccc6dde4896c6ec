//! A machine for the memory manager's own code: two nodes of simulated RAM, and CPUs that take turns in one thread.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memvisor_abi::{CpuEvents, MAX_NR_ZONES, PFN_NONE, PerCpuPages, Zonelist, ZonelistOrder};
use mm_core::{CpuLocal, MemMap, Migratetype, Order, PageKind, Pfn, PhysMem, ZoneKind};
use mm_page_alloc::{
    CpuPages, Machine, NoReclaim, NodeState, Zone, ZoneGlance, build_zonelist, fallback_order, init_range,
    set_high_and_batch, watermark,
};
use mm_sim::SimMem;

/// CPUs; number n is on node n.
pub const CPUS: u32 = NODES;
/// Nodes.
pub const NODES: u32 = 2;
const NR_NODES: usize = NODES as usize;
/// Populated zones: node, kind, frames. Whole blocks of the largest order.
pub const ZONES: [(u32, ZoneKind, Range<u64>); 4] = [
    (0, ZoneKind::Dma32, 0x400..0x800),
    (0, ZoneKind::Normal, 0x1000..0x1800),
    (1, ZoneKind::Normal, 0x2000..0x2800),
    (1, ZoneKind::Movable, 0x2800..0x2c00),
];

/// CPU data of machines that are gone: it must live for ever, so the next machine gets it.
static SPARE: Mutex<Vec<CpuPages>> = Mutex::new(Vec::new());

fn spare() -> MutexGuard<'static, Vec<CpuPages>> {
    // A run that panicked leaves whole entries behind.
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Data of the CPUs.
pub struct Cpus {
    current: Cell<u32>,
    cpus: Vec<RefCell<CpuPages>>,
}

impl Cpus {
    fn new(high: u32, batch: u32) -> Cpus {
        let fresh = || CpuPages {
            pcps: vec![PerCpuPages::EMPTY; NR_NODES * MAX_NR_ZONES].leak(),
            events: Box::leak(Box::new(CpuEvents::ZERO)),
        };
        let cpu = |_| {
            let cpu = spare().pop().unwrap_or_else(fresh);
            *cpu.events = CpuEvents::ZERO;
            for pcp in cpu.pcps.iter_mut() {
                *pcp = PerCpuPages::EMPTY;
                set_high_and_batch(pcp, high, batch);
            }
            RefCell::new(cpu)
        };
        Cpus { current: Cell::new(0), cpus: (0..CPUS).map(cpu).collect() }
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        spare().extend(self.cpus.drain(..).map(RefCell::into_inner));
    }
}

impl CpuLocal<CpuPages> for Cpus {
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuPages) -> R) -> R {
        let cpu = self.current.get();
        f(cpu, &mut self.cpus[cpu as usize].borrow_mut())
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuPages)) {
        for (number, cpu) in (0..).zip(&self.cpus) {
            f(number, &mut cpu.borrow_mut());
        }
    }
}

/// The machine.
pub struct Simulated {
    /// Descriptors and contents.
    pub mem: SimMem,
    zones: Vec<RefCell<Zone>>,
    glances: Vec<ZoneGlance>,
    zonelists: Vec<Zonelist>,
    cpus: Cpus,
}

impl Simulated {
    /// All RAM free; each CPU keeps up to `high` pages a zone and moves `batch` at once.
    pub fn new(high: u32, batch: u32) -> Simulated {
        let ranges = ZONES.map(|(_, _, range)| Pfn::new(range.start)..Pfn::new(range.end));
        let mem = SimMem::new(&ranges);
        let mut zones: Vec<Zone> =
            (0..NODES).flat_map(|node| ZoneKind::ALL.map(|kind| Zone::new(node, kind))).collect();
        for ((node, kind, _), range) in ZONES.iter().zip(ranges) {
            let zone = &mut zones[*node as usize * MAX_NR_ZONES + *kind as usize];
            let pages = range.end.as_u64() - range.start.as_u64();
            zone.set_extent(range.start, pages, pages);
            zone.add_managed(pages);
            init_range(&mem, range.start, range.end, *node, *kind, PageKind::Tail);
            zone.free_range(&mem, range.start, range.end).expect("fresh frames");
            zone.info_mut().watermark = [32, 40, 48];
        }
        watermark::setup_per_zone_lowmem_reserve(&mut zones, watermark::LOWMEM_RESERVE_RATIO);
        let glances: Vec<ZoneGlance> = zones.iter().map(|_| ZoneGlance::new()).collect();
        glances.iter().zip(&zones).for_each(|(glance, zone)| glance.refresh(zone));
        let mut states = [NodeState { has_memory: true, has_cpus: true, load: 0 }; NR_NODES];
        let zonelists = (0..NODES).map(|node| {
            let mut sorted = [0; NR_NODES];
            let len = fallback_order(node, &[], NR_NODES, &mut states, &mut sorted);
            let mut list = Zonelist::EMPTY;
            let populated = |zone: usize| zones[zone].info().present_pages > 0;
            build_zonelist(&mut list, node, &sorted[..len], ZonelistOrder::Node, populated);
            list
        });
        let zonelists = zonelists.collect();
        let zones = zones.into_iter().map(RefCell::new).collect();
        Simulated { mem, zones, glances, zonelists, cpus: Cpus::new(high, batch) }
    }

    /// From now on that CPU runs.
    pub fn run_on(&self, cpu: u32) {
        self.cpus.current.set(cpu % CPUS);
    }

    /// The CPU that runs.
    pub fn cpu(&self) -> u32 {
        self.cpus.current.get()
    }

    /// The zone that spans a frame, with its lock held.
    pub fn zone_of<R>(&self, pfn: Pfn, f: impl FnOnce(&mut Zone) -> R) -> Option<R> {
        let index = self.zones.iter().position(|zone| zone.borrow().spans(pfn, 1))?;
        let result = self.with_zone(index, f);
        self.glances[index].refresh(&self.zones[index].borrow());
        Some(result)
    }

    /// Pages that nobody has: in zones, isolated, and on the lists of CPUs.
    pub fn unused_pages(&self) -> u64 {
        let isolated = |zone: &Zone| {
            let list =
                |order: Order| zone.info().free_area[order.index()].lists[Migratetype::Isolate as usize];
            Order::all().map(|order| list(order).nr_free << order.as_u8()).sum::<u64>()
        };
        let zones = self.zones.iter().map(RefCell::borrow);
        zones.map(|zone| zone.info().free_pages + isolated(&zone)).sum::<u64>() + self.kept_pages()
    }

    /// Pages on the lists of CPUs.
    pub fn kept_pages(&self) -> u64 {
        let counts =
            |cpu: &RefCell<CpuPages>| cpu.borrow().pcps.iter().map(|pcp| u64::from(pcp.count)).sum::<u64>();
        self.cpus.cpus.iter().map(counts).sum()
    }

    /// Free blocks of the largest order.
    pub fn largest_blocks(&self) -> u64 {
        let largest = |zone: &RefCell<Zone>| {
            let area = zone.borrow().info().free_area[Order::MAX.index()];
            area.lists.iter().map(|list| list.nr_free).sum::<u64>()
        };
        self.zones.iter().map(largest).sum()
    }

    /// The invariants of zones, B1 to B10, of their glances, and of the lists of CPUs, P1 to P4.
    pub fn audit(&self) {
        for (zone, glance) in self.zones.iter().zip(&self.glances) {
            let zone = zone.borrow();
            zone.audit(&self.mem).unwrap_or_else(|violation| panic!("{violation}"));
            let (start, end) = (Pfn::new(zone.info().start_pfn), zone.end_pfn());
            zone.audit_range(&self.mem, start, end).unwrap_or_else(|violation| panic!("{violation}"));
            assert_eq!(glance.free_pages(), zone.info().free_pages, "what others see of a zone is old");
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
            let (mut from, mut at) = (PFN_NONE, list.head);
            while at != PFN_NONE && pages <= u64::from(pcp.count) {
                let page = self.mem.page(Pfn::new(at)).expect("P3: a linked frame exists");
                assert_eq!((page.kind(), page.refcount()), (PageKind::Pcp, 0), "P2 at {at:#x}");
                assert_eq!(page.order().index(), PerCpuPages::order_of(index), "P2 at {at:#x}");
                assert_eq!(page.prev(), from, "P3 at {at:#x}");
                assert_eq!(page.node() as usize * MAX_NR_ZONES + page.zone() as usize, zone, "P4 at {at:#x}");
                pages += page.order().pages();
                (from, at) = (at, page.next());
            }
            assert_eq!(list.tail, from, "P3 of list {index}");
        }
        assert_eq!(u64::from(pcp.count), pages, "P1");
    }
}

impl Machine for Simulated {
    type Map = SimMem;
    type Local = Cpus;
    type Reclaim = NoReclaim;

    fn map(&self) -> &SimMem {
        &self.mem
    }

    fn local(&self) -> &Cpus {
        &self.cpus
    }

    fn reclaim(&self) -> &NoReclaim {
        &NoReclaim
    }

    fn glances(&self) -> &[ZoneGlance] {
        &self.glances
    }

    fn with_zone<R>(&self, index: usize, f: impl FnOnce(&mut Zone) -> R) -> R {
        f(&mut self.zones[index].borrow_mut())
    }

    fn zonelists(&self) -> &[Zonelist] {
        &self.zonelists
    }

    fn local_node(&self) -> u32 {
        self.cpu()
    }

    fn nr_online_nodes(&self) -> usize {
        NR_NODES
    }

    fn zero_frames(&self, first: Pfn, count: u64) {
        (0..count).for_each(|index| self.mem.zero_frame(first.offset(index)));
    }

    fn may_report(&self) -> bool {
        true
    }

    fn report(&self, line: fmt::Arguments<'_>) {
        // Formatted, because that is code under test too.
        assert!(!line.to_string().is_empty());
    }
}
