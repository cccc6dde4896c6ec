//! Virtual memory areas of processes (Linux: mm/mmap.c, `validate_mm`).
//!
//! V1  `vma.list`: an address space's list of VMAs can be followed both ways; each VMA belongs to it, is in use, is not empty, begins
//!     and ends at page boundaries, ends inside user space, and begins where the one below ended, or above.
//! V2  `vma.tree`: the tree that faults search has the same VMAs with the same bounds as the list, in order.
//! V3  `vma.counts`: `map_count` is the VMAs on the list; `total_vm`, `data_vm`, `exec_vm`, `stack_vm` and `locked_vm` are the
//!     sums of the pages of those that they stand for.
//! V4  `vma.heap`: the heap ends at or above its start, and inside user space. (Where its pages are is a program's own affair: it
//!     may unmap them.)
//! V5  `vma.guard`: the 256 pages below a stack hold nothing that can be accessed, other stacks excepted. (A program can break this
//!     by MAP_FIXED, and then has a stack that cannot grow.)
//! V6  `vma.policy`: the memory policy of a VMA has a mode that there is, nodes if and only if the mode has some, one node if it is
//!     preferred, and no node that the machine has no memory on. (It says where pages come from, not where they lie: those that were there
//!     before, or came when it could not be followed, stay.)

use memvisor_abi::{PAGE_SHIFT, PAGE_SIZE, STACK_GUARD_PAGES, Vma, mpol, vm_flags};
use memvisor_inspect::{TreeEntry, VmaAt};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::processes::Process;

pub(crate) const LIST: Rule = Rule {
    name: "vma.list",
    invariant: "VMAs ascend, disjoint, aligned, inside user space",
    reads: "address_spaces, Mm, Vma lists",
    seeded: &["vma-overlap"],
    hint: "insert, split and resize of VMAs; who moved a bound past a neighbour",
};
pub(crate) const TREE: Rule = Rule {
    name: "vma.tree",
    invariant: "the tree and the list have the same VMAs",
    reads: "Mm, Vma lists, VmaNodes",
    seeded: &["vma-tree"],
    hint: "Tree::insert, remove, resize beside the list's links",
};
pub(crate) const COUNTS: Rule = Rule {
    name: "vma.counts",
    invariant: "map_count, total_vm and the like are sums over VMAs",
    reads: "Mm, Vma lists",
    seeded: &["map-count", "total-vm", "locked-vm"],
    hint: "vm_stat_account, and who inserts or removes without it",
};
pub(crate) const HEAP: Rule = Rule {
    name: "vma.heap",
    invariant: "start_brk <= brk <= task_size",
    reads: "Mm",
    seeded: &["brk-below-heap"],
    hint: "brk, set_program",
};
pub(crate) const GUARD: Rule = Rule {
    name: "vma.guard",
    invariant: "nothing accessible in the 256 pages below a stack",
    reads: "Vma lists",
    seeded: &["stack-gap"],
    hint: "unmapped_area without start_gap, expand_stack",
};

pub(crate) const POLICY: Rule = Rule {
    name: "vma.policy",
    invariant: "a VMA's memory policy has a known mode, and nodes with memory as the mode needs them",
    reads: "Vma lists, the machine's nodes",
    seeded: &["vma-policy-node", "vma-policy-mode"],
    hint: "mbind, Policy::new, and who copies VMAs without their policy's nodes",
};

/// Runs V1 to V6 for one address space.
pub(crate) fn run(context: &Context<'_>, process: &Process, ledger: &mut Ledger) {
    let at = &process.at;
    if let Some(problem) = at.problem {
        ledger.checked(&LIST, 1);
        let what = format!("pid {}", process.pid());
        ledger.report(&LIST, finding(&LIST, what, "it has an address space", problem.to_string()));
        return;
    }
    list(process, ledger);
    tree(context, process, ledger);
    counts(process, ledger);
    heap(process, ledger);
    guard(process, ledger);
    policy(context, process, ledger);
}

