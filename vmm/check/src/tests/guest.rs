//! A healthy synthetic guest, and ways to damage it.
//!
//! Two nodes, two CPUs, 176 MiB in three pieces:
//!
//! ```text
//! node 0   0 .. 636K, 1M .. 96M          DMA, DMA32
//! node 1   96M .. 159.875M               DMA32; from 128M on deferred
//!          4G .. 4G + 16M                Normal
//! ```

use std::collections::BTreeMap;
use std::sync::OnceLock;

use memvisor_abi::*;
use memvisor_inspect::{
    CpuRegisters, FactCpu, FactE820, FactNodeMemory, Facts, Guest, MemorySource, RamRegion, SparseMemory,
};
use memvisor_report::AuditReport;

use super::vmalloc;
use crate::watermark::{Sums, Tuning, lowmem_reserves, min_free_kbytes, watermarks};
use crate::{Evidence, audit};
use zerocopy::FromZeros;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const ROOT_GPA: u64 = 38 * MIB;
pub(super) const KERNEL_GPA: u64 = 16 * MIB;
pub(super) const KERNEL_VA: u64 = 0xffff_ffff_8100_0000;
pub(super) const PAGE_OFFSET: u64 = 0xffff_8880_0000_0000;
pub(super) const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
pub(super) const FIXMAP: u64 = 0xffff_ffff_ff5f_d000;
/// The page of code on which application processors start.
const TRAMPOLINE: u64 = 0x8000;
/// First of four frames mapped by the process, at [`USER_VA`]; the first is its text.
pub(super) const USER_PFN: u64 = 0x3100;
pub(super) const USER_VA: u64 = 0x40_0000;
/// Four frames that the kernel allocated as one block.
pub(super) const ALLOCATED_PFN: u64 = 0x3200;
/// A frame that CPU 0 keeps on its list of unmovable single pages.
pub(super) const PCP_PFN: u64 = 0x3340;
/// Its lists' index: CPU 0, node 0 DMA32.
pub(super) const PCP_INDEX: u64 = 1;
pub(super) const PID: u32 = 7;
/// A slab of a cache with red zones, whose first object is free.
pub(super) const SLAB_PFN: u64 = 0x3280;
/// Bytes from one of its objects to the next: a red zone of 8 bytes, 56 of payload, a red zone of 8, a link.
pub(super) const SLAB_SIZE: u64 = 128;
const SLAB_OBJECTS: u32 = 32;

/// The type of all pageblocks, as an index.
pub(super) const MOVABLE: usize = Migratetype::Movable as usize;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const UC: u64 = 0x18;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;
/// Frames from which tables are taken: the kernel's are reserved, the process's are not.
const KERNEL_TABLES: u64 = 36 * MIB / 4096;
const USER_TABLES: u64 = 0x3000;

#[derive(Clone)]
pub(super) struct TestGuest {
    pub memory: SparseMemory,
    pub facts: Facts,
    pub registers: Vec<CpuRegisters>,
    pub user_pgd: u64,
    pub kernel_pgd: u64,
}

/// The healthy guest with 4 levels.
pub(super) fn healthy() -> TestGuest {
    static GUEST: OnceLock<TestGuest> = OnceLock::new();
    GUEST.get_or_init(|| Builder::build(4)).clone()
}

/// The healthy guest with 5 levels.
pub(super) fn healthy_with_five_levels() -> TestGuest {
    Builder::build(5)
}

impl TestGuest {
    pub fn audit(&self) -> AuditReport {
        audit(&self.evidence())
    }

