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
        // A kernel maps its descriptors and its direct map in large pages, for every allocator alike. Where the host has
        // none to give, all are slower.
        // SAFETY: the mapping just made; advice changes no contents.
        let _advised = unsafe { madvise(whole, len, Advice::LinuxHugepage) };
        let aligned = whole.map_addr(|address| address.next_multiple_of(ALIGN));
        Reserved { start: NonNull::new(aligned).expect("not null"), whole, bytes: len }
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
