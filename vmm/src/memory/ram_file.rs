//! A memory file and its mapping: where guest RAM is on the host. All mmap(2) of guest RAM is here.
//!
//! R1  host address, file offset and guest-physical address are equal modulo the largest page that may back them: only
//!     then can KVM map a guest page by one of the host's huge pages;
//! R2  the mapping lives as long as [`RamFile`], at the address that it has from the start;
//! R3  pages of a pool are reserved when the mapping is made: a touch never finds the pool empty.

use std::{fs::File, io, os::fd::AsFd, ptr::null_mut, sync::Arc};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags},
};

use super::{MemoryError, pool};
use crate::machine::{Backed, Backing, Range, layout};

/// Alignment where the machine does not say what backs it: the host may choose transparent huge pages.
const ALIGN_DEFAULT: u64 = 2 << 20;

/// A sealed memfd, mapped shared.
#[derive(Debug)]
pub(super) struct RamFile {
    /// Guest-physical addresses; the file begins with the first.
    pub range: Range,
    pub backing: Option<Backing>,
    pub file: Arc<File>,
    /// First byte of the mapping.
    address: *mut u8,
    reservation: Reservation,
}

// SAFETY: `address` is a number here; what is behind it is accessed by volatile copies of vm-memory and by KVM only.
unsafe impl Send for RamFile {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for RamFile {}

impl RamFile {
    /// The file that holds the RAM of `slot`, which `backed` may say more about.
    pub(super) fn new(slot: Range, backed: Option<Backed>) -> Result<RamFile, MemoryError> {
        let backing = backed.map(|backed| backed.backing);
        let align = backing.map_or(ALIGN_DEFAULT, Backing::page_size);
        let range = match backed {
            // Slots share the pages of a pool: they are few.
            Some(Backed { range, backing }) if backing.is_pooled() => range,
            _ => Range::new(slot.base / align * align, slot.end()),
        };
        let file = Arc::new(create(slot, range, backing)?);
        let host = |step| move |source: Errno| MemoryError::host(step, range, source.into());
        let size = usize::try_from(range.len).ok();
        let align = usize::try_from(align).ok();
        let (Some(size), Some(align)) = (size, align) else { return Err(MemoryError::too_large(range)) };
        let reservation = Reservation::new(size, align).map_err(host("map a memfd"))?;
        let address = reservation.aligned(align);
        let reserve =
            if backing.is_some_and(Backing::is_pooled) { MapFlags::empty() } else { MapFlags::NORESERVE };
        let flags = MapFlags::SHARED | MapFlags::FIXED | reserve;
        // SAFETY: `size` bytes from `address` on are inside the reservation, which nobody else uses.
        let mapped = unsafe {
            rustix::mm::mmap(address.cast(), size, ProtFlags::READ | ProtFlags::WRITE, flags, file.as_fd(), 0)
        };
        mapped.map_err(|errno| match backing {
            Some(backing) if backing.is_pooled() && errno == Errno::NOMEM => pool::exhausted(backing, range),
            _ => host("map a memfd")(errno),
        })?;
        let advice = match backing {
            Some(Backing::Small) => Some(Advice::LinuxNoHugepage),
            Some(Backing::Transparent) => Some(Advice::LinuxHugepage),
            _ => None,
        };
        if let Some(advice) = advice {
            // SAFETY: the range is our own mapping; the advice changes page sizes and no content.
            match unsafe { rustix::mm::madvise(address.cast(), size, advice) } {
                // A kernel without transparent huge pages; `pool::remarks` tells.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(host("choose page sizes")(errno)),
            }
        }
        Ok(RamFile { range, backing, file, address, reservation })
    }

    /// Whether `slot` is to be in this file: it is one of pages of a pool, of which a file may hold many slots.
    pub(super) fn is_shared_by(&self, slot: Range) -> bool {
        self.backing.is_some_and(Backing::is_pooled)
            && self.range.base <= slot.base
            && slot.end() <= self.range.end()
    }

    /// Where `gpa`, an address of the file, is mapped.
    pub(super) fn host_address(&self, gpa: u64) -> *mut u8 {
        let offset = usize::try_from(gpa - self.range.base).unwrap_or(0);
        debug_assert!(offset < self.reservation.len);
        self.address.wrapping_add(offset)
    }
}

/// Addresses of this process that belong to a [`RamFile`].
#[derive(Debug)]
struct Reservation {
    start: *mut u8,
    len: usize,
}

impl Reservation {
    /// Room for `size` bytes at a multiple of `align`.
    fn new(size: usize, align: usize) -> Result<Reservation, Errno> {
        let page = usize::try_from(layout::PAGE_SIZE).unwrap_or(align);
        // Any mapping is at a page.
        let len = size.checked_add(align.saturating_sub(page)).ok_or(Errno::NOMEM)?;
        // SAFETY: the kernel chooses addresses that are free.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                null_mut(),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        Ok(Reservation { start: start.cast(), len })
    }

    /// The first multiple of `align` inside.
    fn aligned(&self, align: usize) -> *mut u8 {
        self.start.map_addr(|start| start.next_multiple_of(align))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the addresses are ours alone, with the file's mapping among them; `RamFile`'s owner sees to it
        // that nobody uses them any more.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.len) };
    }
}

/// The file is named for the first slot that it was made for: people see the name in lists of mappings.
fn create(slot: Range, range: Range, backing: Option<Backing>) -> Result<File, MemoryError> {
    let pages = match backing {
        Some(Backing::Huge2M) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        Some(Backing::Huge1G) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        _ => MemfdFlags::empty(),
    };
    let host = |step| move |source: io::Error| MemoryError::host(step, range, source);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages;
    let fd = rustix::fs::memfd_create(format!("guest-ram-{:#x}", slot.base), flags)
        .map_err(|errno| host("create a memfd")(errno.into()))?;
    let file = File::from(fd);
    file.set_len(range.len).map_err(host("size a memfd"))?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .map_err(|errno| host("seal a memfd")(errno.into()))?;
    Ok(file)
}
