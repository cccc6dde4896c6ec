//! What the memory manager needs from the machine.

use crate::{Page, Pfn, PhysAddr};

/// The descriptors of all frames (Linux: `pfn_to_page` with `pfn_valid`).
pub trait MemMap {
    /// The descriptor of `pfn`; `None` for a frame in a hole or in a section that is not online.
    fn page(&self, pfn: Pfn) -> Option<&Page>;

    /// The descriptors of `pfn` and of as many frames after it as lie contiguously in the memmap,
    /// at least to the end of its section where that is known; empty if `pfn` has none. Loops over
    /// ranges use it to look a section up once and not once a frame.
    fn pages(&self, pfn: Pfn) -> &[Page] {
        self.page(pfn).map_or(&[], core::slice::from_ref)
    }
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
