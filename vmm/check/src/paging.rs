//! All page tables of the guest, gathered once for every rule that needs them.
//!
//! Leaves are kept as runs: contiguous in virtual and in physical memory, with the same rights. So
//! the cost follows the number of different mappings and not the page size.

use std::collections::{BTreeSet, HashMap};

use memvisor_abi::{E820Type, PAGE_SHIFT, PTE_MIGRATION, PTE_PROTNONE};
use memvisor_inspect::ptdump::{Leaf, Span, Table, TreeProblem, Visitor, walk_tree};
use memvisor_inspect::{Access, CpuRegisters, Entry, Levels, MemorySource, Walker};

use crate::context::Context;
use crate::e820::Region;
use crate::frames::{Frames, normalize};
use crate::pti::user_pgd;

/// A run of leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub va: u64,
    pub frames: Frames,
    pub access: Access,
    pub cache: Cache,
    /// Index into the page attribute table.
    pub pat: u8,
    /// In the kernel's half of the address space.
    pub upper: bool,
}

impl Run {
    /// Address at which the run maps `pfn`, one of its frames.
    pub const fn va_of(&self, pfn: u64) -> u64 {
        self.va.wrapping_add((pfn - self.frames.start) << PAGE_SHIFT)
    }
}

/// Memory type as far as the PAT index tells it under both the reset value of the PAT register and
/// the one that Linux programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cache {
    WriteBack,
    /// Index 1: write-combining in Linux, write-through after reset.
    Combining,
    /// Indices 2, 3 and 6: UC- and UC.
    Uncached,
    /// Index 5: write-protected in Linux, write-through after reset.
    Protected,
    /// Index 7: write-through in Linux, UC after reset.
    Through,
}

impl Cache {
    const fn from_pat_index(index: u8) -> Cache {
        match index {
            0 | 4 => Cache::WriteBack,
            1 => Cache::Combining,
            5 => Cache::Protected,
            7 => Cache::Through,
            _ => Cache::Uncached,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Cache::WriteBack => "write-back",
            Cache::Combining => "PAT 1 (WC or WT)",
            Cache::Uncached => "uncached",
            Cache::Protected => "PAT 5 (WP or WT)",
            Cache::Through => "PAT 7 (WT or UC)",
        }
    }
}

/// Tables and leaves of all roots.
#[derive(Debug, Default)]
pub(crate) struct Paging {
    /// Each table once: its frame, level and the first address it translates.
    pub tables: Vec<Table>,
    pub runs: Vec<Run>,
    pub problems: Vec<TreeProblem>,
    /// Page-table entries in the user half that give ring 3 access, or would if their VMA allowed any, by frame.
    pub user_ptes: HashMap<u64, u32>,
    /// Frames that entries of the user half name without being present.
    pub absent_user: Vec<u64>,
    pub leaves: u64,
    pub entries: u64,
    /// Some root shares tables so much that its enumeration was given up.
    pub incomplete: bool,
    /// Top-level tables that the guest publishes: a CPU may use these.
    pub roots: BTreeSet<u64>,
    pub levels: Option<Levels>,
    seen: BTreeSet<(u64, u32)>,
}

impl Paging {
    /// Walks the kernel's tables, the user half of every address space and extra top-level table, their
    /// kernel entries that differ from the kernel's, and whatever else a CPU has in CR3.
    pub fn of_guest(context: &Context<'_>) -> Paging {
        let levels = context.guest.levels();
        // A CPU that was never started, or not yet, has the EFER of a reset; tables are nothing to it.
        let mut users = context.registers.iter().filter(|cpu| cpu.levels().is_some());
        let nx = users.all(|cpu| cpu.efer & CpuRegisters::EFER_NXE != 0);
        let walker = |pfn: u64| {
            Walker::new(pfn << PAGE_SHIFT, levels).with_phys_bits(context.root.phys_bits).with_nx(nx)
        };
        let init = context.root.pgd_pfn;
        let mut paging = Paging { levels: Some(levels), ..Paging::default() };
        paging.gather(context.source, &walker(init), Span::ALL);
        paging.roots.insert(init);
        let spaces = context.spaces.iter().map(|space| space.pgd_pfn);
        for pfn in spaces.chain(context.extra_tables.iter().copied()) {
            if paging.roots.insert(pfn) {
                paging.gather(context.source, &walker(pfn), user_half(levels));
                for slot in differing_slots(context.source, init, pfn) {
                    paging.gather(context.source, &walker(pfn), slot_span(levels, slot));
                }
            }
        }
        // Whatever they map, other tables map too: the kernel's of the address space, and the entry area's.
        for pfn in context.spaces.iter().filter_map(|space| user_pgd(context, space)) {
            if paging.roots.insert(pfn) {
                paging.tables.push(Table { va: 0, gpa: pfn << PAGE_SHIFT, level: levels.count() });
            }
        }
        for pfn in cr3_frames(context.registers).difference(&paging.roots.clone()) {
            paging.gather(context.source, &walker(*pfn), Span::ALL);
        }
        paging
    }

