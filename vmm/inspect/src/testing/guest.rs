//! A whole guest.

use std::collections::BTreeMap;

use memvisor_abi::{
    BootProtocol, BootStage, Counters, CpuInfo, CpuState, E820Entry, E820Type, KernelLog, LAYOUT_HASH,
    LayoutKind, LayoutRange, LogHeader, LogState, MAX_NR_ZONES, MemblockRegion, Migratetype, NODE_NONE,
    NR_ORDERS, Node, PAGES_PER_SECTION, PFN_NONE, Page, PageFlags, PageKind, Root, Section, SectionState,
    TableRef, Zone, ZoneKind,
};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::Tables;
use crate::{
    CpuRegisters, Entry, FactCpu, FactE820, FactNodeMemory, Facts, Levels, MemorySource, PageSize, RamRegion,
    SparseMemory,
};

const KERNEL_LEN: u64 = 0x8_0000;
const TEXT_LEN: u64 = 0x4_0000;
const RODATA_END: u64 = 0x6_0000;
const PERCPU_LEN: u64 = 0x4000;
/// What firmware keeps: never given to the buddy allocator.
const LOW_RESERVED: u64 = 0x1_0000;
const KERNEL_BASE_VA: u64 = 0xffff_ffff_8000_0000;

/// What to build.
#[derive(Clone, Debug)]
pub struct Machine {
    /// RAM by node; ascending, multiples of 4 KiB, nodes numbered from 0 without gaps.
    pub memory: Vec<(u32, RamRegion)>,
    /// Node of each CPU.
    pub cpus: Vec<u32>,
    /// Depth.
    pub levels: Levels,
}

impl Machine {
    /// One node, one CPU, and RAM at the given `(gpa, len)`.
    pub fn new(ram: &[(u64, u64)], levels: Levels) -> Machine {
        let memory = ram.iter().map(|&(gpa, len)| (0, RamRegion { gpa, len })).collect();
        Machine { memory, cpus: vec![0], levels }
    }

    /// PC-like: 640 KiB at 0 and the rest of `len` bytes from 1 MiB.
    pub fn pc(len: u64, levels: Levels) -> Machine {
        Machine::new(&[(0, 0xa_0000), (0x10_0000, len - 0x10_0000)], levels)
    }
}

/// A guest in [`SparseMemory`], and what its VMM knows.
#[derive(Clone, Debug)]
pub struct SyntheticGuest {
    /// Its memory.
    pub memory: SparseMemory,
    /// Guest-physical address of the root descriptor.
    pub root_gpa: u64,
    /// The root descriptor, as written.
    pub root: Root,
    /// What the VMM built.
    pub facts: Facts,
    /// Registers of each CPU, all in the kernel.
    pub registers: Vec<CpuRegisters>,
    /// Who has which frames `(first, end, owner)`, ascending; what is missing is free.
    pub owners: Vec<(u64, u64, PageKind)>,
}

impl SyntheticGuest {
    /// Builds the guest, at rest after boot, without user processes.
    pub fn new(machine: &Machine) -> SyntheticGuest {
        Builder::new(machine).build()
    }

    /// Writes the root descriptor again, after a test changed it.
    pub fn write_root(&mut self) {
        self.memory.write_value(self.root_gpa, &self.root).expect("the root is in RAM");
    }

    /// Guest-physical address of the descriptor of `pfn`, which has one.
    pub fn page_gpa(&self, pfn: u64) -> u64 {
        let guest = crate::Guest::attach(&self.memory, self.root_gpa).expect("a good guest");
        guest.page_gpa(pfn).expect("good sections").expect("a frame with a descriptor")
    }

    /// Changes the descriptor of `pfn`.
    pub fn edit_page(&mut self, pfn: u64, edit: impl FnOnce(&mut Page)) {
        let gpa = self.page_gpa(pfn);
        self.edit(gpa, edit);
    }

    /// Changes zone `index`.
    pub fn edit_zone(&mut self, index: u64, edit: impl FnOnce(&mut Zone)) {
        let zones = self.root.zones;
        assert!(index < u64::from(zones.count), "there is no zone {index}");
        self.edit(zones.gpa + index * u64::from(zones.stride), edit);
    }

    /// Changes the structure at `gpa`.
    pub fn edit<T: zerocopy::FromBytes + IntoBytes + Immutable>(
        &mut self,
        gpa: u64,
        edit: impl FnOnce(&mut T),
    ) {
        let mut value = T::new_zeroed();
        self.memory.read(gpa, value.as_mut_bytes()).expect("in RAM");
        edit(&mut value);
        self.memory.write_value(gpa, &value).expect("in RAM");
    }