/// A VMA in words.
pub(crate) fn text(pid: u32, at: &VmaAt) -> String {
    format!("pid {pid} VMA {:#x}-{:#x}", at.vma.start, at.vma.end)
}

fn list(process: &Process, ledger: &mut Ledger) {
    let (pid, space) = (process.pid(), &process.at);
    ledger.checked(&LIST, space.vmas.items.len() as u64 + 1);
    if let Some(problem) = space.vmas.problem {
        let what = format!("pid {pid}");
        ledger.report(&LIST, finding(&LIST, what, "a list of VMAs", problem.to_string()));
    }
    let mut below = 0;
    for at in &space.vmas.items {
        let vma = &at.vma;
        let wrong = if vma.start >= vma.end {
            Some("it is empty, or ends below its start".to_owned())
        } else if !vma.start.is_multiple_of(PAGE_SIZE) || !vma.end.is_multiple_of(PAGE_SIZE) {
            Some("it does not begin and end at page boundaries".to_owned())
        } else if vma.end > space.mm.task_size {
            Some(format!("user space ends at {:#x}", space.mm.task_size))
        } else if vma.start < below {
            Some(format!("the one below it ends at {below:#x}"))
        } else if vma.mm != space.space.mm {
            Some(format!("it belongs to the mm at {:#x}, not to {:#x}", vma.mm, space.space.mm))
        } else if vma.refcount == 0 {
            Some("it is not in use".to_owned())
        } else {
            None
        };
        if let Some(outside) = wrong {
            let what = finding(&LIST, text(pid, at), "a VMA of the list", outside);
            ledger.report(&LIST, what.address(vma.start));
        }
        below = below.max(vma.end);
    }
}

fn tree(_context: &Context<'_>, process: &Process, ledger: &mut Ledger) {
    let (pid, space) = (process.pid(), &process.at);
    ledger.checked(&TREE, space.tree.items.len() as u64 + 1);
    if let Some(problem) = space.tree.problem {
        let what = format!("pid {pid}");
        ledger.report(&TREE, finding(&TREE, what, "a tree of VMAs", problem.to_string()));
        return;
    }
    let listed =
        space.vmas.items.iter().map(|at| TreeEntry { start: at.vma.start, end: at.vma.end, vma: at.gpa });
    let (mut listed, mut treed) = (listed, space.tree.items.iter().copied());
    loop {
        let (by_list, by_tree) = (listed.next(), treed.next());
        if by_list == by_tree {
            if by_list.is_none() {
                return;
            }
            continue;
        }
        let words = |entry: Option<TreeEntry>| {
            entry.map_or("nothing more".to_owned(), |entry| {
                format!("{:#x}-{:#x}, VMA at {:#x}", entry.start, entry.end, entry.vma)
            })
        };
        let va = by_list.or(by_tree).map_or(0, |entry| entry.start);
        // What comes behind the first difference follows from it.
        let what = finding(&TREE, format!("pid {pid}"), words(by_tree), words(by_list));
        return ledger.report(&TREE, what.address(va));
    }
}

fn counts(process: &Process, ledger: &mut Ledger) {
    const KINDS: u64 = vm_flags::WRITE | vm_flags::SHARED | vm_flags::GROWSDOWN;
    let (space, pid) = (&process.at, process.pid());
    let (mut total, mut data, mut exec, mut stack, mut locked) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    for at in &space.vmas.items {
        let (flags, pages) = (at.vma.flags, at.vma.end.saturating_sub(at.vma.start) >> PAGE_SHIFT);
        total = total.saturating_add(pages);
        if flags & vm_flags::LOCKED != 0 {
            locked = locked.saturating_add(pages);
        }
        // Linux: is_exec_mapping, is_stack_mapping, is_data_mapping, in this order.
        if flags & (vm_flags::EXEC | vm_flags::WRITE | vm_flags::GROWSDOWN) == vm_flags::EXEC {
            exec = exec.saturating_add(pages);
        } else if flags & vm_flags::GROWSDOWN != 0 {
            stack = stack.saturating_add(pages);
        } else if flags & KINDS == vm_flags::WRITE {
            data = data.saturating_add(pages);
        }
    }
    let mm = &space.mm;
    let vmas = space.vmas.items.len() as u64;
    for (name, guest, outside) in [
        ("map_count", u64::from(mm.map_count), vmas),
        ("total_vm", mm.total_vm, total),
        ("data_vm", mm.data_vm, data),
        ("exec_vm", mm.exec_vm, exec),
        ("stack_vm", mm.stack_vm, stack),
        ("locked_vm", mm.locked_vm, locked),
    ] {
        ledger.expect_eq(&COUNTS, format_args!("pid {pid} {name}"), guest, outside);
    }
}

