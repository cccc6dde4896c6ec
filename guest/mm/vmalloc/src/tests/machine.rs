//! A machine of simulated RAM: half for tables and descriptors, half for contents.

use core::cell::{Cell, RefCell};
use std::boxed::Box;
use std::collections::BTreeSet;
use std::vec::Vec;

use mm_core::{
    Gfp, MaySleep, MemMap, Order, PAGE_SIZE, Page, PageAlloc, PageKind, Pageblock, Pfn, PhysAddr, PhysMem,
    Trace, VirtAddr, ZoneKind,
};
use mm_pgtable::{FlushRange, Levels, PageTable, Prot, TableMem};
use mm_sim::SimMem;

use crate::{Areas, Machine, Vmalloc};

pub const START: VirtAddr = VirtAddr::new(0xffff_c900_0000_0000);

/// Tables in simulated frames.
#[derive(Debug)]
pub struct SimTables {
    tables: Vec<Box<[Cell<u64>; 512]>>,
    pub budget: Option<usize>,
}

const TABLES: u64 = 1 << 30;

impl TableMem for SimTables {
    fn read(&self, table: Pfn, index: usize) -> u64 {
        self.tables[usize::try_from(table.as_u64() - TABLES).unwrap()][index].get()
    }

    fn write(&self, table: Pfn, index: usize, value: u64) {
        self.tables[usize::try_from(table.as_u64() - TABLES).unwrap()][index].set(value);
    }

    fn alloc_table(&mut self) -> Option<Pfn> {
        if let Some(budget) = &mut self.budget {
            *budget = budget.checked_sub(1)?;
        }
        self.tables.push(Box::new([const { Cell::new(0) }; 512]));
        Some(Pfn::new(TABLES + self.tables.len() as u64 - 1))
    }

    fn free_table(&mut self, _table: Pfn) {}
}

#[derive(Debug)]
pub struct Sim {
    mem: SimMem,
    free: RefCell<BTreeSet<u64>>,
    /// Hands out every other frame, so that no two are contiguous.
    pub scatter: Cell<bool>,
    pub areas: RefCell<Box<Areas>>,
    pub tables: RefCell<(PageTable, SimTables)>,
    pub flushes: RefCell<Vec<FlushRange>>,
    pub lazy_max: Cell<u64>,
    frames: u64,
}

impl Sim {
    /// `frames` of RAM, and a space of `pages`.
    pub fn new(frames: u64, pages: u64) -> Sim {
        let mem = SimMem::flat(frames * PAGE_SIZE);
        mem.init(Pfn::new(0)..Pfn::new(frames), 0, ZoneKind::Normal, PageKind::Tail);
        let mut tables = SimTables { tables: Vec::new(), budget: None };
        let table = PageTable::new(&mut tables, Levels::Four).unwrap();
        let sim = Sim {
            mem,
            free: RefCell::new((0..frames).collect()),
            scatter: Cell::new(false),
            areas: RefCell::new(Box::new(Areas::new())),
            tables: RefCell::new((table, tables)),
            flushes: RefCell::new(Vec::new()),
            lazy_max: Cell::new(u64::MAX),
            frames,
        };
        sim.with_areas(|areas| areas.init(&sim, START, pages * PAGE_SIZE)).unwrap();
        sim
    }

    pub fn vm(&self) -> Vmalloc<'_, Sim> {
        Vmalloc(self)
    }

    pub fn free_frames(&self) -> usize {
        self.free.borrow().len()
    }

    /// What is mapped in the space: page number from its start, and frame.
    pub fn mapped(&self) -> Vec<(u64, u64, Prot)> {
        let mut found = Vec::new();
        let (table, tables) = &*self.tables.borrow();
        let areas = self.areas.borrow();
        let len = areas.end - areas.start;
        table
            .for_each_leaf(tables, START, len, |leaf| {
                let page = (leaf.va.as_u64() - START.as_u64()) / PAGE_SIZE;
                found.push((page, leaf.entry.phys(leaf.level).pfn().as_u64(), leaf.effective));
            })
            .unwrap();
        found
    }

    pub fn audit(&self) {
        self.areas.borrow().audit(self).unwrap();
    }
}

pub const fn task() -> MaySleep<'static> {
    MaySleep::checked_by_scheduler()
}

impl Trace for Sim {}

impl MemMap for Sim {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.mem.page(pfn)
    }

    fn pageblock(&self, _: Pfn) -> Option<&Pageblock> {
        None
    }
}

impl PhysMem for Sim {
    fn read_u64(&self, addr: PhysAddr) -> u64 {
        self.mem.read_u64(addr)
    }

    fn write_u64(&self, addr: PhysAddr, value: u64) {
        self.mem.write_u64(addr, value);
    }

    fn zero_frame(&self, pfn: Pfn) {
        self.mem.zero_frame(pfn);
    }
}

impl PageAlloc for Sim {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<u32>) -> Option<Pfn> {
        assert_eq!(order, Order::ZERO);
        let mut free = self.free.borrow_mut();
        let frame = *free.iter().nth(if self.scatter.get() { 1 } else { 0 })?;
        free.remove(&frame);
        let page = self.mem.page(Pfn::new(frame)).unwrap();
        page.set_kind(PageKind::Allocated);
        page.set_refcount(1);
        if gfp.contains(Gfp::ZERO) {
            self.mem.zero_frame(Pfn::new(frame));
        }
        Some(Pfn::new(frame))
    }

    fn free_pages(&self, pfn: Pfn, _order: Order) {
        assert_eq!(
            self.mem.page(pfn).unwrap().kind(),
            PageKind::Allocated,
            "{pfn} is freed as something else"
        );
        assert!(self.free.borrow_mut().insert(pfn.as_u64()), "{pfn} is freed twice");
    }
}

impl Machine for Sim {
    type Tables = SimTables;

    fn with_areas<R>(&self, f: impl FnOnce(&mut Areas) -> R) -> R {
        f(&mut self.areas.borrow_mut())
    }

    fn with_tables<R>(&self, f: impl FnOnce(PageTable, &mut SimTables) -> R) -> R {
        let (table, tables) = &mut *self.tables.borrow_mut();
        f(*table, tables)
    }

    fn flush(&self, range: FlushRange) {
        assert!(self.areas.try_borrow_mut().is_ok(), "flushed under the lock of the areas");
        self.flushes.borrow_mut().push(range);
    }

    fn lazy_max_pages(&self) -> u64 {
        self.lazy_max.get()
    }

    fn total_pages(&self) -> u64 {
        self.frames
    }

    fn is_ram(&self, start: Pfn, pages: u64) -> bool {
        start.as_u64() < self.frames && pages > 0
    }

    fn phys_bits(&self) -> u32 {
        40
    }
}
