//! What can be changed of the zones' watermarks and reserves while the guest runs.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::MAX_NR_ZONES;

/// Settings of all zones (Linux: the files of /proc/sys/vm of these names). One exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmSysctl {
    /// First frame that the direct map does not reach; `u64::MAX` if it reaches all (Linux: `max_low_pfn`, or
    /// `highstart_pfn`). Never changes.
    pub lowmem_end_pfn: u64,
    /// What the minimum watermarks are shares of, in KiB.
    pub min_free_kbytes: u64,
    /// What somebody asked [`Self::min_free_kbytes`] to be; [`Self::NOBODY`] if it is computed from the size of low memory
    /// (Linux: `user_min_free_kbytes`).
    pub user_min_free_kbytes: u64,
    /// Distance of the watermarks in 1/10000 of a zone, 1 to 3000.
    pub watermark_scale_factor: u32,
    /// How far fragmentation raises the boost, in 1/10000 of the high watermark; 0 for never.
    pub watermark_boost_factor: u32,
    /// What share of the memory above a zone it keeps from those who could use that, indexed by [`crate::ZoneKind`]; 0 for
    /// nothing.
    pub lowmem_reserve_ratio: [u32; MAX_NR_ZONES],
    /// Changes since boot. While it is 0 everything is what the command line and Linux's defaults say.
    pub changes: u32,
}
const _: () =
    assert!(size_of::<VmSysctl>() == 56 && core::mem::offset_of!(VmSysctl, lowmem_reserve_ratio) == 32);

impl VmSysctl {
    /// In [`Self::user_min_free_kbytes`]: nobody asked for anything.
    pub const NOBODY: u64 = u64::MAX;
    /// Linux's defaults; `min_free_kbytes` is still to be computed.
    pub const DEFAULT: VmSysctl = VmSysctl {
        lowmem_end_pfn: u64::MAX,
        min_free_kbytes: 0,
        user_min_free_kbytes: Self::NOBODY,
        watermark_scale_factor: 10,
        watermark_boost_factor: 15_000,
        lowmem_reserve_ratio: [256, 256, 32, 0, 0],
        changes: 0,
    };
}
