//! Audits a guest's memory from outside.
//!
//! [`audit`] derives what must be true of a machine from the machine itself (the E820 map, nodes
//! and CPUs that the VMM built, its memory, its registers) and compares it with what the guest
//! believes. Rules have stable dotted names and numbered invariants, a file per family; [`RULES`]
//! lists them and docs/audit.md explains them.
//!
//! Nothing is shared with the guest but layouts: this crate has its own E820 resolver, its own zone
//! arithmetic and its own owner map, and reads through `memvisor-inspect`, which has its own walker.
//! Guest memory is untrusted: no content of it panics an audit or makes it run without end.

#![forbid(unsafe_code)]

mod alias;
mod attach;
mod borders;
mod buddy;
mod cache;
mod claims;
mod cma;
mod compaction;
mod context;
mod cow;
mod cpu;
mod direct_map;
mod e820;
mod frames;
mod ledger;
mod log;
mod lru;
mod lrugen;
mod machine;
mod memmap;
mod mm;
mod oom;
mod owner;
mod pageblock;
mod paging;
mod pcp;
mod pfnmap;
mod pgtable;
mod processes;
mod pte;
mod pti;
mod rest;
mod rmap;
mod slab;
mod stats;
mod swap;
mod swiotlb;
#[cfg(test)]
mod tests;
mod tlb;
mod topology;
mod vma;
mod vmalloc;
mod watermark;
mod zoneinfo;
mod zonelist;
mod zones;
mod zswap;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use memvisor_inspect::{CpuRegisters, Facts, MemorySource};
use memvisor_report::AuditReport;

use context::Context;
use frames::{Frames, count, normalize};
use ledger::Ledger;
pub use ledger::Rule;
use machine::Machine;
use paging::{Paging, write_back_frames};
use processes::Processes;
pub use zoneinfo::{LINUX_DEFAULTS, ZoneNumbers, linux_min_free_kbytes, zone_numbers};

/// Every rule, in the order of reports.
pub const RULES: &[&Rule] = &[
    &attach::ROOT,
    &attach::TABLES,
    &topology::RAW,
    &topology::CLEAN,
    &topology::MEMORY,
    &topology::NODES,
    &topology::DISTANCES,
    &topology::CPUS,
    &cpu::PERCPU,
    &zones::EXTENT,
    &zones::MANAGED,
    &zones::FREE_PAGES,
    &zones::DEFERRED,
    &zones::WATERMARK,
    &zones::LOWMEM_RESERVE,
    &zones::SYSCTL,
    &pageblock::CMA,
    &pageblock::HIGHATOMIC,
    &pageblock::NR_ISOLATED,
    &pageblock::BOOST,
    &buddy::ALIGNMENT,
    &buddy::MERGE,
    &buddy::LIST,
    &buddy::ZONE,
    &buddy::NR_FREE,
    &buddy::IN_RAM,
    &pageblock::BLOCK,
    &pageblock::NONEMPTY,
    &pageblock::KNOWN_ZERO,
    &pageblock::TYPE,
    &pageblock::ISOLATED,
    &cma::AREA,
    &cma::BITMAP,
    &pcp::COUNT,
    &pcp::STATE,
    &pcp::LIST,
    &pcp::ZONE,
    &pcp::LIMITS,
    &zonelist::ORDER,
    &zonelist::OWN,
    &zonelist::EVENTS,
    &compaction::POSITION,
    &compaction::DEFERRAL,
    &compaction::OWNER,
    &compaction::ISOLATED,
    &lru::LINKS,
    &lru::COUNT,
    &lru::PAGE,
    &lru::LISTED,
    &lru::LAZYFREE,
    &lru::ISOLATED,
    &lrugen::PAGE,
    &lrugen::SEQ,
    &memmap::NODE,
    &memmap::ZONE,
    &memmap::REFCOUNT,
    &memmap::RESERVED,
    &memmap::FLAGS,
    &pgtable::WX,
    &pgtable::USER,
    &pgtable::RESERVED_BITS,
    &pgtable::TABLE_IN_RAM,
    &pgtable::LEAF_IN_RAM,
    &pgtable::CACHE_ALIAS,
    &pgtable::EXEC_ALIAS,
    &pgtable::CANONICAL,
    &pgtable::CR3,
    &pgtable::SHARED_KERNEL,
    &pti::ENTRY_AREA,
    &pti::USER_HALF,
    &direct_map::RULE,
    &slab::OWNER,
    &slab::INUSE,
    &slab::FREELIST,
    &slab::LISTS,
    &slab::COUNTERS,
    &slab::REDZONE,
    &vmalloc::AREAS,
    &vmalloc::MAPPED,
    &vmalloc::GUARD,
    &vmalloc::OUTSIDE,
    &vmalloc::OWNER,
    &vmalloc::STACK,
    &vmalloc::SLOTS,
    &vma::LIST,
    &vma::TREE,
    &vma::COUNTS,
    &vma::HEAP,
    &vma::GUARD,
    &vma::POLICY,
    &pte::VMA,
    &pte::WRITE,
    &pte::EXEC,
    &pte::ACCESS,
    &pte::MIGRATION,
    &rmap::REFCOUNT,
    &rmap::LISTS,
    &rmap::FINDS,
    &cow::READ_ONLY,
    &pfnmap::VMA,
    &pfnmap::FRAMES,
    &pfnmap::UNCOUNTED,
    &pfnmap::COW,
    &pfnmap::CACHE,
    &mm::RSS,
    &mm::SWAPENTS,
    &mm::TABLES,
    &mm::LOCKS,
    &mm::TASKS,
    &cache::TREE,
    &cache::MARKS,
    &cache::COUNTS,
    &cache::SHADOWS,
    &log::RECORDS,
    &stats::STATS,
    &oom::COMMITTED,
    &oom::SCORE,
    &oom::VICTIM,
    &tlb::CPUMASK,
    &tlb::PENDING,
    &swiotlb::SLOTS,
    &swiotlb::POOL,
    &swiotlb::LEAK,
    &swap::AREA,
    &swap::ENTRY,
    &swap::COUNT,
    &swap::CACHE,
    &swap::MAPPED,
    &zswap::ENTRY,
    &zswap::POOL,
    &owner::SINGLE,
    &owner::NONE,
    &owner::SUM,
    &owner::AGREES,
];