    pub fn evidence(&self) -> Evidence<'_> {
        Evidence {
            source: &self.memory,
            root_gpa: Some(ROOT_GPA),
            facts: Some(&self.facts),
            registers: &self.registers,
        }
    }

    pub fn guest(&self) -> Guest<'_, SparseMemory> {
        Guest::attach(&self.memory, ROOT_GPA).unwrap()
    }

    pub fn page(&self, pfn: u64) -> Page {
        self.guest().page(pfn).unwrap().unwrap()
    }

    pub fn edit_page(&mut self, pfn: u64, edit: impl FnOnce(&mut Page)) {
        let gpa = self.guest().page_gpa(pfn).unwrap().unwrap();
        let mut page = self.page(pfn);
        edit(&mut page);
        self.memory.write_value(gpa, &page).unwrap();
    }

    pub fn zone(&self, index: usize) -> Zone {
        self.guest().zone(index).unwrap()
    }

    pub fn edit_zone(&mut self, index: usize, edit: impl FnOnce(&mut Zone)) {
        let mut zone = self.zone(index);
        edit(&mut zone);
        let gpa = self.guest().root().zones.gpa + (index * size_of::<Zone>()) as u64;
        self.memory.write_value(gpa, &zone).unwrap();
    }

    pub fn edit_section(&mut self, index: usize, edit: impl FnOnce(&mut Section)) {
        let guest = self.guest();
        let gpa = guest.root().sections.gpa + (index * size_of::<Section>()) as u64;
        let mut section = guest.sections().unwrap()[index];
        edit(&mut section);
        self.memory.write_value(gpa, &section).unwrap();
    }

    pub fn edit_root(&mut self, edit: impl FnOnce(&mut Root)) {
        let mut root = *self.guest().root();
        edit(&mut root);
        self.memory.write_value(ROOT_GPA, &root).unwrap();
    }

    pub fn edit_cpu(&mut self, index: usize, edit: impl FnOnce(&mut CpuInfo)) {
        let mut cpu = self.guest().cpus().unwrap()[index];
        edit(&mut cpu);
        let gpa = self.guest().root().cpus.gpa + (index * size_of::<CpuInfo>()) as u64;
        self.memory.write_value(gpa, &cpu).unwrap();
    }

    /// Guest-physical address of the entry at `level` for `va` in the tables of `pgd`.
    pub fn entry_gpa(&self, pgd: u64, va: u64, level: u32) -> u64 {
        let mut table = pgd << 12;
        for at in (level..=self.guest().root().levels).rev() {
            let gpa = table + ((va >> (3 + 9 * at)) & 511) * 8;
            if at == level {
                return gpa;
            }
            table = self.memory.read_u64(gpa).unwrap() & 0x000f_ffff_ffff_f000;
        }
        panic!("level {level} is past the root");
    }

    pub fn edit_entry(&mut self, pgd: u64, va: u64, level: u32, edit: impl FnOnce(u64) -> u64) {
        let gpa = self.entry_gpa(pgd, va, level);
        let entry = edit(self.memory.read_u64(gpa).unwrap());
        self.memory.write_u64(gpa, entry).unwrap();
    }

    /// Unlinks the first block of a free list, as an allocation does, and leaves its descriptors.
    pub fn take_block(&mut self, zone: usize, order: usize) -> u64 {
        let head = self.zone(zone).free_area[order].lists[MOVABLE].head;
        assert_ne!(head, PFN_NONE, "no free block of order {order} in zone {zone}");
        let next = self.page(head).next;
        if next != PFN_NONE {
            self.edit_page(next, |page| page.prev = PFN_NONE);
        }
        self.edit_zone(zone, |zone| {
            let area = &mut zone.free_area[order].lists[MOVABLE];
            area.head = next;
            if next == PFN_NONE {
                area.tail = PFN_NONE;
            }
            area.nr_free -= 1;
            if area.nr_free == 0 {
                zone.nonempty[MOVABLE] &= !(1 << order);
            }
            zone.free_pages -= 1 << order;
        });
        head
    }

    /// Links a block at the head of a free list, as a free without merging does.
    pub fn put_block(&mut self, zone: usize, order: usize, pfn: u64) {
        let head = self.zone(zone).free_area[order].lists[MOVABLE].head;
        if head != PFN_NONE {
            self.edit_page(head, |page| page.prev = pfn);
        }
        for tail in pfn..pfn + (1 << order) {
            self.edit_page(tail, |page| {
                (page.kind, page.refcount) = (PageKind::Tail as u8, 0);
            });
        }
        self.edit_page(pfn, |page| {
            page.kind = PageKind::Buddy as u8;
            (page.order, page.migratetype) = (u8::try_from(order).unwrap(), Migratetype::Movable as u8);
            (page.next, page.prev) = (head, PFN_NONE);
        });
        self.edit_zone(zone, |zone| {
            let area = &mut zone.free_area[order].lists[MOVABLE];
            area.head = pfn;
            if head == PFN_NONE {
                area.tail = pfn;
            }
            area.nr_free += 1;
            zone.nonempty[MOVABLE] |= 1 << order;
            zone.free_pages += 1 << order;
        });
    }
}

