//! How far a device reaches.

use core::fmt;

use mm_core::PhysAddr;

/// The address bits that a device drives, as the last address that they make (Linux: `DMA_BIT_MASK`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DmaMask(u64);

impl DmaMask {
    /// All addresses.
    pub const ALL: DmaMask = DmaMask(u64::MAX);
    /// Of ISA devices, and so of ZONE_DMA.
    pub const ISA: DmaMask = DmaMask((1 << 24) - 1);
    /// 32 bits, and so ZONE_DMA32.
    pub const BITS_32: DmaMask = DmaMask((1 << 32) - 1);

    /// A mask of 1 to 64 bits.
    /// ```
    /// use mm_dma::DmaMask;
    /// assert_eq!(DmaMask::from_bits(24), Some(DmaMask::ISA));
    /// assert_eq!(DmaMask::from_bits(64), Some(DmaMask::ALL));
    /// assert_eq!((DmaMask::from_bits(0), DmaMask::from_bits(65)), (None, None));
    /// ```
    pub const fn from_bits(bits: u32) -> Option<DmaMask> {
        match bits {
            1..=63 => Some(DmaMask((1 << bits) - 1)),
            64 => Some(DmaMask::ALL),
            _ => None,
        }
    }

    /// The last address.
    pub const fn last(self) -> u64 {
        self.0
    }

    /// Whether all of `addr..addr + len` is within it; of no bytes, whether `addr` is (Linux: `dma_capable`).
    /// ```
    /// use mm_core::PhysAddr;
    /// use mm_dma::DmaMask;
    /// assert!(DmaMask::ISA.reaches(PhysAddr::new(0xff_f000), 4096));
    /// assert!(!DmaMask::ISA.reaches(PhysAddr::new(0xff_f000), 4097));
    /// ```
    pub const fn reaches(self, addr: PhysAddr, len: u64) -> bool {
        match addr.as_u64().checked_add(len.saturating_sub(1)) {
            Some(last) => last <= self.0,
            None => false,
        }
    }
}

impl fmt::Debug for DmaMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMask({:#x})", self.0)
    }
}
