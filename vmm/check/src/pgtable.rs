//! Page tables: what any kernel must keep to.
//!
//! P1  `pgtable.wx`: no mapping of the kernel is writable and executable (ring 3's own mappings are
//!     its own business, as in Linux).
//! P2  `pgtable.user`: ring 3 has no access to anything in the kernel's half.
//! P3  `pgtable.reserved-bits`: no present entry sets bits that the hardware reserves, for the
//!     physical width that the guest read from CPUID.
//! P4  `pgtable.table-in-ram`: every table is a frame of E820 RAM, and none contains itself.
//! P5  `pgtable.leaf-in-ram`: a write-back leaf maps RAM, firmware tables, persistent memory or the
//!     legacy area below 1 MiB only. The direct map may round to whole frames of E820 entries and no
//!     further: a large page over a hole lets the CPU speculate into it. Uncached leaves may map
//!     devices.
//! P6  `pgtable.cache-alias`: no frame is mapped with two memory types (SDM 3A 12.12.4).
//! P7  `pgtable.exec-alias`: no frame that the kernel may execute is writable through another
//!     mapping. User text is written through the direct map when it is loaded, so it is not meant.
//! P8  `pgtable.canonical`: addresses that CPUs hold and the kernel publishes are canonical at its
//!     depth, and nothing is mapped in a guard hole.
//! P9  `pgtable.cr3`: every CPU runs on the kernel's tables, an address space or a published extra
//!     table, with the depth that the guest claims.
//! P10 `pgtable.shared-kernel`: the kernel half of every address space has the entries of the kernel's
//!     own top-level table.

use memvisor_abi::{LayoutKind, PAGE_SHIFT};
use memvisor_inspect::ptdump::TreeProblem;
use memvisor_inspect::{CpuRegisters, Levels};
use memvisor_report::Finding;

use crate::Rule;
use crate::alias::overlaps;
use crate::context::Context;
use crate::frames::{Frames, find, gaps};
use crate::ledger::{Ledger, finding};
use crate::paging::{Paging, Run, cr3_frames, differing_slots};

pub(crate) const WX: Rule = Rule {
    name: "pgtable.wx",
    invariant: "no kernel mapping is writable and executable",
    reads: "page tables",
    seeded: &["wx-mapping"],
    hint: "protections of the kernel image, set_memory_x",
};
pub(crate) const USER: Rule = Rule {
    name: "pgtable.user",
    invariant: "ring 3 has no access to the kernel's half",
    reads: "page tables",
    seeded: &["user-kernel-mapping"],
    hint: "who sets the user bit in kernel entries, all levels",
};
pub(crate) const RESERVED_BITS: Rule = Rule {
    name: "pgtable.reserved-bits",
    invariant: "present entries leave reserved bits clear",
    reads: "page tables, Root.phys_bits, EFER.NXE",
    seeded: &["pte-reserved-bit"],
    hint: "entry encoding; the physical mask from CPUID",
};
pub(crate) const TABLE_IN_RAM: Rule = Rule {
    name: "pgtable.table-in-ram",
    invariant: "every page table is a frame of RAM and not inside itself",
    reads: "page tables; E820 map",
    seeded: &["table-outside-ram"],
    hint: "table allocation; a freed and reused table",
};
pub(crate) const LEAF_IN_RAM: Rule = Rule {
    name: "pgtable.leaf-in-ram",
    invariant: "write-back leaves map RAM or firmware that exists",
    reads: "page tables; E820 map",
    seeded: &[],
    hint: "the direct map at the ends of E820 ranges",
};
pub(crate) const CACHE_ALIAS: Rule = Rule {
    name: "pgtable.cache-alias",
    invariant: "no frame is mapped with two memory types",
    reads: "page tables",
    seeded: &["cache-alias"],
    hint: "ioremap or set_memory_uc of RAM that the direct map has",
};
pub(crate) const EXEC_ALIAS: Rule = Rule {
    name: "pgtable.exec-alias",
    invariant: "kernel text is not writable through another mapping",
    reads: "page tables",
    seeded: &["exec-alias"],
    hint: "the direct map's alias of the kernel image",
};
pub(crate) const CANONICAL: Rule = Rule {
    name: "pgtable.canonical",
    invariant: "addresses in use are canonical; guard holes are empty",
    reads: "Root, layout, registers, page tables",
    seeded: &[],
    hint: "sign extension at the chosen depth",
};
pub(crate) const CR3: Rule = Rule {
    name: "pgtable.cr3",
    invariant: "every CPU runs on a known top-level table",
    reads: "registers, Root.pgd_pfn, address_spaces, extra_tables",
    seeded: &[],
    hint: "switch_mm; an address space freed while in use",
};
pub(crate) const SHARED_KERNEL: Rule = Rule {
    name: "pgtable.shared-kernel",
    invariant: "all address spaces share the kernel's top-level entries",
    reads: "page tables, address_spaces",
    seeded: &["kernel-half"],
    hint: "pgd_alloc; a kernel top-level entry made after it",
};

