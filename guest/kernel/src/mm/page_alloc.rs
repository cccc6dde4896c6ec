//! The page allocator: mm-page-alloc on this machine's nodes and zones, and the ways in which the kernel asks it for pages.

use core::sync::atomic::{AtomicBool, Ordering};

use memvisor_abi::{NR_VM_EVENTS, VmEvent};
use mm_core::{Gfp, MemMap, Order, PageKind, Pfn, PolicyAt};
use mm_page_alloc::{Context, FreeError, PageAllocator, Policy, TaskFlags, TaskPolicy};

use crate::mm::memmap::Vmemmap;
use crate::mm::{oom, pcp, scope};
use crate::{sched, task};

mod boot;
mod machine;
mod zones;

pub use boot::{hand_over, init, resize_pcps};
pub use machine::Kernel;
pub use zones::{
    NODES, ZONES, ZONES_MAX, ZoneGuard, ZoneLock, is_below_min, managed_and_free, managed_pages,
    nr_free_pages, nr_nodes, print, zone, zones,
};

/// The page allocator.
pub static PAGES: PageAllocator<Kernel> = PageAllocator::new(Kernel);

/// Allocates a block for `kind`, near `node` (default: this CPU's node), for callers that hold locks: nothing sleeps, and the
/// min watermark is kept.
pub fn alloc_pages(order: Order, node: Option<u32>, kind: PageKind) -> Option<Pfn> {
    let gfp = match kind {
        PageKind::User => Gfp::NOWAIT | Gfp::HIGHMEM | Gfp::MOVABLE,
        _ => Gfp::NOWAIT,
    };
    let pfn = alloc_gfp(Context::ATOMIC, gfp | Gfp::NOWARN, order, node)?;
    set_kind(pfn, kind);
    Some(pfn)
}

/// [`alloc_pages`] of one frame of zeroes.
pub fn alloc_zeroed(kind: PageKind) -> Option<Pfn> {
    let pfn = alloc_gfp(Context::ATOMIC, Gfp::NOWAIT | Gfp::NOWARN | Gfp::ZERO, Order::ZERO, None)?;
    set_kind(pfn, kind);
    Some(pfn)
}

/// Gives a frame back that is all zero again.
pub fn free_zeroed(pfn: Pfn) {
    // The allocator's own again, so that it takes it without a closer look.
    set_kind(pfn, PageKind::Allocated);
    if let Err(error) = PAGES.free_zeroed_page(pfn) {
        panic!("free of {pfn}: {error}");
    }
}

/// Allocates a block by gfp flags (Linux: `alloc_pages_node`). A node that does not exist has no memory.
pub fn alloc_gfp(context: Context<'_>, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
    PAGES.alloc_pages(context, gfp, order, node)
}

/// [`alloc_gfp`] for allocators that carry no right to sleep: where the caller is in task context, with interrupts on and so without
/// locks, a GFP that may reclaim does (Linux: `might_alloc`). Anywhere else nothing sleeps.
///
/// Differs from Linux: `GFP_KERNEL` where nothing may sleep is served like `GFP_NOWAIT` and not reported as a bug: areas of vmalloc take
/// their frames under their lock.
pub fn alloc_here(gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
    if node.is_none() && POLICIES.load(Ordering::Relaxed) && gfp.contains(Gfp::MOVABLE) {
        return alloc_by_policy(gfp, order);
    }
    alloc_near(gfp, order, node)
}

