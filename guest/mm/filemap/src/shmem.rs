//! Memory that is a file without a disk: shared anonymous memory, memfd, tmpfs (Linux: mm/shmem.c).
//!
//! The caller serializes calls that set the size or write, as an inode's lock does in Linux. Faults and reads may run beside them.

mod swap;

use bitflags::bitflags;
use mm_core::{Gfp, Id, MemMap, PAGE_SIZE, PageFlags, Pfn, PolicyAt};

use crate::filemap::{Bound, add_page, find_get_entry};
use crate::{
    Cache, CacheError, Cows, Entry, MappedError, MappedPage, Mapping, Seals, put_page,
    truncate_inode_pages_range, truncate_pagecache,
};
pub(crate) use swap::free_swap;
pub use swap::{move_to_swap, unuse};

/// The most bytes (Linux: `MAX_LFS_FILESIZE`).
pub const MAX_BYTES: u64 = i64::MAX.cast_unsigned();

bitflags! {
    /// `FALLOC_FL_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FallocFlags: u32 {
        /// The size stays.
        const KEEP_SIZE = 1;
        /// Frees what is there.
        const PUNCH_HOLE = 2;
        const _ = !0;
    }
}

/// The page at `at.index` for a fault; one that is not in memory comes by the policy (Linux: `shmem_fault`).
///
/// # Errors
/// [`MappedError`].
pub fn fault<K: Cache>(k: &K, id: Id<Mapping>, at: PolicyAt) -> Result<MappedPage, MappedError> {
    match get_written(k, id, at, Bound::Size) {
        Ok(pfn) => Ok(MappedPage { pfn, major: false }),
        Err(CacheError::NoMemory) => Err(MappedError::NoMemory),
        Err(_) => Err(MappedError::Sigbus),
    }
}

/// The page, with a reference, for a read; `None` for a hole, which reads as zeroes. The caller looks at the size.
///
/// # Errors
/// [`CacheError::NoMemory`]; [`CacheError::Io`] for a page that cannot be read from its swap area.
pub fn read_page<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> Result<Option<Pfn>, CacheError> {
    read_page_at(k, id, PolicyAt::of_task(index))
}

fn read_page_at<K: Cache>(k: &K, id: Id<Mapping>, at: PolicyAt) -> Result<Option<Pfn>, CacheError> {
    loop {
        match find_get_entry(k, id, at.index) {
            Entry::Frame(pfn) => return Ok(Some(pfn)),
            Entry::Value(value) if k.is_shmem(id) => {
                if let Some(pfn) = swap::swap_in(k, id, at, value)? {
                    return Ok(Some(pfn));
                }
            }
            Entry::Value(_) | Entry::Empty => return Ok(None),
        }
    }
}

/// The page, with a reference, if there is one that can be had, of any mapping (Linux: `shmem_get_partial_folio`).
pub(crate) fn get_partial<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> Option<Pfn> {
    read_page(k, id, index).ok().flatten()
}

/// The page to write to, with a reference that [`write_end`] takes (Linux: `shmem_write_begin`).
///
/// # Errors
/// [`CacheError::NoMemory`], [`CacheError::NoSpace`]; [`CacheError::TooBig`] past [`MAX_BYTES`].
pub fn write_begin<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> Result<Pfn, CacheError> {
    if index > MAX_BYTES / PAGE_SIZE {
        return Err(CacheError::TooBig);
    }
    get_written(k, id, PolicyAt::of_task(index), Bound::None)
}

/// The caller has written to the page up to byte `end` of the file (Linux: `shmem_write_end`).
pub fn write_end<K: Cache>(k: &K, id: Id<Mapping>, end: u64, pfn: Pfn) {
    let mapping: &Mapping = k.at(id);
    if end > mapping.size() {
        mapping.set_size(end);
    }
    if let Some(page) = MemMap::page(k, pfn) {
        page.insert(PageFlags::DIRTY);
    }
    put_page(k, pfn);
}

/// The page, which is data from now on.
fn get_written<K: Cache>(k: &K, id: Id<Mapping>, at: PolicyAt, bound: Bound) -> Result<Pfn, CacheError> {
    let (pfn, _) = get(k, id, at, bound, PageFlags::empty())?;
    set_written(k, pfn);
    Ok(pfn)
}

fn set_written<K: Cache>(k: &K, pfn: Pfn) {
    if let Some(page) = MemMap::page(k, pfn).filter(|page| page.has(PageFlags::UNWRITTEN)) {
        page.remove(PageFlags::UNWRITTEN);
    }
}

/// The page with a reference, and whether it is new; then it has `flags` before anybody finds it (Linux: `shmem_get_folio`).
fn get<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    at: PolicyAt,
    bound: Bound,
    flags: PageFlags,
) -> Result<(Pfn, bool), CacheError> {
    let mapping: &Mapping = k.at(id);
    loop {
        if bound == Bound::Size && at.index >= mapping.end_index() {
            return Err(CacheError::PastEnd);
        }
        if let Some(pfn) = read_page_at(k, id, at)? {
            return Ok((pfn, false));
        }
        match add_fresh(k, (id, at), bound, flags) {
            // Another was faster.
            Err(CacheError::Exists) => {}
            added => return added.map(|pfn| (pfn, true)),
        }
    }
}

