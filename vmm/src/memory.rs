//! Guest RAM: one sealed memfd, one shared mapping and one KVM slot for each range.
//!
//! Invariants:
//! M1  slots are ascending by guest-physical address and do not overlap;
//! M2  a slot's mapping lives as long as [`Memory`], and [`Memory`] outlives the KVM file
//!     descriptor that it was attached to (the owner of both keeps it so: see [`Memory::attach`]);
//! M3  a memfd cannot shrink or grow, so a reader in another process that maps it never faults;
//! M4  every read and write copies, and is checked against the ranges.
//!
//! Descriptors leave this process read-only ([`Memory::read_only_descriptors`]).

use std::{fs::File, io, os::fd::AsRawFd, os::fd::OwnedFd, sync::Arc};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use memvisor_inspect::{MemorySource, RamRegion, ReadError};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, mmap::MmapRegionBuilder};

/// Why guest RAM could not be made, attached or written.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The machine has no RAM.
    #[error("the machine has no RAM: give at least one memory range")]
    NoRam,
    /// A range is not made of whole pages.
    #[error("RAM at {gpa:#x} (+{len:#x}) is not made of whole 4 KiB pages: align it")]
    Unaligned {
        /// First byte.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A range does not fit this host's address space.
    #[error("RAM at {gpa:#x} (+{len:#x}) is too large for this host")]
    TooLarge {
        /// First byte.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The host would not give the memory.
    #[error("cannot {step} for RAM at {gpa:#x} (+{len:#x})")]
    Host {
        /// What was tried.
        step: &'static str,
        /// First byte.
        gpa: u64,
        /// Length in bytes.
        len: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// The ranges overlap.
    #[error("memory slots overlap: {0}")]
    Overlap(String),
    /// KVM refused a slot.
    #[error("KVM_SET_USER_MEMORY_REGION refused slot {slot} at {gpa:#x} (+{len:#x})")]
    Slot {
        /// Slot number.
        slot: u32,
        /// First byte.
        gpa: u64,
        /// Length in bytes.
        len: u64,
        /// KVM's answer.
        source: io::Error,
    },
    /// A write outside RAM.
    #[error("cannot write {len:#x} bytes at guest-physical {gpa:#x}: not RAM")]
    NotRam {
        /// First byte.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// A memory slot as other processes see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotInfo {
    /// KVM slot number.
    pub slot: u32,
    /// First byte, guest-physical.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the VMM's process maps it.
    pub hva: u64,
}

/// All RAM of a guest.
#[derive(Debug)]
pub struct Memory {
    guest: Arc<GuestMemoryMmap>,
    regions: Vec<RamRegion>,
    slots: Vec<SlotInfo>,
    files: Vec<Arc<File>>,
}

impl Memory {
    /// Makes one memfd a range. The memory reads as zero and costs nothing until it is touched.
    ///
    /// # Errors
    /// If the ranges are empty, unaligned, overlap, or the host refuses.
    pub fn new(ranges: &[RamRegion]) -> Result<Memory, MemoryError> {
        let mut regions = ranges.to_vec();
        regions.sort_by_key(|region| region.gpa);
        if regions.is_empty() {
            return Err(MemoryError::NoRam);
        }
        let mut files = Vec::with_capacity(regions.len());
        let mut mapped = Vec::with_capacity(regions.len());
        let mut slots = Vec::with_capacity(regions.len());
        for (region, slot) in regions.iter().zip(0u32..) {
            let file = Arc::new(create_memfd(*region)?);
            let map = map_shared(*region, &file)?;
            slots.push(SlotInfo { slot, gpa: region.gpa, len: region.len, hva: map.as_ptr().addr() as u64 });
            mapped.push(
                GuestRegionMmap::new(map, GuestAddress(region.gpa))
                    .ok_or(MemoryError::TooLarge { gpa: region.gpa, len: region.len })?,
            );
            files.push(file);
        }
        let guest =
            GuestMemoryMmap::from_regions(mapped).map_err(|error| MemoryError::Overlap(error.to_string()))?;
        Ok(Memory { guest: Arc::new(guest), regions, slots, files })
    }

    /// Gives every slot to KVM. Call it before the interrupt controller exists: with one, each
    /// slot costs milliseconds.
    ///
    /// # Errors
    /// If KVM refuses a slot (too many, or beyond its address width).
    pub fn attach(self: &Arc<Memory>, vm: &VmFd) -> Result<(), MemoryError> {
        for slot in &self.slots {
            let region = kvm_userspace_memory_region {
                slot: slot.slot,
                flags: 0,
                guest_phys_addr: slot.gpa,
                memory_size: slot.len,
                userspace_addr: slot.hva,
            };
            // SAFETY: the range is mapped with exactly this length by a mapping that `self` owns
            // (M2), and the VM that owns `vm` keeps `self` in an `Arc` that it drops after `vm`.
            unsafe { vm.set_user_memory_region(region) }.map_err(|errno| MemoryError::Slot {
                slot: slot.slot,
                gpa: slot.gpa,
                len: slot.len,
                source: io::Error::from_raw_os_error(errno.errno()),
            })?;
        }
        Ok(())
    }

    /// The mappings, for readers in this process.
    pub fn guest(&self) -> &Arc<GuestMemoryMmap> {
        &self.guest
    }

    /// Slots, ascending by address.
    pub fn slots(&self) -> &[SlotInfo] {
        &self.slots
    }

    /// Copies `bytes` to `gpa`.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] if any byte is outside RAM; RAM before the hole may then be written.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.guest
            .write_slice(bytes, GuestAddress(gpa))
            .map_err(|_| MemoryError::NotRam { gpa, len: bytes.len() as u64 })
    }

    /// Whether all of `gpa..gpa + len` is RAM. An empty range is.
    pub fn is_ram(&self, gpa: u64, len: u64) -> bool {
        let Some(end) = gpa.checked_add(len) else { return false };
        let mut at = gpa;
        while at < end {
            let Some(region) = self.regions.iter().find(|region| region.contains(at)) else {
                return false;
            };
            at = region.gpa.saturating_add(region.len);
        }
        true
    }

    /// A descriptor for each slot, in slot order, that cannot write.
    ///
    /// # Errors
    /// If the descriptors cannot be opened again (no /proc, too many open files).
    pub fn read_only_descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        self.files
            .iter()
            .map(|file| {
                // A memfd is opened for writing; only a fresh open gives a descriptor without.
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
            })
            .collect()
    }
}

impl MemorySource for Memory {
    fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let len = buf.len() as u64;
        self.guest.read_slice(buf, GuestAddress(gpa)).map_err(|_| ReadError::NotRam { gpa, len })
    }
}

