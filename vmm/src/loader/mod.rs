//! Puts a kernel and what its boot protocol wants into guest memory.
//!
//! Protocols: Linux 64-bit (Documentation/arch/x86/boot.rst, "64-bit boot protocol") for ELF images and
//! bzImages, and PVH (xen/include/public/arch-x86/hvm/start_info.h) for ELF images. The fixed places are
//! in [`crate::machine::layout`].
//!
//! An image goes where it asks to be. If that is not RAM and the image can be moved, it goes to the
//! lowest RAM that fits, an ELF image moved by a multiple of [`MOVE_STEP`].

mod bzimage;
mod elf64;
mod linux;
mod pvh;
mod symbols;
mod tables;
#[cfg(test)]
pub mod testing;

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

use memvisor_inspect::FactE820;
use thiserror::Error;

pub use bzimage::{BzImage, BzImageError, ENTRY_OFFSET};
pub use elf64::{ElfError, Image, MAX_FILE, Segment};
pub use symbols::kernel_symbols;
pub use tables::{BOOT_CODE, BOOT_DATA, FlatSegment};

use crate::{
    machine::{Boot, layout},
    memory::{Memory, MemoryError},
};

/// The guest kernel that was built into this binary.
const BUNDLED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// Images move by multiples of this, so that large pages keep their alignment.
pub const MOVE_STEP: u64 = 2 << 20;

/// Why a guest could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// No image named and none built in.
    #[error(
        "this memvisor was built without a bundled guest kernel: name one with --kernel FILE (or build with `make`)"
    )]
    NoKernel,
    /// A file cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is too large to be what it should be.
    #[error("{what} {} has {len:#x} bytes, more than {max:#x}: is this the right file?", path.display())]
    TooLarge {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The kernel is not usable.
    #[error("kernel {name} cannot be booted")]
    Image {
        /// The file.
        name: String,
        /// What is wrong.
        source: ElfError,
    },
    /// The bzImage is not usable.
    #[error("kernel {name} (a bzImage) cannot be booted")]
    BzImage {
        /// The file.
        name: String,
        /// What is wrong.
        source: BzImageError,
    },
    /// No RAM where the image must be.
    #[error(
        "kernel {name} must be at {start:#x} (+{len:#x}), which is not RAM on this machine, and it cannot be moved"
    )]
    Fixed {
        /// The file.
        name: String,
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// No RAM that is large enough.
    #[error(
        "{what} needs {len:#x} bytes of contiguous RAM {place}; the largest free range has {largest:#x}: give the machine more memory"
    )]
    NoRoom {
        /// What does not fit.
        what: String,
        /// Bytes it needs.
        len: u64,
        /// Where the range must be.
        place: &'static str,
        /// Bytes of the largest range.
        largest: u64,
    },
    /// The command line is too long.
    #[error(
        "the command line has {len} bytes with what memvisor appended, the kernel takes at most {max}: make --cmdline shorter"
    )]
    CmdlineTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The command line holds a NUL.
    #[error("the command line holds a NUL byte")]
    CmdlineNul,
    /// Too many E820 entries.
    #[error(
        "{count} E820 entries do not fit into the {room} bytes that the boot protocol's data has: at most {max}"
    )]
    TooManyE820 {
        /// Entries of the machine.
        count: usize,
        /// Bytes of room.
        room: u64,
        /// Most entries.
        max: u64,
    },
    /// PVH enters in 32-bit mode.
    #[error(
        "the PVH entry {entry:#x} is above 4 GiB: boot it with --boot linux, or give the machine RAM below"
    )]
    EntryTooHigh {
        /// Physical entry.
        entry: u64,
    },
    /// Memory refused a write.
    #[error("cannot write the guest's memory")]
    Memory(#[from] MemoryError),
}

