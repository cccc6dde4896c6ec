//! Where a mapping goes (Linux: arch/x86/kernel/sys_x86_64.c, `vm_unmapped_area`, `__get_unmapped_area`).
//!
//! Differs from Linux: since 6.7 it places large anonymous mappings at multiples of 2 MiB; here they go where 6.1 puts
//! them, because huge pages come later.

use mm_core::PAGE_SIZE;

use crate::mm::STACK_GUARD_GAP;
use crate::space::{is_page_aligned, page_align};
use crate::tree::GapQuery;
use crate::{Errno, Kernel, MapFlags, Space};

/// User space of programs that did not ask for more (Linux: `DEFAULT_MAP_WINDOW`).
const DEFAULT_MAP_WINDOW: u64 = (1 << 47) - PAGE_SIZE;
/// Where MAP_32BIT puts things.
const LOW: (u64, u64) = (0x4000_0000, 0x8000_0000);

impl<K: Kernel> Space<'_, K> {
    /// An address for `len` bytes, not 0 and a multiple of the page size: `addr` itself with FIXED, `addr` if it is a
    /// hint that can be followed, else the highest place below `mmap_base`, else the lowest above the legacy base.
    ///
    /// # Errors
    /// `ENOMEM` for no place, `EINVAL` for a fixed address that is no multiple of the page size, `EPERM` for one below
    /// `mmap_min_addr`.
    pub fn unmapped_area(&self, addr: u64, len: u64, flags: MapFlags) -> Result<u64, Errno> {
        let task_size = self.mm.task_size();
        if len > task_size {
            return Err(Errno::Enomem);
        }
        let found = self.place(addr, len, flags)?;
        if found > task_size - len {
            return Err(Errno::Enomem);
        }
        if !is_page_aligned(found) {
            return Err(Errno::Einval);
        }
        if found < self.limits.mmap_min_addr && !self.limits.raw_io {
            return Err(Errno::Eperm);
        }
        Ok(found)
    }

    /// Linux: `arch_get_unmapped_area_topdown`.
    fn place(&self, addr: u64, len: u64, flags: MapFlags) -> Result<u64, Errno> {
        if flags.contains(MapFlags::FIXED) {
            return Ok(addr);
        }
        if !flags.contains(MapFlags::BIT32) {
            let hint = addr & !(PAGE_SIZE - 1);
            if hint != 0 && self.window_holds(hint, len) && self.is_free(hint, len) {
                return Ok(hint);
            }
            let query = GapQuery { len, low: self.lowest_address(PAGE_SIZE), high: self.mm.mmap_base() };
            if let Some(found) = self.highest(query) {
                return Ok(found);
            }
        }
        self.bottom_up(addr, len, flags)
    }

    /// Linux: `mmap_address_hint_valid`.
    fn window_holds(&self, addr: u64, len: u64) -> bool {
        let task_size = self.mm.task_size();
        task_size - len >= addr && (addr > DEFAULT_MAP_WINDOW) == (addr + len > DEFAULT_MAP_WINDOW)
    }

    /// Nothing is mapped there, and no stack above is nearer than its guard gap.
    fn is_free(&self, addr: u64, len: u64) -> bool {
        self.find(addr).is_none_or(|id| addr + len <= self.vma(id).start_gap(STACK_GUARD_GAP))
    }

    /// Linux: `arch_get_unmapped_area`.
    fn bottom_up(&self, addr: u64, len: u64, flags: MapFlags) -> Result<u64, Errno> {
        let (low, high) = if flags.contains(MapFlags::BIT32) {
            LOW
        } else {
            (self.mm.mmap_legacy_base(), self.mm.task_size().min(DEFAULT_MAP_WINDOW))
        };
        if len > high {
            return Err(Errno::Enomem);
        }
        let hint = page_align(addr);
        if hint != 0 && high - len >= hint && self.is_free(hint, len) {
            return Ok(hint);
        }
        self.lowest(GapQuery { len, low: self.lowest_address(low), high }).ok_or(Errno::Enomem)
    }

    fn lowest_address(&self, low: u64) -> u64 {
        page_align(self.limits.mmap_min_addr).max(low)
    }

    /// The highest gap that also respects guard gaps (Linux: `unmapped_area_topdown`).
    fn highest(&self, mut query: GapQuery) -> Option<u64> {
        loop {
            let found = self.mm.tree.highest_gap(self.k, query)?;
            match self.find(found).map(|above| self.vma(above)) {
                Some(above) if above.start_gap(STACK_GUARD_GAP) < found + query.len => {
                    query.high = above.start_gap(STACK_GUARD_GAP);
                }
                _ => return Some(found),
            }
        }
    }

    /// The lowest gap that also respects guard gaps (Linux: `unmapped_area`).
    fn lowest(&self, mut query: GapQuery) -> Option<u64> {
        loop {
            let found = self.mm.tree.lowest_gap(self.k, query)?;
            match self.find(found).map(|above| self.vma(above)) {
                Some(above) if above.start_gap(STACK_GUARD_GAP) < found + query.len => {
                    query.low = above.end();
                }
                _ => return Some(found),
            }
        }
    }
}
