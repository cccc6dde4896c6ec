//! What CPUs may hold translations of (Linux: arch/x86/mm/tlb.c).
//!
//! T1  `tlb.cpumask`: a CPU that has an address space's tables loaded, as its CR3 or as the guest says, is in that one's
//!     `cpus`, so that flushes reach it; and what the guest says is what CR3 has.
//! T2  `tlb.pending`: at a checkpoint no removal waits for its flush, and no CPU was asked for a flush that it has not done: no
//!     stale translation can be used.

use memvisor_abi::{CpuTlb, Mm, PAGE_SHIFT};
use memvisor_inspect::Entry;

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::processes::{Process, Processes};

pub(crate) const CPUMASK: Rule = Rule {
    name: "tlb.cpumask",
    invariant: "whoever has an address space loaded is in its cpumask",
    reads: "cpu_tlbs, Mm; registers",
    seeded: &["cpumask"],
    hint: "switch_mm: the mask is set before CR3 is",
};
pub(crate) const PENDING: Rule = Rule {
    name: "tlb.pending",
    invariant: "no flush waits at a checkpoint",
    reads: "cpu_tlbs, Mm",
    seeded: &["flush-pending"],
    hint: "a gather that was not finished; a CPU that does not answer",
};

/// Runs T1 and T2.
pub(crate) fn run(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    let tlbs = context.guest.cpu_tlbs().unwrap_or_default();
    for (cpu, tlb) in (0..).zip(&tlbs) {
        ledger.checked(&CPUMASK, 1);
        ledger.checked(&PENDING, 1);
        loaded(context, processes, cpu, tlb, ledger);
        if tlb.flush_requested > tlb.flush_done {
            let claim = format!("{} flushes asked for", tlb.flush_requested);
            let what = finding(&PENDING, format!("CPU {cpu}"), claim, format!("{} done", tlb.flush_done));
            ledger.report(&PENDING, what);
        }
    }
    for process in &processes.list {
        let pending = process.at.mm.tlb_flush_pending;
        ledger.expect_eq(&PENDING, format_args!("pid {} removals to flush", process.pid()), pending, 0);
    }
}

fn loaded(context: &Context<'_>, processes: &Processes, cpu: u32, tlb: &CpuTlb, ledger: &mut Ledger) {
    let registers = context.registers.iter().find(|regs| regs.index == cpu && regs.levels().is_some());
    let by_cr3 = registers.and_then(|regs| {
        let pgd = (regs.cr3 & Entry::ADDRESS) >> PAGE_SHIFT;
        let has = |process: &&Process| {
            // Ring 3 may have tables of its own.
            process.at.space.pgd_pfn == pgd || pgd != 0 && process.at.mm.user_pgd_pfn == pgd
        };
        processes.list.iter().find(has)
    });
    let by_guest = processes.list.iter().find(|process| process.at.space.mm == tlb.mm);
    let name = |process: Option<&Process>| {
        process.map_or("no process's tables".to_owned(), |process| format!("tables of pid {}", process.pid()))
    };
    let pid = |process: Option<&Process>| process.map(Process::pid);
    // A table that nobody publishes is the business of pgtable.cr3.
    let known = registers.is_some_and(|regs| {
        let pgd = (regs.cr3 & Entry::ADDRESS) >> PAGE_SHIFT;
        by_cr3.is_some() || pgd == context.root.pgd_pfn || context.extra_tables.contains(&pgd)
    });
    if known && pid(by_cr3) != pid(by_guest) {
        ledger.report(
            &CPUMASK,
            finding(&CPUMASK, format!("CPU {cpu}"), name(by_guest), format!("CR3 has {}", name(by_cr3))),
        );
    }
    let other = by_guest.filter(|_| pid(by_cr3) != pid(by_guest));
    for process in by_cr3.into_iter().chain(other) {
        if !is_in_mask(&process.at.mm, cpu) {
            let claim = format!("CPU {cpu} holds nothing of pid {}", process.pid());
            let what =
                finding(&CPUMASK, format!("pid {} cpus", process.pid()), claim, "it has its tables loaded");
            ledger.report(&CPUMASK, what);
        }
    }
}

fn is_in_mask(mm: &Mm, cpu: u32) -> bool {
    mm.cpus.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
}
