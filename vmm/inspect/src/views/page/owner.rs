//! Who owns a frame, derived from the structures that use frames and not from its descriptor.

use std::fmt;

use memvisor_abi::{
    Migratetype, PAGE_SHIFT, PAGES_PER_SECTION, PFN_NONE, Page, PageKind, SectionState, TRACE_RECORD_SIZE,
};
use serde::Serialize;

use super::super::pcp::list_type;
use super::super::zones::zone_name;
use crate::ptdump::{Leaf, Span, Table, Visitor, walk_tree};
use crate::{Access, Guest, GuestError, MemorySource, PageSize, Walker, cache_name, section_start_pfn};

/// An owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "owner", rename_all = "snake_case")]
pub enum Owner {
    /// The kernel image.
    Kernel {
        /// text, rodata or data.
        part: &'static str,
    },
    /// Holds descriptors.
    Memmap {
        /// Section that they describe.
        section: u64,
        /// First frame that this frame describes.
        first_pfn: u64,
    },
    /// A CPU's own area.
    PerCpu {
        /// CPU.
        cpu: usize,
        /// Offset in the area, in pages.
        page: u64,
    },
    /// A trace ring's records.
    TraceRing {
        /// CPU.
        cpu: u32,
    },
    /// A page table.
    Table {
        /// Whose tree.
        space: Space,
        /// Level of its entries; 1 is pte.
        level: u32,
        /// First virtual address that it translates.
        #[serde(serialize_with = "crate::hex")]
        va: u64,
    },
    /// Part of a free block.
    Free {
        /// First frame of the block.
        head: u64,
        /// Its order.
        order: usize,
        /// Zone whose list it is on.
        zone: &'static str,
        /// Node of the zone.
        node: u32,
        /// Place on the list, from 0.
        position: usize,
        /// Blocks on the list.
        blocks: usize,
    },
    /// Part of a free block that a CPU keeps.
    Pcp {
        /// First frame of the block.
        head: u64,
        /// Its order.
        order: usize,
        /// CPU.
        cpu: usize,
        /// Type of the list; "any" for that of huge blocks, which all types share.
        migratetype: &'static str,
        /// Zone that it belongs to.
        zone: &'static str,
        /// Node of the zone.
        node: u32,
        /// Place on the list, from 0: the next to be allocated.
        position: usize,
        /// Blocks on the list.
        blocks: usize,
    },
    /// Mapped into a user address space.
    User {
        /// Process.
        pid: u32,
    },
    /// Part of a slab.
    Slab {
        /// Cache that it belongs to; `None` for pages that belong to none (SLOB).
        cache: Option<String>,
        /// First frame of the slab.
        head: u64,
        /// Its order.
        order: u8,
    },
    /// Of the pool of zswap.
    ZswapPool {
        /// Areas and slots whose pages are here, compressed.
        slots: Vec<(u32, u64)>,
    },
    /// Of zswap: says where it keeps the pages of 256 slots.
    ZswapEntries {
        /// Swap area.
        area: u32,
        /// First slot.
        slot: u64,
    },
    /// Part of a block that its descriptor calls allocated; nothing published says by whom.
    Allocated {
        /// First frame of the block.
        head: u64,
        /// Its order.
        order: u8,
    },
    /// Free, in a section whose descriptors are not initialised yet.
    Deferred,
    /// Reserved at boot; nothing more exact is known.
    Reserved {
        /// First byte of the reservation.
        #[serde(serialize_with = "crate::hex")]
        base: u64,
        /// Its length in bytes.
        size: u64,
    },
}

/// A tree of page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// The kernel's own.
    Kernel,
    /// A process's.
    Process {
        /// Process.
        pid: u32,
    },
    /// Another one, such as the one that CPUs start on.
    Extra {
        /// Frame of its top-level table.
        root: u64,
    },
}

/// A place where the frame is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MappedAt {
    /// In which tree. The kernel's half, which all trees share, counts as the kernel's.
    pub space: Space,
    /// Virtual address of the frame.
    #[serde(serialize_with = "crate::hex")]
    pub va: u64,
    /// Size of the mapping that it is part of.
    pub size: PageSize,
    /// What it allows.
    pub access: Access,
}

