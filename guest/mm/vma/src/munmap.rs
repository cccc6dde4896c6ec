//! munmap (Linux: mm/vma.c, `do_vmi_munmap`).

use mm_core::Event;
use mm_filemap::Cows;

use crate::gather::Gather;
use crate::space::{is_page_aligned, page_align};
use crate::{Errno, Kernel, Mm, Space, VmFlags, zap};

/// Where the check of a range failed or how far it goes.
pub(crate) fn check_range(mm: &Mm, start: u64, len: u64) -> Result<u64, Errno> {
    let task_size = mm.task_size();
    if !is_page_aligned(start) || start > task_size || len > task_size - start {
        return Err(Errno::Einval);
    }
    let end = start + page_align(len);
    if end == start { Err(Errno::Einval) } else { Ok(end) }
}

impl<K: Kernel> Space<'_, K> {
    /// Unmaps `start..start + len`; holes are passed over.
    ///
    /// # Errors
    /// `EINVAL` for a range that is no range of user space, `ENOMEM` where a VMA would have to be split and must not.
    pub fn munmap(&self, start: u64, len: u64) -> Result<(), Errno> {
        let end = check_range(self.mm, start, len)?;
        self.unmap_range(start, end)
    }

    /// Linux: `do_vmi_align_munmap`. The range is aligned and not empty.
    pub(crate) fn unmap_range(&self, start: u64, end: u64) -> Result<(), Errno> {
        let Some(first) = self.intersection(start, end) else { return Ok(()) };
        let mut id = first;
        if self.vma(id).start() < start {
            // One VMA becomes two, and nothing goes away.
            if end < self.vma(id).end() && self.mm.map_count() >= self.limits.max_map_count {
                return Err(Errno::Enomem);
            }
            id = self.split_unlimited(id, start)?;
        }
        if let Some(last) = self.intersection(end - 1, end)
            && self.vma(last).end() > end
        {
            self.split_unlimited(last, end)?;
        }
        self.k.emit(Event::UnmapRegion { start, end });
        let mut gather = Gather::new(self.mm);
        let mut next = Some(id);
        while let Some(id) = next {
            let vma = self.vma(id);
            if vma.start() >= end {
                break;
            }
            next = vma.next();
            let range = vma.start()..vma.end();
            // Tables that a neighbour needs stay with it (Linux: floor and ceiling of `free_pgtables`).
            let floor = vma.prev().map_or(0, |below| self.vma(below).end());
            let ceiling =
                next.map_or(self.mm.page_table().levels.half_len(), |above| self.vma(above).start());
            self.forget(id);
            self.remove(id);
            zap::zap(self.k, self.mm, range.clone(), Cows::Unmap, &mut gather);
            zap::free_tables(self.k, self.mm, range, &(floor..ceiling), &mut gather);
            self.free(id);
        }
        gather.finish(self.k, self.mm);
        Ok(())
    }

    /// Takes a VMA out of the counts.
    fn forget(&self, id: crate::Id<crate::Vma>) {
        let vma = self.vma(id);
        let pages = vma.pages();
        if vma.flags().contains(VmFlags::LOCKED) {
            self.mm.set_locked_vm(self.mm.locked_vm().saturating_sub(pages));
        }
        if vma.flags().contains(VmFlags::ACCOUNT) {
            self.k.vm_unacct_memory(pages);
        }
        self.mm.account(vma.flags(), -pages.cast_signed());
    }

    /// Unmaps everything and gives the tree's nodes back: the last user of the address space is gone (Linux:
    /// `exit_mmap`). The root table stays; the caller frees it.
    pub fn exit(self) {
        let task_size = self.mm.task_size();
        let done = self.unmap_range(0, task_size);
        debug_assert!(done.is_ok(), "everything can be unmapped without a split");
        self.mm.tree.destroy(self.k);
    }
}
