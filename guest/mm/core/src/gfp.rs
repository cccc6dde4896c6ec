//! `gfp_t`: what an allocation may do to succeed, and where it may come from (Linux 6.1:
//! include/linux/gfp_types.h).

use bitflags::bitflags;
use memvisor_abi::ZoneKind;

bitflags! {
    /// Flags of an allocation, with Linux's names and bits (`___GFP_*`).
    ///
    /// ```
    /// use mm_core::Gfp;
    /// assert!(Gfp::KERNEL.may_sleep() && !Gfp::ATOMIC.may_sleep());
    /// assert!(Gfp::HIGHUSER_MOVABLE.contains(Gfp::HIGHMEM | Gfp::MOVABLE));
    /// ```
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Gfp: u32 {
        /// `__GFP_DMA`: from ZONE_DMA only.
        const DMA_ZONE = 0x01;
        /// `__GFP_HIGHMEM`: ZONE_HIGHMEM will do.
        const HIGHMEM = 0x02;
        /// `__GFP_DMA32`: from ZONE_DMA32 or below.
        const DMA32_ZONE = 0x04;
        /// `__GFP_MOVABLE`: the page can be migrated or reclaimed; with HIGHMEM, ZONE_MOVABLE will do.
        const MOVABLE = 0x08;
        /// `__GFP_RECLAIMABLE`: a slab page that a shrinker can free.
        const RECLAIMABLE = 0x10;
        /// `__GFP_HIGH`: may use a part of the reserve below the min watermark.
        const HIGH = 0x20;
        /// `__GFP_IO`: reclaim may start I/O.
        const IO = 0x40;
        /// `__GFP_FS`: reclaim may enter the file system.
        const FS = 0x80;
        /// `__GFP_ZERO`: the pages are zero.
        const ZERO = 0x100;
        /// `__GFP_ATOMIC`: the caller cannot wait and is important; digs deeper into the reserve.
        const ATOMIC_CONTEXT = 0x200;
        /// `__GFP_DIRECT_RECLAIM`: the caller may reclaim, and so sleep.
        const DIRECT_RECLAIM = 0x400;
        /// `__GFP_KSWAPD_RECLAIM`: wakes kswapd at the low watermark.
        const KSWAPD_RECLAIM = 0x800;
        /// `__GFP_WRITE`: the page will be dirtied.
        const WRITE = 0x1000;
        /// `__GFP_NOWARN`: failure is not reported.
        const NOWARN = 0x2000;
        /// `__GFP_RETRY_MAYFAIL`: tries hard, but does not invoke the OOM killer.
        const RETRY_MAYFAIL = 0x4000;
        /// `__GFP_NOFAIL`: never fails.
        const NOFAIL = 0x8000;
        /// `__GFP_NORETRY`: one round of reclaim and compaction at most.
        const NORETRY = 0x1_0000;
        /// `__GFP_MEMALLOC`: may use all of the reserve.
        const MEMALLOC = 0x2_0000;
        /// `__GFP_COMP`: the block is one compound page.
        const COMP = 0x4_0000;
        /// `__GFP_NOMEMALLOC`: never uses the reserve, whatever else says.
        const NOMEMALLOC = 0x8_0000;
        /// `__GFP_HARDWALL`: cpuset limits hold.
        const HARDWALL = 0x10_0000;
        /// `__GFP_THISNODE`: from the requested node only.
        const THISNODE = 0x20_0000;
        /// `__GFP_ACCOUNT`: counted as kernel memory of the caller.
        const ACCOUNT = 0x40_0000;

        /// `__GFP_RECLAIM`.
        const RECLAIM = Self::DIRECT_RECLAIM.bits() | Self::KSWAPD_RECLAIM.bits();
        /// `GFP_KERNEL`.
        const KERNEL = Self::RECLAIM.bits() | Self::IO.bits() | Self::FS.bits();
        /// `GFP_KERNEL_ACCOUNT`.
        const KERNEL_ACCOUNT = Self::KERNEL.bits() | Self::ACCOUNT.bits();
        /// `GFP_ATOMIC`.
        const ATOMIC = Self::HIGH.bits() | Self::ATOMIC_CONTEXT.bits() | Self::KSWAPD_RECLAIM.bits();
        /// `GFP_NOWAIT`.
        const NOWAIT = Self::KSWAPD_RECLAIM.bits();
        /// `GFP_NOIO`.
        const NOIO = Self::RECLAIM.bits();
        /// `GFP_NOFS`.
        const NOFS = Self::RECLAIM.bits() | Self::IO.bits();
        /// `GFP_USER`.
        const USER = Self::KERNEL.bits() | Self::HARDWALL.bits();
        /// `GFP_DMA`.
        const DMA = Self::DMA_ZONE.bits();
        /// `GFP_DMA32`.
        const DMA32 = Self::DMA32_ZONE.bits();
        /// `GFP_HIGHUSER`.
        const HIGHUSER = Self::USER.bits() | Self::HIGHMEM.bits();
        /// `GFP_HIGHUSER_MOVABLE`.
        const HIGHUSER_MOVABLE = Self::HIGHUSER.bits() | Self::MOVABLE.bits();
    }
}

impl Gfp {
    /// Whether the allocation may sleep (Linux: `gfpflags_allow_blocking`).
    pub const fn may_sleep(self) -> bool {
        self.contains(Gfp::DIRECT_RECLAIM)
    }

    /// The highest zone allowed (Linux: `gfp_zone`): three bits decide, and ZONE_MOVABLE needs both HIGHMEM and
    /// MOVABLE. `None` for a combination that Linux forbids (`GFP_ZONE_BAD`): more than one
    /// of DMA, DMA32 and HIGHMEM.
    pub const fn highest_zone(self) -> Option<ZoneKind> {
        let zones = self.bits() & (Gfp::DMA_ZONE.bits() | Gfp::HIGHMEM.bits() | Gfp::DMA32_ZONE.bits());
        if zones == 0 {
            Some(ZoneKind::Normal)
        } else if zones == Gfp::DMA_ZONE.bits() {
            Some(ZoneKind::Dma)
        } else if zones == Gfp::DMA32_ZONE.bits() {
            Some(ZoneKind::Dma32)
        } else if zones != Gfp::HIGHMEM.bits() {
            None
        } else if self.contains(Gfp::MOVABLE) {
            Some(ZoneKind::Movable)
        } else {
            Some(ZoneKind::HighMem)
        }
    }
}