    /// Guest-physical address of the field of the root at `offset` (`offset_of!(Root, ...)`).
    pub const fn root_field(&self, offset: usize) -> u64 {
        self.root_gpa + offset as u64
    }
}

struct Builder<'a> {
    machine: &'a Machine,
    memory: SparseMemory,
    /// Next free byte of the block that holds all of the kernel's.
    next: u64,
    end: u64,
    owners: Vec<(u64, u64, PageKind)>,
    pages: BTreeMap<u64, Vec<Page>>,
}

impl<'a> Builder<'a> {
    fn new(machine: &'a Machine) -> Self {
        let regions: Vec<_> = machine.memory.iter().map(|(_, region)| *region).collect();
        let memory = SparseMemory::new(&regions).expect("the machine's RAM is well formed");
        let home = regions.iter().max_by_key(|region| region.len).expect("the machine has RAM");
        let next = home.gpa.max(0x10_0000).next_multiple_of(2 << 20);
        Builder {
            machine,
            memory,
            next,
            end: home.gpa + home.len,
            owners: Vec::new(),
            pages: BTreeMap::new(),
        }
    }

    fn take(&mut self, len: u64, kind: PageKind) -> u64 {
        let gpa = self.next;
        self.next += len.next_multiple_of(4096);
        assert!(self.next <= self.end, "the machine has too little RAM for a kernel");
        self.owners.push((gpa >> 12, self.next >> 12, kind));
        gpa
    }

    fn build(mut self) -> SyntheticGuest {
        let levels = self.machine.levels;
        let kernel_gpa = self.take(KERNEL_LEN, PageKind::Kernel);
        let root_gpa = kernel_gpa + RODATA_END;
        if self.machine.memory.first().is_some_and(|(_, region)| region.gpa < LOW_RESERVED) {
            self.owners.push((0, LOW_RESERVED >> 12, PageKind::Reserved));
        }

        let mut root = Root::new_zeroed();
        root.magic = Root::MAGIC;
        root.version = Root::VERSION;
        root.size = u32::try_from(size_of::<Root>()).expect("small");
        root.layout_hash = LAYOUT_HASH;
        root.self_gpa = root_gpa;
        root.stage = BootStage::Running as u32;
        root.boot_protocol = BootProtocol::Pvh as u32;
        root.levels = levels.count();
        root.phys_bits = 46;
        (root.zero_pfn, root.entry_pgd_pfn) = (PFN_NONE, PFN_NONE);
        root.kernel_gpa = kernel_gpa;
        root.kernel_va = KERNEL_BASE_VA + kernel_gpa;
        root.kernel_len = KERNEL_LEN;
        root.text_len = TEXT_LEN;
        root.rodata_end = RODATA_END;
        (root.page_offset, root.vmemmap) = match levels {
            Levels::Four => (0xffff_8880_0000_0000, 0xffff_ea00_0000_0000),
            Levels::Five => (0xff11_0000_0000_0000, 0xffd4_0000_0000_0000),
        };
        root.counters = Counters { pgfault: 3, pgalloc: 20, pgfree: 10, syscalls: 5 };

        root.layout = self.publish(&layout(levels, root.page_offset, root.vmemmap));
        let e820: Vec<_> = self.machine.memory.iter().map(|(_, region)| e820_entry(region)).collect();
        root.e820_raw = self.publish(&e820);
        root.e820 = self.publish(&merged(&e820));
        root.distances = self.distances();
        let cpus = self.cpus();
        root.cpus = self.publish(&cpus);
        root.mm_list = self.publish(&[0_u64]);
        root.log = self.log();

        let sections = self.sections();
        root.sections = self.publish(&sections);
        let tables = self.page_tables(&root, &sections);
        root.pgd_pfn = tables >> 12;
        // Both come from the block as well, so their size is taken before anything is free.
        let nr_nodes = self.machine.memory.iter().map(|(node, _)| node + 1).max().unwrap_or(1) as usize;
        let nodes_at = self.take((nr_nodes * size_of::<Node>()) as u64, PageKind::Reserved);
        let zones_at = self.take((nr_nodes * MAX_NR_ZONES * size_of::<Zone>()) as u64, PageKind::Reserved);
        let memory_at = self.take(4096, PageKind::Reserved);
        let reserved_at = self.take(4096, PageKind::Reserved);

        self.owners.sort_unstable_by_key(|owner| owner.0);
        let memory: Vec<_> = self
            .machine
            .memory
            .iter()
            .map(|(node, region)| memblock(region.gpa, region.len, *node))
            .collect();
        let reserved: Vec<_> = self
            .owners
            .iter()
            .map(|(first, end, _)| memblock(first << 12, (end - first) << 12, NODE_NONE))
            .collect();
        root.memblock_memory = self.publish_at(memory_at, &memory);
        root.memblock_reserved = self.publish_at(reserved_at, &reserved);
        let (nodes, zones) = self.zones(nr_nodes);
        root.nodes = self.publish_at(nodes_at, &nodes);
        root.zones = self.publish_at(zones_at, &zones);
        for section in &sections {
            let pages = self.pages.get(&section.number).expect("made with the section");
            self.memory.write_value(section.memmap_pfn << 12, pages.as_slice()).expect("in RAM");
        }
        self.memory.write_value(root_gpa, &root).expect("in RAM");

        let facts = self.facts();
        let registers = (0..)
            .zip(&self.machine.cpus)
            .map(|(index, _)| CpuRegisters {
                index,
                rip: root.kernel_va + 0x1000 + u64::from(index),
                gpr: std::array::from_fn(|gpr| (u64::from(index) << 32) | gpr as u64),
                rflags: 2,
                cr0: 0x8005_0033,
                cr3: tables,
                cr4: 0x6a0 | if levels == Levels::Five { CpuRegisters::CR4_LA57 } else { 0 },
                efer: 0xd01,
                selectors: [0x10, 0, 0, 0, 0, 0x18],
                ..CpuRegisters::default()
            })
            .collect();
        SyntheticGuest { memory: self.memory, root_gpa, root, facts, registers, owners: self.owners }
    }