/// What to load.
#[derive(Clone, Debug)]
pub struct Cargo<'a> {
    /// Name of the kernel for messages.
    pub kernel_name: &'a str,
    /// The kernel's file.
    pub kernel: &'a [u8],
    /// The initial ramdisk.
    pub initrd: Option<&'a [u8]>,
    /// The command line, complete.
    pub cmdline: &'a str,
    /// Boot protocol.
    pub boot: Boot,
    /// E820 map in the order in which the guest gets it.
    pub e820: &'a [FactE820],
    /// RAM ranges `(base, len)` that the guest can use, ascending and disjoint.
    pub ram: &'a [(u64, u64)],
    /// Address of the RSDP.
    pub rsdp: u64,
    /// Paging levels at entry (4 or 5); PVH enters without paging.
    pub levels: u32,
}

/// How the first vCPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Boot protocol.
    pub boot: Boot,
    /// Physical entry point.
    pub rip: u64,
    /// Address of the zero page (RSI) or of `hvm_start_info` (EBX).
    pub argument: u64,
    /// Top-level page table; 0 with PVH.
    pub cr3: u64,
    /// Paging levels; 0 with PVH.
    pub levels: u32,
    /// Where the image is.
    pub image: (u64, u64),
    /// Where the initial ramdisk is.
    pub initrd: Option<(u64, u64)>,
    /// Whether the kernel is not one of memvisor's own: it neither knows the memvisor device nor
    /// publishes a root descriptor, and wants the devices of a PC.
    pub foreign: bool,
}

/// The kernel to boot: a file, or the bundled one.
///
/// # Errors
/// If there is none, or it cannot be read.
pub fn read_kernel(path: Option<&Path>) -> Result<(String, Cow<'static, [u8]>), LoadError> {
    match path {
        Some(path) => Ok((path.display().to_string(), read_file("kernel", path)?.into())),
        None if BUNDLED.is_empty() => Err(LoadError::NoKernel),
        None => Ok(("(bundled)".into(), BUNDLED.into())),
    }
}

/// Whether a guest kernel was built in.
pub const fn has_bundled_kernel() -> bool {
    !BUNDLED.is_empty()
}

/// Gives the pages of the bundled kernel back, which loading has read: they are the program's file, and come back from it
/// when somebody wants a symbol.
pub fn return_bundled_kernel() {
    const PAGE: usize = 4096;
    let start = BUNDLED.as_ptr().addr().next_multiple_of(PAGE);
    let end = (BUNDLED.as_ptr().addr() + BUNDLED.len()) / PAGE * PAGE;
    if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
        // SAFETY: whole pages of a constant, which nobody has written, so that what is read again is what was read before. That
        // the call may fail does no harm: then they stay.
        unsafe {
            libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED);
        }
    }
}

/// The initial ramdisk.
///
/// # Errors
/// If it cannot be read.
pub fn read_initrd(path: &Path) -> Result<Vec<u8>, LoadError> {
    read_file("initrd", path)
}

/// Puts everything into memory.
///
/// # Errors
/// [`LoadError`]; memory may then be partly written.
pub fn load(memory: &Memory, cargo: &Cargo<'_>) -> Result<Entry, LoadError> {
    if BzImage::is(cargo.kernel) {
        return load_bzimage(memory, cargo);
    }
    let image_error = |source| LoadError::Image { name: cargo.kernel_name.to_owned(), source };
    let image = Image::parse(cargo.kernel).map_err(image_error)?;
    let entry = match cargo.boot {
        Boot::Linux => image.entry,
        Boot::Pvh => image.pvh_entry.ok_or(ElfError::NoPvhEntry).map_err(image_error)?,
    };
    let (start, len) = image.span();
    let moved_to = place_image(&image, cargo)?;
    // A multiple of MOVE_STEP in two's complement, so that it also moves down.
    let delta = moved_to.wrapping_sub(start);
    for segment in &image.segments {
        memory.write(segment.paddr.wrapping_add(delta), image.contents(segment))?;
    }
    let range = (moved_to, len);
    let initrd = load_initrd(memory, range, 1 << 32, cargo)?;
    write_cmdline(memory, cargo.cmdline, u64::MAX)?;
    let rip = entry.wrapping_add(delta);
    let foreign = !image.has_root_note;
    match cargo.boot {
        Boot::Linux => {
            linux::write_zero_page(memory, cargo, initrd, None)?;
            enter_linux(memory, cargo.levels, Entry { rip, image: range, initrd, foreign, ..LINUX_ENTRY })
        }
        Boot::Pvh => {
            if rip >= 1 << 32 {
                return Err(LoadError::EntryTooHigh { entry: rip });
            }
            pvh::write_start_info(memory, cargo, initrd)?;
            tables::write_gdt(memory, false)?;
            let argument = layout::PVH_START_INFO;
            Ok(Entry { boot: Boot::Pvh, rip, argument, image: range, initrd, foreign, ..LINUX_ENTRY })
        }
    }
}

