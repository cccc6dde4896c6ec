//! What the page cache needs from the kernel around it.

use core::ops::Range;

use memvisor_abi::NodeStat;
use mm_core::{Arena, Folios, Id, PageAlloc, Pfn, PhysMem, Rcu};
use mm_swap::SwapIo;

use crate::{Mapping, Node, ShadowNodes};

/// A page of a mapping, with a reference for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedPage {
    /// The frame.
    pub pfn: Pfn,
    /// It had to be read from a device.
    pub major: bool,
}

/// Why a mapping has no page for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappedError {
    /// Past the end of the file, or an I/O error.
    Sigbus,
    /// No memory.
    NoMemory,
}

/// What unmapping does with pages that private mappings copied for themselves (Linux: `even_cows`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cows {
    /// They stay: a hole does not concern them.
    Keep,
    /// They go too: the file ends before them.
    Unmap,
}

/// The kernel, as the page cache sees it.
pub trait Cache: Folios + PageAlloc + PhysMem + Rcu + SwapIo + Arena<Node> + Arena<Mapping> {
    /// Calls `f` with the mapping's lock held (Linux: `xa_lock` of `i_pages`). `f` neither sleeps nor allocates.
    fn pages_lock<R>(&self, mapping: Id<Mapping>, f: impl FnOnce() -> R) -> R;

    /// Removes the page table entries of these page offsets from all address spaces (Linux: `unmap_mapping_range`; mm-vma has it).
    fn unmap_mapping_range(&self, mapping: Id<Mapping>, pages: Range<u64>, cows: Cows);

    /// Zeroes these bytes of a frame and no others: who maps it may write next to them (Linux: `zero_user_segment`).
    fn zero_user(&self, pfn: Pfn, bytes: Range<u64>);

    /// Calls `f` with the list of nodes that hold nothing but shadows, and its lock held; a mapping's may be, too (Linux: `shadow_nodes`).
    fn shadow_nodes<R>(&self, f: impl FnOnce(&mut ShadowNodes) -> R) -> R;

    /// Counts something of the memory that a node is in (Linux: `mod_lruvec_kmem_state`).
    fn mod_kmem_state(&self, _node: Id<Node>, _stat: NodeStat, _delta: i64) {}

    /// Counts pages that came into mappings or left them (Linux: `NR_FILE_PAGES`).
    fn count_file_pages(&self, pages: i64);

    /// Whether values in the mapping's tree name slots of swap areas: shared memory. Elsewhere they are what is remembered of pages (Linux:
    /// `shmem_mapping`).
    fn is_shmem(&self, mapping: Id<Mapping>) -> bool;

    /// Counts pages of shared memory that went to swap, or came from there or are gone (Linux: `shmem_recalc_inode`, `shmem_swaplist`).
    fn count_swapped(&self, mapping: Id<Mapping>, pages: i64);

    /// No page of this shared memory is in swap, and none comes there any more: it leaves the list of what has some (Linux: `list_del_init` of
    /// `shmem_inode_info::swaplist`).
    fn forget_swapped(&self, mapping: Id<Mapping>);

    /// Counts pages of shared memory to come (Linux: `shmem_inode_acct_blocks`, `NR_SHMEM`); false if there may be no more, and none is
    /// counted.
    fn shmem_acct_blocks(&self, mapping: Id<Mapping>, pages: u64) -> bool;

    /// Ends [`Cache::shmem_acct_blocks`] for pages that are gone.
    fn shmem_unacct_blocks(&self, mapping: Id<Mapping>, pages: u64);
}
