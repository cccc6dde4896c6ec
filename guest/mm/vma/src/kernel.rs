//! What an address space needs from the kernel around it.

use mm_core::{
    Folios, PAGE_SIZE, Page, PageAlloc, PageFlags, Pfn, PhysAddr, PhysMem, PolicyAt, Rcu, VirtAddr,
};
use mm_filemap::{MappedError, MappedPage, Mapping};
use mm_pgtable::{FlushRange, TableMem};
use mm_swap::SwapIo;

use crate::anon::{AnonVma, AnonVmaChain};
use crate::id::Id;
use crate::tree::Node;
use crate::{Arena, Errno, Mm, MoveTo, VmFlags, Vma, page};

/// The kernel, as address spaces see it.
pub trait Kernel:
    Sized
    + Folios
    + PageAlloc
    + PhysMem
    + Rcu
    + SwapIo
    + Arena<Vma>
    + Arena<Node>
    + Arena<Mm>
    + Arena<AnonVma>
    + Arena<AnonVmaChain>
    + Arena<Mapping>
{
    /// The tables of an address space.
    type Tables: TableMem;

    /// Calls `f` with the tables of `mm` and their lock held (Linux: `page_table_lock`). `f` does not sleep.
    fn tables<R>(&self, mm: &Mm, f: impl FnOnce(&mut Self::Tables) -> R) -> R;

    /// The process whose address space it is, for those who tell what happens; 0 where nobody knows.
    fn owner_pid(&self, _mm: &Mm) -> u32 {
        0
    }

    /// Drops the translations in `range` on every CPU that may hold any of `mm`; returns when all have (Linux:
    /// `flush_tlb_mm_range`).
    fn flush_tlb(&self, mm: &Mm, range: FlushRange);

    /// [`Kernel::flush_tlb`] when tables were taken out too: also CPUs that run no task of `mm`, and so use no translation of it, may
    /// have pointers to them (Linux: `freed_tables`).
    fn flush_tlb_and_tables(&self, mm: &Mm, range: FlushRange) {
        self.flush_tlb(mm, range);
    }

    /// Flushes that are put off (Linux: `struct tlbflush_unmap_batch`).
    type Unflushed;

    /// The translation of `va` is dropped with the others of `unflushed` (Linux: `set_tlb_ubc_flush_pending`). Called with the tables locked in which
    /// the entry was taken out.
    fn defer_flush(&self, mm: &Mm, va: VirtAddr, unflushed: &mut Self::Unflushed);

    /// Drops the translations of `mm` that anybody put off; next to nothing where nobody did (Linux: `flush_tlb_batched_pending`).
    fn flush_deferred(&self, mm: &Mm);

    /// Takes mmap_lock for reading.
    fn mmap_read_lock(&self, mm: &Mm);

    /// Takes mmap_lock for reading if nobody holds or wants it for writing.
    fn mmap_read_trylock(&self, mm: &Mm) -> bool;

    /// Drops mmap_lock held for reading.
    fn mmap_read_unlock(&self, mm: &Mm);

    /// Takes mmap_lock for writing.
    fn mmap_write_lock(&self, mm: &Mm);

    /// Drops mmap_lock held for writing.
    fn mmap_write_unlock(&self, mm: &Mm);

    /// Calls `f` with the lock of the trees of `AnonVma`s and of the lists of `Mapping`s held (Linux: `anon_vma->root->rwsem`,
    /// `i_mmap_rwsem`; one lock for all is allowed).
    fn rmap_lock<R>(&self, f: impl FnOnce() -> R) -> R;

    /// The VMA of the last fault on this CPU, of whatever address space, for as long as its slab has not been given back: asked and told
    /// inside [`Rcu::rcu_read`] (Linux had one for each task, `vmacache`).
    fn vma_hint(&self) -> Option<Id<Vma>> {
        None
    }

    /// See [`Kernel::vma_hint`]. `id` is in a tree.
    fn set_vma_hint(&self, _id: Id<Vma>) {}

    /// Waits until there is a page, as an allocation that may sleep does: page tables and links of rmap are allocated under their locks, and
    /// fail there. No lock but mmap_lock and that of a VMA is held. False if there is none; then the caller fails (Linux allocates before
    /// it takes the lock, or without it once more).
    fn wait_for_memory(&self) -> bool {
        false
    }

    /// A moment passes for another CPU to get on.
    fn relax(&self) {
        core::hint::spin_loop();
    }

    /// The frame of zeroes that read faults map, if there is one. It is reserved: nobody counts its references. Without it
    /// they map pages of their own (Linux: `mm_forbids_zeropage`).
    fn zero_page(&self) -> Option<Pfn>;

    /// Whether this is the frame of zeroes (Linux: `is_zero_pfn`).
    fn is_zero_page(&self, pfn: Pfn) -> bool {
        self.zero_page() == Some(pfn)
    }

    /// Copies a frame.
    fn copy_page(&self, to: Pfn, from: Pfn) {
        for offset in (0..PAGE_SIZE).step_by(8) {
            let word = self.read_u64(PhysAddr::new(from.phys().as_u64() + offset));
            self.write_u64(PhysAddr::new(to.phys().as_u64() + offset), word);
        }
    }

    /// Reclaims pages, as far as that can be done, and drops the caller's references of them (Linux: `reclaim_pages`).
    fn reclaim_pages(&self, pages: &[Pfn]) {
        for pfn in pages {
            page::put(self, *pfn);
        }
    }

    /// Moves pages to where they are to be, as far as that can be done, and drops the caller's references of them; how many stayed (Linux:
    /// `isolate_lru_page`, `migrate_pages`). May sleep, and kills nobody for memory. mmap_lock may be held.
    fn migrate_pages(&self, pages: &[Pfn], _to: MoveTo) -> u64 {
        for pfn in pages {
            page::put(self, *pfn);
        }
        pages.len() as u64
    }

    /// Promises `pages` more to `mm`, or not (Linux: `security_vm_enough_memory_mm`).
    fn vm_enough_memory(&self, mm: &Mm, pages: u64) -> bool;

    /// Counts pages that were promised before under another name (Linux: `vm_acct_memory`).
    fn vm_acct_memory(&self, pages: u64);

    /// Ends a promise (Linux: `vm_unacct_memory`).
    fn vm_unacct_memory(&self, pages: u64);

    /// Whether MAP_NORESERVE means anything: not where nothing is promised that is not there (Linux: `OVERCOMMIT_NEVER`).
    fn honours_noreserve(&self) -> bool;

    /// Shared anonymous memory of that size for a VMA with `flags`, with a reference for the caller (Linux: `shmem_zero_setup`).
    ///
    /// # Errors
    /// `ENOMEM`.
    fn shmem_zero_setup(&self, bytes: u64, flags: VmFlags) -> Result<Id<Mapping>, Errno>;

    /// Adds a reference to a mapping (Linux: `get_file`).
    fn mapping_get(&self, mapping: Id<Mapping>);

    /// Drops a reference to a mapping (Linux: `fput`).
    fn mapping_put(&self, mapping: Id<Mapping>);

    /// A fault was served, `major` if it read from a device (Linux: `PGFAULT`, `PGMAJFAULT`).
    fn count_fault(&self, _major: bool) {}

    /// The page of a mapping at `at.index`; a fresh one of shared memory comes by the policy, which is the area's (Linux: `vm_ops->fault`). It is
    /// mapped only if it says then that it is at that offset of the mapping.
    ///
    /// # Errors
    /// See [`MappedError`].
    fn mapping_page(&self, mapping: Id<Mapping>, at: PolicyAt) -> Result<MappedPage, MappedError>;

    /// The page of a mapping at `index`, with a reference, if it can be mapped beside the one that a fault wants, which costs nothing but the entry (Linux:
    /// `vm_ops->map_pages`, a page at a time).
    fn mapping_ready_page(&self, _mapping: Id<Mapping>, _index: u64) -> Option<Pfn> {
        None
    }

    /// Whether a first write to a page that all may see is to be told of before, because dirty pages of the mapping are written back
    /// (Linux: `vma_wants_writenotify`).
    fn mapping_wants_writenotify(&self, _mapping: Id<Mapping>) -> bool {
        false
    }

    /// A page of such a mapping, with a reference of the caller's, is about to be written through an entry (Linux:
    /// `vm_ops->page_mkwrite`). May sleep.
    ///
    /// # Errors
    /// See [`MappedError`].
    fn page_mkwrite(&self, _mapping: Id<Mapping>, _pfn: Pfn) -> Result<(), MappedError> {
        Ok(())
    }

    /// A page of a mapping was written, or may be from now on, through an entry (Linux: `set_page_dirty`). Called with page tables locked, too.
    fn page_dirtied(&self, _pfn: Pfn, page: &Page) {
        page.insert(PageFlags::DIRTY);
    }

    /// The page, if it is in memory, without a reference (Linux: `filemap_get_incore_folio`).
    fn mapping_has_page(&self, mapping: Id<Mapping>, pgoff: u64) -> bool;

    /// Frees the bytes `offset..offset + len` of a mapping, which read as zeroes then; mmap_lock is not held (Linux: `vfs_fallocate` with
    /// `FALLOC_FL_PUNCH_HOLE`).
    ///
    /// # Errors
    /// `EOPNOTSUPP`, or another of the file system's.
    fn mapping_punch_hole(&self, mapping: Id<Mapping>, offset: u64, len: u64) -> Result<(), Errno>;
}