fn load_bzimage(memory: &Memory, cargo: &Cargo<'_>) -> Result<Entry, LoadError> {
    let image_error = |source| LoadError::BzImage { name: cargo.kernel_name.to_owned(), source };
    let image = BzImage::parse(cargo.kernel).map_err(image_error)?;
    if cargo.boot == Boot::Pvh {
        return Err(image_error(BzImageError::NoPvhEntry));
    }
    let at = place_bzimage(&image, cargo)?;
    memory.write(at, image.kernel)?;
    let range = (at, image.memory_len());
    let initrd = load_initrd(memory, range, image.initrd_limit().min(1 << 32), cargo)?;
    write_cmdline(memory, cargo.cmdline, image.cmdline_max())?;
    linux::write_zero_page(memory, cargo, initrd, Some(&image.header))?;
    // A kernel without 5-level code changes to 4 levels itself only if it knows that there are 5.
    let levels = if image.takes_5_levels() { cargo.levels } else { 4 };
    let rip = at + ENTRY_OFFSET;
    enter_linux(memory, levels, Entry { rip, image: range, initrd, foreign: true, ..LINUX_ENTRY })
}

/// What the entries by the Linux protocol have in common.
const LINUX_ENTRY: Entry = Entry {
    boot: Boot::Linux,
    rip: 0,
    argument: layout::ZERO_PAGE,
    cr3: 0,
    levels: 0,
    image: (0, 0),
    initrd: None,
    foreign: true,
};

