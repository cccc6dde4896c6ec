//! The address spaces of processes at a checkpoint.

use mm_pgtable::PageTable;
use mm_vma::{Id, Mm};

use super::registry::REGISTRY;
use crate::mm::space::{self, Spaces};
use crate::mm::vmscan;
use crate::{cmdline, ipc, println};

/// With `debug_vm` on the command line, looks whether each address space is as it must be (Linux: CONFIG_DEBUG_VM_MAPLE_TREE,
/// `validate_mm`). Readers from outside have rules of their own for it. Nobody else runs.
pub fn audit_all() {
    if !cmdline::flag("debug_vm") {
        return;
    }
    if let Err(broken) = ipc::shm::audit() {
        println!("BUG: System V shared memory: {broken}");
    }
    vmscan::audit_all();
    space::for_each_mm(|mm| {
        if let Err(broken) = mm_vma::audit(&Spaces, mm) {
            println!(
                "BUG: address space {:#x}: {} does not hold at {:#x}",
                mm.as_u64(),
                broken.what,
                broken.at
            );
        }
    });
}

/// The address space of a process that lives, the last one that began.
pub fn living_mm() -> Option<Id<Mm>> {
    living().map(|(_, mm)| mm)
}

/// The thread of a task that has an address space, and that one.
pub fn living() -> Option<(usize, Id<Mm>)> {
    REGISTRY.lock().tasks.iter().rev().find_map(|task| Some((task.number(), task.mm()?)))
}

/// Its page tables.
pub fn user_table() -> Option<PageTable> {
    living_mm().map(|mm| space::mm_of(mm).page_table())
}
