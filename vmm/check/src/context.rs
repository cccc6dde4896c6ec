//! Everything an audit reads once, before the rules run.

use memvisor_abi::{
    BootStage, CmaArea, CpuInfo, E820Entry, LayoutRange, MemblockRegion, Migratetype, MovableOwner,
    NODE_NONE, Node, Page, PageFlags, PageKind, PerCpuPages, Root, Section, SectionState, SwapArea, TaskInfo,
    VmSysctl, Zone, Zonelist,
};
use memvisor_inspect::{
    AddressSpace, CpuRegisters, Facts, FreeList, Guest, GuestError, KmapWindowSlots, MemorySource, PcpBlocks,
    SlotWord, VmAreaAt, ZswapWalk, section_start_pfn,
};

use crate::borders::Borders;
use crate::e820::resolve;
use crate::frames::{Frames, normalize};
use crate::ledger::{Ledger, finding};
use crate::machine::Machine;
use crate::{Rule, attach};

/// A guest as the rules see it.
pub(crate) type AuditedGuest<'a> = Guest<'a, dyn MemorySource + 'a>;

/// The evidence, read and checked for being readable. A table that could not be read is a finding
/// of `attach.tables` and empty here; [`Context::no_zones`] then says so.
pub(crate) struct Context<'a> {
    pub source: &'a dyn MemorySource,
    pub guest: AuditedGuest<'a>,
    pub facts: Option<&'a Facts>,
    pub registers: &'a [CpuRegisters],
    pub root: Root,
    pub layout: Vec<LayoutRange>,
    pub e820_raw: Vec<E820Entry>,
    pub e820: Vec<E820Entry>,
    pub memory: Vec<MemblockRegion>,
    /// Frames that memblock reservations touch, normalized.
    pub reserved: Vec<Frames>,
    pub nodes: Vec<Node>,
    pub distances: Vec<Vec<u8>>,
    pub zones: Vec<Zone>,
    pub sections: Vec<Section>,
    pub cpus: Vec<CpuInfo>,
    pub spaces: Vec<AddressSpace>,
    pub extra_tables: Vec<u64>,
    /// Areas of the vmalloc range, ascending.
    pub vm_areas: Vec<VmAreaAt>,
    pub kmap_windows: Vec<KmapWindowSlots>,
    pub tasks: Vec<TaskInfo>,
    /// Free lists with at least one block or a problem, by zone and order.
    pub free_lists: Vec<FreeList>,
    /// Per-CPU lists by CPU * zones + zone; empty if the guest publishes none.
    pub pcps: Vec<PerCpuPages>,
    /// Blocks on per-CPU lists; empty lists are left out.
    pub pcp_lists: Vec<PcpBlocks>,
    pub zonelists: Vec<Zonelist>,
    /// What watermarks and reserves follow from; `None` if the guest publishes nothing of it.
    pub vm_sysctl: Option<VmSysctl>,
    /// Contiguous areas; empty if the guest has none.
    pub cma_areas: Vec<CmaArea>,
    /// Swap areas in use, by number, with their words.
    pub swap: Vec<(u32, SwapArea, Vec<SlotWord>)>,
    /// What is kept compressed; `None` if nothing can be.
    pub zswap: Option<ZswapWalk>,
    /// Owners of movable pages by number, from 1; empty if the guest publishes none.
    pub movable_owners: Vec<MovableOwner>,
    /// What the guest should have found.
    pub machine: Machine,
    /// Why rules on nodes, zones, sections and owners cannot run, if they cannot.
    pub no_zones: Option<String>,
}

