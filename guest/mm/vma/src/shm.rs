//! Finding the VMAs of shared memory: those of a System V attachment, and those that may write (Linux: ipc/shm.c, `ksys_shmdt`;
//! mm/memfd.c).

use mm_core::PAGE_SHIFT;

use crate::id::Id;
use crate::space::{is_page_aligned, page_align};
use crate::{Arena, Errno, Kernel, Mapping, Space, VmFlags, Vma, rmap};

/// Whether anybody maps it shared and writes there, or may by mprotect (Linux: `mapping_writably_mapped`).
pub fn mapping_writably_mapped<K: Kernel>(k: &K, mapping: Id<Mapping>) -> bool {
    let writes = VmFlags::SHARED | VmFlags::MAYWRITE;
    k.rmap_lock(|| rmap::sharers(k, mapping).any(|id| Arena::<Vma>::at(k, id).flags().contains(writes)))
}

impl<K: Kernel> Space<'_, K> {
    /// Unmaps what is left of the segment that was attached at `addr`: every VMA that maps it where it would lie then. `size_of`
    /// gives the size of a segment in bytes, and `None` for a mapping that is none.
    ///
    /// # Errors
    /// `EINVAL` if none was.
    pub fn shmdt(&self, addr: u64, size_of: impl Fn(Id<Mapping>) -> Option<u64>) -> Result<(), Errno> {
        if !is_page_aligned(addr) {
            return Err(Errno::Einval);
        }
        let in_place = |vma: &Vma| (vma.start() - addr) >> PAGE_SHIFT == vma.pgoff();
        let segment = |vma: &Vma| vma.mapping().and_then(|id| Some((id, size_of(id)?)));
        // As Linux does, the first part is looked for without a bound.
        let mut next = self.find(addr);
        let mut found = None;
        while let Some(id) = next {
            let vma = self.vma(id);
            next = vma.next();
            if vma.start() < addr {
                continue;
            }
            match (found, segment(vma)) {
                (None, Some((mapping, size))) if in_place(vma) => found = Some((mapping, size)),
                (Some((_, size)), _) if vma.end() - addr > page_align(size) => break,
                (Some((mapping, _)), Some((other, _))) if mapping == other && in_place(vma) => {}
                _ => continue,
            }
            self.unmap_range(vma.start(), vma.end())?;
        }
        if found.is_some() { Ok(()) } else { Err(Errno::Einval) }
    }
}