fn heap(process: &Process, ledger: &mut Ledger) {
    let mm = &process.at.mm;
    ledger.checked(&HEAP, 1);
    if mm.start_brk > mm.brk || mm.brk > mm.task_size {
        let claim = format!("the heap is {:#x}-{:#x}", mm.start_brk, mm.brk);
        let outside = format!("user space is 0-{:#x}, and a heap does not end below its start", mm.task_size);
        let what = finding(&HEAP, format!("pid {}", process.pid()), claim, outside);
        ledger.report(&HEAP, what.address(mm.brk));
    }
}

fn guard(process: &Process, ledger: &mut Ledger) {
    const ACCESS: u64 = vm_flags::READ | vm_flags::WRITE | vm_flags::EXEC;
    let vmas = &process.at.vmas.items;
    ledger.checked(&GUARD, vmas.len() as u64);
    for (below, stack) in vmas.iter().zip(vmas.iter().skip(1)) {
        let (other, flags) = (below.vma.flags, stack.vma.flags);
        if flags & vm_flags::GROWSDOWN == 0 || other & vm_flags::GROWSDOWN != 0 || other & ACCESS == 0 {
            continue;
        }
        let gap = stack.vma.start.saturating_sub(below.vma.end) >> PAGE_SHIFT;
        if gap < STACK_GUARD_PAGES {
            let claim = format!("{STACK_GUARD_PAGES} pages below a stack are free");
            let outside = format!("{gap} pages below it is {:#x}-{:#x}", below.vma.start, below.vma.end);
            let what = finding(&GUARD, text(process.pid(), stack), claim, outside);
            ledger.report(&GUARD, what.address(stack.vma.start));
        }
    }
}

fn policy(context: &Context<'_>, process: &Process, ledger: &mut Ledger) {
    let vmas = &process.at.vmas.items;
    ledger.checked(&POLICY, vmas.len() as u64);
    let memory = context.machine.memory_nodes();
    for at in vmas {
        if let Some(outside) = wrong_policy(&at.vma, memory) {
            let claim = format!("its policy is {} of nodes {:#x}", at.vma.policy, at.vma.policy_nodes);
            let what = finding(&POLICY, text(process.pid(), at), claim, outside);
            ledger.report(&POLICY, what.address(at.vma.start));
        }
    }
}

/// What is wrong with a VMA's policy on a machine that has memory on these nodes.
fn wrong_policy(vma: &Vma, memory: u64) -> Option<String> {
    let nodes = vma.policy_nodes;
    match (vma.policy, nodes.count_ones()) {
        (mpol::DEFAULT | mpol::LOCAL, 0) | (mpol::PREFERRED, 1) => {}
        (mpol::DEFAULT | mpol::LOCAL, _) => return Some("this mode has no nodes".to_owned()),
        (mpol::PREFERRED, count) => return Some(format!("one node is preferred, not {count}")),
        (mpol::BIND | mpol::INTERLEAVE | mpol::PREFERRED_MANY, 0) => {
            return Some("this mode has nodes".to_owned());
        }
        (mpol::BIND | mpol::INTERLEAVE | mpol::PREFERRED_MANY, _) => {}
        (mode, _) => return Some(format!("there is no mode {mode}")),
    }
    let without = nodes & !memory;
    (without != 0).then(|| format!("nodes {without:#x} have no memory; those that have are {memory:#x}"))
}