impl<'a> Context<'a> {
    /// Reads all tables that the guest's stage of boot promises.
    pub fn load(
        guest: AuditedGuest<'a>,
        facts: Option<&'a Facts>,
        registers: &'a [CpuRegisters],
        ledger: &mut Ledger,
    ) -> Context<'a> {
        let root = *guest.root();
        let has = |stage: BootStage| root.stage >= stage as u32;
        let mut lost = false;
        let mut loader = Loader { ledger, lost: &mut lost };
        let (memblock, buddy, smp) = (has(BootStage::Memblock), has(BootStage::Buddy), has(BootStage::Smp));
        let e820_raw = loader.table(memblock, guest.e820_raw());
        let e820 = loader.table(memblock, guest.e820());
        let memory = loader.table(memblock, guest.memblock_memory());
        let layout = loader.table(has(BootStage::Paging), guest.layout());
        let cpus = loader.table(smp, guest.cpus());
        let spaces = loader.table(buddy, guest.address_spaces());
        let extra_tables = loader.table(buddy, guest.extra_tables());
        let distances = loader.table(buddy, guest.distances());
        let reserved = loader.table(buddy, guest.memblock_reserved());
        let nodes = loader.table(buddy, guest.nodes());
        let zones = loader.table(buddy, guest.zones());
        let sections = loader.table(buddy, guest.checked_sections().map(<[Section]>::to_vec));
        let vm_areas = loader.table(smp, guest.vm_areas());
        let kmap_windows = loader.table(smp, guest.kmap_windows());
        let tasks = loader.table(smp, guest.tasks());
        let mut free_lists = Vec::new();
        for (index, zone) in zones.iter().enumerate() {
            for order in 0..zone.free_area.len() {
                for migratetype in Migratetype::ALL {
                    let list = guest.free_list_of(zone, index, order, migratetype);
                    free_lists.extend(loader.one(list));
                }
            }
        }
        let pcps = loader.table(buddy, guest.pcps());
        let zonelists = loader.table(buddy, guest.zonelists());
        let cma_areas = loader.table(buddy, guest.cma_areas());
        let vm_sysctl = loader.table(buddy, guest.vm_sysctl()).first().copied();
        let movable_owners = loader.table(buddy, guest.movable_owners());
        let mut swap = Vec::new();
        for (number, area) in (0_u32..).zip(loader.table(buddy, guest.swap_areas())) {
            if area.flags & SwapArea::USED != 0 {
                swap.push((number, area, loader.table(buddy, guest.swap_words(&area))));
            }
        }
        let zswap = if buddy { loader.one(guest.zswap_walk()).flatten() } else { None };
        let mut pcp_lists = Vec::new();
        for (index, pcp) in pcps.iter().enumerate() {
            let (cpu, zone) = (index / zones.len().max(1), index % zones.len().max(1));
            pcp_lists.extend(loader.one(guest.pcp_lists(pcp, cpu, zone)).unwrap_or_default());
        }
        let no_zones = if !buddy {
            Some(format!("the guest is at boot stage {}, before its buddy allocator exists", root.stage))
        } else if lost {
            Some("a published table cannot be read (see attach.tables)".to_owned())
        } else {
            None
        };
        let machine = derive_machine(facts, &root, &e820_raw, &memory, &zones);
        let touched =
            |region: &MemblockRegion| Frames::touching(region.base, region.base.saturating_add(region.size));
        Context {
            source: guest.source(),
            facts,
            registers,
            root,
            layout,
            e820_raw,
            e820,
            memory,
            reserved: normalize(reserved.iter().map(touched).collect()),
            nodes,
            distances,
            zones,
            sections,
            cpus,
            spaces,
            extra_tables,
            vm_areas,
            kmap_windows,
            tasks,
            free_lists,
            pcps,
            pcp_lists,
            zonelists,
            vm_sysctl,
            cma_areas,
            swap,
            zswap,
            movable_owners,
            machine,
            no_zones,
            guest,
        }
    }

    /// Skips `rules` with the reason if zones and owners cannot be audited.
    pub fn needs_zones(&self, ledger: &mut Ledger, rules: &[&'static Rule]) -> bool {
        if let Some(reason) = &self.no_zones {
            for rule in rules {
                ledger.skip(rule, reason);
            }
        }
        self.no_zones.is_none()
    }

    /// The facts; without them skips `rules`.
    pub fn needs_facts(&self, ledger: &mut Ledger, rules: &[&'static Rule]) -> Option<&'a Facts> {
        if self.facts.is_none() {
            for rule in rules {
                ledger.skip(rule, "nobody says what machine was built (no facts)");
            }
        }
        self.facts
    }

    /// The descriptor of a frame, if there is one.
    pub fn page(&self, pfn: u64) -> Option<Page> {
        self.guest.page(pfn).ok().flatten()
    }

    /// Frames of the sections whose descriptors are not initialised, normalized.
    pub fn deferred(&self) -> Vec<Frames> {
        let deferred = self.sections.iter().filter(|section| section.state == SectionState::Deferred as u32);
        normalize(deferred.map(section_frames).collect())
    }

    /// What a frame's descriptor tells about it, for findings.
    pub fn history(&self, pfn: u64) -> Option<String> {
        let page = self.page(pfn)?;
        let kind = PageKind::from_raw(page.kind).map_or("of undefined kind", PageKind::name);
        let mut text = format!(
            "descriptor says {kind}, node {} zone {}, order {}, refcount {}, mapcount {}, flags {:?}",
            page.node(),
            page.zone(),
            page.order,
            page.refcount,
            page.mapcount,
            page.page_flags(),
        );
        let area = page.kind == PageKind::Vmalloc as u8 || page.kind == PageKind::KernelStack as u8;
        if area {
            text.push_str(&format!(", page {} of the area at {:#x}", page.index, page.mapping));
        } else if page.kind == PageKind::Slab as u8 {
            text.push_str(&format!(", slab of cache {}", page.mapping));
        } else if page.page_flags().contains(PageFlags::MOVABLE) {
            text.push_str(&format!(", movable, page {} of owner {}", page.index, page.mapping));
        } else if page.mapping & Page::MAPPING_ANON != 0 {
            let anon_vma = page.mapping & !Page::MAPPING_ANON;
            text.push_str(&format!(", index {:#x} of anon_vma {anon_vma:#x}", page.index));
        } else if page.mapping != 0 {
            text.push_str(&format!(", page {} of mapping {:#x}", page.index, page.mapping));
        }
        Some(text)
    }
}

/// All frames of a section.
pub(crate) fn section_frames(section: &Section) -> Frames {
    Frames::from_count(section_start_pfn(section), memvisor_abi::PAGES_PER_SECTION)
}

fn derive_machine(
    facts: Option<&Facts>,
    root: &Root,
    raw: &[E820Entry],
    memory: &[MemblockRegion],
    zones: &[Zone],
) -> Machine {
    let phys_bits = root.phys_bits;
    if let Some(facts) = facts {
        return Machine::from_facts(facts, phys_bits, root.kernel_gpa.saturating_add(root.kernel_len));
    }
    let nodes: Vec<_> = memory
        .iter()
        .filter(|region| region.node != NODE_NONE)
        .map(|region| (region.node, Frames::inside(region.base, region.base.saturating_add(region.size))))
        .collect();
    let regions = resolve(raw.iter().map(|entry| (entry.addr, entry.size, entry.kind)), phys_bits);
    Machine::derive(regions, &nodes, |_| Borders::of_zones(zones))
}

struct Loader<'l> {
    ledger: &'l mut Ledger,
    lost: &'l mut bool,
}

impl Loader<'_> {
    fn table<T>(&mut self, promised: bool, table: Result<Vec<T>, GuestError>) -> Vec<T> {
        if promised { self.one(table).unwrap_or_default() } else { Vec::new() }
    }

    fn one<T>(&mut self, table: Result<T, GuestError>) -> Option<T> {
        self.ledger.checked(&attach::TABLES, 1);
        match table {
            Ok(table) => Some(table),
            Err(error) => {
                *self.lost = true;
                let what = finding(&attach::TABLES, "a published table", "it is there", error.to_string());
                self.ledger.report(&attach::TABLES, what);
                None
            }
        }
    }
}
