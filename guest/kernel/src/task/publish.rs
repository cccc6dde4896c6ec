//! What readers from outside see of address spaces (guest/abi, `AddressSpace`).

use memvisor_abi::AddressSpace;
use mm_pgtable::PageTable;
use mm_vma::{Id, Mm, RssKind};

use super::registry::REGISTRY;
use crate::introspect::ADDRESS_SPACES;
use crate::mm::space::{self, Spaces};
use crate::{cmdline, ipc, println, sched};

/// Publishes all address spaces with their counts; with `debug_vm` on the command line after a look whether each is as it must be.
pub fn publish_all() {
    publish_tasks();
    // Linux: CONFIG_DEBUG_VM_MAPLE_TREE, `validate_mm`. Readers from outside have rules of their own for it.
    let debug = cmdline::flag("debug_vm");
    if debug && let Err(broken) = ipc::shm::audit() {
        println!("BUG: System V shared memory: {broken}");
    }
    let mut slot = 0;
    let mut after = 0;
    // One at a time: the look takes long, and nobody else runs at a checkpoint.
    while let Some((pid, mm)) = next_space(after) {
        after = pid;
        if debug {
            check(pid, mm);
        }
        let entry = describe(pid, mm);
        let mut spaces = ADDRESS_SPACES.lock();
        // A thread of vfork has its parent's.
        if spaces[..slot].iter().any(|other| other.pgd_pfn == entry.pgd_pfn) {
            continue;
        }
        match spaces.get_mut(slot) {
            Some(space) => *space = entry,
            None => println!("BUG: more than {slot} address spaces: task[{pid}]'s is not published"),
        }
        slot += 1;
    }
    ADDRESS_SPACES.lock().iter_mut().skip(slot).for_each(|space| *space = AddressSpace::default());
}

/// The next process after `after` with an address space.
fn next_space(after: u32) -> Option<(u32, Id<Mm>)> {
    let registry = REGISTRY.lock();
    let later = registry.processes.iter().filter(|process| process.pid > after);
    later
        .filter_map(|process| Some((process.pid, registry.tasks_of(process.pid).find_map(|task| task.mm())?)))
        .next()
}

fn check(pid: u32, mm: Id<Mm>) {
    if let Err(broken) = mm_vma::audit(&Spaces, mm) {
        println!("BUG: address space of task[{pid}]: {} does not hold at {:#x}", broken.what, broken.at);
    }
}

fn describe(pid: u32, id: Id<Mm>) -> AddressSpace {
    let mm = space::mm_of(id);
    AddressSpace {
        pgd_pfn: mm.page_table().root.as_u64(),
        pid,
        reserved: 0,
        rss_pages: mm.rss(RssKind::Anon) + mm.rss(RssKind::File),
        table_pages: mm.table_pages(),
        mm: id.as_u64(),
    }
}

/// Tells the tasks' table whose they are.
fn publish_tasks() {
    let registry = REGISTRY.lock();
    for task in &registry.tasks {
        let mm = task.mm().map_or(0, Id::as_u64);
        sched::publish_process(task.number(), mm, task.process.pid, task.process.parent());
    }
}

/// The address space of a process that lives, the last one that began.
pub fn living_mm() -> Option<Id<Mm>> {
    REGISTRY.lock().tasks.iter().rev().find_map(|task| task.mm())
}

/// Its page tables.
pub fn user_table() -> Option<PageTable> {
    living_mm().map(|mm| space::mm_of(mm).page_table())
}
