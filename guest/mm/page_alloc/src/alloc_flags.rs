//! What one attempt at an allocation may do (Linux 6.1: `ALLOC_*` of mm/internal.h).
//!
//! `Gfp` says what the caller wants; [`AllocFlags`] says what this pass over the zonelist may take. The slow path
//! widens them from attempt to attempt. They never leave the allocator, so their bits are our own.

use bitflags::bitflags;

bitflags! {
    /// Rights of one pass over a zonelist. At most one of the watermark flags is set; none of them, with
    /// [`AllocFlags::NO_WATERMARKS`] clear, means the min watermark, as in Linux where `ALLOC_WMARK_MIN` is 0.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct AllocFlags: u32 {
        /// `ALLOC_WMARK_MIN`: leave the zone at its min watermark at least.
        const WMARK_MIN = 0x01;
        /// `ALLOC_WMARK_LOW`: leave the zone at its low watermark at least.
        const WMARK_LOW = 0x02;
        /// `ALLOC_WMARK_HIGH`: leave the zone at its high watermark at least.
        const WMARK_HIGH = 0x04;
        /// `ALLOC_NO_WATERMARKS`: take the last page (`__GFP_MEMALLOC`, a task that reclaims).
        const NO_WATERMARKS = 0x08;
        /// `ALLOC_HARDER`: a quarter below the mark (`__GFP_ATOMIC`); a half with [`AllocFlags::OOM`].
        const HARDER = 0x10;
        /// `ALLOC_HIGH`: half below the mark (`__GFP_HIGH`).
        const HIGH = 0x20;
        /// `ALLOC_OOM`: a victim of the OOM killer, which is to finish.
        const OOM = 0x40;
        /// `ALLOC_CPUSET`: only nodes that the task's cpuset allows.
        const CPUSET = 0x80;
        /// `ALLOC_CMA`: blocks of CMA areas will do.
        const CMA = 0x100;
        /// `ALLOC_NOFRAGMENT`: no pageblock of another type is broken up for this; try other zones first.
        const NOFRAGMENT = 0x200;
        /// `ALLOC_KSWAPD`: wake kswapd when a zone sinks below its boosted low mark.
        const KSWAPD = 0x400;
        /// `ALLOC_HIGHATOMIC`: the highatomic reserve may be used.
        const HIGHATOMIC = 0x800;
    }
}

impl AllocFlags {
    /// Index into `Zone::watermark` of the mark that holds for this attempt (Linux: `ALLOC_WMARK_MASK`).
    ///
    /// ```
    /// use mm_page_alloc::AllocFlags;
    /// assert_eq!((AllocFlags::WMARK_LOW | AllocFlags::CPUSET).watermark_index(), 1);
    /// assert_eq!(AllocFlags::HARDER.watermark_index(), 0);
    /// ```
    pub const fn watermark_index(self) -> usize {
        if self.contains(AllocFlags::WMARK_HIGH) {
            2
        } else if self.contains(AllocFlags::WMARK_LOW) {
            1
        } else {
            0
        }
    }
}