/// What the trees say about one frame.
#[derive(Clone, Debug, Default)]
pub(super) struct Trees {
    pub mappings: Vec<MappedAt>,
    /// Mappings beyond those that are kept.
    pub more: u64,
    tables: Vec<Owner>,
}

/// Mappings of one frame that are kept.
const MAPPINGS_MAX: usize = 64;

struct Finder {
    pfn: u64,
    space: Space,
    /// Addresses from here on belong to the kernel's half.
    upper: u64,
    found: Trees,
}

impl Visitor for Finder {
    fn leaf(&mut self, leaf: &Leaf) {
        let first = leaf.gpa >> PAGE_SHIFT;
        let Some(offset) =
            self.pfn.checked_sub(first).filter(|offset| offset << PAGE_SHIFT < leaf.size.bytes())
        else {
            return;
        };
        if self.found.mappings.len() >= MAPPINGS_MAX {
            self.found.more += 1;
            return;
        }
        let va = leaf.va.wrapping_add(offset << PAGE_SHIFT);
        self.found.mappings.push(MappedAt { space: self.space, va, size: leaf.size, access: leaf.access });
    }

    fn table(&mut self, table: &Table) {
        if table.gpa >> PAGE_SHIFT == self.pfn && self.found.tables.len() < MAPPINGS_MAX {
            let shared = table.va >= self.upper && matches!(self.space, Space::Process { .. });
            if !shared {
                let owner = Owner::Table { space: self.space, level: table.level, va: table.va };
                self.found.tables.push(owner);
            }
        }
    }
}

/// Walks every tree for `pfn`: the kernel's whole, the lower halves of the others.
pub(super) fn walk_trees<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    pfn: u64,
) -> Result<Trees, GuestError> {
    let root = guest.root();
    let upper = !0 << (guest.levels().va_bits() - 1);
    let mut finder = Finder { pfn, space: Space::Kernel, upper, found: Trees::default() };
    walk_tree(&guest.kernel_walker(), guest.source(), Span::ALL, &mut finder);
    let lower = Span { start: 0, last: !upper };
    let mut walk = |space, root_pfn: u64| {
        finder.space = space;
        let walker = Walker::new(root_pfn << PAGE_SHIFT, guest.levels()).with_phys_bits(root.phys_bits);
        walk_tree(&walker, guest.source(), lower, &mut finder);
    };
    for space in guest.address_spaces()? {
        walk(Space::Process { pid: space.pid }, space.pgd_pfn);
    }
    for extra in guest.extra_tables()? {
        walk(Space::Extra { root: extra }, extra);
    }
    Ok(finder.found)
}

/// All owners that can be derived; more than one is a fault of the guest.
pub(super) fn owners<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    pfn: u64,
    page: Option<&Page>,
    trees: &Trees,
) -> Result<Vec<Owner>, GuestError> {
    let root = guest.root();
    let gpa = pfn << PAGE_SHIFT;
    let mut owners = Vec::new();
    if gpa + (1 << PAGE_SHIFT) > root.kernel_gpa && gpa < root.kernel_gpa.saturating_add(root.kernel_len) {
        let at = gpa.saturating_sub(root.kernel_gpa);
        let part = if at < root.text_len {
            "text"
        } else if at < root.rodata_end {
            "rodata"
        } else {
            "data"
        };
        owners.push(Owner::Kernel { part });
    }
    const MEMMAP_FRAMES: u64 = (PAGES_PER_SECTION * size_of::<Page>() as u64) >> PAGE_SHIFT;
    for section in guest.checked_sections()?.iter().filter(|section| section.memmap_pfn != PFN_NONE) {
        if let Some(offset) = pfn.checked_sub(section.memmap_pfn).filter(|offset| *offset < MEMMAP_FRAMES) {
            let first_pfn = section_start_pfn(section) + offset * (PAGES_PER_SECTION / MEMMAP_FRAMES);
            owners.push(Owner::Memmap { section: section.number, first_pfn });
        }
    }
    for (cpu, info) in guest.cpus()?.iter().enumerate() {
        let inside = gpa.checked_sub(info.percpu_gpa).filter(|at| *at < info.percpu_len);
        if let Some(at) = inside {
            owners.push(Owner::PerCpu { cpu, page: at >> PAGE_SHIFT });
        }
    }
    for ring in guest.trace_rings()? {
        let len = u64::from(ring.capacity) * TRACE_RECORD_SIZE;
        if gpa.checked_sub(ring.buffer_gpa).is_some_and(|at| at < len) {
            owners.push(Owner::TraceRing { cpu: ring.cpu });
        }
    }
    owners.extend(trees.tables.iter().take(1).cloned());
    let user = trees.mappings.iter().find_map(|mapping| match mapping.space {
        Space::Process { pid } if mapping.access.user => Some(Owner::User { pid }),
        _ => None,
    });
    owners.extend(user);
    owners.extend(compressed(guest, pfn)?);
    owners.extend(free_block(guest, pfn)?);
    owners.extend(kept_block(guest, pfn)?);
    if owners.is_empty() {
        owners.extend(last_resort(guest, pfn, page)?);
    }
    Ok(owners)
}