struct Builder {
    memory: SparseMemory,
    pages: BTreeMap<u64, Page>,
    levels: u32,
    next_table: u64,
    table_frames: Vec<u64>,
}

fn ram_frame(pfn: u64) -> bool {
    pfn < 0x9f || (0x100..0x9fe0).contains(&pfn) || (0x10_0000..0x10_1000).contains(&pfn)
}

fn node_of(pfn: u64) -> u32 {
    u32::from(pfn >= 0x6000)
}

fn zone_of(pfn: u64) -> ZoneKind {
    match pfn {
        0..0x1000 => ZoneKind::Dma,
        0x1000..0x10_0000 => ZoneKind::Dma32,
        _ => ZoneKind::Normal,
    }
}

/// Reservations of memblock, and what they hold.
const RESERVED: [(u64, u64, PageKind); 7] = [
    (0, 0x10, PageKind::Reserved),
    (0x1000, 0x1200, PageKind::Kernel),
    (0x2000, 0x2400, PageKind::Memmap),
    (KERNEL_TABLES, KERNEL_TABLES + 0x100, PageKind::Reserved),
    (0x2500, 0x2520, PageKind::PerCpu),
    (0x2600, 0x2700, PageKind::Reserved),
    (0x2800, 0x2a00, PageKind::Memmap),
];

fn reserved(pfn: u64) -> Option<PageKind> {
    RESERVED.iter().find(|(start, end, _)| (*start..*end).contains(&pfn)).map(|(_, _, kind)| *kind)
}

fn online_frames() -> impl Iterator<Item = u64> {
    (0..0x8000).chain(0x10_0000..0x10_1000).filter(|&pfn| ram_frame(pfn))
}

impl Builder {
    fn build(levels: u32) -> TestGuest {
        let regions = [(0, 0x9_fc00), (MIB, 0x9fe_0000), (4 * GIB, 4 * GIB + 16 * MIB)]
            .map(|(gpa, end)| RamRegion { gpa, len: end - gpa });
        let mut builder = Builder {
            memory: SparseMemory::new(&regions).unwrap(),
            pages: BTreeMap::new(),
            levels,
            next_table: KERNEL_TABLES,
            table_frames: Vec::new(),
        };
        let kernel_pgd = builder.kernel_tables();
        let trampoline_pgd = builder.trampoline(kernel_pgd);
        let user_pgd = builder.process(kernel_pgd);
        builder.descriptors();
        let zones = builder.zones();
        for (&pfn, page) in &builder.pages {
            let memmap = if pfn < 0x8000 { 32 * MIB } else { 34 * MIB };
            builder.memory.write_value(memmap + pfn % PAGES_PER_SECTION * 64, page).unwrap();
        }
        builder.publish(&zones, kernel_pgd, user_pgd, trampoline_pgd);
        let registers = [kernel_pgd, user_pgd].into_iter().zip(0..).map(|(pgd, index)| CpuRegisters {
            index,
            rip: KERNEL_VA + 0x1000,
            cr0: 1 << 31 | 1,
            cr3: pgd << 12,
            cr4: 1 << 5 | u64::from(levels == 5) << 12,
            efer: 1 << 10 | 1 << 11,
            gs_base: PAGE_OFFSET + 37 * MIB,
            ..CpuRegisters::default()
        });
        TestGuest {
            memory: builder.memory,
            facts: facts(),
            registers: registers.collect(),
            user_pgd,
            kernel_pgd,
        }
    }