/// What there is to audit. A running guest should be paused: a torn read looks like a broken list.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// Guest memory.
    pub source: &'a dyn MemorySource,
    /// Where the guest announced its root descriptor; without it RAM is searched.
    pub root_gpa: Option<u64>,
    /// What the VMM built. Without it the guest's raw E820 map and memblock nodes stand in, and
    /// rules that compare those with the machine are skipped.
    pub facts: Option<&'a Facts>,
    /// Registers of all CPUs. Without them rules on CPUs' use of tables are skipped.
    pub registers: &'a [CpuRegisters],
    /// Who chose when.
    pub moment: Moment,
}

/// Who chose the moment of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The guest, at a checkpoint: all rules must hold.
    Chosen,
    /// Somebody outside: what may be half done is not judged. Rules that must not hold at every moment are skipped if
    /// the guest is not at rest (`memvisor_inspect::Guest::busy`).
    Any,
}

impl fmt::Debug for Evidence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evidence")
            .field("regions", &self.source.regions())
            .field("root_gpa", &self.root_gpa)
            .field("facts", &self.facts.map(|facts| &facts.machine))
            .field("registers", &self.registers.len())
            .finish_non_exhaustive()
    }
}

/// Runs every rule that the evidence allows. Never fails: what cannot be read is a finding, what
/// cannot be checked is a skipped rule with its reason.
///
/// A guest without a valid root descriptor (another kernel's memory file) still gets the page-table
/// rules if registers are known; the missing root is then one finding.
pub fn audit(evidence: &Evidence<'_>) -> AuditReport {
    let start = Instant::now();
    let mut ledger = Ledger::new(RULES);
    let guest = attach::attach(evidence.source, evidence.root_gpa, evidence.facts, &mut ledger);
    let mut report = match guest {
        Some(guest) => {
            let context = Context::load(guest, evidence.facts, evidence.registers, &mut ledger);
            audit_guest(&context, evidence.moment, ledger)
        }
        None => audit_tables(evidence, ledger),
    };
    report.duration = start.elapsed();
    report
}

