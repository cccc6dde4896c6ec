//! What can be mapped (Linux: `struct address_space`).

use core::mem::offset_of;
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use memvisor_abi as abi;
use mm_core::{Id, MemMap, PAGE_SIZE};

use crate::{Cache, Entry, Tree};

/// The pages of a file or of shared anonymous memory, and who maps them. Its number is what `Page::mapping` of its pages
/// holds. All zero is one without pages.
///
/// Differs from Linux: the size is here and not in an inode, because faults ask for it.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Mapping {
    i_mmap: AtomicU64,
    i_pages: Tree,
    nrpages: AtomicU64,
    size: AtomicU64,
}

// What the kernel adds begins at `references`.
const _: () = assert!(
    size_of::<Mapping>() == offset_of!(abi::Mapping, references)
        && offset_of!(Mapping, i_mmap) == offset_of!(abi::Mapping, vmas)
        && offset_of!(Mapping, i_pages) == offset_of!(abi::Mapping, root)
        && offset_of!(Mapping, nrpages) == offset_of!(abi::Mapping, nrpages)
        && offset_of!(Mapping, size) == offset_of!(abi::Mapping, size)
        && offset_of!(Tree, marks) == offset_of!(abi::Mapping, marks) - offset_of!(abi::Mapping, root)
        && offset_of!(Tree, changes) == offset_of!(abi::Mapping, changes) - offset_of!(abi::Mapping, root)
);

/// What is broken in a mapping, and at which index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The invariant.
    pub what: &'static str,
    /// Page offset, or 0.
    pub index: u64,
}

impl Mapping {
    /// Makes a new mapping of an object that the arena gave; nobody else knows it.
    pub fn init(&self, size: u64) {
        debug_assert!(self.i_pages.is_empty() && self.nrpages() == 0, "a free mapping has pages");
        self.i_mmap.store(0, Relaxed);
        self.size.store(size, Release);
    }

    /// The first of the VMAs that map it, by number; mm-vma's.
    pub const fn i_mmap(&self) -> &AtomicU64 {
        &self.i_mmap
    }

    /// The pages.
    pub const fn i_pages(&self) -> &Tree {
        &self.i_pages
    }

    /// Pages in the tree.
    pub fn nrpages(&self) -> u64 {
        self.nrpages.load(Relaxed)
    }

    /// Under the lock.
    pub(crate) fn add_nrpages(&self, pages: i64) {
        self.nrpages.store(self.nrpages().wrapping_add_signed(pages), Relaxed);
    }

    /// Bytes (Linux: `i_size_read`).
    pub fn size(&self) -> u64 {
        self.size.load(Acquire)
    }

    /// Sets the size alone; see [`crate::shmem::set_size`] (Linux: `i_size_write`).
    pub fn set_size(&self, bytes: u64) {
        self.size.store(bytes, Release);
    }

    /// The first page offset past the end.
    pub fn end_index(&self) -> u64 {
        self.size().div_ceil(PAGE_SIZE)
    }

    /// Checks X1 to X4 of the tree and C1, while nobody changes the mapping.
    ///
    /// # Errors
    /// The first thing that is broken.
    pub fn audit<K: Cache>(k: &K, id: Id<Mapping>) -> Result<(), Broken> {
        let mapping: &Mapping = k.at(id);
        let (mut pages, mut first) = (0, Ok(()));
        let walked = mapping.i_pages.audit(k, |index, entry| {
            let Entry::Frame(pfn) = entry else { return };
            pages += 1;
            let said = MemMap::page(k, pfn).map(|page| (page.owner(), page.refcount(), page.mapcount()));
            let what = match said {
                None => "C1: a cached page is RAM",
                Some((owner, ..)) if owner != (id.as_u64(), index) => "C1: a cached page says where it is",
                Some((_, refcount, mapcount)) if refcount < mapcount + 2 => "C1: the cache has a reference",
                Some(_) => return,
            };
            if first.is_ok() {
                first = Err(Broken { what, index });
            }
        });
        walked.map_err(|what| Broken { what, index: 0 })?;
        first?;
        if pages == mapping.nrpages() { Ok(()) } else { Err(Broken { what: "C1: nrpages", index: 0 }) }
    }
}