    fn table(&mut self) -> u64 {
        let pfn = self.next_table;
        self.next_table += 1;
        self.table_frames.push(pfn);
        pfn
    }

    fn map(&mut self, pgd: u64, va: u64, gpa: u64, level: u32, flags: u64) {
        let mut table = pgd;
        for at in ((level + 1)..=self.levels).rev() {
            let slot = (table << 12) + ((va >> (3 + 9 * at)) & 511) * 8;
            let entry = self.memory.read_u64(slot).unwrap();
            table = if entry & P == 0 {
                let new = self.table();
                self.memory.write_u64(slot, new << 12 | P | W | flags & U).unwrap();
                new
            } else {
                (entry & 0x000f_ffff_ffff_f000) >> 12
            };
        }
        let large = if level == 2 { PS } else { 0 };
        let slot = (table << 12) + ((va >> (3 + 9 * level)) & 511) * 8;
        self.memory.write_u64(slot, gpa | flags | P | large).unwrap();
    }

    fn kernel_tables(&mut self) -> u64 {
        let pgd = self.table();
        for pfn in (0..0x9f).chain(0x100..0x200).chain(0x9e00..0x9fe0) {
            let write = if pfn << 12 == TRAMPOLINE { 0 } else { W };
            self.map(pgd, PAGE_OFFSET + (pfn << 12), pfn << 12, 1, write | NX);
        }
        for block in (1..79).chain(2048..2056) {
            let gpa = block * 2 * MIB;
            // The kernel image has its writable view elsewhere.
            let write = if gpa == KERNEL_GPA { 0 } else { W };
            self.map(pgd, PAGE_OFFSET + gpa, gpa, 2, write | NX);
        }
        for page in 0..512 {
            let flags = match page {
                0..256 => 0,
                256..384 => NX,
                _ => W | NX,
            };
            self.map(pgd, KERNEL_VA + page * 4096, KERNEL_GPA + page * 4096, 1, flags);
        }
        self.map(pgd, VMEMMAP, 32 * MIB, 2, W | NX);
        self.map(pgd, VMEMMAP + 32 * 2 * MIB, 34 * MIB, 2, W | NX);
        self.map(pgd, FIXMAP, 0xfee0_0000, 1, W | NX | UC);
        for (va, frame, uncached) in vmalloc::mappings() {
            self.map(pgd, va, frame << 12, 1, W | NX | if uncached { UC } else { 0 });
        }
        pgd
    }

    /// The tree on which application processors start: their code, mapped to itself.
    fn trampoline(&mut self, kernel_pgd: u64) -> u64 {
        let pgd = self.table();
        self.share_kernel_half(pgd, kernel_pgd);
        self.map(pgd, TRAMPOLINE, TRAMPOLINE, 1, 0);
        pgd
    }

    fn share_kernel_half(&mut self, pgd: u64, kernel_pgd: u64) {
        for slot in 256..512 {
            let entry = self.memory.read_u64((kernel_pgd << 12) + slot * 8).unwrap();
            self.memory.write_u64((pgd << 12) + slot * 8, entry).unwrap();
        }
    }

    fn process(&mut self, kernel_pgd: u64) -> u64 {
        self.next_table = USER_TABLES;
        let pgd = self.table();
        self.share_kernel_half(pgd, kernel_pgd);
        self.map(pgd, USER_VA, USER_PFN << 12, 1, U);
        for page in 1..4 {
            self.map(pgd, USER_VA + page * 4096, (USER_PFN + page) << 12, 1, U | W | NX);
        }
        pgd
    }