/// Makes the GDT and page tables with which `entry` begins.
fn enter_linux(memory: &Memory, levels: u32, entry: Entry) -> Result<Entry, LoadError> {
    tables::write_gdt(memory, true)?;
    let cr3 = tables::write_identity_map(memory, levels, entry.image)?;
    Ok(Entry { cr3, levels, ..entry })
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, LoadError> {
    let fail = |source| LoadError::Read { what, path: path.to_owned(), source };
    let meta = fs::metadata(path).map_err(fail)?;
    if meta.len() > MAX_FILE {
        return Err(LoadError::TooLarge { what, path: path.to_owned(), len: meta.len(), max: MAX_FILE });
    }
    fs::read(path).map_err(fail)
}

/// RAM above boot data, where images may go: `(base, end)`, ascending; neighbours, which may be of two
/// nodes, are one.
fn rooms(cargo: &Cargo<'_>) -> impl Iterator<Item = (u64, u64)> {
    let mut rooms: Vec<(u64, u64)> = Vec::new();
    for &(base, len) in cargo.ram {
        let end = base.saturating_add(len);
        let base = base.max(layout::BOOT_DATA_END);
        match rooms.last_mut() {
            Some((_, last)) if *last == base => *last = end,
            _ if end > base => rooms.push((base, end)),
            _ => {}
        }
    }
    rooms.into_iter()
}

/// Where the image's first byte goes.
fn place_image(image: &Image<'_>, cargo: &Cargo<'_>) -> Result<u64, LoadError> {
    let (start, len) = image.span();
    let fits = |at: u64| {
        at.checked_add(len).is_some_and(|end| rooms(cargo).any(|(base, limit)| at >= base && end <= limit))
    };
    if fits(start) {
        return Ok(start);
    }
    let name = cargo.kernel_name.to_owned();
    if !image.relocatable {
        return Err(LoadError::Fixed { name, start, len });
    }
    let phase = start % MOVE_STEP;
    // Above the legacy hole only: the first MiB is for boot data and application processors.
    let first_fit = rooms(cargo).find_map(|(base, _)| {
        let low = base.max(layout::HIGH_RAM_START);
        let at = low.saturating_sub(phase).checked_next_multiple_of(MOVE_STEP)?.checked_add(phase)?;
        fits(at).then_some(at)
    });
    first_fit.ok_or_else(|| LoadError::NoRoom {
        what: format!("kernel {name}"),
        len,
        place: "above 1 MiB",
        largest: rooms(cargo)
            .map(|(base, end)| end.saturating_sub(base.max(layout::HIGH_RAM_START)))
            .max()
            .unwrap_or(0),
    })
}

/// Where a bzImage goes: where it prefers to be, or the lowest RAM above that is large enough.
fn place_bzimage(image: &BzImage<'_>, cargo: &Cargo<'_>) -> Result<u64, LoadError> {
    let (preferred, len) = (image.preferred(), image.memory_len());
    let limit = image.address_limit();
    // The end of the boot data and the first MiB: below, no kernel asks to be.
    let low = preferred.max(layout::HIGH_RAM_START);
    let above = || rooms(cargo).map(move |(base, end)| (base.max(low), end.min(limit)));
    let fits =
        |at: u64, base: u64, end: u64| at >= base && at.checked_add(len).is_some_and(|last| last <= end);
    let name = cargo.kernel_name.to_owned();
    let Some(alignment) = image.alignment() else {
        let fixed = rooms(cargo).any(|(base, end)| fits(preferred, base, end));
        return if fixed { Ok(preferred) } else { Err(LoadError::Fixed { name, start: preferred, len }) };
    };
    above()
        .filter_map(|(base, end)| base.checked_next_multiple_of(alignment).filter(|at| fits(*at, base, end)))
        .min()
        .ok_or_else(|| LoadError::NoRoom {
            what: format!("kernel {name}"),
            len,
            place: "where it can unpack itself (from its pref_address on)",
            largest: above().map(|(base, end)| end.saturating_sub(base)).max().unwrap_or(0),
        })
}

fn load_initrd(
    memory: &Memory,
    image: (u64, u64),
    limit: u64,
    cargo: &Cargo<'_>,
) -> Result<Option<(u64, u64)>, LoadError> {
    let Some(bytes) = cargo.initrd else { return Ok(None) };
    let place = place_initrd(bytes, image, limit, cargo)?;
    memory.write(place.0, bytes)?;
    Ok(Some(place))
}

/// The highest place below `limit` that does not touch the image.
fn place_initrd(
    bytes: &[u8],
    image: (u64, u64),
    limit: u64,
    cargo: &Cargo<'_>,
) -> Result<(u64, u64), LoadError> {
    let len = bytes.len() as u64;
    let mut largest = 0;
    let image_end = image.0.saturating_add(image.1);
    let mut best = None;
    for (base, end) in rooms(cargo) {
        let end = end.min(limit);
        for (base, end) in [(base, end.min(image.0)), (base.max(image_end), end)] {
            let room = end.saturating_sub(base);
            largest = largest.max(room);
            let at = end.saturating_sub(len) & !(layout::PAGE_SIZE - 1);
            if room >= len && at >= base {
                best = best.max(Some(at));
            }
        }
    }
    best.map(|at| (at, len)).ok_or_else(|| LoadError::NoRoom {
        what: "initrd".into(),
        len,
        place: if limit < 1 << 32 { "below the kernel's initrd_addr_max" } else { "below 4 GiB" },
        largest,
    })
}

/// `kernel_max` is what the kernel says that it takes.
fn write_cmdline(memory: &Memory, cmdline: &str, kernel_max: u64) -> Result<(), LoadError> {
    let max = kernel_max.min(layout::CMDLINE_MAX);
    let len = cmdline.len() as u64;
    if len > max {
        return Err(LoadError::CmdlineTooLong { len, max });
    }
    if cmdline.contains('\0') {
        return Err(LoadError::CmdlineNul);
    }
    memory.write(layout::CMDLINE, cmdline.as_bytes())?;
    memory.write(layout::CMDLINE + len, &[0])?;
    Ok(())
}

#[cfg(test)]
mod tests;