/// Rules that need tables and registers only.
pub(crate) const ANY_KERNEL: [&Rule; 5] = [&WX, &USER, &RESERVED_BITS, &CACHE_ALIAS, &EXEC_ALIAS];
/// Rules that also need to know where RAM is.
pub(crate) const NEED_RAM: [&Rule; 2] = [&TABLE_IN_RAM, &LEAF_IN_RAM];
/// Rules that need a guest of ours.
pub(crate) const NEED_GUEST: [&Rule; 3] = [&CANONICAL, &CR3, &SHARED_KERNEL];

/// Runs P1, P2, P3, P6, P7.
pub(crate) fn any_kernel(paging: &Paging, ledger: &mut Ledger) {
    for rule in ANY_KERNEL {
        ledger.checked(rule, paging.leaves);
    }
    for run in &paging.runs {
        if run.access.write && run.access.execute && (run.upper || !run.access.user) {
            ledger.report(&WX, at(run, finding(&WX, range_text(run), "mapped writable", "executable, too")));
        }
        if run.access.user && run.upper {
            ledger.report(
                &USER,
                at(run, finding(&USER, range_text(run), "ring 3 may use it", "kernel's half")),
            );
        }
    }
    for problem in &paging.problems {
        if let TreeProblem::ReservedBits { va, level, entry, bits } = *problem {
            let claim = format!("level {level} entry {entry:?} is present");
            let outside = format!("bits {bits:#x} of it are reserved: every use faults");
            let what = finding(&RESERVED_BITS, format_args!("{va:#x}"), claim, outside).address(va);
            ledger.report(&RESERVED_BITS, what);
        }
    }
    for (frames, a, b) in overlaps(&paging.runs, |run| Some(run.cache)) {
        let text = |run: &Run| format!("{} at {:#x}", run.cache.name(), run.va_of(frames.start));
        let what = finding(&CACHE_ALIAS, frames, text(a), text(b));
        ledger.report(&CACHE_ALIAS, what.frame(frames.start).address(b.va_of(frames.start)));
    }
    // Executable for the kernel, or writable by anyone; both at once is P1.
    let class = |run: &Run| match (run.access.execute && !run.access.user, run.access.write) {
        (true, false) => Some(0),
        (false, true) => Some(1),
        _ => None,
    };
    for (frames, a, b) in overlaps(&paging.runs, class) {
        let (text, alias) = if a.access.execute { (a, b) } else { (b, a) };
        let claim = format!("kernel text at {:#x}", text.va_of(frames.start));
        let outside = format!("writable at {:#x}", alias.va_of(frames.start));
        let what = finding(&EXEC_ALIAS, frames, claim, outside);
        ledger.report(&EXEC_ALIAS, what.frame(frames.start).address(alias.va_of(frames.start)));
    }
}

/// Runs P4 and P5 with the frames of RAM and those that write-back mappings may reach.
pub(crate) fn in_ram(paging: &Paging, ram: &[Frames], write_back: &[Frames], ledger: &mut Ledger) {
    ledger.checked(&TABLE_IN_RAM, paging.tables.len() as u64);
    ledger.checked(&LEAF_IN_RAM, paging.leaves);
    for problem in &paging.problems {
        let (va, level, gpa, outside) = match *problem {
            TreeProblem::TableNotRam { va, level, gpa } => (va, level, gpa, "that is not RAM"),
            TreeProblem::Recursive { va, level, gpa } => (va, level, gpa, "the table contains itself"),
            TreeProblem::ReservedBits { .. } => continue,
        };
        ledger.report(&TABLE_IN_RAM, table_finding(va, level, gpa, outside));
    }
    for table in paging.tables.iter().filter(|table| find(ram, table.gpa >> PAGE_SHIFT).is_none()) {
        let outside = "that is not E820 RAM";
        ledger.report(&TABLE_IN_RAM, table_finding(table.va, table.level, table.gpa, outside));
    }
    if paging.incomplete {
        let claim = "a tree of page tables";
        let outside = "more paths through them than RAM has frames: the enumeration was given up";
        ledger.report(&TABLE_IN_RAM, finding(&TABLE_IN_RAM, "page tables", claim, outside));
    }
    for run in paging.runs.iter().filter(|run| run.cache == crate::paging::Cache::WriteBack) {
        for hole in gaps(write_back, run.frames) {
            let va = run.va_of(hole.start);
            let claim = format!("mapped write-back at {va:#x}");
            let what = finding(&LEAF_IN_RAM, hole, claim, "neither RAM nor firmware tables");
            ledger.report(&LEAF_IN_RAM, what.frame(hole.start).address(va));
        }
    }
}

