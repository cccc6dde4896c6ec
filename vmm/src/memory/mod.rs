//! Guest RAM: one KVM slot for each range, in sealed memfds that are mapped shared. A range has a file of
//! its own, but that ranges on pages of the host's pools share the file of what [`Backed`] describes.
//!
//! Invariants:
//! M1  slots are ascending by guest-physical address and do not overlap;
//! M2  mappings live as long as [`Memory`], whoever reads through them holds it, and it outlives the
//!     KVM file descriptor that it was attached to (the owner of both keeps it so: see [`Memory::attach`]);
//! M3  a memfd cannot shrink or grow, so a reader in another process that maps it never faults;
//! M4  every read and write copies, and is checked against the ranges.
//!
//! Descriptors leave this process read-only ([`Memory::read_only_descriptors`]).

mod pool;
mod ram_file;

use std::{io, os::fd::AsRawFd, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use memvisor_inspect::{MapError, MappedMemory, MemorySource, RamRegion, ReadError};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, mmap::MmapRegionBuilder,
};

pub use pool::{free_huge_pages, remarks, transparent_refusal};
use ram_file::RamFile;

use crate::machine::{Backed, Backing, Range, Size};

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
    #[error(
        "cannot {step} for RAM at {gpa:#x} (+{len:#x}); give the machine less (--memory, --scale) or this process higher limits (ulimit)"
    )]
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
    /// The host's pool of huge pages is too small.
    #[error(
        "backing \"{backing}\" takes {needed} huge pages of {} from the host's pool, which has {available} free; reserve them (echo {write} | sudo tee {}) or choose another backing",
        Size::new(.backing.page_size()), file.display()
    )]
    HugePages {
        /// The backing.
        backing: Backing,
        /// Pages that the machine takes.
        needed: u64,
        /// Pages that are there.
        available: u64,
        /// Size of the pool with which there would be enough.
        write: u64,
        /// Where that is written.
        file: PathBuf,
    },
    /// The host has no pool of huge pages of this size.
    #[error("backing \"{backing}\": this host has no huge pages of {}; choose another backing", Size::new(.backing.page_size()))]
    NoPool {
        /// The backing.
        backing: Backing,
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

impl MemoryError {
    fn host(step: &'static str, range: Range, source: io::Error) -> MemoryError {
        MemoryError::Host { step, gpa: range.base, len: range.len, source }
    }

    const fn too_large(range: Range) -> MemoryError {
        MemoryError::TooLarge { gpa: range.base, len: range.len }
    }
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
    /// Where it begins in the file behind it.
    pub offset: u64,
    /// What the host backs it with, if the machine says so.
    pub backing: Option<Backing>,
}

/// All RAM of a guest.
#[derive(Debug)]
pub struct Memory {
    guest: GuestMemoryMmap,
    regions: Vec<RamRegion>,
    slots: Vec<SlotInfo>,
    /// The file of each slot.
    files: Vec<Arc<RamFile>>,
}

impl Memory {
    /// Memory that reads as zero, backed as the host likes. It costs nothing until it is touched.
    ///
    /// # Errors
    /// As [`Memory::backed`].
    pub fn new(ranges: &[RamRegion]) -> Result<Memory, MemoryError> {
        Memory::backed(ranges, &[])
    }

    /// Memory that reads as zero. What lies inside one of `backed` is backed like that.
    ///
    /// # Errors
    /// If the ranges are empty, unaligned, overlap, or the host refuses; [`MemoryError::HugePages`] if its
    /// pools are too small, before anything is made.
    pub fn backed(ranges: &[RamRegion], backed: &[Backed]) -> Result<Memory, MemoryError> {
        let mut regions = ranges.to_vec();
        regions.sort_by_key(|region| region.gpa);
        if regions.is_empty() {
            return Err(MemoryError::NoRam);
        }
        pool::check(backed)?;
        let mut files: Vec<Arc<RamFile>> = Vec::with_capacity(regions.len());
        let mut mapped = Vec::with_capacity(regions.len());
        let mut slots = Vec::with_capacity(regions.len());
        for (region, slot) in regions.iter().zip(0u32..) {
            let range = check_range(*region)?;
            let file = match files.iter().find(|file| file.is_shared_by(range)) {
                Some(file) => file.clone(),
                None => Arc::new(RamFile::new(range, backing_of(range, backed))?),
            };
            let map = map_slot(range, &file)?;
            slots.push(SlotInfo {
                slot,
                gpa: region.gpa,
                len: region.len,
                hva: map.as_ptr().addr() as u64,
                offset: range.base - file.range.base,
                backing: file.backing,
            });
            mapped.push(
                GuestRegionMmap::new(map, GuestAddress(region.gpa)).ok_or(MemoryError::too_large(range))?,
            );
            files.push(file);
        }
        let guest =
            GuestMemoryMmap::from_regions(mapped).map_err(|error| MemoryError::Overlap(error.to_string()))?;
        Ok(Memory { guest, regions, slots, files })
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

    /// The mappings, for readers in this process. They keep the memory.
    ///
    /// # Errors
    /// None of memory that was made.
    pub fn mapped(self: &Arc<Memory>) -> Result<MappedMemory, MapError> {
        MappedMemory::from_guest_memory(&self.guest, Some(self.clone()))
    }

    /// The memory as devices of rust-vmm take it.
    pub fn guest(&self) -> &GuestMemoryMmap {
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
                let path = format!("/proc/self/fd/{}", file.file.as_raw_fd());
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

fn check_range(RamRegion { gpa, len }: RamRegion) -> Result<Range, MemoryError> {
    if !gpa.is_multiple_of(4096) || !len.is_multiple_of(4096) || len == 0 {
        return Err(MemoryError::Unaligned { gpa, len });
    }
    gpa.checked_add(len).map(|end| Range::new(gpa, end)).ok_or(MemoryError::TooLarge { gpa, len })
}

fn backing_of(slot: Range, backed: &[Backed]) -> Option<Backed> {
    backed.iter().find(|backed| backed.range.base <= slot.base && slot.end() <= backed.range.end()).copied()
}

/// The part of `file`'s mapping that is the slot's.
fn map_slot(slot: Range, file: &RamFile) -> Result<MmapRegion, MemoryError> {
    let size = usize::try_from(slot.len).map_err(|_| MemoryError::too_large(slot))?;
    let builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::from_arc(file.file.clone(), slot.base - file.range.base));
    // SAFETY: the slot is inside the file's range, all of which is mapped, and stays so while `Memory`, which
    // owns both, is there (M2).
    let builder = unsafe { builder.with_raw_mmap_pointer(file.host_address(slot.base)) };
    builder
        .build()
        .map_err(|error| MemoryError::host("map a memfd", slot, io::Error::other(error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

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
        let file = File::from(fds.into_iter().nth(2).expect("third slot"));
        let mut head = [0; 4];
        file.read_exact_at(&mut head, memory.slots()[2].offset).expect("readable");
        assert_eq!(&head, b"seen");
        assert!(file.write_at(b"x", 0).is_err());
    }

    #[test]
    fn addresses_of_guest_host_and_file_fit_the_largest_page() {
        let regions =
            [RamRegion { gpa: 0x10_0000, len: 3 << 20 }, RamRegion { gpa: 0x123_4000, len: 0x5000 }];
        let range = Range { base: 0x10_0000, len: 3 << 20 };
        for backing in [None, Some(Backing::Transparent), Some(Backing::Small)] {
            let backed: Vec<Backed> = backing.map(|backing| Backed { range, backing }).into_iter().collect();
            let memory = Memory::backed(&regions, &backed).expect("host gives small memfds");
            let slot = memory.slots()[0];
            assert_eq!(slot.backing, backing);
            let align = backing.map_or(2 << 20, Backing::page_size);
            for number in [slot.hva, slot.offset] {
                assert_eq!(number % align, slot.gpa % align, "{backing:?}: {slot:x?}");
            }
            assert_eq!(memory.slots()[1].backing, None);
            memory.write(0x10_0000 + (3 << 20) - 4, b"last").expect("RAM");
            let file = File::from(memory.read_only_descriptors().expect("proc").swap_remove(0));
            let mut last = [0; 4];
            file.read_exact_at(&mut last, slot.offset + (3 << 20) - 4).expect("in the file");
            assert_eq!(&last, b"last");
        }
    }

    #[test]
    fn readers_keep_memory_that_its_owner_drops() {
        let memory = Arc::new(two_slots());
        memory.write(0x1000, b"kept").expect("RAM");
        let reader = memory.mapped().expect("memory");
        drop(memory);
        let mut back = [0; 4];
        reader.read(0x1000, &mut back).expect("RAM");
        assert_eq!(&back, b"kept");
    }

    #[test]
    fn a_pool_that_is_too_small_is_told_with_numbers() {
        // More than any host has.
        let range = Range { base: 0, len: 1 << 45 };
        for backing in [Backing::Huge2M, Backing::Huge1G] {
            let regions = [RamRegion { gpa: 0, len: 1 << 45 }];
            let error = Memory::backed(&regions, &[Backed { range, backing }]).expect_err("no such pool");
            let text = error.to_string();
            assert!(text.contains(&backing.to_string()), "{text}");
            assert!(matches!(error, MemoryError::NoPool { .. }) || text.contains("nr_hugepages"), "{text}");
        }
    }

    #[test]
    fn odd_ranges_are_named() {
        let error = Memory::new(&[RamRegion { gpa: 0x123, len: 0x1000 }]).expect_err("unaligned");
        assert!(error.to_string().contains("0x123"), "{error}");
        assert!(Memory::new(&[]).is_err());
    }
}
