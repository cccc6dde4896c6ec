//! Where a file has data, and where holes (Linux: mm/filemap.c, `mapping_seek_hole_data`).

use mm_core::{Arena, Id, MemMap, PAGE_SIZE, PageFlags};

use crate::filemap::{find_get_entry, next_page};
use crate::{Cache, Entry, Mapping, put_page};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`; the end of the file is one.
    Hole,
}

/// The first byte at or after `offset` that is data, or lies in a hole; `None` at or past the end, and if there is no more data. Pages
/// that were allocated and never written are holes.
pub fn seek_hole_data<K: Cache>(k: &K, id: Id<Mapping>, offset: u64, what: Seek) -> Option<u64> {
    let size = Arena::<Mapping>::at(k, id).size();
    let last = size.checked_sub(1).filter(|last| offset <= *last)? / PAGE_SIZE;
    let mut index = offset / PAGE_SIZE;
    let at = |index: u64| offset.max(index * PAGE_SIZE);
    while index <= last {
        let found = match what {
            Seek::Data => next_page(k, id, index, last)?,
            Seek::Hole => index,
        };
        if is_data(k, id, found) == (what == Seek::Data) {
            return Some(at(found));
        }
        index = found + 1;
    }
    (what == Seek::Hole).then_some(size)
}

fn is_data<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> bool {
    let pfn = match find_get_entry(k, id, index) {
        Entry::Frame(pfn) => Some(pfn),
        // What is in swap was written.
        Entry::Value(_) => return k.is_shmem(id),
        Entry::Empty => None,
    };
    pfn.is_some_and(|pfn| {
        let written = MemMap::page(k, pfn).is_some_and(|page| !page.has(PageFlags::UNWRITTEN));
        put_page(k, pfn);
        written
    })
}