    /// Walks what the CPUs have in CR3, for machines without a guest of ours.
    pub fn of_registers(source: &dyn MemorySource, registers: &[CpuRegisters]) -> Paging {
        let mut paging = Paging::default();
        for cpu in registers {
            let Some(walker) = Walker::from_registers(cpu) else { continue };
            paging.levels.get_or_insert(walker.levels());
            if paging.roots.insert(walker.root() >> PAGE_SHIFT) {
                paging.gather(source, &walker, Span::ALL);
            }
        }
        paging
    }

    fn gather(&mut self, source: &dyn MemorySource, walker: &Walker, span: Span) {
        let mut gatherer = Gatherer { paging: self, levels: walker.levels(), open: None };
        let coverage = walk_tree(walker, source, span, &mut gatherer);
        gatherer.close();
        self.incomplete |= !coverage.complete;
    }
}

/// Frames that registers name as top-level tables, in long mode only.
pub(crate) fn cr3_frames(registers: &[CpuRegisters]) -> BTreeSet<u64> {
    registers
        .iter()
        .filter(|cpu| cpu.levels().is_some())
        .map(|cpu| (cpu.cr3 & Entry::ADDRESS) >> PAGE_SHIFT)
        .collect()
}

/// Entries of the kernel half of two top-level tables that differ in more than the accessed bit.
pub(crate) fn differing_slots(source: &dyn MemorySource, a: u64, b: u64) -> Vec<u64> {
    let entry = |table: u64, slot: u64| {
        source.read_u64((table << PAGE_SHIFT) + slot * 8).map_or(0, |entry| entry & !Entry::ACCESSED)
    };
    (256..512).filter(|&slot| entry(a, slot) != entry(b, slot)).collect()
}

const fn user_half(levels: Levels) -> Span {
    Span { start: 0, last: (1 << (levels.va_bits() - 1)) - 1 }
}

const fn slot_span(levels: Levels, slot: u64) -> Span {
    let shift = levels.va_bits() - 9;
    Span { start: slot << shift, last: (slot << shift) + ((1 << shift) - 1) }
}

/// Frames that a write-back mapping may reach although they are not RAM to the buddy allocator:
/// firmware tables, persistent memory, the legacy area below 1 MiB, and RAM that shares a frame with
/// something else.
pub(crate) fn write_back_frames(regions: &[Region]) -> Vec<Frames> {
    const BACKED: [u32; 4] =
        [E820Type::Ram as u32, E820Type::Acpi as u32, E820Type::Nvs as u32, E820Type::Pmem as u32];
    let backed = regions.iter().filter(|region| BACKED.contains(&region.kind));
    let legacy = Frames::new(0, (1 << 20) >> PAGE_SHIFT);
    normalize(backed.map(|region| Frames::touching(region.start, region.end)).chain([legacy]).collect())
}

struct Gatherer<'p> {
    paging: &'p mut Paging,
    levels: Levels,
    open: Option<Run>,
}

impl Gatherer<'_> {
    fn close(&mut self) {
        self.paging.runs.extend(self.open.take());
    }
}

impl Visitor for Gatherer<'_> {
    fn leaf(&mut self, leaf: &Leaf) {
        let pages = leaf.size.bytes() >> PAGE_SHIFT;
        let run = Run {
            va: leaf.va,
            frames: Frames::from_count(leaf.gpa >> PAGE_SHIFT, pages),
            access: leaf.access,
            cache: Cache::from_pat_index(leaf.entry.pat_index(leaf.size)),
            pat: leaf.entry.pat_index(leaf.size),
            upper: leaf.va >> (self.levels.va_bits() - 1) & 1 == 1,
        };
        self.paging.leaves += 1;
        if run.access.user && !run.upper {
            for pfn in run.frames.start..run.frames.end {
                let ptes = self.paging.user_ptes.entry(pfn).or_default();
                *ptes = ptes.saturating_add(1);
            }
        }
        match &mut self.open {
            Some(open)
                if open.frames.end == run.frames.start
                    && open.va.wrapping_add(open.frames.len() << PAGE_SHIFT) == run.va
                    && (open.access, open.pat, open.upper) == (run.access, run.pat, run.upper) =>
            {
                open.frames.end = run.frames.end;
            }
            _ => {
                self.close();
                self.open = Some(run);
            }
        }
    }

    fn absent(&mut self, va: u64, level: u32, entry: Entry) {
        let raw = entry.as_u64();
        let marked = level == 1 && raw & (PTE_PROTNONE | PTE_MIGRATION) != 0;
        if !marked || va >> (self.levels.va_bits() - 1) & 1 == 1 {
            return;
        }
        let pfn = (raw & Entry::ADDRESS) >> PAGE_SHIFT;
        self.paging.absent_user.push(pfn);
        if raw & PTE_PROTNONE != 0 {
            let ptes = self.paging.user_ptes.entry(pfn).or_default();
            *ptes = ptes.saturating_add(1);
        }
    }

    fn table(&mut self, table: &Table) {
        self.paging.entries += 512;
        if self.paging.seen.insert((table.gpa, table.level)) {
            self.paging.tables.push(*table);
        }
    }

    fn problem(&mut self, problem: &TreeProblem) {
        self.paging.problems.push(*problem);
    }
}