    fn publish<T: IntoBytes + Immutable>(&mut self, elements: &[T]) -> TableRef {
        let gpa = self.take(size_of_val(elements).max(1) as u64, PageKind::Reserved);
        self.publish_at(gpa, elements)
    }

    fn publish_at<T: IntoBytes + Immutable>(&mut self, gpa: u64, elements: &[T]) -> TableRef {
        self.memory.write_value(gpa, elements).expect("tables are in RAM");
        TableRef {
            gpa,
            count: u32::try_from(elements.len()).expect("small"),
            stride: u32::try_from(size_of::<T>()).expect("small"),
        }
    }

    /// A log of which the first record is gone, and the last one lies across the end of the buffer.
    fn log(&mut self) -> TableRef {
        const LEN: u64 = 4096;
        let buffer_gpa = self.take(LEN, PageKind::Reserved);
        let mut state = LogState {
            buffer_gpa,
            len: LEN,
            tail: LEN - 64,
            head: LEN - 64,
            first_seq: 1,
            next_seq: 1,
            clear_seq: 0,
        };
        for (level, text) in [(6, "smp: Brought up"), (4, "Mem-Info:"), (3, "Out of memory")] {
            let text_len = u16::try_from(text.len()).expect("short");
            let ts_nsec = state.next_seq * 1_500_000_000;
            let header =
                LogHeader { seq: state.next_seq, ts_nsec, text_len, facility: 0, level, reserved: 0 };
            for (offset, byte) in (state.head..).zip(header.as_bytes().iter().chain(text.as_bytes())) {
                self.memory.write_value(buffer_gpa + offset % LEN, byte).expect("the buffer is in RAM");
            }
            state.head += header.record_len();
            state.next_seq += 1;
        }
        self.publish(&[KernelLog { version: 6, state }])
    }

    fn distances(&mut self) -> TableRef {
        let nodes = self.machine.memory.iter().map(|(node, _)| node + 1).max().unwrap_or(1);
        let distances: Vec<u8> = (0..nodes)
            .flat_map(|row| (0..nodes).map(move |column| if row == column { 10 } else { 20 }))
            .collect();
        self.publish(&distances)
    }

    fn cpus(&mut self) -> Vec<CpuInfo> {
        let nodes = self.machine.cpus.clone();
        (0..)
            .zip(nodes)
            .map(|(apic_id, node)| CpuInfo {
                apic_id,
                node,
                state: CpuState::Online as u32,
                reserved: 0,
                percpu_gpa: self.take(PERCPU_LEN, PageKind::PerCpu),
                percpu_len: PERCPU_LEN,
            })
            .collect()
    }

