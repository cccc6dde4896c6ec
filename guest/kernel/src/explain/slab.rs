//! Slab caches.

use mm_core::Gfp;
use mm_slab::{CacheArgs, SlabFlags};

use super::part;
use crate::mm::slab::KMEM;

/// The life of a cache of 64-byte objects, from its creation to its end.
pub fn kmem_cache() -> Result<(), &'static str> {
    let args = CacheArgs { flags: SlabFlags::NO_MERGE, ..CacheArgs::new("explained", 64) };
    let cache = part(c"before: kmem_cache_create(64 bytes)", c"after: kmem_cache_create(64 bytes)", || {
        KMEM.create(&args).map_err(|_| "the cache is not created")
    })?;
    let first = part(c"before: kmem_cache_alloc, the first", c"after: kmem_cache_alloc, the first", || {
        KMEM.alloc(cache, Gfp::KERNEL).ok_or("no page for a slab")
    })?;
    let second =
        part(c"before: kmem_cache_alloc, the second", c"after: kmem_cache_alloc, the second", || {
            KMEM.alloc(cache, Gfp::KERNEL).ok_or("the slab has one object only")
        })?;
    part(c"before: kmem_cache_free, both", c"after: kmem_cache_free, both", || {
        KMEM.free(cache, second).and_then(|()| KMEM.free(cache, first)).map_err(|_| "a good free is refused")
    })?;
    part(c"before: kmem_cache_destroy", c"after: kmem_cache_destroy", || {
        KMEM.destroy(cache).map_err(|_| "an empty cache is not destroyed")
    })
}
