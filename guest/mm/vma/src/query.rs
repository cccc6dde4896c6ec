//! mincore and msync (Linux: mm/mincore.c, mm/msync.c).

use bitflags::bitflags;
use mm_core::{PAGE_SHIFT, PAGE_SIZE};

use crate::pte::{self, Pte};
use crate::space::{is_page_aligned, page_align};
use crate::{Errno, Kernel, Space, VmFlags};

bitflags! {
    /// `MS_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MsyncFlags: u64 {
        /// Soon.
        const ASYNC = 1;
        /// Others' copies are dropped.
        const INVALIDATE = 2;
        /// Now.
        const SYNC = 4;
        const _ = !0;
    }
}

impl<K: Kernel> Space<'_, K> {
    /// Tells for every page of the range whether it is in memory, by `f(page number from 0, resident)`.
    ///
    /// # Errors
    /// `EINVAL` for a bad address, `ENOMEM` for a range outside user space, and at the first hole, after all below it was
    /// told.
    pub fn mincore(&self, start: u64, len: u64, mut f: impl FnMut(u64, bool)) -> Result<(), Errno> {
        if !is_page_aligned(start) {
            return Err(Errno::Einval);
        }
        let task_size = self.mm.task_size();
        if len > task_size || start > task_size - len {
            return Err(Errno::Enomem);
        }
        let end = start + page_align(len);
        let mut va = start;
        while va < end {
            let vma = self.vma(self.lookup(va).ok_or(Errno::Enomem)?);
            let stop = vma.end().min(end);
            while va < stop {
                let entry = self.k.tables(self.mm, |tables| pte::read(tables, self.mm.page_table(), va));
                let resident = match (pte::decode(entry), vma.mapping()) {
                    (Pte::Page(_) | Pte::Migration(_) | Pte::Special(_), _) => true,
                    (Pte::Empty, Some(mapping)) => self.k.mapping_has_page(mapping, vma.index_of(va)),
                    (Pte::Empty, None) => false,
                };
                f((va - start) >> PAGE_SHIFT, resident);
                va += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// Checks a range for msync. Writing files back is the caller's, for each VMA of a file; shared anonymous memory has
    /// nowhere to be written to.
    ///
    /// # Errors
    /// `EINVAL` for bad arguments, `EBUSY` for INVALIDATE of what is mlocked, `ENOMEM` for holes.
    pub fn msync(&self, start: u64, len: u64, flags: MsyncFlags) -> Result<(), Errno> {
        let known = MsyncFlags::ASYNC | MsyncFlags::INVALIDATE | MsyncFlags::SYNC;
        if flags.bits() & !known.bits() != 0
            || !is_page_aligned(start)
            || flags.contains(MsyncFlags::ASYNC | MsyncFlags::SYNC)
        {
            return Err(Errno::Einval);
        }
        let end = start.wrapping_add(page_align(len));
        if end < start {
            return Err(Errno::Enomem);
        }
        let mut at = start;
        let mut holes = Ok(());
        while at < end {
            let vma = self.vma(self.find(at).ok_or(Errno::Enomem)?);
            if at < vma.start() {
                if flags == MsyncFlags::ASYNC || vma.start() >= end {
                    return Err(Errno::Enomem);
                }
                holes = Err(Errno::Enomem);
            }
            if flags.contains(MsyncFlags::INVALIDATE) && vma.flags().contains(VmFlags::LOCKED) {
                return Err(Errno::Ebusy);
            }
            at = vma.end();
        }
        holes
    }
}
