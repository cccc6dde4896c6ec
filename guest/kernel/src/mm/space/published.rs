//! What readers outside see of address spaces as a whole: which there are, and what each CPU may hold translations of (Linux: `mmlist`,
//! `cpu_tlbstate`). Both are what the kernel itself works with, so that they are true whenever nobody changes them.

use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed, Release},
};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi as abi;
use memvisor_abi::TableRef;
use mm_vma::{Id, Mm};

use super::{mm_of, objects};
use crate::mm::phys;
use crate::sync::Lock;

/// The number of the first address space; 0 for none.
static MM_LIST: Lock<u64> = Lock::new(0);

/// [`abi::CpuTlb`] with fields that may be written through a shared reference, on a cache line of its own.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct CpuTlb {
    /// Its CPU alone writes it.
    mm: AtomicU64,
    /// Flushes that others asked this CPU for.
    pub flush_requested: AtomicU64,
    /// Of those, done.
    pub flush_done: AtomicU64,
    /// Its CPU alone writes it.
    rests: AtomicU64,
}

const _: () = assert!(
    size_of::<CpuTlb>() >= size_of::<abi::CpuTlb>()
        && offset_of!(CpuTlb, mm) == offset_of!(abi::CpuTlb, mm)
        && offset_of!(CpuTlb, flush_requested) == offset_of!(abi::CpuTlb, flush_requested)
        && offset_of!(CpuTlb, flush_done) == offset_of!(abi::CpuTlb, flush_done)
        && offset_of!(CpuTlb, rests) == offset_of!(abi::CpuTlb, rests)
);

static CPU_TLBS: [CpuTlb; MAX_CPUS] = [const {
    CpuTlb {
        mm: AtomicU64::new(0),
        flush_requested: AtomicU64::new(0),
        flush_done: AtomicU64::new(0),
        rests: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// Puts a new address space at the head of the list.
pub(super) fn link(id: Id<Mm>) {
    let object = objects::of_mm(mm_of(id));
    let mut first = MM_LIST.lock();
    object.next.store(*first, Relaxed);
    object.prev.store(0, Relaxed);
    if let Some(next) = Id::<Mm>::new(*first) {
        objects::of_mm(mm_of(next)).prev.store(id.as_u64(), Relaxed);
    }
    *first = id.as_u64();
}

/// Takes an address space out of the list.
pub(super) fn unlink(id: Id<Mm>) {
    let object = objects::of_mm(mm_of(id));
    let mut first = MM_LIST.lock();
    let (next, prev) = (object.next.load(Relaxed), object.prev.load(Relaxed));
    match Id::<Mm>::new(prev) {
        Some(prev) => objects::of_mm(mm_of(prev)).next.store(next, Relaxed),
        None => *first = next,
    }
    if let Some(next) = Id::<Mm>::new(next) {
        objects::of_mm(mm_of(next)).prev.store(prev, Relaxed);
    }
}

/// Calls `f` with each address space; none may come or go meanwhile.
pub fn for_each_mm(mut f: impl FnMut(Id<Mm>)) {
    let mut at = *MM_LIST.lock();
    while let Some(id) = Id::<Mm>::new(at) {
        f(id);
        at = objects::of_mm(mm_of(id)).next.load(Relaxed);
    }
}

/// Every address space that has users, with one more user each; `None` without memory for the list. Those that end meanwhile are left out
/// (Linux: the walk of `mmlist` with `mmget_not_zero`).
pub fn mm_get_all() -> Option<Vec<Id<Mm>>> {
    let mut all = Vec::new();
    loop {
        let mut count = 0;
        for_each_mm_locked(|_| count += 1);
        // Some may come before the list is locked again.
        all.try_reserve_exact(count + 8).ok()?;
        let mut fits = true;
        for_each_mm_locked(|id| {
            fits &= all.len() < all.capacity();
            if fits && get_unless_zero(&objects::of_mm(mm_of(id)).users) {
                all.push(id);
            }
        });
        if fits {
            return Some(all);
        }
        all.drain(..).for_each(super::mm_put);
    }
}

/// Calls `f` with each address space that has users, kept from being freed but not from ending: whoever looks into one takes its mmap_lock. Those
/// that come or go meanwhile may be left out, or come twice. `f` may sleep.
pub fn for_each_mm_pinned(mut f: impl FnMut(&'static Mm)) {
    let mut seen = 0;
    let mut at: Option<Id<Mm>> = None;
    loop {
        let next = next_pinned(at, seen);
        if let Some(id) = at {
            super::mm_drop(id);
        }
        let Some(id) = next else { return };
        f(mm_of(id));
        (at, seen) = (Some(id), seen + 1);
    }
}

/// The next address space after `at`, or, if that has left the list, the one at place `seen`.
fn next_pinned(at: Option<Id<Mm>>, seen: usize) -> Option<Id<Mm>> {
    let first = MM_LIST.lock();
    let has_users = |id: &Id<Mm>| objects::of_mm(mm_of(*id)).users.load(Relaxed) > 0;
    let after = |id: Id<Mm>| Id::<Mm>::new(objects::of_mm(mm_of(id)).next.load(Relaxed));
    // Who has users has not been unlinked.
    let from = match at.filter(has_users) {
        Some(id) => after(id),
        None => core::iter::successors(Id::<Mm>::new(*first), |id| after(*id)).nth(seen),
    };
    let next = core::iter::successors(from, |id| after(*id)).find(has_users)?;
    super::mm_grab(next);
    Some(next)
}

fn for_each_mm_locked(mut f: impl FnMut(Id<Mm>)) {
    let first = MM_LIST.lock();
    let mut at = *first;
    while let Some(id) = Id::<Mm>::new(at) {
        f(id);
        at = objects::of_mm(mm_of(id)).next.load(Relaxed);
    }
}

fn get_unless_zero(users: &AtomicU32) -> bool {
    users.try_update(AcqRel, Relaxed, |users| users.checked_add(1).filter(|_| users > 0)).is_ok()
}

/// Where the list begins, for the root descriptor.
pub fn mm_list() -> TableRef {
    TableRef { gpa: phys::of_image(MM_LIST.as_ptr() as u64).as_u64(), count: 1, stride: 8 }
}

/// The CPU has the tables of the address space with this number in CR3; 0 for the kernel's own. Said after the kernel's
/// own came, and before those of an address space do.
pub(super) fn loads(cpu: u32, mm: u64) {
    if let Some(tlb) = CPU_TLBS.get(cpu as usize) {
        tlb.mm.store(mm, Relaxed);
    }
}

/// Says whether a CPU is where nothing is half done: [`abi::CpuTlb::IDLE`], [`abi::CpuTlb::CHECKPOINT`], or 0.
pub fn set_rests(cpu: u32, rests: u64) {
    if let Some(tlb) = CPU_TLBS.get(cpu as usize) {
        // What was changed before is seen by who sees this.
        tlb.rests.store(rests, Release);
    }
}

/// Whether a CPU is where nothing is half done.
pub fn rests(cpu: u32) -> bool {
    CPU_TLBS.get(cpu as usize).is_some_and(|tlb| tlb.rests.load(Relaxed) != 0)
}

/// What a CPU, below the number of CPUs, has and was asked for.
pub fn tlb_of(cpu: u32) -> &'static CpuTlb {
    &CPU_TLBS[cpu as usize]
}

/// One for each CPU that the machine has.
pub fn tlb_table(cpus: usize) -> &'static [CpuTlb] {
    CPU_TLBS.get(..cpus).unwrap_or(&CPU_TLBS)
}