    fn descriptors(&mut self) {
        for pfn in online_frames() {
            let links =
                u64::from(node_of(pfn)) << Page::NODE_SHIFT | (zone_of(pfn) as u64) << Page::ZONE_SHIFT;
            let mut page =
                Page { flags: links, next: PFN_NONE, prev: PFN_NONE, mapcount: -1, ..Page::default() };
            if let Some(kind) = reserved(pfn) {
                page.flags |= PageFlags::RESERVED.bits();
                (page.kind, page.refcount) = (kind as u8, 1);
            }
            if self.table_frames.contains(&pfn) {
                (page.kind, page.refcount) = (PageKind::Table as u8, 1);
            }
            if (USER_PFN..USER_PFN + 4).contains(&pfn) {
                (page.kind, page.refcount, page.mapcount) = (PageKind::User as u8, 1, 0);
                (page.mapping, page.index) = (PID.into(), USER_VA / 4096 + pfn - USER_PFN);
            }
            if let Some((kind, mapping, index)) = vmalloc::frame_of(pfn) {
                (page.kind, page.refcount) = (kind as u8, 1);
                (page.mapping, page.index) = (mapping, index);
            }
            if pfn == ALLOCATED_PFN {
                (page.kind, page.refcount, page.order) = (PageKind::Allocated as u8, 1, 2);
            }
            if pfn == SLAB_PFN {
                let counters = SlabCounters { inuse: SLAB_OBJECTS - 1, objects: SLAB_OBJECTS, frozen: false };
                (page.kind, page.refcount, page.mapcount) = (PageKind::Slab as u8, 1, counters.as_raw());
                page.index = (SLAB_PFN << 12) + 8;
            }
            if pfn == PCP_PFN {
                page.kind = PageKind::Pcp as u8;
            }
            if (ALLOCATED_PFN + 1..ALLOCATED_PFN + 4).contains(&pfn) {
                page.kind = PageKind::Tail as u8;
            }
            self.pages.insert(pfn, page);
        }
    }

    /// The contents of the slab, its cache and its node's part of it.
    fn slab(&mut self) -> (Cache, [CacheNode; MAX_CACHES]) {
        for number in 0..u64::from(SLAB_OBJECTS) {
            let object = (SLAB_PFN << 12) + 8 + number * SLAB_SIZE;
            let red = if number == 0 { poison::RED_INACTIVE } else { poison::RED_ACTIVE };
            for zone in [object - 8, object + 56] {
                self.memory.write_value(zone, &[red; 8]).unwrap();
            }
        }
        let mut name = [0; CACHE_NAME_LEN];
        name[..4].copy_from_slice(b"test");
        let cache = Cache {
            name,
            refcount: 1,
            allocator: SlabKind::Slub as u32,
            flags: cache_flags::RED_ZONE,
            object_size: 56,
            size: 128,
            align: 8,
            offset: 64,
            inuse: 64,
            red_left: 8,
            objects: SLAB_OBJECTS,
            min_objects: SLAB_OBJECTS,
            ..Cache::default()
        };
        let mut nodes = [CacheNode::EMPTY; MAX_CACHES];
        nodes[0].lists[0] = SlabList { head: SLAB_PFN, tail: SLAB_PFN, nr: 1 };
        (nodes[0].nr_slabs, nodes[0].total_objects) = (1, SLAB_OBJECTS.into());
        (cache, nodes)
    }

    /// Frames that nobody uses, as ranges within one node and zone.
    fn free_ranges(&self) -> Vec<(u64, u64)> {
        let free = |pfn: u64| {
            self.pages.get(&pfn).is_some_and(|page| page.kind == 0)
                && !(ALLOCATED_PFN..ALLOCATED_PFN + 4).contains(&pfn)
        };
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for pfn in online_frames().filter(|&pfn| free(pfn)) {
            match ranges.last_mut() {
                Some(last)
                    if last.1 == pfn
                        && node_of(last.0) == node_of(pfn)
                        && zone_of(last.0) == zone_of(pfn) =>
                {
                    last.1 = pfn + 1;
                }
                _ => ranges.push((pfn, pfn + 1)),
            }
        }
        ranges
    }

