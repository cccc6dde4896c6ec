//! Devices whose frames programs map (Linux: a driver's `mmap` with `remap_pfn_range`, `io_remap_pfn_range`).
//!
//! /dev/frames has 16 frames that the driver allocates when it is used first and keeps; they are read and written as a file, too, so
//! that a program sees that both are one. /dev/lapic has the registers of the local interrupt controller, which can only be mapped,
//! and only be read. Programs on all CPUs see their own CPU's there.

use guest_fs::Char;
use mm_core::{Gfp, MemMap, Order, PAGE_SIZE, Pfn};
use mm_pgtable::CacheMode;
use mm_vma::{Errno, Frames, Id, Kernel, MapFile, Mapping, VmFlags};

use crate::mm::layout::APIC_VA;
use crate::mm::space::Spaces;
use crate::mm::space::cache::{self, Source};
use crate::mm::{kmap, page_alloc, paging};
use crate::sync::Lock;

/// Frames of /dev/frames: 2^4.
const ORDER: u8 = 4;
const BYTES: u64 = PAGE_SIZE << ORDER;

/// What a device has, once somebody used it; it keeps both for ever.
type Device = (Id<Mapping>, Frames);

static DEVICES: Lock<[Option<Device>; 2]> = Lock::new([None; 2]);

const fn index_of(device: Char) -> Option<usize> {
    match device {
        Char::Frames => Some(0),
        Char::Lapic => Some(1),
        _ => None,
    }
}

/// The device's frames.
fn frames_of(device: Char) -> Result<Frames, Errno> {
    if device == Char::Lapic {
        let found = paging::kernel().translate(&paging::Tables, APIC_VA).ok_or(Errno::Enodev)?;
        return Ok(Frames { first: found.phys.pfn(), pages: 1, cache: CacheMode::UcMinus });
    }
    let order = Order::new(ORDER).ok_or(Errno::Enomem)?;
    let first = page_alloc::alloc_here(Gfp::KERNEL | Gfp::ZERO, order, None).ok_or(Errno::Enomem)?;
    Ok(Frames { first, pages: 1 << ORDER, cache: CacheMode::Wb })
}

/// The device's mapping, which its VMAs share, and its frames.
fn device(device: Char) -> Result<Device, Errno> {
    let index = index_of(device).ok_or(Errno::Enodev)?;
    let known = || DEVICES.lock().get(index).copied().flatten();
    if let Some(known) = known() {
        return Ok(known);
    }
    let mapping = cache::new_mapping(Source::Device, 0)?;
    let frames = frames_of(device).inspect_err(|_| Spaces.mapping_put(mapping))?;
    let lost = match DEVICES.lock().get_mut(index) {
        Some(slot @ None) => {
            *slot = Some((mapping, frames));
            false
        }
        _ => true,
    };
    if lost {
        // Another was faster.
        Spaces.mapping_put(mapping);
        if device == Char::Frames
            && let Some(order) = Order::new(ORDER)
        {
            page_alloc::free_pages(frames.first, order);
        }
    }
    known().ok_or(Errno::Enodev)
}

/// For mmap. `write` is whether the mapping is to be writable at once.
///
/// # Errors
/// `ENODEV`, `ENOMEM`; `EPERM` for writing to registers.
pub fn map(which: Char, write: bool) -> Result<MapFile, Errno> {
    let read_only = which == Char::Lapic;
    if read_only && write {
        return Err(Errno::Eperm);
    }
    let (mapping, frames) = device(which)?;
    let without = if read_only { VmFlags::MAYWRITE | VmFlags::MAYEXEC } else { VmFlags::empty() };
    Ok(MapFile { without, frames: Some(frames), ..MapFile::of(mapping) })
}

/// Calls `f(frame, offset in it, bytes)` for the pieces of `len` bytes from `at` on that lie in one frame each; how many bytes there are.
fn pieces(at: u64, len: usize, mut f: impl FnMut(Pfn, u64, core::ops::Range<usize>)) -> Result<usize, Errno> {
    let (_, frames) = device(Char::Frames)?;
    let len = usize::try_from(BYTES.saturating_sub(at)).map_or(len, |left| left.min(len));
    let mut done = 0;
    while done < len {
        let from = at + done as u64;
        let room = usize::try_from(PAGE_SIZE - from % PAGE_SIZE).unwrap_or(0).min(len - done);
        f(Pfn::new(frames.first.as_u64() + from / PAGE_SIZE), from % PAGE_SIZE, done..done + room);
        done += room;
    }
    Ok(len)
}

/// Reads from /dev/frames; how many bytes, 0 past the end.
///
/// # Errors
/// `ENOMEM`.
pub fn read(at: u64, to: &mut [u8]) -> Result<usize, Errno> {
    pieces(at, to.len(), |pfn, offset, range| {
        if let Some(part) = to.get_mut(range) {
            kmap::copy_from_page(pfn, offset, part);
        }
    })
}

/// Writes to /dev/frames; how many bytes.
///
/// # Errors
/// `ENOMEM`; `ENOSPC` past the end.
pub fn write(at: u64, from: &[u8]) -> Result<usize, Errno> {
    let done = pieces(at, from.len(), |pfn, offset, range| {
        if let Some(part) = from.get(range) {
            kmap::copy_to_page(pfn, offset, part);
        }
    })?;
    if done == 0 && !from.is_empty() { Err(Errno::Enospc) } else { Ok(done) }
}

/// References and mappings of the first frame of /dev/frames, which nobody may count but the driver. For tests.
pub fn counts() -> Option<(i32, i32)> {
    let (_, frames) = DEVICES.lock().first().copied().flatten()?;
    MemMap::page(&Spaces, frames.first).map(|page| (page.refcount(), page.mapcount()))
}
