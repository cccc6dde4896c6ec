//! Frames that a driver maps: memory that it allocated, or registers of a device (Linux: mm/memory.c, `remap_pfn_range`,
//! `io_remap_pfn_range`, `vm_iomap_memory`).
//!
//! Nobody counts such a mapping: the frame's descriptor, if it has one, stays the driver's, and no list leads from it to the
//! entry. The driver keeps the frames for as long as its file can be mapped.
//!
//! A private mapping that may be written is copied on write, as any other. Its page offset becomes the number of its first frame,
//! as on Linux, so a driver maps all of such a VMA in one piece.

use mm_core::{PAGE_SHIFT, Pfn};
use mm_pgtable::{CacheMode, TableMem};

use crate::pte;
use crate::{Errno, Kernel, Space, VmFlags};

/// Frames of a driver, as one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// The first, at offset 0 of the file.
    pub first: Pfn,
    /// How many.
    pub pages: u64,
    /// How they are to be cached: device registers are not.
    pub cache: CacheMode,
}

impl Frames {
    /// The frame at page offset `pgoff`, if `pages` from there on are all the driver's (Linux: `vm_iomap_memory`).
    ///
    /// # Errors
    /// `EINVAL` past the end.
    pub fn at(&self, pgoff: u64, pages: u64) -> Result<Pfn, Errno> {
        let fits = pgoff.checked_add(pages).is_some_and(|end| end <= self.pages);
        if fits { Ok(Pfn::new(self.first.as_u64() + pgoff)) } else { Err(Errno::Einval) }
    }
}

impl<K: Kernel> Space<'_, K> {
    /// Maps the driver's frames from `pgoff` on in the whole VMA that begins at `addr` and has nothing yet.
    ///
    /// # Errors
    /// `EINVAL` past the end of the frames, `ENOMEM`; what was mapped until then stays.
    pub(crate) fn remap_pfn_range(&self, addr: u64, pgoff: u64, frames: Frames) -> Result<(), Errno> {
        let id = self.lookup(addr).ok_or(Errno::Einval)?;
        let vma = self.vma(id);
        let first = frames.at(pgoff, vma.pages())?;
        let flags = vma.flags();
        debug_assert!(flags.contains(VmFlags::REMAPPED), "file_flags has them");
        if flags.is_cow() {
            self.resize(id, vma.start(), vma.end(), first.as_u64());
        }
        let prot = mm_pgtable::Prot { cache: frames.cache, ..vma.page_prot() };
        for page in 0..vma.pages() {
            let pfn = Pfn::new(first.as_u64() + page);
            let entry = pte::special(pfn, prot.flags(), flags.is_accessible());
            self.k.tables(self.mm, |tables| {
                let slot = pte::make(tables, self.mm, vma.start() + (page << PAGE_SHIFT));
                let (table, index) = slot.ok_or(Errno::Enomem)?;
                tables.write(table, index, entry.as_u64());
                Ok(())
            })?;
        }
        Ok(())
    }
}
