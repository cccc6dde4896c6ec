//! The lock of a VMA: page faults go on beside a writer that works elsewhere (Linux: `vma_start_read`,
//! `vma_start_write`, include/linux/mmap_lock.h).
//!
//! `refcount` is 0 for a descriptor that is in no tree, else 1 plus the readers, plus [`WRITER`] while a writer waits for
//! them. A writer holds mmap_lock, waits for the readers once and then stamps the VMA with the address space's
//! `lock_seq`: the VMA stays locked until the writer drops mmap_lock and so makes `lock_seq` another number. A reader:
//!
//! 1. walks the tree without any lock, and may find anything, a descriptor of another address space included;
//! 2. adds itself to `refcount`, unless that is 0 or a writer waits;
//! 3. looks whether the stamp is the number of a writer that is still at work, whether the descriptor belongs to this
//!    address space, and whether it holds the address; if not it steps back and takes mmap_lock.
//!
//! Only after 3 does it believe the VMA's fields, and nobody changes them until it has gone.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::id::Id;
use crate::{Kernel, Mm, Vma};

const ATTACHED: u32 = 1;
const WRITER: u32 = 0x4000_0000;

impl Vma {
    /// In a tree from now on; nobody else knew the descriptor.
    pub(crate) fn attach(&self, mm: Id<Mm>) {
        self.mm.store(Some(mm));
        self.refcount.store(ATTACHED, Release);
    }

    /// In no tree any more. The VMA is locked for writing, so there are no readers.
    pub(crate) fn detach(&self) {
        self.refcount.store(0, Release);
        self.mm.store(None);
    }

    /// Locks the VMA until mmap_lock, held for writing, is dropped (Linux: `vma_start_write`).
    pub(crate) fn start_write<K: Kernel>(&self, k: &K, mm: &Mm) {
        let seq = mm.lock_seq.load(Relaxed);
        debug_assert!(seq % 2 == 1, "a VMA is written to without mmap_lock");
        if self.lock_seq.load(Relaxed) == seq || self.refcount.load(Relaxed) == 0 {
            return;
        }
        self.refcount.fetch_add(WRITER, AcqRel);
        while self.refcount.load(Acquire) != ATTACHED | WRITER {
            k.relax();
        }
        self.lock_seq.store(seq, Release);
        self.refcount.fetch_sub(WRITER, AcqRel);
    }

    /// Linux: `vma_start_read`, without the checks after it.
    fn try_read(&self) -> bool {
        let mut now = self.refcount.load(Relaxed);
        while now != 0 && now & WRITER == 0 {
            match self.refcount.compare_exchange_weak(now, now + 1, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }

    /// Locks the VMA for reading, without the checks after it.
    fn read(&self, id: Id<Vma>) -> Option<VmaRead<'_>> {
        // Not `then_some`: a lock that was never taken would be made, and given back.
        self.try_read().then(|| VmaRead { id, vma: self })
    }
}

/// A VMA whose fields stay as they are: it is locked for reading.
#[derive(Debug)]
pub struct VmaRead<'a> {
    id: Id<Vma>,
    vma: &'a Vma,
}

impl<'a> VmaRead<'a> {
    /// Its number.
    pub fn id(&self) -> Id<Vma> {
        self.id
    }

    /// The VMA.
    pub fn vma(&self) -> &'a Vma {
        self.vma
    }
}

impl Drop for VmaRead<'_> {
    fn drop(&mut self) {
        self.vma.refcount.fetch_sub(1, Release);
    }
}

impl Mm {
    /// The VMA that holds `addr`, locked for reading, without mmap_lock. `None` if there is none, and also when a writer is
    /// in the way: the caller then takes mmap_lock (Linux: `lock_vma_under_rcu`).
    pub fn lock_vma<'k, K: Kernel>(&self, k: &'k K, mm: Id<Mm>, addr: u64) -> Option<VmaRead<'k>> {
        // Locked, it stays a VMA.
        let read = k.rcu_read(|| {
            let id = self.tree.find(k, addr)?;
            k.at(id).read(id)
        })?;
        let vma = read.vma;
        let current = vma.lock_seq.load(Relaxed) == self.lock_seq.load(Acquire);
        let ours = vma.mm.load() == Some(mm);
        (!current && ours && vma.start() <= addr && addr < vma.end()).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_is_refused_changes_nothing() {
        let (vma, id) = (Vma::default(), Id::new(1).expect("not zero"));
        assert!(vma.read(id).is_none(), "it is in no tree");
        assert_eq!(vma.refcount.load(Relaxed), 0);
        vma.refcount.store(ATTACHED, Relaxed);
        let reader = vma.read(id).expect("nobody writes");
        vma.refcount.fetch_add(WRITER, Relaxed);
        assert!(vma.read(id).is_none(), "a writer waits for the first reader");
        assert_eq!(vma.refcount.load(Relaxed), WRITER | (ATTACHED + 1));
        drop(reader);
        assert_eq!(vma.refcount.load(Relaxed), WRITER | ATTACHED);
    }
}