/// What zswap has in the frame.
fn compressed<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, pfn: u64) -> Result<Option<Owner>, GuestError> {
    let Some(walk) = guest.zswap_walk()? else { return Ok(None) };
    if let Some(leaf) = walk.leaves.iter().find(|leaf| leaf.pfn == pfn) {
        return Ok(Some(Owner::ZswapEntries { area: leaf.first.0, slot: leaf.first.1 }));
    }
    let is_pool = walk.frames.items.iter().any(|frame| frame.pfn == pfn);
    let packed = walk.entries.iter().filter(|at| !at.entry.is_same_filled());
    let slots = packed.filter(|at| at.entry.gpa() >> PAGE_SHIFT == pfn).map(|at| at.slot).collect();
    Ok(is_pool.then_some(Owner::ZswapPool { slots }))
}

/// The block on a free list that covers the frame. Heads are looked for by descriptor, then on their list.
fn free_block<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, pfn: u64) -> Result<Option<Owner>, GuestError> {
    let zones = guest.zones()?;
    for order in 0..memvisor_abi::NR_ORDERS {
        let head = pfn & !((1 << order) - 1);
        let Some(page) = guest.page(head)? else { continue };
        if page.kind != PageKind::Buddy as u8 || usize::from(page.order) != order {
            continue;
        }
        let index = zones.iter().position(|zone| zone.node == page.node() && zone.kind == page.zone());
        let Some((index, zone)) = index.and_then(|index| Some((index, zones.get(index)?))) else { continue };
        let Some(migratetype) = Migratetype::from_raw(page.migratetype) else { continue };
        let list = guest.free_list_of(zone, index, order, migratetype)?;
        if let Some(position) = list.blocks.iter().position(|block| *block == head) {
            return Ok(Some(Owner::Free {
                head,
                order,
                zone: zone_name(zone.kind),
                node: zone.node,
                position,
                blocks: list.blocks.len(),
            }));
        }
    }
    Ok(None)
}

/// The block on a CPU's list that covers the frame, whatever its descriptor says.
fn kept_block<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, pfn: u64) -> Result<Option<Owner>, GuestError> {
    let zones = guest.zones()?;
    for (place, pcp) in guest.pcps()?.iter().enumerate() {
        let (cpu, index) = (place / zones.len().max(1), place % zones.len().max(1));
        let Some(zone) = zones.get(index) else { continue };
        let span = zone.start_pfn..zone.start_pfn.saturating_add(zone.spanned_pages);
        if !span.contains(&pfn) {
            continue;
        }
        for list in guest.pcp_lists(pcp, cpu, index)? {
            let head = pfn & !((1 << list.order) - 1);
            if let Some(position) = list.blocks.iter().position(|block| *block == head) {
                return Ok(Some(Owner::Pcp {
                    head,
                    order: list.order,
                    cpu,
                    migratetype: list_type(list.list),
                    zone: zone_name(zone.kind),
                    node: zone.node,
                    position,
                    blocks: list.blocks.len(),
                }));
            }
        }
    }
    Ok(None)
}