/// [`alloc_here`] without a look at policies.
#[inline]
fn alloc_near(gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn> {
    // Whether anything may sleep matters only where there is something to wait for.
    if let Some(pfn) = PAGES.alloc_from_lists(gfp, order, node) {
        return Some(pfn);
    }
    let token = if gfp.contains(Gfp::DIRECT_RECLAIM) { sched::might_sleep() } else { None };
    match &token {
        Some(token) => alloc_gfp(Context { may_sleep: Some(token), task: task_flags() }, gfp, order, node),
        None => alloc_gfp(Context::ATOMIC, gfp - Gfp::DIRECT_RECLAIM, order, node),
    }
}

/// Some task has a policy, so that every page of a program is looked for by one.
static POLICIES: AtomicBool = AtomicBool::new(false);

/// From now on the policies of tasks count.
pub fn use_policies() {
    POLICIES.store(true, Ordering::Relaxed);
}

/// The policy of the task that runs here (Linux: `get_task_policy`).
pub fn task_policy() -> Policy {
    if !POLICIES.load(Ordering::Relaxed) {
        return Policy::Default;
    }
    task::current().map_or(Policy::Default, |task| task.mempolicy.lock().policy())
}

/// A page of an area, by the area's policy, else by the task's (Linux: `vma_alloc_folio`). Where there is neither, no lock is taken for it.
pub fn alloc_page_policy(gfp: Gfp, at: PolicyAt) -> Option<Pfn> {
    let policy = if at.policy == Policy::Default { task_policy() } else { at.policy };
    if matches!(policy, Policy::Default | Policy::Local) {
        return alloc_near(gfp, Order::ZERO, None);
    }
    alloc_page_at(gfp, PolicyAt { policy, ..at })
}

#[inline(never)]
fn alloc_page_at(gfp: Gfp, at: PolicyAt) -> Option<Pfn> {
    let token = if gfp.contains(Gfp::DIRECT_RECLAIM) { sched::might_sleep() } else { None };
    match &token {
        Some(token) => PAGES.alloc_page_at(Context { may_sleep: Some(token), task: task_flags() }, gfp, at),
        None => PAGES.alloc_page_at(Context::ATOMIC, gfp - Gfp::DIRECT_RECLAIM, at),
    }
}

/// A page of a file, by the policy of the task that asks (Linux: `folio_alloc`).
fn alloc_by_policy(gfp: Gfp, order: Order) -> Option<Pfn> {
    let token = if gfp.contains(Gfp::DIRECT_RECLAIM) { sched::might_sleep() } else { None };
    let task = task::current();
    // Not under its lock: this may sleep. Nobody else changes it.
    let mut policy = task.as_ref().map_or_else(TaskPolicy::default, |task| *task.mempolicy.lock());
    let (context, gfp) = match &token {
        Some(token) => (Context { may_sleep: Some(token), task: task_flags() }, gfp),
        None => (Context::ATOMIC, gfp - Gfp::DIRECT_RECLAIM),
    };
    let block = PAGES.alloc_pages_policy(context, gfp, order, &mut policy);
    if let Some(task) = task {
        *task.mempolicy.lock() = policy;
    }
    block
}

/// State of the current task that changes what it may allocate (Linux: `current->flags`, `tsk_is_oom_victim`).
pub fn task_flags() -> TaskFlags {
    let victim = if oom::is_victim() { TaskFlags::OOM_VICTIM } else { TaskFlags::empty() };
    victim | scope::current_flags()
}

/// The first frame says whose the block is.
fn set_kind(pfn: Pfn, kind: PageKind) {
    if let Some(page) = Vmemmap.page(pfn) {
        page.set_kind(kind);
    }
}

/// Gives a block back. A wrong free is a bug of the caller and ends the kernel, with the frame named.
pub fn free_pages(pfn: Pfn, order: Order) {
    if let Err(error) = try_free_pages(pfn, order) {
        panic!("free of {pfn}, order {}: {error}", order.as_u8());
    }
}

/// [`free_pages`] of `count` frames from `first` on.
pub fn free_run(first: Pfn, count: u64) {
    if let Err(error) = PAGES.free_run(first, count) {
        panic!("free of {count} frames from {first} on: {error}");
    }
}

/// [`free_pages`] that says what is wrong.
pub fn try_free_pages(pfn: Pfn, order: Order) -> Result<(), FreeError> {
    PAGES.free_pages(pfn, order)
}

/// Pages allocated and freed so far.
pub fn pgalloc_pgfree() -> (u64, u64) {
    let events = pcp::sum_events();
    let allocated = events[VmEvent::PgallocDma as usize..=VmEvent::PgallocMovable as usize].iter().sum();
    (allocated, events[VmEvent::Pgfree as usize])
}

const _: () = assert!(NR_VM_EVENTS > VmEvent::Pgfree as usize);