    fn zones(&mut self) -> Vec<Zone> {
        let mut zones = Vec::new();
        for node in 0..2 {
            for kind in ZoneKind::ALL {
                let (start_pfn, spanned_pages) = match (node, kind) {
                    (0, ZoneKind::Dma) => (0, 0x1000),
                    (0, ZoneKind::Dma32) => (0x1000, 0x5000),
                    (1, ZoneKind::Dma32) => (0x6000, 0xf_a000),
                    (1, ZoneKind::Normal) => (0x10_0000, 0x1000),
                    _ => (0, 0),
                };
                let inside = |pfn: &u64| ram_frame(*pfn) && node_of(*pfn) == node && zone_of(*pfn) == kind;
                let frames: Vec<u64> = (0..0xa000).chain(0x10_0000..0x10_1000).filter(inside).collect();
                let managed = frames.iter().filter(|&&pfn| reserved(pfn).is_none()).count() as u64;
                let deferred = frames.iter().filter(|&&pfn| (0x8000..0x1_0000).contains(&pfn)).count() as u64;
                zones.push(Zone {
                    start_pfn,
                    spanned_pages,
                    present_pages: frames.len() as u64,
                    managed_pages: managed,
                    deferred_pages: deferred,
                    ..Zone::new(node, kind)
                });
            }
        }
        self.free_lists(&mut zones);
        let lowmem = zones.iter().map(|zone| zone.managed_pages).sum();
        for zones in zones.chunks_mut(MAX_NR_ZONES) {
            let managed = std::array::from_fn(|kind: usize| zones[kind].managed_pages);
            for (zone, reserve) in zones.iter_mut().zip(lowmem_reserves(managed, Tuning::default().ratios)) {
                zone.lowmem_reserve = reserve;
                let sums = Sums { buffer: lowmem, low: lowmem };
                zone.watermark = watermarks(zone.managed_pages, false, sums, &Tuning::default());
            }
        }
        zones
    }

    fn free_lists(&mut self, zones: &mut [Zone]) {
        for (start, end) in self.free_ranges() {
            let mut at = start;
            while at < end {
                let fits = |order: &usize| at.is_multiple_of(1 << order) && at + (1 << order) <= end;
                let order = (0..NR_ORDERS).rev().find(fits).unwrap();
                let zone = &mut zones[node_of(at) as usize * MAX_NR_ZONES + zone_of(at) as usize];
                zone.free_pages += 1 << order;
                let area = &mut zone.free_area[order].lists[MOVABLE];
                if area.tail == PFN_NONE {
                    area.head = at;
                } else {
                    self.pages.get_mut(&area.tail).unwrap().next = at;
                }
                for tail in at + 1..at + (1 << order) {
                    self.pages.get_mut(&tail).unwrap().kind = PageKind::Tail as u8;
                }
                let page = self.pages.get_mut(&at).unwrap();
                (page.kind, page.migratetype) = (PageKind::Buddy as u8, Migratetype::Movable as u8);
                page.order = u8::try_from(order).unwrap();
                // Nobody wrote to this guest's free memory.
                page.bits = Page::KNOWN_ZERO;
                (page.prev, area.tail) = (area.tail, at);
                area.nr_free += 1;
                zone.nonempty[MOVABLE] |= 1 << order;
                at += 1 << order;
            }
        }
    }

