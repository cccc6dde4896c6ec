//! Wiring of the memory manager: what `guest/mm` decides, on this machine's memory.

pub mod cma;
pub mod cpu_local;
pub mod early;
pub mod fixmap;
mod heap;
pub mod ioremap;
pub mod kcompactd;
pub mod kmap;
pub mod layout;
pub mod limits;
pub mod memmap;
pub mod movable;
pub mod page_alloc;
pub mod paging;
pub mod pcp;
pub mod phys;
pub mod pti;
pub mod reclaim;
pub mod slab;
pub mod space;
pub mod sysctl;
pub mod vmalloc;
