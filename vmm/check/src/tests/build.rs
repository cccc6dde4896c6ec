//! How the synthetic guest comes to be: tables, descriptors, zones and the root.

use std::collections::BTreeMap;

use memvisor_abi::*;
use memvisor_inspect::{
    CpuRegisters, FactCpu, FactE820, FactNodeMemory, Facts, MemorySource, RamRegion, SparseMemory,
};
use zerocopy::FromZeros;

use super::guest::*;
use super::{log, pcp, slab, spaces, vmalloc};
use crate::watermark::{Sums, Tuning, lowmem_reserves, min_free_kbytes, watermarks};

/// The page of code on which application processors start.
const TRAMPOLINE: u64 = 0x8000;
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const UC: u64 = 0x18;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;
/// Frames from which tables are taken: the kernel's are reserved, the process's are not.
const KERNEL_TABLES: u64 = 36 * MIB / 4096;
const USER_TABLES: u64 = 0x3000;

pub(super) struct Builder {
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
    pub(super) fn build(levels: u32) -> TestGuest {
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
            spaces::describe(pfn, &mut page);
            if let Some((kind, mapping, index)) = vmalloc::frame_of(pfn) {
                (page.kind, page.refcount) = (kind as u8, 1);
                (page.mapping, page.index) = (mapping, index);
            }
            if pfn == ALLOCATED_PFN {
                (page.kind, page.refcount, page.order) = (PageKind::Allocated as u8, 1, 2);
            }
            slab::describe(pfn, &mut page);
            pcp::describe(pfn, &mut page);
            if (ALLOCATED_PFN + 1..ALLOCATED_PFN + 4).contains(&pfn) {
                page.kind = PageKind::Tail as u8;
            }
            self.pages.insert(pfn, page);
        }
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
        let space = spaces::publish(&mut self.memory, user_pgd, self.levels);
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
        let (cache, cache_nodes) = slab::fill(&mut self.memory);
        let (pcps, zonelists) = (pcp::pcps(zones), pcp::zonelists());
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
            mm_list: publish!([space], u64),
            log: log::publish(&mut self.memory),
            cpu_tlbs: publish!(spaces::tlbs(), CpuTlb),
            zero_pfn: PFN_NONE,
            entry_pgd_pfn: PFN_NONE,
            entry_text: [0; 2],
            entry_idt: [0; 2],
            extra_tables,
            vm_areas,
            kmaps,
            tasks,
            caches: publish!([cache], Cache),
            cache_nodes: publish!(cache_nodes, CacheNode),
            pcps: publish!(pcps, PerCpuPages),
            zonelists: publish!(zonelists, Zonelist),
            vm_sysctl: publish!([sysctl], VmSysctl),
            file_counts: publish!([FileCounts::default()], FileCounts),
            counters: Counters::default(),
            // Tables that no rule under test needs are not published.
            ..Root::new_zeroed()
        };
        self.memory.write_value(ROOT_GPA, &root).unwrap();
    }
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
