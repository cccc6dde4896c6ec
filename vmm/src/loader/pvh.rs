//! `hvm_start_info` of PVH, version 1, with the whole memory map.

use super::{Cargo, LoadError};
use crate::{machine::layout, memory::Memory};
use linux_loader::loader::elf::start_info::XEN_HVM_START_MAGIC_VALUE;

const ENTRY_BYTES: u64 = 24;
const MODULE_BYTES: u64 = 32;

/// Writes the structure at [`layout::PVH_START_INFO`], its memory map and module list at
/// [`layout::SETUP_DATA`].
pub(super) fn write_start_info(
    memory: &Memory,
    cargo: &Cargo<'_>,
    initrd: Option<(u64, u64)>,
) -> Result<(), LoadError> {
    let room = layout::SETUP_DATA_END - layout::SETUP_DATA - MODULE_BYTES;
    let too_many = || LoadError::TooManyE820 { count: cargo.e820.len(), room, max: room / ENTRY_BYTES };
    let count = u32::try_from(cargo.e820.len()).map_err(|_| too_many())?;
    if u64::from(count) * ENTRY_BYTES > room {
        return Err(too_many());
    }
    let mut map = Vec::new();
    for entry in cargo.e820 {
        // Types up to 7 have the numbers of E820.
        map.extend(entry.addr.to_le_bytes());
        map.extend(entry.size.to_le_bytes());
        map.extend(entry.kind.to_le_bytes());
        map.extend(0u32.to_le_bytes());
    }
    memory.write(layout::SETUP_DATA, &map)?;

    let modules_at = layout::SETUP_DATA + map.len() as u64;
    if let Some((base, len)) = initrd {
        memory.write(modules_at, [base, len, 0, 0].map(u64::to_le_bytes).as_flattened())?;
    }
    let mut info = Vec::new();
    for word in [XEN_HVM_START_MAGIC_VALUE, 1, 0, u32::from(initrd.is_some())] {
        info.extend(word.to_le_bytes());
    }
    let modules = if initrd.is_some() { modules_at } else { 0 };
    for word in [modules, layout::CMDLINE, cargo.rsdp, layout::SETUP_DATA] {
        info.extend(word.to_le_bytes());
    }
    info.extend(count.to_le_bytes());
    info.extend(0u32.to_le_bytes());
    memory.write(layout::PVH_START_INFO, &info)?;
    Ok(())
}
