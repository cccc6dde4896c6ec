//! Two ways to the same number of bytes.

use mm_core::Gfp;
use mm_vmalloc::Request;

use super::part;
use crate::mm::slab::KMEM;
use crate::mm::vmalloc;
use crate::sched;

/// Four pages: contiguous by address and by frame, then by address only.
const BYTES: u64 = 16 << 10;

/// 100 bytes by kmalloc, 16 KiB by kmalloc, 16 KiB by vmalloc, and all the way back.
pub fn kmalloc_vs_vmalloc() -> Result<(), &'static str> {
    let token = sched::task_context();
    let small = part(c"before: kmalloc(100, GFP_KERNEL)", c"after: kmalloc(100, GFP_KERNEL)", || {
        KMEM.kmalloc(100, Gfp::KERNEL).ok_or("no object of 100 bytes")
    })?;
    let large = part(c"before: kmalloc(16384, GFP_KERNEL)", c"after: kmalloc(16384, GFP_KERNEL)", || {
        KMEM.kmalloc(BYTES, Gfp::KERNEL).ok_or("no four contiguous frames")
    })?;
    let mapped = part(c"before: vmalloc(16384)", c"after: vmalloc(16384)", || {
        vmalloc::vmalloc(&Request::new(BYTES), &token).map_err(|_| "no four frames")
    })?;
    part(c"before: kfree, both", c"after: kfree, both", || {
        KMEM.kfree(small).and_then(|()| KMEM.kfree(large)).map_err(|_| "a good free is refused")
    })?;
    part(c"before: vfree", c"after: vfree", || {
        if vmalloc::vfree(mapped) { Ok(()) } else { Err("a good free is refused") }
    })?;
    part(c"before: vm_unmap_aliases()", c"after: vm_unmap_aliases()", || {
        if vmalloc::vm().purge() { Ok(()) } else { Err("nothing was lazy") }
    })
}
