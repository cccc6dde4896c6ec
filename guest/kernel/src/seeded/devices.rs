//! Corruptions of what a process maps of devices.

use guest_fs::Char;
use memvisor_abi::PTE_SPECIAL;
use mm_core::PAGE_SIZE;
use mm_pgtable::PteFlags;
use mm_vma::{MapFlags, MmapRequest, ProtFlags};

use super::victim::{Outcome, Victim, page, victim};
use crate::drivers::frames;

/// The process maps a device; where.
fn map(victim: Victim, device: Char, pages: u64, flags: MapFlags) -> Outcome<u64> {
    let write = device == Char::Frames;
    let file = frames::map(device, write).map_err(|_| "the device is not there")?;
    let mut prot = ProtFlags::READ;
    prot.set(ProtFlags::WRITE, write);
    let request = MmapRequest { addr: 0, len: pages * PAGE_SIZE, prot, flags, file: Some(file), offset: 0 };
    victim.lock().mmap(&request).map(|(va, _)| va).map_err(|_| "mmap failed")
}

/// An entry that would be taken for a page's.
pub fn unmarked() -> Outcome {
    let victim = victim()?;
    let va = map(victim, Char::Frames, 4, MapFlags::SHARED)?;
    victim.edit(va, |entry| entry & !PTE_SPECIAL)
}

/// A page's entry that would be taken for a device's.
pub fn elsewhere() -> Outcome {
    let victim = victim()?;
    let va = victim.touched()?;
    victim.edit(va, |entry| entry | PTE_SPECIAL)
}

/// An entry that maps the device's frame behind its own.
pub fn shifted() -> Outcome {
    let victim = victim()?;
    let va = map(victim, Char::Frames, 4, MapFlags::SHARED)?;
    victim.edit(va + PAGE_SIZE, |entry| entry + PAGE_SIZE)
}

/// A frame of a device that counts an entry.
pub fn counted() -> Outcome {
    let victim = victim()?;
    let va = map(victim, Char::Frames, 4, MapFlags::SHARED)?;
    page(victim.frame(va)?)?.set_mapcount(0);
    Ok(())
}

/// A private mapping that writes to the device.
pub fn writable() -> Outcome {
    let victim = victim()?;
    let va = map(victim, Char::Frames, 4, MapFlags::PRIVATE)?;
    victim.edit(va, |entry| entry | PteFlags::WRITE.bits())
}

/// Registers that the CPU may cache.
pub fn cached() -> Outcome {
    let victim = victim()?;
    let va = map(victim, Char::Lapic, 1, MapFlags::SHARED)?;
    victim.edit(va, |entry| entry & !(PteFlags::PWT | PteFlags::PCD).bits())
}