/// A fresh page of zeroes where nothing is.
fn add_fresh<K: Cache>(
    k: &K,
    (id, at): (Id<Mapping>, PolicyAt),
    bound: Bound,
    flags: PageFlags,
) -> Result<Pfn, CacheError> {
    let fresh = k.alloc_page_policy(Gfp::HIGHUSER_MOVABLE | Gfp::ZERO, at);
    let fresh = fresh.ok_or(CacheError::NoMemory)?;
    if let Some(page) = MemMap::page(k, fresh) {
        page.insert(flags | PageFlags::SWAPBACKED);
    }
    if !k.shmem_acct_blocks(id, 1) {
        put_page(k, fresh);
        return Err(CacheError::NoSpace);
    }
    // A value is a page, too, in a swap area.
    let added = add_page(k, (id, at.index), fresh, bound, |seen| seen == Entry::Empty);
    added.map(|()| fresh).inspect_err(|_| {
        k.shmem_unacct_blocks(id, 1);
        put_page(k, fresh);
    })
}

/// [`set_size_sealed`] of a file without seals.
///
/// # Errors
/// [`CacheError::TooBig`].
pub fn set_size<K: Cache>(k: &K, id: Id<Mapping>, bytes: u64) -> Result<(), CacheError> {
    set_size_sealed(k, id, Seals::empty(), bytes)
}

/// Makes the file `bytes` long (Linux: `shmem_setattr` with `ATTR_SIZE`).
///
/// # Errors
/// [`CacheError::TooBig`], [`CacheError::Sealed`].
pub fn set_size_sealed<K: Cache>(k: &K, id: Id<Mapping>, seals: Seals, bytes: u64) -> Result<(), CacheError> {
    if bytes > MAX_BYTES {
        return Err(CacheError::TooBig);
    }
    let mapping: &Mapping = k.at(id);
    let old = mapping.size();
    seals.check_resize(old, bytes)?;
    mapping.set_size(bytes);
    if bytes <= old {
        let removed = truncate_pagecache(k, id, bytes);
        k.shmem_unacct_blocks(id, removed);
    }
    Ok(())
}

/// [`fallocate_sealed`] of a file without seals.
///
/// # Errors
/// [`CacheError`].
pub fn fallocate<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    mode: FallocFlags,
    offset: u64,
    len: u64,
) -> Result<(), CacheError> {
    fallocate_sealed(k, id, Seals::empty(), &Fallocate { mode, offset, len })
}

/// Arguments of fallocate.
#[derive(Clone, Copy, Debug)]
pub struct Fallocate {
    /// What to do.
    pub mode: FallocFlags,
    /// From this byte on.
    pub offset: u64,
    /// To so many bytes.
    pub len: u64,
}

/// Allocates pages, or frees them (Linux: `shmem_fallocate` after `vfs_fallocate`).
///
/// Differs from Linux: pages that were allocated before memory ran out stay.
///
/// # Errors
/// [`CacheError`].
pub fn fallocate_sealed<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    seals: Seals,
    request: &Fallocate,
) -> Result<(), CacheError> {
    let Fallocate { mode, offset, len } = *request;
    if len == 0 || offset > MAX_BYTES || len > MAX_BYTES {
        return Err(CacheError::Invalid);
    }
    if !(FallocFlags::KEEP_SIZE | FallocFlags::PUNCH_HOLE).contains(mode)
        || mode & (FallocFlags::KEEP_SIZE | FallocFlags::PUNCH_HOLE) == FallocFlags::PUNCH_HOLE
    {
        return Err(CacheError::NotSupported);
    }
    let end = offset.checked_add(len).filter(|end| *end <= MAX_BYTES).ok_or(CacheError::TooBig)?;
    if mode.contains(FallocFlags::PUNCH_HOLE) {
        seals.check_punch()?;
        punch_hole(k, id, offset, end);
        return Ok(());
    }
    let mapping: &Mapping = k.at(id);
    seals.check_allocate(end, mapping.size())?;
    for index in offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE) {
        let (pfn, new) = get(k, id, PolicyAt::of_task(index), Bound::None, PageFlags::UNWRITTEN)?;
        if !new {
            // What is allocated twice is data, as on Linux.
            set_written(k, pfn);
        }
        put_page(k, pfn);
    }
    if !mode.contains(FallocFlags::KEEP_SIZE) && end > mapping.size() {
        mapping.set_size(end);
    }
    Ok(())
}

fn punch_hole<K: Cache>(k: &K, id: Id<Mapping>, start: u64, end: u64) {
    let removed = truncate_inode_pages_range(k, id, start..end);
    k.shmem_unacct_blocks(id, removed);
    let pages = start.div_ceil(PAGE_SIZE)..end / PAGE_SIZE;
    if pages.start < pages.end {
        k.unmap_mapping_range(id, pages, Cows::Keep);
    }
}

/// The last user of the mapping is gone: frees all pages (Linux: `shmem_evict_inode`). Nobody maps them.
pub fn evict<K: Cache>(k: &K, id: Id<Mapping>) {
    let removed = truncate_inode_pages_range(k, id, 0..u64::MAX);
    // After it: as long as there is a page, reclaim may give it a slot.
    k.forget_swapped(id);
    k.shmem_unacct_blocks(id, removed);
}
