//! Device memory (Linux: arch/x86/mm/ioremap.c `__ioremap_caller`, arch/x86/mm/pat/memtype.c).
//!
//! One physical page has one cache mode: RAM is write-back in the direct map, so it is refused here, and
//! a range that another area maps with another mode is refused, because the CPU's behaviour is then undefined
//! (SDM 3A, 12.12.4).
//!
//! Differs from Linux: Linux grants the mode in force where the wish is compatible (UC- instead of WC); here the caller
//! gets what it asked for or an error.

use core::panic::Location;

use memvisor_abi::VmFlags;
use mm_core::{Event, MaySleep, PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use mm_pgtable::{CacheMode, Prot};

use crate::areas::Wanted;
use crate::{Machine, VmError, Vmalloc};

/// What to map.
#[derive(Clone, Copy, Debug)]
pub struct IoRequest {
    /// First byte; need not be aligned.
    pub phys: PhysAddr,
    /// Bytes.
    pub size: u64,
    /// Cache mode.
    pub cache: CacheMode,
}

impl<M: Machine> Vmalloc<'_, M> {
    /// Maps device memory and returns the address of its first byte.
    ///
    /// # Errors
    /// [`VmError`]: size 0, a range that wraps or exceeds the CPU's addresses, RAM, a conflict of cache modes, no
    /// memory for tables.
    #[track_caller]
    pub fn ioremap(&self, request: &IoRequest, _context: &MaySleep<'_>) -> Result<VirtAddr, VmError> {
        let IoRequest { phys, size, cache } = *request;
        if size == 0 {
            return Err(VmError::ZeroSize);
        }
        let bad = VmError::BadPhys { phys, size };
        let last = phys.checked_add(size - 1).ok_or(bad)?;
        if last.as_u64() >> self.0.phys_bits() != 0 {
            return Err(bad);
        }
        let first = phys.align_down(PAGE_SIZE);
        let len = last.align_down(PAGE_SIZE).as_u64() - first.as_u64() + PAGE_SIZE;
        if self.0.is_ram(first.pfn(), len / PAGE_SIZE) {
            return Err(VmError::Ram { phys });
        }
        self.check_mode(first.pfn(), len / PAGE_SIZE, request)?;
        let wanted = Wanted {
            size: len,
            align: PAGE_SIZE,
            flags: VmFlags::IOREMAP,
            cache,
            phys: first.as_u64(),
            caller: Location::caller(),
        };
        let area = self.take(&wanted)?;
        if let Err(error) = self.map(area.start, first, len, Prot { cache, ..Prot::KERNEL_RW }) {
            self.clear(&area, len, false);
            self.release(&area);
            return Err(error);
        }
        let va = VirtAddr::new(self.done(&area, len)?.as_u64() + phys.page_offset());
        self.0.emit(Event::Ioremap {
            phys: phys.as_u64(),
            size,
            addr: va.as_u64(),
            cache_mode: trace_mode(cache),
        });
        Ok(va)
    }

    /// Undoes [`Vmalloc::ioremap`]; any offset into the first page is ignored, as in Linux.
    ///
    /// # Errors
    /// [`VmError::NotMapped`] and [`VmError::WrongKind`].
    pub fn iounmap(&self, va: VirtAddr) -> Result<(), VmError> {
        let area = self.owned(va.align_down(PAGE_SIZE), VmFlags::IOREMAP)?;
        self.clear(&area, area.nr_pages * PAGE_SIZE, false);
        self.release(&area);
        Ok(())
    }

    /// No other device mapping of these frames has another mode (Linux: `memtype_check_conflict`). Device mappings are few.
    fn check_mode(&self, first: Pfn, pages: u64, request: &IoRequest) -> Result<(), VmError> {
        let wants = request.cache as u32;
        let mut conflict = None;
        self.0.with_areas(|areas| {
            areas.for_each_busy(self.0, |area| {
                let start = PhysAddr::new(area.phys).pfn();
                let overlaps = start < first.offset(pages) && first < start.offset(area.nr_pages);
                if area.flags.contains(VmFlags::IOREMAP) && overlaps && area.cache != wants {
                    conflict = Some(area.cache);
                }
            });
        });
        match conflict {
            Some(has) => Err(VmError::Conflict { phys: request.phys, has, wants }),
            None => Ok(()),
        }
    }
}

/// Number of a cache mode in traces.
const fn trace_mode(cache: CacheMode) -> u8 {
    match cache {
        CacheMode::Wb => 0,
        CacheMode::Wc => 1,
        CacheMode::UcMinus => 2,
        CacheMode::Uc => 3,
        CacheMode::Wt => 4,
        CacheMode::Wp => 5,
    }
}