fn create_memfd(region: RamRegion) -> Result<File, MemoryError> {
    let RamRegion { gpa, len } = region;
    if !gpa.is_multiple_of(4096) || !len.is_multiple_of(4096) || len == 0 {
        return Err(MemoryError::Unaligned { gpa, len });
    }
    let host = |step| move |source| MemoryError::Host { step, gpa, len, source };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(format!("guest-ram-{gpa:#x}"), flags)
        .map_err(|errno| host("create a memfd")(errno.into()))?;
    let file = File::from(fd);
    file.set_len(len).map_err(host("size a memfd"))?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .map_err(|errno| host("seal a memfd")(errno.into()))?;
    Ok(file)
}

fn map_shared(region: RamRegion, file: &Arc<File>) -> Result<vm_memory::MmapRegion, MemoryError> {
    let RamRegion { gpa, len } = region;
    let size = usize::try_from(len).map_err(|_| MemoryError::TooLarge { gpa, len })?;
    MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::from_arc(file.clone(), 0))
        .build()
        .map_err(|error| MemoryError::Host {
            step: "map a memfd",
            gpa,
            len,
            source: io::Error::other(error.to_string()),
        })
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::FileExt};

    use super::*;

    fn two_slots() -> Memory {
        Memory::new(&[
            RamRegion { gpa: 0x10_0000, len: 0x2000 },
            RamRegion { gpa: 0, len: 0x1000 },
            RamRegion { gpa: 0x1000, len: 0x1000 },
        ])
        .expect("host gives three small memfds")
    }

    #[test]
    fn slots_are_sorted_by_address() {
        let gpas: Vec<u64> = two_slots().slots().iter().map(|slot| slot.gpa).collect();
        assert_eq!(gpas, [0, 0x1000, 0x10_0000]);
    }

    #[test]
    fn reads_and_writes_cross_adjacent_slots() {
        let memory = two_slots();
        memory.write(0xffe, b"abcd").expect("adjacent RAM");
        let mut back = [0; 4];
        memory.read(0xffe, &mut back).expect("adjacent RAM");
        assert_eq!(&back, b"abcd");
    }

    #[test]
    fn ranges_that_leave_ram_are_refused() {
        let memory = two_slots();
        assert!(memory.write(0x1ffe, b"abcd").is_err());
        assert!(memory.read(0x1ffe, &mut [0; 4]).is_err());
        assert!(memory.read(u64::MAX, &mut [0; 4]).is_err());
        assert!(!memory.is_ram(u64::MAX, 4));
        assert!(memory.is_ram(0, 0x2000));
        assert!(!memory.is_ram(0, 0x2001));
    }

    #[test]
    fn descriptors_handed_out_read_but_do_not_write() {
        let memory = two_slots();
        memory.write(0x10_0000, b"seen").expect("RAM");
        let fds = memory.read_only_descriptors().expect("proc is mounted");
        let mut file = File::from(fds.into_iter().nth(2).expect("third slot"));
        let mut head = [0; 4];
        file.read_exact(&mut head).expect("readable");
        assert_eq!(&head, b"seen");
        assert!(file.write_at(b"x", 0).is_err());
    }

    #[test]
    fn odd_ranges_are_named() {
        let error = Memory::new(&[RamRegion { gpa: 0x123, len: 0x1000 }]).expect_err("unaligned");
        assert!(error.to_string().contains("0x123"), "{error}");
        assert!(Memory::new(&[]).is_err());
    }
}