fn audit_guest(context: &Context<'_>, moment: Moment, mut ledger: Ledger) -> AuditReport {
    let ledger_ref = &mut ledger;
    topology::run(context, ledger_ref);
    cpu::run(context, ledger_ref);
    zones::run(context, ledger_ref);
    buddy::run(context, ledger_ref);
    pageblock::run(context, ledger_ref);
    cma::run(context, ledger_ref);
    pcp::run(context, ledger_ref);
    zonelist::run(context, ledger_ref);
    compaction::run(context, ledger_ref);
    lru::run(context, ledger_ref);
    slab::run(context, ledger_ref);
    swiotlb::run(context, moment, ledger_ref);
    let paging = if context.root.stage >= memvisor_abi::BootStage::Paging as u32 {
        let paging = Paging::of_guest(context);
        pgtable::any_kernel(&paging, ledger_ref);
        let write_back = write_back_frames(&context.machine.regions);
        pgtable::in_ram(&paging, &context.machine.ram, &write_back, ledger_ref);
        pgtable::guest(context, &paging, ledger_ref);
        pti::run(context, ledger_ref);
        direct_map::run(context, &paging, ledger_ref);
        paging
    } else {
        for rule in page_table_rules() {
            ledger_ref.skip(rule, "the guest has not switched to its own page tables yet");
        }
        Paging::default()
    };
    vmalloc::run(context, &paging, ledger_ref);
    let processes = Processes::load(context);
    processes::run(context, &processes, ledger_ref);
    cache::run(context, ledger_ref);
    log::run(context, ledger_ref);
    zswap::run(context, ledger_ref);
    stats::run(context, ledger_ref);
    oom::run(context, &processes, ledger_ref);
    let owners = owner::run(context, &paging, &processes.uncounted, ledger_ref);
    memmap::run(context, &paging, owners.as_ref(), ledger_ref);
    let between = moment == Moment::Any && rest::withdraw(context, ledger_ref);
    let owners = owners.filter(|_| !between);
    let frames = count(&context.machine.ram);
    let stand_in =
        "no facts: zones, nodes and RAM are derived from the guest's own raw E820 map and memblock nodes";
    let notes = if context.facts.is_none() { vec![stand_in.to_owned()] } else { Vec::new() };
    let (rules, findings) = ledger.close(|pfn| context.history(pfn));
    AuditReport {
        rules,
        frames_audited: if owners.is_some() { frames } else { 0 },
        ram_bytes: frames << memvisor_abi::PAGE_SHIFT,
        owners: owners.map(|owners| owners.counts()).unwrap_or_default(),
        findings,
        notes,
        ..AuditReport::default()
    }
}

/// Without a guest of ours: page-table rules on what the CPUs use.
fn audit_tables(evidence: &Evidence<'_>, mut ledger: Ledger) -> AuditReport {
    let paging = Paging::of_registers(evidence.source, evidence.registers);
    let ram = match evidence.facts {
        Some(facts) => {
            let machine = Machine::from_facts(facts, memvisor_abi::MAX_PHYSMEM_BITS, 0);
            let write_back = write_back_frames(&machine.regions);
            Some((machine.ram, write_back))
        }
        None => None,
    };
    if paging.roots.is_empty() {
        for rule in page_table_rules() {
            ledger.skip(rule, pgtable::NO_REGISTERS);
        }
    } else {
        pgtable::any_kernel(&paging, &mut ledger);
        if let Some((ram, write_back)) = &ram {
            pgtable::in_ram(&paging, ram, write_back, &mut ledger);
        } else {
            for rule in pgtable::NEED_RAM {
                ledger.skip(rule, "nobody says what machine was built (no facts)");
            }
        }
    }
    let ran = [&pgtable::ANY_KERNEL[..], &pgtable::NEED_RAM[..], &[&attach::ROOT]].concat();
    for rule in RULES.iter().filter(|rule| !ran.contains(rule)) {
        ledger.skip(rule, "there is no root descriptor");
    }
    let regions = evidence.source.regions().iter();
    let regions = regions.map(|region| Frames::inside(region.gpa, region.gpa.saturating_add(region.len)));
    let frames = ram.map_or_else(|| count(&normalize(regions.collect())), |(ram, _)| count(&ram));
    let (rules, findings) = ledger.close(|_| None);
    AuditReport {
        rules,
        ram_bytes: frames << memvisor_abi::PAGE_SHIFT,
        owners: BTreeMap::new(),
        findings,
        ..AuditReport::default()
    }
}

fn page_table_rules() -> impl Iterator<Item = &'static Rule> {
    pgtable::ANY_KERNEL
        .into_iter()
        .chain(pgtable::NEED_RAM)
        .chain(pgtable::NEED_GUEST)
        .chain(pti::RULES)
        .chain([&direct_map::RULE])
}
