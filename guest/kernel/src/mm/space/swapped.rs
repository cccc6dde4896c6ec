//! Shared memory that has, or had, pages in swap areas (Linux: `shmem_swaplist`).

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use memvisor_abi::TableRef;
use mm_swap::SwapError;
use mm_vma::{Id, Kernel, Mapping};

use super::{Spaces, objects};
use crate::mm::phys;
use crate::sync::Lock;

/// The number of the first; 0 for none.
static LIST: Lock<u64> = Lock::new(0);

/// Where the list begins, for the root descriptor.
pub fn list() -> TableRef {
    TableRef { gpa: phys::of_image(LIST.as_ptr() as u64).as_u64(), count: 1, stride: 8 }
}

/// Puts a mapping on the list, unless it is there.
pub(super) fn link(id: Id<Mapping>) {
    let object = objects::of_mapping(id);
    let mut first = LIST.lock();
    if object.swap_prev.load(Relaxed) != 0 {
        return;
    }
    object.swap_next.store(*first, Relaxed);
    object.swap_prev.store(id.as_u64(), Relaxed);
    if let Some(next) = Id::new(*first) {
        objects::of_mapping(next).swap_prev.store(id.as_u64(), Relaxed);
    }
    *first = id.as_u64();
}

/// Takes a mapping off the list, if it is there.
pub(super) fn unlink(id: Id<Mapping>) {
    let object = objects::of_mapping(id);
    let mut first = LIST.lock();
    let (next, prev) = (object.swap_next.load(Relaxed), object.swap_prev.load(Relaxed));
    if prev == 0 {
        return;
    }
    let is_first = prev == id.as_u64();
    match Id::new(prev).filter(|_| !is_first) {
        Some(before) => objects::of_mapping(before).swap_next.store(next, Relaxed),
        None => *first = next,
    }
    if let Some(after) = Id::new(next) {
        let prev = if is_first { next } else { prev };
        objects::of_mapping(after).swap_prev.store(prev, Relaxed);
    }
    object.swap_prev.store(0, Relaxed);
}

/// The one after `after`, or the first, with a reference for the caller; those that are being freed are passed over.
fn next(after: Option<Id<Mapping>>) -> Option<Id<Mapping>> {
    let first = LIST.lock();
    let mut at = after.map_or(*first, |after| objects::of_mapping(after).swap_next.load(Relaxed));
    while let Some(id) = Id::new(at) {
        let object = objects::of_mapping(id);
        let held = |references: u32| references.checked_add(1).filter(|_| references > 0);
        if object.references.try_update(AcqRel, Relaxed, held).is_ok() {
            return Some(id);
        }
        at = object.swap_next.load(Relaxed);
    }
    None
}

/// Brings every page of shared memory back that is in the area (Linux: `shmem_unuse`).
///
/// # Errors
/// [`SwapError::NoMemory`], [`SwapError::Io`].
pub fn unuse(area: u32) -> Result<(), SwapError> {
    let (mut result, mut at) = (Ok(()), next(None));
    while let Some(id) = at {
        if result.is_ok() {
            result = mm_filemap::shmem::unuse(&Spaces, id, area);
        }
        // It stays on the list while it is held.
        at = if result.is_ok() { next(Some(id)) } else { None };
        Spaces.mapping_put(id);
    }
    result
}
