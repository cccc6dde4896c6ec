//! swapon and swapoff (Linux: mm/swapfile.c).

use alloc::vec::Vec;

use guest_fs::{Device, Follow, Kind, OpenFlags, Place};
use memvisor_abi::SwapHeader;
use mm_core::{Errno, Gfp, Order, PAGE_SIZE};
use mm_swap::{Cluster, NewArea, SWAPFILE_CLUSTER, read_swap_header};
use zerocopy::FromBytes;

use super::{areas, unuse, zswap};
use crate::drivers::block::{self, Disk, MAJOR, MINORS, Segment};
use crate::fs::{self, Mutex, with_vfs};
use crate::mm::space::Spaces;
use crate::mm::{kmap, page_alloc};
use crate::{pr_info, pr_warn, sched};

/// Flags of swapon(2) (Linux: include/linux/swap.h).
mod flag {
    pub const PRIO_MASK: u32 = 0x7fff;
    pub const PREFER: u32 = 0x8000;
    pub const DISCARD: u32 = 0x1_0000;
    pub const DISCARD_ONCE: u32 = 0x2_0000;
    pub const DISCARD_PAGES: u32 = 0x4_0000;
    /// What is discarded is a hint.
    pub const VALID: u32 = PRIO_MASK | PREFER | DISCARD | DISCARD_ONCE | DISCARD_PAGES;
}

/// One call at a time (Linux: `swapon_mutex`).
static CALLS: Mutex<()> = Mutex::new(());

/// Has a disk used for swap.
///
/// Differs from Linux: only disks are; a file gives `EINVAL`, as on a file system without `bmap`.
///
/// # Errors
/// `EINVAL` for unknown flags, what is no disk, and a header that is no good; `EBUSY` if it is in use; `EPERM` with as many areas as there
/// can be; `EACCES` of a disk that is read-only; `EIO`, `ENOMEM`, and those of the path.
pub fn swapon(base: Place, path: &[u8], flags: u32) -> Result<(), Errno> {
    if flags & !flag::VALID != 0 {
        return Err(Errno::Einval);
    }
    swapon_disk(disk_at(base, path)?, flags)
}

/// [`swapon`] of a disk, with flags that are valid.
///
/// # Errors
/// As [`swapon`].
pub fn swapon_disk(disk: Disk, flags: u32) -> Result<(), Errno> {
    if disk.geometry.read_only {
        return Err(Errno::Eacces);
    }
    let prio = (flags & flag::PREFER != 0).then_some(flags & flag::PRIO_MASK);
    CALLS.with(|()| {
        if areas::area_on(disk.index).is_some() {
            return Err(Errno::Ebusy);
        }
        let area = areas::free_number().ok_or(Errno::Eperm)?;
        // Linux: `set_blocksize` does it.
        fs::block::kill_bdev(&disk)?;
        let pages = install(area, disk)?;
        zswap::add_area(area);
        match mm_swap::swapon(&Spaces, area, prio.and_then(|prio| u16::try_from(prio).ok())) {
            Ok(prio) => {
                let name = disk.name();
                let name = core::str::from_utf8(&name).unwrap_or("?");
                let kib = pages * PAGE_SIZE / 1024;
                pr_info!("Adding {kib}k swap on /dev/{name}.  Priority:{prio} extents:1 across:{kib}k");
                Ok(())
            }
            Err(error) => {
                zswap::remove_area(area);
                areas::uninstall(area);
                Err(error.errno())
            }
        }
    })
}

/// Reads the header and makes the tables; the area's pages.
fn install(area: u32, disk: Disk) -> Result<u64, Errno> {
    let bytes = first_page(disk)?;
    let header = SwapHeader::ref_from_bytes(&bytes).map_err(|_| Errno::Einval)?;
    let parsed = read_swap_header(header, disk.capacity() * 512 / PAGE_SIZE).map_err(|error| {
        pr_warn!("swapon: {error}");
        Errno::Einval
    })?;
    let count = usize::try_from(parsed.max()).map_err(|_| Errno::Enomem)?;
    let mut clusters = Vec::new();
    let nr_clusters = usize::try_from(parsed.max().div_ceil(SWAPFILE_CLUSTER)).map_err(|_| Errno::Enomem)?;
    clusters.try_reserve_exact(nr_clusters).map_err(|_| Errno::Enomem)?;
    clusters.resize(nr_clusters, Cluster::NEW);
    let words = areas::make_words(area, count).ok_or(Errno::Enomem)?;
    let new = NewArea::new(&parsed, words.slots(), clusters).map_err(|error| {
        pr_warn!("swapon: {error}");
        error.errno()
    })?;
    let info = new.into_info();
    let pages = info.pages();
    areas::install(area, disk, words, info);
    Ok(pages)
}

/// The first page of a disk.
fn first_page(disk: Disk) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let len = size_of::<SwapHeader>();
    bytes.try_reserve_exact(len).map_err(|_| Errno::Enomem)?;
    bytes.resize(len, 0);
    let frame = page_alloc::alloc_here(Gfp::KERNEL, Order::ZERO, None).ok_or(Errno::Enomem)?;
    let read = disk.read(0, &[Segment::frame(frame)], &sched::task_context());
    if read.is_ok() {
        kmap::copy_from_page(frame, 0, &mut bytes);
    }
    page_alloc::free_pages(frame, Order::ZERO);
    read.map(|()| bytes)
}

/// The disk that a path names.
fn disk_at(base: Place, path: &[u8]) -> Result<Disk, Errno> {
    let context = fs::context()?;
    let kind = with_vfs(|vfs| {
        let place = vfs.lookup(&context, base, path, Follow::Yes)?;
        let file = vfs.open_place(&context, place, OpenFlags::empty())?;
        let kind = match file.kind {
            Kind::Block(device) => Some(device),
            _ => None,
        };
        vfs.put(file.place);
        Ok(kind)
    })?;
    let Device { major, minor } = kind.ok_or(Errno::Einval)?;
    if major != MAJOR || !minor.is_multiple_of(MINORS) {
        return Err(Errno::Einval);
    }
    usize::try_from(minor / MINORS).ok().and_then(block::disk).ok_or(Errno::Enxio)
}

/// Takes a disk out of use; all that is in it comes back first.
///
/// # Errors
/// `EINVAL` if it is not in use, `ENOMEM` if the rest of the machine cannot hold what is there, `EINTR`, `EIO`, and those of the path.
pub fn swapoff(base: Place, path: &[u8]) -> Result<(), Errno> {
    let disk = disk_at(base, path)?;
    CALLS.with(|()| {
        let area = areas::area_on(disk.index).ok_or(Errno::Einval)?;
        mm_swap::swapoff(&Spaces, area, &unuse::Back).map_err(mm_swap::SwapError::errno)?;
        zswap::remove_area(area);
        areas::uninstall(area);
        // What was read of the disk meanwhile is old.
        fs::block::kill_bdev(&disk)
    })
}
