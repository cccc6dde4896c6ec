//! Address space that costs nothing until it is touched.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A mapping of zeroes, aligned to 4 MiB.
pub struct Reserved {
    start: NonNull<c_void>,
    whole: *mut c_void,
    bytes: usize,
}

// SAFETY: a mapping belongs to no thread.
unsafe impl Send for Reserved {}
// SAFETY: as above.
unsafe impl Sync for Reserved {}

const ALIGN: usize = 4 << 20;

impl Reserved {
    /// `bytes` of address space.
    pub fn new(bytes: usize) -> Reserved {
        let len = bytes + ALIGN;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let whole = unsafe {
            mmap_anonymous(
                null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let whole = whole.expect("address space");
        let aligned = whole.map_addr(|address| address.next_multiple_of(ALIGN));
        Reserved { start: NonNull::new(aligned).expect("not null"), whole, bytes: len }
    }

    /// The same for tables of an allocator that leaves frames alone: in large pages, as a kernel maps its tables. Not
    /// for allocators that write into frames, whom the host would make wait for the clearing of 2 MiB.
    pub fn for_tables(bytes: usize) -> Reserved {
        let memory = Reserved::new(bytes);
        // SAFETY: the mapping just made; advice changes no contents. Where the host has no large pages, all are slower.
        let _advised = unsafe { madvise(memory.whole, memory.bytes, Advice::LinuxHugepage) };
        memory
    }

    /// First byte.
    #[inline]
    pub fn address(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nobody uses it after its owner.
        let _unmapped = unsafe { munmap(self.whole, self.bytes) };
    }
}
