//! kvmalloc: physically contiguous if that is easy, else virtually (Linux: mm/util.c `kvmalloc_node`).

use mm_core::{Gfp, MaySleep, PAGE_SIZE, VirtAddr};

use crate::{Machine, Request, VmError, Vmalloc};

/// The slab side of kvmalloc.
pub trait Kmalloc {
    /// `kmalloc_node(size, gfp, node)`.
    fn kmalloc(&self, size: u64, gfp: Gfp, node: Option<u32>) -> Option<VirtAddr>;

    /// `kfree`.
    fn kfree(&self, va: VirtAddr);
}

/// Memory of `size` bytes: kmalloc first, without retrying hard for more than a page, then vmalloc for more than a
/// page and flags that vmalloc's page tables can be allocated with.
///
/// # Errors
/// [`VmError`] of vmalloc, or [`VmError::NoMemory`] where only kmalloc was allowed.
#[track_caller]
pub fn kvmalloc<M: Machine>(
    slab: &impl Kmalloc,
    vmalloc: Vmalloc<'_, M>,
    request: &Request,
    context: &MaySleep<'_>,
) -> Result<VirtAddr, VmError> {
    let Request { size, gfp, node, .. } = *request;
    if size == 0 {
        return Err(VmError::ZeroSize);
    }
    let gfp = gfp.difference(Gfp::HIGHMEM);
    let mut contiguous = gfp;
    if size > PAGE_SIZE {
        contiguous |= Gfp::NOWARN;
        // The fallback is cheap, so the contiguous attempt does not disturb the machine.
        if !contiguous.contains(Gfp::RETRY_MAYFAIL) {
            contiguous |= Gfp::NORETRY;
        }
        contiguous -= Gfp::NOFAIL;
    }
    // Linux's INT_MAX: larger sizes are never meant.
    let attempt = if size > i32::MAX as u64 { None } else { slab.kmalloc(size, contiguous, node) };
    match attempt {
        Some(va) => Ok(va),
        None if size <= PAGE_SIZE || !gfp.contains(Gfp::KERNEL) => Err(VmError::NoMemory),
        None => vmalloc.vmalloc(&Request { gfp: gfp | Gfp::HIGHMEM, ..*request }, context),
    }
}

/// Frees what [`kvmalloc`] gave.
///
/// # Errors
/// As [`Vmalloc::vfree`].
pub fn kvfree<M: Machine>(slab: &impl Kmalloc, vmalloc: Vmalloc<'_, M>, va: VirtAddr) -> Result<(), VmError> {
    let vmalloced = vmalloc.0.with_areas(|areas| areas.contains(va));
    if vmalloced {
        return vmalloc.vfree(va);
    }
    slab.kfree(va);
    Ok(())
}