    fn publish(&mut self, zones: &[Zone], kernel_pgd: u64, user_pgd: u64, trampoline_pgd: u64) {
        let facts = facts();
        let entry = |addr: u64, size: u64, kind: u32| E820Entry { addr, size, kind, reserved: 0 };
        let raw: Vec<_> = facts.e820.iter().map(|fact| entry(fact.addr, fact.size, fact.kind)).collect();
        let clean = [
            entry(0, 0x9_fc00, 1),
            entry(0x9_fc00, 0x400, 2),
            entry(0xf_0000, 0x1_0000, 2),
            entry(MIB, 0x9ee_0000, 1),
            entry(0x9fe_0000, 0x2_0000, 3),
            entry(4 * GIB, 16 * MIB, 1),
        ];
        let region =
            |base: u64, end: u64, node: u32| MemblockRegion { base, size: end - base, node, flags: 0 };
        let memory = [
            region(0, 0x9_f000, 0),
            region(MIB, 96 * MIB, 0),
            region(96 * MIB, 0x9fe_0000, 1),
            region(4 * GIB, 4 * GIB + 16 * MIB, 1),
        ];
        let held = RESERVED.map(|(start, end, _)| region(start << 12, end << 12, NODE_NONE));
        let present = |node: u32| zones.iter().filter(|z| z.node == node).map(|z| z.present_pages).sum();
        let nodes = [
            Node { id: 0, online: 1, start_pfn: 0, spanned_pages: 0x6000, present_pages: present(0) },
            Node { id: 1, online: 1, start_pfn: 0x6000, spanned_pages: 0xf_b000, present_pages: present(1) },
        ];
        let online = SectionState::Online as u32;
        let sections = [(0, 0x2000, online), (1, 0x2800, 0), (32, 0x2200, online)]
            .map(|(number, memmap_pfn, state)| Section { state, ..Section::deferred(number, memmap_pfn) });
        let cpu = |index: u32| CpuInfo {
            apic_id: index,
            node: index,
            state: CpuState::Online as u32,
            reserved: 0,
            percpu_gpa: 37 * MIB + u64::from(index) * 0x1_0000,
            percpu_len: 0x1_0000,
        };
        let space = AddressSpace { pgd_pfn: user_pgd, pid: PID, reserved: 0, rss_pages: 4, table_pages: 4 };
        let range = |start: u64, last: u64, kind: LayoutKind| LayoutRange {
            start,
            last,
            kind: kind as u32,
            reserved: 0,
        };
        let layout = [
            range(0, 0x7fff_ffff_ffff, LayoutKind::User),
            range(0x8000_0000_0000, 0xffff_7fff_ffff_ffff, LayoutKind::NonCanonical),
            range(0xffff_8000_0000_0000, PAGE_OFFSET - 1, LayoutKind::Guard),
            range(PAGE_OFFSET, vmalloc::VMALLOC - 1, LayoutKind::DirectMap),
            range(vmalloc::VMALLOC, VMEMMAP - 1, LayoutKind::Vmalloc),
            range(VMEMMAP, u64::MAX, LayoutKind::Unused),
        ];
        let (cache, cache_nodes) = self.slab();
        let (pcps, zonelists) = (pcps(zones), zonelists());
        let lowmem: u64 = zones.iter().map(|zone| zone.managed_pages).sum();
        let sysctl = VmSysctl { min_free_kbytes: min_free_kbytes(lowmem * 4), ..VmSysctl::DEFAULT };
        let mut at = ROOT_GPA + 4096;
        let mut table =
            |memory: &mut SparseMemory, count: usize, size: usize, write: &dyn Fn(&mut SparseMemory, u64)| {
                write(memory, at);
                let place = TableRef {
                    gpa: at,
                    count: u32::try_from(count).unwrap(),
                    stride: u32::try_from(size).unwrap(),
                };
                at = (at + (count * size) as u64).next_multiple_of(4096);
                place
            };
        macro_rules! publish {
            ($list:expr, $element:ty) => {
                table(&mut self.memory, $list.len(), size_of::<$element>(), &|memory, gpa| {
                    memory.write_value(gpa, &$list[..]).unwrap();
                })
            };
        }
        let extra_tables = publish!([trampoline_pgd], u64);
        let (vm_areas, kmaps, tasks) = vmalloc::publish(&mut self.memory, extra_tables.gpa + 0x800);
        let root = Root {
            magic: Root::MAGIC,
            version: Root::VERSION,
            size: u32::try_from(size_of::<Root>()).unwrap(),
            layout_hash: LAYOUT_HASH,
            self_gpa: ROOT_GPA,
            stage: BootStage::Running as u32,
            boot_protocol: BootProtocol::Linux64 as u32,
            levels: self.levels,
            phys_bits: 46,
            kernel_gpa: KERNEL_GPA,
            kernel_va: KERNEL_VA,
            kernel_len: 2 * MIB,
            text_len: MIB,
            rodata_end: MIB + MIB / 2,
            pgd_pfn: kernel_pgd,
            page_offset: PAGE_OFFSET,
            vmemmap: VMEMMAP,
            layout: publish!(layout, LayoutRange),
            e820_raw: publish!(raw, E820Entry),
            e820: publish!(clean, E820Entry),
            memblock_memory: publish!(memory, MemblockRegion),
            memblock_reserved: publish!(held, MemblockRegion),
            nodes: publish!(nodes, Node),
            distances: publish!([10_u8, 21, 22, 10], u8),
            zones: publish!(zones, Zone),
            sections: publish!(sections, Section),
            cpus: publish!([cpu(0), cpu(1)], CpuInfo),
            address_spaces: publish!([space], AddressSpace),
            extra_tables,
            vm_areas,
            kmaps,
            tasks,
            caches: publish!([cache], Cache),
            cache_nodes: publish!(cache_nodes, CacheNode),
            pcps: publish!(pcps, PerCpuPages),
            zonelists: publish!(zonelists, Zonelist),
            vm_sysctl: publish!([sysctl], VmSysctl),
            counters: Counters::default(),
            // Tables that no rule under test needs are not published.
            ..Root::new_zeroed()
        };
        self.memory.write_value(ROOT_GPA, &root).unwrap();
    }
}

