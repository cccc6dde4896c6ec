//! The vmalloc range: virtually contiguous memory, device mappings and windows onto single frames (Linux 6.1:
//! mm/vmalloc.c, arch/x86/mm/ioremap.c, mm/highmem.c).
//!
//! [`Areas`] hands out ranges of addresses; [`Vmalloc`] puts frames behind them, over one kernel page table.
//! Area descriptors live in frames from the page allocator and are linked by number, so that nothing here needs a heap and an
//! outside reader finds them ([`memvisor_abi::VmArea`]).
//!
//! Invariants:
//! V1  every address of the space is in exactly one area: free, busy or lazy;
//! V2  free and busy areas are each in a search tree by address, with the largest length below each node;
//! V3  no two free areas touch;
//! V4  in a busy area exactly the first `nr_pages` pages are mapped, except in the window of kmap; the
//!     guard page at its end, free and lazy areas map nothing;
//! V5  a lazy area becomes free only after every CPU dropped its translations;
//! V6  each frame behind an `ALLOC` area has kind `Vmalloc` or `KernelStack`, the area's start as its mapping
//!     and its page number as its index.
//!
//! Locking: the caller's [`Machine`] serialises areas and tables with one lock each; none is held while memory is
//! allocated for contents or CPUs are flushed.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod areas;
mod audit;
mod error;
mod ioremap;
mod kmap;
mod kvmalloc;
mod local;
mod node;
#[cfg(test)]
mod tests;
mod tree;
mod vmalloc;

pub use areas::{Area, Areas, DIRECTORY_FRAMES};
pub use audit::Broken;
pub use error::{KmapError, VmError};
pub use ioremap::IoRequest;
pub use kmap::{Pkmap, PkmapHit};
pub use kvmalloc::{Kmalloc, kvfree, kvmalloc};
pub use local::LocalStack;
pub use vmalloc::{Machine, Request, Vmalloc};
