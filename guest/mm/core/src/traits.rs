//! What the memory manager needs from the machine.

use crate::{Gfp, Order, Page, Pageblock, Pfn, PhysAddr, Trace};

/// The descriptors of all frames (Linux: `pfn_to_page` with `pfn_valid`).
pub trait MemMap: Trace {
    /// The descriptor of `pfn`; `None` for a frame in a hole or in a section that is not online.
    fn page(&self, pfn: Pfn) -> Option<&Page>;

    /// The descriptors of `pfn` and of as many frames after it as lie contiguously in the memmap,
    /// at least to the end of its section where that is known; empty if `pfn` has none. Loops over
    /// ranges use it to look a section up once and not once a frame.
    fn pages(&self, pfn: Pfn) -> &[Page] {
        self.page(pfn).map_or(&[], core::slice::from_ref)
    }

    /// The pageblock that holds `pfn`; `None` where there is no section. A pageblock exists before the
    /// descriptors of its frames do.
    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock>;
}

/// Word access to RAM by physical address. Safe: an implementation refuses, by panic, addresses
/// outside RAM and frames that belong to Rust objects.
pub trait PhysMem {
    /// Reads the aligned word at `addr`.
    fn read_u64(&self, addr: PhysAddr) -> u64;

    /// Writes the aligned word at `addr`.
    fn write_u64(&self, addr: PhysAddr, value: u64);

    /// Fills the frame with zeroes.
    fn zero_frame(&self, pfn: Pfn);
}

/// The page allocator, as its users in the memory manager see it.
pub trait PageAlloc: Trace {
    /// A block of `2^order` frames near `node`, without a preference if that is `None`. Its first frame has one
    /// reference. `None` if nothing that `gfp` allows makes one free.
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<u32>) -> Option<Pfn>;

    /// Drops the last reference of a block (Linux: `__free_pages`).
    fn free_pages(&self, pfn: Pfn, order: Order);
}

/// Data of which every CPU has its own (Linux: `DEFINE_PER_CPU` under `local_lock_irqsave`).
///
/// The closure runs pinned to its CPU and with interrupts off, so it neither moves, sleeps, nor is
/// interrupted by another user of the same data; it must not enter the same data again.
pub trait CpuLocal<T> {
    /// Calls `f` with this CPU's number and data.
    fn with<R>(&self, f: impl FnOnce(u32, &mut T) -> R) -> R;

    /// Calls `f` for the data of every CPU that has any, one after the other, each on that CPU or while
    /// that CPU cannot touch it (Linux: `on_each_cpu`). For drains; the caller holds no lock.
    fn for_each(&self, f: impl FnMut(u32, &mut T));
}