    fn sections(&mut self) -> Vec<Section> {
        let pages_per_section = usize::try_from(PAGES_PER_SECTION).expect("small");
        let mut numbers: Vec<_> = self
            .machine
            .memory
            .iter()
            .flat_map(|(_, region)| region.gpa >> 27..=(region.gpa + region.len - 1) >> 27)
            .collect();
        numbers.dedup();
        numbers
            .into_iter()
            .map(|number| {
                self.next = self.next.next_multiple_of(2 << 20);
                let memmap = self.take(PAGES_PER_SECTION * 64, PageKind::Memmap);
                self.pages.insert(number, vec![Page::default(); pages_per_section]);
                Section { state: SectionState::Online as u32, ..Section::deferred(number, memmap >> 12) }
            })
            .collect()
    }

    fn page_tables(&mut self, root: &Root, sections: &[Section]) -> u64 {
        let start = self.next;
        let mut tables = Tables::new(root_levels(root), start..self.end);
        let data = Entry::WRITE | Entry::GLOBAL | Entry::NX;
        for (_, region) in &self.machine.memory {
            let va = root.page_offset + region.gpa;
            tables.map_range(&mut self.memory, va, region.gpa, region.len, data, PageSize::Size2M);
        }
        for section in sections {
            let va = root.vmemmap + section.number * PAGES_PER_SECTION * 64;
            let len = PAGES_PER_SECTION * 64;
            tables.map_range(&mut self.memory, va, section.memmap_pfn << 12, len, data, PageSize::Size2M);
        }
        let parts = [
            (0, TEXT_LEN, Entry::GLOBAL),
            (TEXT_LEN, RODATA_END, Entry::GLOBAL | Entry::NX),
            (RODATA_END, KERNEL_LEN, data),
        ];
        for (from, to, flags) in parts {
            let (va, gpa) = (root.kernel_va + from, root.kernel_gpa + from);
            tables.map_range(&mut self.memory, va, gpa, to - from, flags, PageSize::Size4K);
        }
        self.take(tables.used_end() - start, PageKind::Table);
        tables.root()
    }

    /// Nodes and zones; fills the descriptors and the free lists on the way.
    fn zones(&mut self, nr_nodes: usize) -> (Vec<Node>, Vec<Zone>) {
        let mut nodes = vec![Node::default(); nr_nodes];
        let mut zones = vec![empty_zone(); nr_nodes * MAX_NR_ZONES];
        for (node, zones) in (0..).zip(zones.chunks_mut(MAX_NR_ZONES)) {
            for (kind, zone) in (0..).zip(zones) {
                (zone.node, zone.kind) = (node, kind);
            }
        }
        for (id, node) in (0..).zip(&mut nodes) {
            (node.id, node.online) = (id, 1);
        }
        for (node, region) in self.machine.memory.clone() {
            let (first, end) = (region.gpa >> 12, (region.gpa + region.len) >> 12);
            let info = &mut nodes[node as usize];
            span(&mut info.start_pfn, &mut info.spanned_pages, first, end);
            info.present_pages += end - first;
            // Linux's limits of the zones: 16 MiB and 4 GiB.
            for (kind, from, to) in [(0, 0, 0x1000), (1, 0x1000, 0x10_0000), (2, 0x10_0000, u64::MAX)] {
                let (first, end) = (first.max(from), end.min(to));
                if first < end {
                    let index = node as usize * MAX_NR_ZONES + kind;
                    self.fill_zone(&mut zones[index], first, end);
                }
            }
        }
        for zone in &mut zones {
            let min = zone.managed_pages / 256;
            zone.watermark = [min, min + min / 4, min + min / 2];
        }
        (nodes, zones)
    }

    fn fill_zone(&mut self, zone: &mut Zone, first: u64, end: u64) {
        span(&mut zone.start_pfn, &mut zone.spanned_pages, first, end);
        zone.present_pages += end - first;
        let links = u64::from(zone.node) << Page::NODE_SHIFT | u64::from(zone.kind) << Page::ZONE_SHIFT;
        let mut free_from = first;
        for (start, stop, kind) in self.owners.clone() {
            let (start, stop) = (start.max(first), stop.min(end));
            if start >= stop {
                continue;
            }
            for pfn in start..stop {
                *self.page(pfn) = Page {
                    flags: links | PageFlags::RESERVED.bits(),
                    next: PFN_NONE,
                    prev: PFN_NONE,
                    mapcount: -1,
                    refcount: 1,
                    kind: kind as u8,
                    ..Page::default()
                };
            }
            self.free(zone, links, free_from, start);
            free_from = stop;
        }
        self.free(zone, links, free_from, end);
    }