/// Owners that only a descriptor or a reservation names.
fn last_resort<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    pfn: u64,
    page: Option<&Page>,
) -> Result<Option<Owner>, GuestError> {
    let gpa = pfn << PAGE_SHIFT;
    let reserved = guest.memblock_reserved()?;
    let reservation =
        reserved.iter().find(|region| gpa.checked_sub(region.base).is_some_and(|at| at < region.size));
    if let Some(region) = reservation {
        return Ok(Some(Owner::Reserved { base: region.base, size: region.size }));
    }
    if page.is_none() {
        let number = pfn / PAGES_PER_SECTION;
        let deferred = guest
            .checked_sections()?
            .iter()
            .any(|section| section.number == number && section.state == SectionState::Deferred as u32);
        return Ok((deferred && guest.source().is_ram(gpa, 1)).then_some(Owner::Deferred));
    }
    for order in 0..memvisor_abi::NR_ORDERS {
        let head = pfn & !((1 << order) - 1);
        let Some(page) = guest.page(head)? else { continue };
        let owned = page.refcount > 0 && usize::from(page.order) >= order;
        if owned && page.kind == PageKind::Slab as u8 {
            let index = usize::try_from(page.mapping).unwrap_or(usize::MAX);
            let cache = guest.caches()?.get(index).map(cache_name).filter(|name| !name.is_empty());
            return Ok(Some(Owner::Slab { cache, head, order: page.order }));
        }
        if owned && page.kind != PageKind::Tail as u8 && page.kind != PageKind::Buddy as u8 {
            return Ok(Some(Owner::Allocated { head, order: page.order }));
        }
    }
    Ok(None)
}

/// Name of a level's table.
const fn table_name(level: u32) -> &'static str {
    match level {
        1 => "PTE",
        2 => "PMD",
        3 => "PUD",
        4 => "P4D or PGD",
        _ => "PGD",
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Space::Kernel => write!(f, "the kernel"),
            Space::Process { pid } => write!(f, "process {pid}"),
            Space::Extra { root } => write!(f, "the tree at frame {root:#x}"),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Kernel { part } => write!(f, "kernel image, {part}"),
            Owner::Memmap { section, first_pfn } => {
                write!(f, "memmap of section {section}: descriptors from frame {first_pfn:#x} on")
            }
            Owner::PerCpu { cpu, page } => write!(f, "per-CPU area of CPU {cpu}, page {page}"),
            Owner::TraceRing { cpu } => write!(f, "trace ring of CPU {cpu}"),
            Owner::Table { space, level, va } => {
                write!(f, "page table ({}) of {space}, translates from {va:#x}", table_name(*level))
            }
            Owner::Free { head, order, zone, node, position, blocks } => write!(
                f,
                "free: block of order {order} at frame {head:#x}, {} of {blocks} on its list in node {node} zone {zone}",
                position + 1
            ),
            Owner::Pcp { head, order, cpu, migratetype, zone, node, position, blocks } => write!(
                f,
                "free: block of order {order} at frame {head:#x}, {} of {blocks} on the {migratetype} list of CPU {cpu} for node {node} zone {zone}",
                position + 1
            ),
            Owner::User { pid } => write!(f, "memory of process {pid}"),
            Owner::Slab { cache: Some(cache), head, order } => {
                write!(f, "slab of cache {cache}: block of order {order} at frame {head:#x}")
            }
            Owner::Slab { cache: None, head, order } => {
                write!(f, "slab of no cache: block of order {order} at frame {head:#x}")
            }
            Owner::Allocated { head, order } => {
                write!(f, "allocated: block of order {order} at frame {head:#x}, by whom is not published")
            }
            Owner::Deferred => write!(f, "free, in a section that is not initialised yet"),
            Owner::ZswapPool { slots } => {
                f.write_str("zswap: compressed pages of")?;
                slots
                    .iter()
                    .try_for_each(|(area, slot)| write!(f, " slot {slot:#x} of swap area {area},"))?;
                f.write_str(" in its pool")
            }
            Owner::ZswapEntries { area, slot } => {
                write!(f, "zswap: entries of swap area {area} from slot {slot:#x} on")
            }
            Owner::Reserved { base, size } => {
                write!(
                    f,
                    "reserved at boot: [mem {base:#018x}-{:#018x}]",
                    base.wrapping_add(*size).wrapping_sub(1)
                )
            }
        }
    }
}

impl fmt::Display for MappedAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x} in {}, {}, {} page", self.va, self.space, self.access, self.size)
    }
}
