//! Address spaces as wholes: counters and locks.
//!
//! S1  `mm.rss`: the resident pages, anonymous and of mappings, are the entries that map or wait for such pages, the zero page and
//!     devices' frames left out.
//! S1a `mm.swapents`: `swapents` is the entries that name a slot of a swap area.
//! S2  `mm.tables`: `table_pages` is the page tables below and including the top-level one, which no other address space
//!     has; its depth is the kernel's.
//! S3  `mm.locks`: at rest nobody holds mmap_lock.
//! S4  `mm.tasks`: an address space has as many users as tasks; one that no task has is the kernel's own, with one user. Every task's
//!     address space is on the list.

use std::collections::HashMap;

use memvisor_abi::Page;

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::processes::Processes;

pub(crate) const RSS: Rule = Rule {
    name: "mm.rss",
    invariant: "RSS counters are the entries of each kind",
    reads: "Mm, page tables, descriptors",
    seeded: &["rss-anon", "rss-file", "migration-lost-pte"],
    hint: "add_mm_counter: install, zap, copy on write, fork, migration",
};
pub(crate) const SWAPENTS: Rule = Rule {
    name: "mm.swapents",
    invariant: "the swap counter is the entries that name slots",
    reads: "Mm, page tables",
    seeded: &["swapents"],
    hint: "add_mm_counter(MM_SWAPENTS): try_to_unmap, do_swap_page, fork, zap",
};
pub(crate) const TABLES: Rule = Rule {
    name: "mm.tables",
    invariant: "table_pages are the page tables, each in one address space",
    reads: "Mm, page tables",
    seeded: &["table-pages"],
    hint: "mm_inc_nr_ptes, free_pgtables",
};
pub(crate) const LOCKS: Rule = Rule {
    name: "mm.locks",
    invariant: "nobody holds mmap_lock at rest",
    reads: "Mm",
    seeded: &["mmap-lock"],
    hint: "a path out of a system call or fault without mmap_read_unlock",
};

pub(crate) const TASKS: Rule = Rule {
    name: "mm.tasks",
    invariant: "an address space has as many users as tasks",
    reads: "Mm, tasks",
    seeded: &["mm-users", "task-mm"],
    hint: "mmget and mmput: clone, execve, exit_mm",
};

/// Runs S1 to S4.
pub(crate) fn run(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    users(context, processes, ledger);
    let mut owners: HashMap<u64, u32> = HashMap::new();
    for process in processes.list.iter().filter(|process| process.at.problem.is_none()) {
        let (pid, mm, space) = (process.pid(), &process.at.mm, &process.at.space);
        let mut rss = [0_u64; 2];
        for entry in process.entries.entries.iter().filter(|entry| processes.is_counted(entry)) {
            // A page on the move has no entry that maps it, so its descriptor was not kept.
            let page = processes.page(entry.pfn).copied().or_else(|| context.page(entry.pfn));
            let anon = page.is_none_or(|page| page.mapping & Page::MAPPING_ANON != 0);
            let [anonymous, file] = &mut rss;
            *if anon { anonymous } else { file } += entry.frames;
        }
        let names = ["anonymous", "of mappings"];
        for ((name, guest), outside) in names.iter().zip(mm.rss).zip(rss) {
            ledger.expect_eq(&RSS, format_args!("pid {pid} resident pages, {name}"), guest, outside);
        }

        let named = process.entries.entries.iter().filter(|entry| entry.swap_slot().is_some()).count();
        ledger.expect_eq(&SWAPENTS, format_args!("pid {pid} swapped pages"), mm.swapents, named as u64);

        let tables = &process.entries.tables;
        if process.entries.complete {
            let outside = tables.len() as u64 + 1;
            ledger.expect_eq(&TABLES, format_args!("pid {pid} table_pages"), mm.table_pages, outside);
        }
        let levels = context.guest.levels().count();
        ledger.expect_eq(&TABLES, format_args!("pid {pid} paging levels"), mm.levels, levels);
        for &pfn in tables.iter().chain([&space.pgd_pfn]) {
            if let Some(other) = owners.insert(pfn, pid) {
                let claim = format!("a table of pid {pid}");
                let what = finding(&TABLES, format!("pfn {pfn:#x}"), claim, format!("pid {other} uses it"));
                ledger.report(&TABLES, what.frame(pfn));
            }
        }

        ledger.checked(&LOCKS, 1);
        if mm.mmap_lock != 0 || mm.lock_seq % 2 == 1 {
            let outside = match mm.mmap_lock {
                readers @ 1.. => format!("{readers} readers hold it"),
                _ => "a writer holds it".to_owned(),
            };
            let what = finding(&LOCKS, format!("pid {pid} mmap_lock"), "nobody holds it", outside);
            ledger.report(&LOCKS, what);
        }
    }
}

/// S4.
fn users(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    for process in processes.list.iter().filter(|process| process.at.problem.is_none()) {
        let gpa = process.at.space.mm;
        let tasks = context.tasks.iter().filter(|task| task.mm == gpa).count();
        // One that no task has is the kernel's own.
        let outside = tasks.max(1) as u64;
        let what = format_args!("pid {} users", process.pid());
        ledger.expect_eq(&TASKS, what, u64::from(process.at.mm.users), outside);
    }
    for task in context.tasks.iter().filter(|task| task.mm != 0) {
        ledger.checked(&TASKS, 1);
        if !processes.list.iter().any(|process| process.at.space.mm == task.mm) {
            let claim = format!("its address space is at {:#x}", task.mm);
            let what = finding(&TASKS, format!("task {}", task.pid), claim, "no address space is there");
            ledger.report(&TASKS, what);
        }
    }
}