    /// Puts `first..end` on the free lists in the largest aligned blocks.
    fn free(&mut self, zone: &mut Zone, links: u64, first: u64, end: u64) {
        let mut pfn = first;
        while pfn < end {
            let order = (0..NR_ORDERS)
                .rev()
                .find(|order| pfn.is_multiple_of(1 << order) && end - pfn >= 1 << order)
                .unwrap_or(0);
            let area = &mut zone.free_area[order].lists[Migratetype::Movable as usize];
            zone.nonempty[Migratetype::Movable as usize] |= 1 << order;
            for tail in pfn..pfn + (1 << order) {
                *self.page(tail) = Page {
                    flags: links,
                    next: PFN_NONE,
                    prev: PFN_NONE,
                    mapcount: -1,
                    kind: PageKind::Tail as u8,
                    ..Page::default()
                };
            }
            let last = area.tail;
            *self.page(pfn) = Page {
                kind: PageKind::Buddy as u8,
                order: u8::try_from(order).expect("small"),
                migratetype: Migratetype::Movable as u8,
                prev: last,
                ..*self.page(pfn)
            };
            if last == PFN_NONE {
                area.head = pfn;
            } else {
                self.page(last).next = pfn;
            }
            area.tail = pfn;
            area.nr_free += 1;
            zone.free_pages += 1 << order;
            zone.managed_pages += 1 << order;
            pfn += 1 << order;
        }
    }

    fn page(&mut self, pfn: u64) -> &mut Page {
        let pages = self.pages.get_mut(&(pfn / PAGES_PER_SECTION)).expect("RAM has sections");
        &mut pages[usize::try_from(pfn % PAGES_PER_SECTION).expect("small")]
    }

    fn facts(&self) -> Facts {
        let ram = &self.machine.memory;
        Facts {
            machine: "synthetic".into(),
            e820: ram
                .iter()
                .map(|(_, region)| e820_entry(region))
                .map(|entry| FactE820 { addr: entry.addr, size: entry.size, kind: entry.kind })
                .collect(),
            node_memory: ram
                .iter()
                .map(|(node, region)| FactNodeMemory { node: *node, base: region.gpa, len: region.len })
                .collect(),
            cpus: (0..)
                .zip(&self.machine.cpus)
                .map(|(apic_id, node)| FactCpu { apic_id, node: *node })
                .collect(),
            distances: Vec::new(),
            levels: self.machine.levels.count(),
            cmdline: String::new(),
        }
    }
}

fn root_levels(root: &Root) -> Levels {
    Levels::new(root.levels).expect("written by the builder")
}

const fn e820_entry(region: &RamRegion) -> E820Entry {
    E820Entry { addr: region.gpa, size: region.len, kind: E820Type::Ram as u32, reserved: 0 }
}

/// Adjacent entries are one in a sanitized map.
fn merged(entries: &[E820Entry]) -> Vec<E820Entry> {
    let mut merged: Vec<E820Entry> = Vec::new();
    for entry in entries {
        match merged.last_mut() {
            Some(last) if last.addr + last.size == entry.addr => last.size += entry.size,
            _ => merged.push(*entry),
        }
    }
    merged
}

const fn memblock(base: u64, size: u64, node: u32) -> MemblockRegion {
    MemblockRegion { base, size, node, flags: 0 }
}

fn span(start: &mut u64, spanned: &mut u64, first: u64, end: u64) {
    let (low, high) =
        if *spanned == 0 { (first, end) } else { (first.min(*start), end.max(*start + *spanned)) };
    (*start, *spanned) = (low, high - low);
}

fn empty_zone() -> Zone {
    Zone::new(0, ZoneKind::Dma)
}

/// The whole address space, without gaps.
fn layout(levels: Levels, page_offset: u64, vmemmap: u64) -> Vec<LayoutRange> {
    let user_end = 1u64 << (levels.va_bits() - 1);
    let upper = levels.canonical(user_end);
    let starts = [
        (0, LayoutKind::User),
        (user_end, LayoutKind::NonCanonical),
        (upper, LayoutKind::Guard),
        (page_offset, LayoutKind::DirectMap),
        (page_offset + (64 << 40), LayoutKind::Vmalloc),
        (vmemmap, LayoutKind::Vmemmap),
        (vmemmap + (1 << 40), LayoutKind::Unused),
        (KERNEL_BASE_VA, LayoutKind::KernelImage),
        (0xffff_ffff_c000_0000, LayoutKind::Modules),
    ];
    let lasts = starts.iter().skip(1).map(|(start, _)| start - 1).chain([u64::MAX]);
    starts
        .iter()
        .zip(lasts)
        .map(|((start, kind), last)| LayoutRange { start: *start, last, kind: *kind as u32, reserved: 0 })
        .collect()
}
