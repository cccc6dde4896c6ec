//! Address spaces: VMAs, the mmap family, page faults, fork and reverse mapping (Linux: mm/mmap.c, mm/vma.c, mm/mprotect.c,
//! mm/mremap.c, mm/madvise.c, mm/mempolicy.c, mm/mlock.c, mm/memory.c, mm/rmap.c, mm/migrate.c, kernel/fork.c).
//!
//! An address space is an [`Mm`]: a tree of [`Vma`]s, page tables, and counts. Whoever changes it takes mmap_lock
//! ([`Space::lock`]) and calls a method of [`Space`] that is named like the system call; a fault usually needs only the lock of one VMA
//! (`lock.rs`). The kernel around stands behind [`Kernel`]. Objects are in [`Arena`]s and are linked by number.
//!
//! Where releases of Linux differ in what a program can see, 6.18 is followed in merging and mremap, and 6.1 elsewhere.
//!
//! Invariants, checked by [`audit`]:
//! M1  VMAs ascend, do not overlap, are not empty, and lie in user space; list and tree agree; `map_count` counts them;
//! M2  every entry of a page table lies in a VMA; a present one allows no more than its VMA does;
//! M3  a private page that more than one entry maps is nowhere writable;
//! M4  RSS counts equal the entries; `total_vm`, `locked_vm` and so on equal the sums over VMAs;
//! M5  every anonymous page is found from its `AnonVma` in every VMA that maps it, at its `index`;
//! M6  entries of frames that nobody counts lie in PFNMAP VMAs, where all others are private copies;
//! M7  entries that name a slot of a swap area lie in private VMAs, and `swapents` counts them;
//! M8  the memory policy of a VMA is one: a mode, and nodes if and only if the mode needs some.
//!
//! Invariants of the parts are in `tree.rs` (N), `anon.rs` (A), `page.rs` (P), `swap.rs` (W), `gather.rs`, `migrate.rs` and `reclaim.rs` (G). Lock order: mmap_lock,
//! VMA locks, the rmap lock, page-table locks.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod aging;
mod anon;
mod audit;
mod brk;
mod fault;
mod flags;
mod fork;
mod gap;
mod gather;
mod held;
mod id;
mod kernel;
mod lazyfree;
mod lock;
mod madvise;
mod mempolicy;
mod merge;
mod migrate;
mod mlock;
mod mm;
mod mmap;
mod move_pages;
mod mprotect;
mod mremap;
mod munmap;
mod numa;
mod oom;
mod page;
mod pageout;
mod pfnmap;
mod pte;
mod query;
mod reclaim;
mod resident;
mod rmap;
mod shm;
mod space;
mod swap;
mod tree;
mod usercopy;
mod vma;
mod zap;

pub use aging::{YOUNG_BATCH, Young, lru_gen_look_around, walk_young};
pub use anon::{AnonVma, AnonVmaChain};
pub use audit::{Broken, audit};
pub use fault::{Access, Done, Fault, FaultInfo, handle_fault};
pub use flags::{MapFlags, MapType, ProtFlags, VmFlags};
pub use fork::dup_mmap;
pub use kernel::Kernel;
pub use lock::VmaRead;
pub use madvise::{Advice, Advised, madvise_remove};
pub use mempolicy::{Mbind, MbindFlags, MoveTo};
pub use migrate::{Unmapped, migrate_page, remove_migration_ptes, try_to_migrate};
pub use mlock::{MLOCK_ONFAULT, MlockAll, populate, populate_exact, populate_locked};
pub use mm::{Layout, Limits, Mm, RssKind, STACK_GUARD_GAP};
pub use mm_core::Errno;
pub use mm_core::{Arena, Id, Link, NodeMask, Policy, PolicyAt};
pub use mm_filemap::{Cows, MappedError, MappedPage, Mapping};
pub use mmap::{MapFile, MmapRequest};
pub use move_pages::{migrate_nodes, move_page, page_node};
pub use mremap::MremapFlags;
pub use numa::NumaPages;
pub use oom::oom_reap;
pub use page::{Owner, owner, put as put_page};
pub use pageout::madvise_pageout;
pub use pfnmap::Frames;
pub use query::MsyncFlags;
pub use reclaim::{FolioReferenced, folio_referenced, page_mkclean, try_to_unmap};
pub use resident::Resident;
pub use rmap::{for_each_pte, unmap_mapping_range};
pub use shm::mapping_writably_mapped;
pub use space::{Populate, Space};
pub use swap::unuse_mm;
pub use tree::{FANOUT, GapQuery, Node, Tree};
pub use usercopy::with_user_byte;
pub use vma::Vma;