/// Runs P8 to P10.
pub(crate) fn guest(context: &Context<'_>, paging: &Paging, ledger: &mut Ledger) {
    canonical(context, paging, ledger);
    if context.registers.is_empty() {
        ledger.skip(&CR3, NO_REGISTERS);
    }
    let levels = context.guest.levels();
    for cpu in context.registers.iter().filter(|cpu| cpu.levels().is_some()) {
        ledger.checked(&CR3, 1);
        if cpu.levels() != Some(levels.count()) {
            let claim = format!("{} levels", levels.count());
            let outside = format!("CR4 {:#x} gives {} levels", cpu.cr4, cpu.levels().unwrap_or(0));
            ledger.report(&CR3, finding(&CR3, format_args!("CPU {}", cpu.index), claim, outside));
        }
        for pfn in cr3_frames(std::slice::from_ref(cpu)) {
            if !paging.roots.contains(&pfn) {
                let claim = "no such top-level table";
                let what =
                    finding(&CR3, format_args!("CPU {}", cpu.index), claim, format!("CR3 {:#x}", cpu.cr3));
                ledger.report(&CR3, what.frame(pfn));
            }
        }
    }
    for space in &context.spaces {
        ledger.checked(&SHARED_KERNEL, 256);
        for slot in differing_slots(context.source, context.root.pgd_pfn, space.pgd_pfn) {
            let read = |pfn: u64| context.source.read_u64((pfn << PAGE_SHIFT) + slot * 8).unwrap_or(0);
            let claim = format!("entry {:#x}", read(space.pgd_pfn));
            let outside = format!("the kernel's own table has {:#x}", read(context.root.pgd_pfn));
            let what = format!("pid {} top-level entry {slot}", space.pid);
            ledger.report(&SHARED_KERNEL, finding(&SHARED_KERNEL, what, claim, outside).frame(space.pgd_pfn));
        }
    }
}

/// Why rules on registers cannot run.
pub(crate) const NO_REGISTERS: &str = "the registers of no CPU are known";

fn canonical(context: &Context<'_>, paging: &Paging, ledger: &mut Ledger) {
    let levels = context.guest.levels();
    let root = &context.root;
    let published =
        [("kernel_va", root.kernel_va), ("page_offset", root.page_offset), ("vmemmap", root.vmemmap)];
    for (name, address) in published {
        check_canonical(levels, &format!("Root.{name}"), address, ledger);
    }
    for cpu in context.registers.iter().filter(|cpu| cpu.levels().is_some()) {
        let rsp = cpu.gpr.get(6).copied().unwrap_or(0);
        for (name, address) in registers_in_use(cpu, rsp) {
            check_canonical(levels, &format!("CPU {} {name}", cpu.index), address, ledger);
        }
    }
    let guards: Vec<_> =
        context.layout.iter().filter(|range| range.kind == LayoutKind::Guard as u32).collect();
    ledger.checked(&CANONICAL, paging.runs.len() as u64);
    for run in &paging.runs {
        let last = run.va.wrapping_add((run.frames.len() << PAGE_SHIFT) - 1);
        if let Some(guard) = guards.iter().find(|guard| run.va <= guard.last && guard.start <= last) {
            let claim = format!("guard hole {:#x}..={:#x}", guard.start, guard.last);
            ledger.report(&CANONICAL, at(run, finding(&CANONICAL, range_text(run), claim, "mapped")));
        }
    }
}

const fn registers_in_use(cpu: &CpuRegisters, rsp: u64) -> [(&'static str, u64); 4] {
    [("rip", cpu.rip), ("rsp", rsp), ("fs base", cpu.fs_base), ("gs base", cpu.gs_base)]
}

fn check_canonical(levels: Levels, name: &str, address: u64, ledger: &mut Ledger) {
    ledger.checked(&CANONICAL, 1);
    if !levels.is_canonical(address) {
        let outside = format!("not canonical with {} levels", levels.count());
        let what = finding(&CANONICAL, name, format!("{address:#x}"), outside);
        ledger.report(&CANONICAL, what.address(address));
    }
}

fn at(run: &Run, finding: Finding) -> Finding {
    finding.frame(run.frames.start).address(run.va)
}

fn range_text(run: &Run) -> String {
    let pages = run.frames.len();
    format!("{:#x} ({pages} pages, {})", run.va, run.access)
}

fn table_finding(va: u64, level: u32, gpa: u64, outside: &str) -> Finding {
    let claim = format!("level {level} table at guest-physical {gpa:#x}");
    finding(&TABLE_IN_RAM, format_args!("{va:#x}"), claim, outside).frame(gpa >> PAGE_SHIFT).address(va)
}
