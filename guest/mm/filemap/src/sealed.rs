//! Seals: what nobody may do to a file any more (Linux: mm/memfd.c, and the checks in mm/shmem.c).
//!
//! Invariants:
//! L1  seals are only added, by one caller at a time (it holds the inode's lock);
//! L2  with WRITE nobody maps the file shared and writably, and nobody comes to: a mapping on its way counts in `writable`, and WRITE is
//!     added only while that is 0 and makes it -1 for ever.
//!
//! Where releases of Linux differ, 6.18 is followed: a shared mapping without the right to write may be made of a file with
//! WRITE, and never gets that right.

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use bitflags::bitflags;
use mm_core::Errno;

use crate::CacheError;

bitflags! {
    /// `F_SEAL_*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Seals: u32 {
        /// No more seals.
        const SEAL = 1;
        /// It does not get shorter.
        const SHRINK = 2;
        /// It does not get longer.
        const GROW = 4;
        /// Nobody writes.
        const WRITE = 8;
        /// Nobody writes who does not already by a mapping.
        const FUTURE_WRITE = 0x10;
        /// The rights to execute it stay.
        const EXEC = 0x20;
    }
}

impl Seals {
    const ANY_WRITE: Seals = Seals::WRITE.union(Seals::FUTURE_WRITE);

    fn refused(refused: bool) -> Result<(), CacheError> {
        if refused { Err(CacheError::Sealed) } else { Ok(()) }
    }

    /// A write that ends at byte `end` of a file of `size` bytes (Linux: `shmem_write_begin`).
    ///
    /// # Errors
    /// [`CacheError::Sealed`].
    pub fn check_write(self, end: u64, size: u64) -> Result<(), CacheError> {
        Seals::refused(self.intersects(Seals::ANY_WRITE) || self.contains(Seals::GROW) && end > size)
    }

    /// Another size (Linux: `shmem_setattr`).
    ///
    /// # Errors
    /// [`CacheError::Sealed`].
    pub fn check_resize(self, old: u64, new: u64) -> Result<(), CacheError> {
        Seals::refused(new < old && self.contains(Seals::SHRINK) || new > old && self.contains(Seals::GROW))
    }

    /// A hole (Linux: `shmem_fallocate`).
    ///
    /// # Errors
    /// [`CacheError::Sealed`].
    pub fn check_punch(self) -> Result<(), CacheError> {
        Seals::refused(self.intersects(Seals::ANY_WRITE))
    }

    /// Pages up to byte `end`, whether or not the size stays (Linux: `shmem_fallocate`).
    ///
    /// # Errors
    /// [`CacheError::Sealed`].
    pub fn check_allocate(self, end: u64, size: u64) -> Result<(), CacheError> {
        Seals::refused(self.contains(Seals::GROW) && end > size)
    }

    /// A shared mapping, with the right to write or without; true if it never may get that right (Linux:
    /// `memfd_check_seals_mmap`).
    ///
    /// # Errors
    /// [`CacheError::Sealed`].
    pub fn check_mmap(self, write: bool) -> Result<bool, CacheError> {
        let sealed = self.intersects(Seals::ANY_WRITE);
        Seals::refused(sealed && write)?;
        Ok(sealed)
    }

    /// Other permissions (Linux: `shmem_setattr`).
    ///
    /// # Errors
    /// [`CacheError::Sealed`].
    pub fn check_mode(self, old: u32, new: u32) -> Result<(), CacheError> {
        Seals::refused(self.contains(Seals::EXEC) && (old ^ new) & 0o111 != 0)
    }
}

/// The seals of a file, and whether it may be mapped writably. All zero is a file that may be sealed.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Sealed {
    seals: AtomicU32,
    /// Shared writable mappings on their way; -1 once there may be none (Linux: `i_mmap_writable`).
    writable: AtomicI32,
}

impl Sealed {
    /// Begins anew: with SEAL for a file that cannot be sealed.
    pub fn init(&self, seals: Seals) {
        self.seals.store(seals.bits(), Ordering::Relaxed);
        self.writable.store(0, Ordering::Relaxed);
    }

    /// Those it has (F_GET_SEALS).
    pub fn seals(&self) -> Seals {
        Seals::from_bits_truncate(self.seals.load(Ordering::Acquire))
    }

    /// Sets seals of a file that nobody else knows yet.
    pub fn set(&self, seals: Seals) {
        self.seals.store(seals.bits(), Ordering::Release);
    }

    /// F_ADD_SEALS, with the inode's lock held. `executable` is whether anybody may execute the file; `is_mapped` whether anybody maps it
    /// shared and writably (Linux: `memfd_add_seals`).
    ///
    /// # Errors
    /// `EINVAL` for unknown seals, `EPERM` with SEAL, `EBUSY` for WRITE of what is mapped.
    pub fn add(&self, raw: u32, executable: bool, is_mapped: impl FnOnce() -> bool) -> Result<(), Errno> {
        let mut more = Seals::from_bits(raw).ok_or(Errno::Einval)?;
        let now = self.seals();
        if now.contains(Seals::SEAL) {
            return Err(Errno::Eperm);
        }
        if more.contains(Seals::WRITE) && !now.contains(Seals::WRITE) {
            self.deny_writable(is_mapped)?;
        }
        // What may be executed is not written from the start.
        if more.contains(Seals::EXEC) && executable {
            more |= Seals::SHRINK | Seals::GROW | Seals::ANY_WRITE;
        }
        self.set(now | more);
        Ok(())
    }

    /// Linux: `mapping_deny_writable`.
    fn deny_writable(&self, is_mapped: impl FnOnce() -> bool) -> Result<(), Errno> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        self.writable.compare_exchange(0, -1, success, failure).map_err(|_| Errno::Ebusy)?;
        if is_mapped() {
            self.writable.store(0, Ordering::Release);
            return Err(Errno::Ebusy);
        }
        Ok(())
    }

    /// A shared mapping that may be written is on its way, until [`Sealed::unmap_writable`] (Linux: `mapping_map_writable`).
    ///
    /// # Errors
    /// `EPERM` if there may be none.
    pub fn map_writable(&self) -> Result<(), Errno> {
        let more = |now: i32| now.checked_add(1).filter(|_| now >= 0);
        self.writable
            .try_update(Ordering::AcqRel, Ordering::Relaxed, more)
            .map(drop)
            .map_err(|_| Errno::Eperm)
    }

    /// It is there, or did not come.
    pub fn unmap_writable(&self) {
        self.writable.fetch_sub(1, Ordering::AcqRel);
    }
}
