//! Device mappings by cache mode (Linux: `ioremap`, `ioremap_wc`, `ioremap_wt`, `ioremap_uc`, `ioremap_cache`). The page attribute
//! table of every CPU is Linux's: arch/x86_64/cpu.rs.

use core::panic::Location;

use mm_core::{MaySleep, PAGE_SIZE, PhysAddr, VirtAddr};
use mm_pgtable::CacheMode;
use mm_vmalloc::{IoRequest, VmError};

use crate::mm::fixmap::{self, Fixed};
use crate::mm::vmalloc::{report, vm};

/// Maps device memory with UC-, the mode of plain `ioremap`.
///
/// # Errors
/// [`VmError`], reported with the caller.
#[track_caller]
pub fn ioremap(phys: PhysAddr, size: u64, context: &MaySleep<'_>) -> Result<VirtAddr, VmError> {
    ioremap_mode(phys, size, CacheMode::UcMinus, context)
}

/// Maps device memory with a chosen cache mode.
///
/// # Errors
/// As [`ioremap`]; also a conflict with what the fixmap maps.
#[track_caller]
pub fn ioremap_mode(
    phys: PhysAddr,
    size: u64,
    cache: CacheMode,
    context: &MaySleep<'_>,
) -> Result<VirtAddr, VmError> {
    let outcome = check_fixmap(phys, size, cache)
        .and_then(|()| vm().ioremap(&IoRequest { phys, size, cache }, context));
    report("ioremap", Location::caller(), &outcome);
    outcome
}

/// Undoes [`ioremap`]; what is not a device mapping is reported with the caller, and nothing changes.
#[track_caller]
pub fn iounmap(va: VirtAddr) -> bool {
    report("iounmap", Location::caller(), &vm().iounmap(va))
}

/// The fixmap maps devices with UC-.
fn check_fixmap(phys: PhysAddr, size: u64, cache: CacheMode) -> Result<(), VmError> {
    let Some(end) = phys.checked_add(size).filter(|_| cache != CacheMode::UcMinus) else { return Ok(()) };
    for slot in Fixed::ALL {
        let Some(frame) = fixmap::frame(slot) else { continue };
        let first = frame.phys().as_u64();
        if first < end.as_u64() && phys.as_u64() < first + PAGE_SIZE {
            return Err(VmError::Conflict { phys, has: CacheMode::UcMinus as u32, wants: cache as u32 });
        }
    }
    Ok(())
}
