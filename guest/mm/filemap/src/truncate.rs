//! Taking ranges of pages out (Linux: mm/truncate.c).

use core::ops::Range;

use mm_core::{Id, MemMap, PAGE_SIZE, PageFlags, Pfn};

use crate::filemap::{count_page, erase};
use crate::{Cache, Cows, Entry, Mapping, put_page, shmem};

/// Pages that are taken out in one holding of the lock (Linux: `PAGEVEC_SIZE`).
const BATCH: usize = 32;

/// Takes every page out that lies in these bytes, and zeroes the bytes in pages that lie there in part. Returns how
/// many pages went. `u64::MAX` ends nowhere. What is mapped stays so: see [`truncate_pagecache`] (Linux:
/// `truncate_inode_pages_range`).
pub fn truncate_inode_pages_range<K: Cache>(k: &K, id: Id<Mapping>, bytes: Range<u64>) -> u64 {
    let (start, end) = (bytes.start, bytes.end);
    if start >= end {
        return 0;
    }
    let whole = start.div_ceil(PAGE_SIZE)..if end == u64::MAX { u64::MAX } else { end / PAGE_SIZE };
    if start % PAGE_SIZE != 0 {
        let page = start / PAGE_SIZE;
        zero(k, id, page, start % PAGE_SIZE..(end - page * PAGE_SIZE).min(PAGE_SIZE));
    }
    if end != u64::MAX && end % PAGE_SIZE != 0 && whole.start <= whole.end {
        zero(k, id, whole.end, 0..end % PAGE_SIZE);
    }
    remove(k, id, whole, |_| true)
}

fn zero<K: Cache>(k: &K, id: Id<Mapping>, index: u64, bytes: Range<u64>) {
    let Some(pfn) = shmem::get_partial(k, id, index) else { return };
    k.zero_user(pfn, bytes);
    if let Some(page) = MemMap::page(k, pfn) {
        page.insert(PageFlags::DIRTY);
    }
    put_page(k, pfn);
}

/// Takes pages out for which `wanted` says so under the lock, and values; how many pages went. Of shared memory the values are pages, too,
/// in swap areas, and give their slots back.
fn remove<K: Cache>(k: &K, id: Id<Mapping>, pages: Range<u64>, wanted: impl Fn(Pfn) -> bool) -> u64 {
    let mapping: &Mapping = k.at(id);
    let is_shmem = k.is_shmem(id);
    let Some(last) = pages.end.checked_sub(1).filter(|last| pages.start <= *last) else { return 0 };
    let (mut next, mut all) = (Some(pages.start), 0);
    while let Some(from) = next {
        let mut taken = [Entry::Empty; BATCH];
        next = k.pages_lock(id, || {
            let mut from = Some(from);
            for slot in &mut taken {
                let (index, entry) = mapping.i_pages().next(k, from?, last)?;
                from = index.checked_add(1);
                match entry {
                    Entry::Frame(pfn) if !wanted(pfn) => {}
                    _ => {
                        erase(k, id, index);
                        *slot = entry;
                    }
                }
            }
            from
        });
        let (mut count, mut swapped) = (0, 0);
        for entry in taken {
            match entry {
                Entry::Frame(pfn) => {
                    if let Some(page) = MemMap::page(k, pfn) {
                        count_page(k, page, -1);
                    }
                    put_page(k, pfn);
                    count += 1;
                }
                Entry::Value(value) if is_shmem => {
                    shmem::free_swap(k, value);
                    swapped += 1;
                }
                Entry::Value(_) | Entry::Empty => {}
            }
        }
        if swapped > 0 {
            k.count_swapped(id, -swapped);
        }
        all += (count + swapped).cast_unsigned();
    }
    all
}

/// Takes out what reclaim left in the place of a page; false if something else is at `index` by now (Linux: `clear_shadow_entry`). Not for
/// shared memory, whose values are pages.
pub fn clear_shadow_entry<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> bool {
    let mapping: &Mapping = k.at(id);
    k.pages_lock(id, || {
        let found = matches!(mapping.i_pages().load(k, index), Entry::Value(_));
        if found {
            erase(k, id, index);
        }
        found
    })
}

/// Ends the file at `size`: what lies behind leaves the cache and all address spaces, private copies too (Linux:
/// `truncate_pagecache`). The caller has set the size. Returns how many pages went.
pub fn truncate_pagecache<K: Cache>(k: &K, id: Id<Mapping>, size: u64) -> u64 {
    let removed = truncate_inode_pages_range(k, id, size..u64::MAX);
    // After it: no page comes back, and none of those that went is mapped any more (C3).
    k.unmap_mapping_range(id, size.div_ceil(PAGE_SIZE)..u64::MAX, Cows::Unmap);
    removed
}

/// Takes out what reclaim left in the places of pages, and no page (Linux: `invalidate_exceptional_entry`). Not for shared memory, whose values
/// are pages.
pub fn clear_shadow_entries<K: Cache>(k: &K, id: Id<Mapping>, pages: Range<u64>) {
    if !k.is_shmem(id) {
        remove(k, id, pages, |_| false);
    }
}