/// Empty lists of the right size, but for one page on CPU 0.
fn pcps(zones: &[Zone]) -> Vec<PerCpuPages> {
    let of = |zone: &Zone| {
        // A thousandth over 4, times 1.5, down to a power of two, less one: the zones have 4000 and 16000 pages.
        let batch = match zone.managed_pages {
            0 => return PerCpuPages::EMPTY,
            1..0x2000 => 1,
            _ => 3,
        };
        let low = u32::try_from(zone.watermark[1]).unwrap();
        PerCpuPages { batch, high: low.max(4 * batch), ..PerCpuPages::EMPTY }
    };
    let mut pcps: Vec<PerCpuPages> = zones.iter().chain(zones).map(of).collect();
    let kept = &mut pcps[usize::try_from(PCP_INDEX).unwrap()];
    (kept.count, kept.lists[0]) = (1, PcpList { head: PCP_PFN, tail: PCP_PFN });
    (kept.numa[NumaEvent::Hit as usize], kept.numa[NumaEvent::Local as usize]) = (5, 5);
    pcps
}

fn zonelists() -> [Zonelist; 2] {
    let list = |node: u32, own: [u16; 2], all: [u16; 4]| {
        let mut list = Zonelist { node, count: 4, nofallback_count: 2, ..Zonelist::EMPTY };
        list.nofallback[..2].copy_from_slice(&own);
        list.fallback[..4].copy_from_slice(&all);
        list
    };
    [list(0, [1, 0], [1, 0, 7, 6]), list(1, [7, 6], [7, 6, 1, 0])]
}

fn facts() -> Facts {
    let entry = |addr, end, kind| FactE820 { addr, size: end - addr, kind };
    Facts {
        machine: "synthetic".into(),
        // Unsorted, with an overlap.
        e820: vec![
            entry(MIB, 0xa00_0000, 1),
            entry(0, 0x9_fc00, 1),
            entry(0x9_fc00, 0xa_0000, 2),
            entry(0xf_0000, MIB, 2),
            entry(0x9fe_0000, 0xa00_0000, 3),
            entry(4 * GIB, 4 * GIB + 16 * MIB, 1),
        ],
        node_memory: [(0, 0, 96 * MIB), (1, 96 * MIB, 160 * MIB), (1, 4 * GIB, 4 * GIB + 16 * MIB)]
            .map(|(node, base, end)| FactNodeMemory { node, base, len: end - base })
            .to_vec(),
        cpus: vec![FactCpu { apic_id: 0, node: 0 }, FactCpu { apic_id: 1, node: 1 }],
        distances: vec![vec![10, 21], vec![22, 10]],
        levels: 4,
        cmdline: String::new(),
    }
}
