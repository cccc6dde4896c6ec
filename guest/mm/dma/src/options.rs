//! How large the pool of bounce slots is.

use memvisor_abi::{IO_TLB_SEGSIZE, IO_TLB_SHIFT, MAX_SWIOTLB_AREAS};
use mm_core::PhysAddr;

use crate::DmaMask;

/// What `swiotlb=` on the command line asks for (Linux: `setup_io_tlb_npages`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwiotlbOptions {
    /// Slots.
    pub nslabs: Option<u32>,
    /// Areas.
    pub nareas: Option<u32>,
    /// Every mapping bounces.
    pub force: bool,
    /// There is no pool.
    pub noforce: bool,
}

/// The largest pool of a machine that does not ask for one: 64 MiB (Linux: `IO_TLB_DEFAULT_SIZE`).
const DEFAULT_MAX: u64 = 64 << 20;
/// The smallest: 1 MiB (Linux: `IO_TLB_MIN_SLABS`).
const DEFAULT_MIN: u64 = 1 << 20;
/// Bytes of RAM for each byte of the pool: a machine of 4 GiB has Linux's default.
const SHARE: u64 = 64;
/// The largest that can be asked for: 1 GiB.
const NSLABS_MAX: u64 = (1 << 30) >> IO_TLB_SHIFT;

impl SwiotlbOptions {
    /// Reads `[SLOTS][,AREAS][,force|noforce]`; `None` if it is something else.
    /// ```
    /// use mm_dma::SwiotlbOptions;
    /// let options = SwiotlbOptions::parse("512,2,force").unwrap();
    /// assert_eq!((options.nslabs, options.nareas, options.force), (Some(512), Some(2), true));
    /// assert!(SwiotlbOptions::parse("noforce").unwrap().noforce);
    /// assert_eq!(SwiotlbOptions::parse("much"), None);
    /// ```
    pub fn parse(text: &str) -> Option<SwiotlbOptions> {
        let mut options = SwiotlbOptions::default();
        let mut numbers = 0;
        for word in text.split(',') {
            match word {
                "force" => options.force = true,
                "noforce" => options.noforce = true,
                _ => {
                    let number = match word.strip_prefix("0x") {
                        Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                        None => word.parse().ok()?,
                    };
                    match numbers {
                        0 => options.nslabs = Some(number),
                        1 => options.nareas = Some(number),
                        _ => return None,
                    }
                    numbers += 1;
                }
            }
        }
        Some(options)
    }

    /// Whether a machine whose RAM ends at `ram_end` has a pool: some of it is beyond 32 bits, or all mappings are to bounce (Linux:
    /// `pci_swiotlb_detect`).
    pub fn wants_pool(&self, ram_end: PhysAddr) -> bool {
        let some_is_beyond = ram_end.as_u64() > DmaMask::BITS_32.last() + 1;
        self.force || !self.noforce && some_is_beyond
    }

    /// Areas of the pool: as many as were asked for, or as there are CPUs, rounded up to a power of two (Linux:
    /// `swiotlb_adjust_nareas`).
    pub fn nareas(&self, cpus: u32) -> u32 {
        let wanted = self.nareas.filter(|areas| *areas > 0).unwrap_or(cpus);
        wanted.clamp(1, MAX_SWIOTLB_AREAS).next_power_of_two()
    }

    /// Slots of the pool of a machine with so many bytes of RAM, whole segments in each area.
    ///
    /// Differs from Linux: the default is a 64th of RAM, at most Linux's 64 MiB and at least 1 MiB; Linux reserves 64 MiB of a machine
    /// of 256 MiB too.
    pub fn nslabs(&self, ram_bytes: u64, nareas: u32) -> u32 {
        let default = (ram_bytes / SHARE).clamp(DEFAULT_MIN, DEFAULT_MAX) >> IO_TLB_SHIFT;
        let wanted = self.nslabs.filter(|slots| *slots > 0).map_or(default, u64::from);
        round_nslabs(u32::try_from(wanted.min(NSLABS_MAX)).unwrap_or(IO_TLB_SEGSIZE), nareas)
    }
}

/// Rounds up to whole segments in each area.
pub fn round_nslabs(nslabs: u32, nareas: u32) -> u32 {
    nslabs.max(1).next_multiple_of(IO_TLB_SEGSIZE * nareas.clamp(1, MAX_SWIOTLB_AREAS))
}
