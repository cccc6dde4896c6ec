//! The page cache of the kernel on the host.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use mm_core::{Pfn, PhysAddr, PhysMem, Rcu};
use mm_filemap::{Cache, ShadowNodes};
use mm_vma::{Cows, Id, Mapping, unmap_mapping_range};

use super::TestKernel;

impl Rcu for TestKernel {
    fn rcu_read<R>(&self, f: impl FnOnce() -> R) -> R {
        // Objects are never anything else.
        f()
    }
}

impl Cache for TestKernel {
    fn pages_lock<R>(&self, _mapping: Id<Mapping>, f: impl FnOnce() -> R) -> R {
        let _held = self.pages_lock.try_lock().expect("the mapping's lock is not held");
        f()
    }

    fn shadow_nodes<R>(&self, f: impl FnOnce(&mut ShadowNodes) -> R) -> R {
        // All is shared memory here.
        f(&mut ShadowNodes::new())
    }

    fn unmap_mapping_range(&self, mapping: Id<Mapping>, pages: Range<u64>, cows: Cows) {
        unmap_mapping_range(self, mapping, pages, cows);
    }

    fn zero_user(&self, pfn: Pfn, bytes: Range<u64>) {
        for at in bytes {
            let addr = PhysAddr::new(pfn.phys().as_u64() + at / 8 * 8);
            let word = self.read_u64(addr) & !(0xff << (at % 8 * 8));
            self.write_u64(addr, word);
        }
    }

    fn count_file_pages(&self, _pages: i64) {}

    fn is_shmem(&self, _mapping: Id<Mapping>) -> bool {
        true
    }

    fn count_swapped(&self, _mapping: Id<Mapping>, _pages: i64) {}

    fn forget_swapped(&self, _mapping: Id<Mapping>) {}

    fn shmem_acct_blocks(&self, _mapping: Id<Mapping>, pages: u64) -> bool {
        self.shmem.fetch_add(pages, Relaxed);
        true
    }

    fn shmem_unacct_blocks(&self, _mapping: Id<Mapping>, pages: u64) {
        self.shmem.fetch_sub(pages, Relaxed);
    }
}
