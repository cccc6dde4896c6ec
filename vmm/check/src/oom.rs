//! What the OOM killer is set to and did, and what was promised (Linux: mm/oom_kill.c, mm/util.c).
//!
//! O1  `oom.committed`: pages promised are those of VMAs with VM_ACCOUNT and those promised for shared memory, which are at least
//!     those of the mappings that VMAs lead to and that say that all of them is promised.
//! O2  `oom.score`: every `oom_score_adj` is one that there is, and all tasks of a process have the same; settings are in range.
//! O3  `oom.victim`: no fault is refused for an address space that nobody was killed for.

use std::collections::{BTreeMap, BTreeSet};

use memvisor_abi::{Mapping, PAGE_SHIFT, PAGE_SIZE, mm_flags, vm_flags};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::processes::Processes;

pub(crate) const COMMITTED: Rule = Rule {
    name: "oom.committed",
    invariant: "what is promised is the sum over VMAs and shared memory",
    reads: "Oom and its counts, Vma lists, Mappings",
    seeded: &["committed", "committed-shmem"],
    hint: "vm_enough_memory and vm_unacct_memory: mmap, brk, mprotect, mremap, fork, munmap",
};
pub(crate) const SCORE: Rule = Rule {
    name: "oom.score",
    invariant: "oom_score_adj is -1000 to 1000, the same in all tasks of a process; settings are in range",
    reads: "tasks, Oom",
    seeded: &["oom-score-adj"],
    hint: "set_oom_score_adj, fork; the handlers of /proc/sys/vm",
};
pub(crate) const VICTIM: Rule = Rule {
    name: "oom.victim",
    invariant: "only a victim's address space is marked unstable or done with",
    reads: "Mm",
    seeded: &["oom-unstable"],
    hint: "mark_oom_victim, the reaper, and who makes an address space anew",
};

/// Runs O1 to O3.
pub(crate) fn run(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    let Ok(Some(oom)) = context.guest.oom() else {
        for rule in [&COMMITTED, &SCORE, &VICTIM] {
            ledger.skip(rule, "the guest publishes nothing of the OOM killer");
        }
        return;
    };
    let counts = [oom.committed, oom.committed_shmem].map(|gpa| context.guest.source().read_u64(gpa));
    if let [Ok(all), Ok(shmem)] = counts {
        committed(context, processes, (all, shmem), ledger);
    } else {
        ledger.checked(&COMMITTED, 1);
        let what = finding(&COMMITTED, "committed", "two counts", "they are not in RAM");
        ledger.report(&COMMITTED, what);
    }
    let mut of_process = BTreeMap::new();
    for task in context.tasks.iter().filter(|task| task.tgid != 0) {
        ledger.checked(&SCORE, 1);
        let first = *of_process.entry(task.tgid).or_insert(task.oom_score_adj);
        if first != task.oom_score_adj || !(-1000..=1000).contains(&task.oom_score_adj) {
            let claim = format!("oom_score_adj {}", task.oom_score_adj);
            let outside = format!("-1000 to 1000, and {first} in process {}", task.tgid);
            ledger.report(&SCORE, finding(&SCORE, format!("task {}", task.pid), claim, outside));
        }
    }
    let settings = [("panic_on_oom", oom.panic_on_oom), ("overcommit_memory", oom.overcommit_memory)];
    for (name, value) in settings {
        ledger.checked(&SCORE, 1);
        if value > 2 {
            ledger.report(&SCORE, finding(&SCORE, name, value.to_string(), "0, 1 or 2"));
        }
    }
    victims(processes, ledger);
}

/// O1.
fn committed(context: &Context<'_>, processes: &Processes, (all, shmem): (u64, u64), ledger: &mut Ledger) {
    let (mut pages, mut mappings) = (0_u64, BTreeSet::new());
    for at in processes.list.iter().flat_map(|process| &process.at.vmas.items) {
        if at.vma.flags & vm_flags::ACCOUNT != 0 {
            pages = pages.saturating_add(at.vma.end.saturating_sub(at.vma.start) >> PAGE_SHIFT);
        }
        if at.vma.mapping != 0 {
            mappings.insert(at.vma.mapping);
        }
    }
    let promised = mappings.into_iter().filter_map(|gpa| context.guest.mapping(gpa).ok());
    let promised = promised.filter(|mapping| mapping.flags & Mapping::ACCOUNTED != 0);
    let least: u64 = promised.map(|mapping| mapping.size.div_ceil(PAGE_SIZE)).fold(0, u64::saturating_add);
    ledger.expect_eq(&COMMITTED, "pages promised to VMAs", all.wrapping_sub(shmem), pages);
    ledger.checked(&COMMITTED, 1);
    if shmem < least || shmem > all {
        let claim = format!("{shmem} of {all}");
        let outside = format!("mappings of {least} pages");
        let what = finding(&COMMITTED, "pages promised for shared memory", claim, outside);
        ledger.report(&COMMITTED, what);
    }
}

/// O3.
fn victims(processes: &Processes, ledger: &mut Ledger) {
    const MARKS: u32 = mm_flags::OOM_SKIP | mm_flags::UNSTABLE;
    for process in processes.list.iter().filter(|process| process.at.problem.is_none()) {
        ledger.checked(&VICTIM, 1);
        let oom = process.at.mm.oom;
        let known = oom & !(MARKS | mm_flags::OOM_VICTIM) == 0;
        if !known || oom & MARKS != 0 && oom & mm_flags::OOM_VICTIM == 0 {
            let claim = format!("marks {oom:#x}");
            let what =
                finding(&VICTIM, format!("pid {} oom", process.pid()), claim, "nobody was killed for it");
            ledger.report(&VICTIM, what);
        }
    }
}
