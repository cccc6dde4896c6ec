//! Guest memory through shared mappings: of the VMM in its own process, of a running guest from
//! another process, or of a memory file.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::SeekFrom;
use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    VolatileMemory,
};

use crate::source::{
    MemorySource, RamRegion, ReadError, RegionError, check_regions, find, next_ram, read_pieces,
};

/// Reads at least this long go through the file where there is one: the kernel then copies without
/// page faults, and does not allocate frames for holes.
const FILE_READ_LEN: usize = 16 << 10;
/// Regions that [`MemorySource::read_u64`] tries, largest first, before it searches.
const HOT_REGIONS: usize = 4;

/// Why guest memory could not be mapped.
#[derive(Debug, Error)]
pub enum MapError {
    /// The regions cannot be a machine's RAM.
    #[error(transparent)]
    Regions(#[from] RegionError),
    /// No regions at all.
    #[error("no RAM regions were given; name at least one memory file or descriptor")]
    Empty,
    /// A memory file cannot be opened.
    #[error("open memory file {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A memory file is not usable.
    #[error("memory file {} is empty or not a whole number of 8-byte words long ({len} bytes)", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// A file's size cannot be found.
    #[error("size of the file behind the RAM at {gpa:#x}")]
    Size {
        /// First byte of the region.
        gpa: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// A file ends before the region that it should hold.
    #[error(
        "the file behind the RAM at {gpa:#x} holds {file_len:#x} bytes, but the region needs {need:#x}: \
         it is truncated"
    )]
    Truncated {
        /// First byte of the region.
        gpa: u64,
        /// Length of the file in bytes.
        file_len: u64,
        /// Length it must have.
        need: u64,
    },
    /// The mapping failed.
    #[error("map the RAM at {gpa:#x} ({len:#x} bytes)")]
    Map {
        /// First byte of the region.
        gpa: u64,
        /// Length in bytes.
        len: u64,
        /// What was refused.
        source: MmapRegionError,
    },
}

/// Guest RAM mapped into this process.
///
/// Who shrinks a file under its mapping makes readers take SIGBUS; the VMM seals its memory files
/// against that, and whoever names a file by hand vouches for it.
#[derive(Debug)]
pub struct MappedMemory {
    regions: Vec<RamRegion>,
    maps: Vec<Map>,
    /// The largest region: almost every read is there.
    largest: Hot,
    /// The next largest.
    others: Vec<Hot>,
    /// Of mappings that are not their own.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

/// What a region is read through.
#[derive(Debug)]
struct Map {
    map: Arc<MmapRegion>,
    /// Bytes of the mapping before the region: a mapping of huge pages begins and ends at one.
    skip: u64,
}

impl Map {
    /// Whether the mapping holds the region and nothing else.
    fn is_exact(&self, region: RamRegion) -> bool {
        self.skip == 0 && u64::try_from(self.map.len()).is_ok_and(|len| len == region.len)
    }

    /// The file, and where in it the region begins.
    fn file(&self) -> Option<(&File, u64)> {
        let offset = self.map.file_offset()?;
        Some((offset.file(), offset.start().checked_add(self.skip)?))
    }
}

#[derive(Debug)]
struct Hot {
    gpa: u64,
    map: Arc<MmapRegion>,
}

impl Hot {
    /// The word at `gpa`; `None` if not all of it is here.
    #[inline(always)]
    fn load(&self, gpa: u64) -> Option<u64> {
        // Below the region this wraps around to an offset that no mapping has.
        load(&self.map, gpa.wrapping_sub(self.gpa))
    }
}

impl MappedMemory {
    /// Shares the VMM's own mappings. `owner`, if they are not their own, is kept as long as they are used.
    ///
    /// # Errors
    /// [`MapError::Empty`].
    pub fn from_guest_memory(
        memory: &GuestMemoryMmap,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<MappedMemory, MapError> {
        let parts = memory
            .iter()
            .map(|region: &GuestRegionMmap| {
                let map = Map { map: region.get_mmap(), skip: 0 };
                (RamRegion { gpa: region.start_addr().0, len: region.len() }, map)
            })
            .collect();
        Ok(MappedMemory { _owner: owner, ..MappedMemory::from_maps(parts)? })
    }

    /// Maps each region read-only from its descriptor, which another process handed over, at an
    /// offset that is a multiple of 4 KiB.
    ///
    /// # Errors
    /// [`MapError`]: a list that is no machine's RAM, a file that is too short, a refused mapping.
    pub fn from_fds(parts: Vec<(RamRegion, OwnedFd, u64)>) -> Result<MappedMemory, MapError> {
        let parts = parts.into_iter().map(|(region, fd, offset)| (region, Arc::new(File::from(fd)), offset));
        MappedMemory::from_files(parts.collect())
    }

    /// As [`MappedMemory::from_fds`], with files that may be the same for many regions.
    ///
    /// # Errors
    /// As [`MappedMemory::from_fds`].
    pub fn from_files(parts: Vec<(RamRegion, Arc<File>, u64)>) -> Result<MappedMemory, MapError> {
        let mut maps = Vec::with_capacity(parts.len());
        for (region, file, offset) in parts {
            let gpa = region.gpa;
            let metadata = file.metadata().map_err(|source| MapError::Size { gpa, source })?;
            let file_len = metadata.len();
            let need = offset.saturating_add(region.len);
            if need > file_len {
                return Err(MapError::Truncated { gpa, file_len, need });
            }
            maps.push((region, map_file(region, file, offset, metadata.blksize())?));
        }
        MappedMemory::from_maps(maps)
    }

    /// Maps whole files, each at the guest-physical address of its first byte.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn from_mem_files<P: AsRef<Path>>(files: &[(P, u64)]) -> Result<MappedMemory, MapError> {
        let mut parts = Vec::with_capacity(files.len());
        for (path, gpa) in files {
            let path = path.as_ref();
            let open = |source| MapError::Open { path: path.to_path_buf(), source };
            let file = File::open(path).map_err(open)?;
            let len = file.metadata().map_err(open)?.len();
            if len == 0 || !len.is_multiple_of(8) {
                return Err(MapError::FileSize { path: path.to_path_buf(), len });
            }
            parts.push((RamRegion { gpa: *gpa, len }, Arc::new(file), 0));
        }
        MappedMemory::from_files(parts)
    }

    /// Takes mappings, each of which holds its region.
    fn from_maps(mut parts: Vec<(RamRegion, Map)>) -> Result<MappedMemory, MapError> {
        if parts.is_empty() {
            return Err(MapError::Empty);
        }
        parts.sort_by_key(|(region, _)| region.gpa);
        let (regions, maps): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        check_regions(&regions)?;
        let mut by_size: Vec<_> =
            regions.iter().zip(&maps).filter(|(region, map)| map.is_exact(**region)).collect();
        by_size.sort_by_key(|(region, _)| std::cmp::Reverse(region.len));
        let mut hot = by_size
            .into_iter()
            .take(HOT_REGIONS)
            .map(|(region, map)| Hot { gpa: region.gpa, map: Arc::clone(&map.map) });
        let largest = match hot.next() {
            Some(largest) => largest,
            None => Hot { gpa: 0, map: Arc::new(no_words()?) },
        };
        let others = hot.collect();
        Ok(MappedMemory { regions, maps, largest, others, _owner: None })
    }
}

impl MemorySource for MappedMemory {
    fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        read_pieces(&self.regions, gpa, buf, |index, offset, piece| {
            let Some(map) = self.maps.get(index) else { return false };
            if piece.len() >= FILE_READ_LEN
                && let Some((file, start)) = map.file()
                && let Some(at) = start.checked_add(offset)
                && file.read_exact_at(piece, at).is_ok()
            {
                return true;
            }
            let Ok(offset) = usize::try_from(offset.saturating_add(map.skip)) else { return false };
            map.map.get_slice(offset, piece.len()).is_ok_and(|slice| slice.copy_to(piece) == piece.len())
        })
    }

    #[inline]
    fn read_u64(&self, gpa: u64) -> Result<u64, ReadError> {
        // Only the largest region here: what is inlined into walks must be short.
        if let Some(word) = self.largest.load(gpa) {
            return Ok(word);
        }
        self.read_u64_elsewhere(gpa)
    }

    fn next_data(&self, gpa: u64) -> Option<u64> {
        let mut at = gpa;
        loop {
            at = next_ram(&self.regions, at)?;
            let index = find(&self.regions, at)?;
            let (region, map) = (self.regions.get(index)?, self.maps.get(index)?);
            let Some((file, start)) = map.file() else { return Some(at) };
            // Where the file system cannot tell (or the offsets cannot be expressed), all is data.
            let Some(from) = start.checked_add(at - region.gpa) else { return Some(at) };
            match rustix::fs::seek(file, SeekFrom::Data(from)) {
                Ok(data) if data - start < region.len => return Some(region.gpa + (data - start)),
                // No data up to the end of the region.
                Ok(_) | Err(rustix::io::Errno::NXIO) => at = region.gpa.checked_add(region.len)?,
                Err(_) => return Some(at),
            }
        }
    }

    fn data_end(&self, gpa: u64) -> Option<u64> {
        let index = find(&self.regions, gpa)?;
        let (region, map) = (self.regions.get(index)?, self.maps.get(index)?);
        let (file, start) = map.file()?;
        let hole = rustix::fs::seek(file, SeekFrom::Hole(start.checked_add(gpa - region.gpa)?)).ok()?;
        // A hole may begin in what the file holds after the region.
        let end = hole.checked_sub(start)?.min(region.len);
        region.gpa.checked_add(end).filter(|end| *end > gpa)
    }
}

impl MappedMemory {
    #[inline(never)]
    fn read_u64_elsewhere(&self, gpa: u64) -> Result<u64, ReadError> {
        if let Some(word) = self.others.iter().find_map(|hot| hot.load(gpa)) {
            return Ok(word);
        }
        if let Some(index) = find(&self.regions, gpa)
            && let (Some(region), Some(map)) = (self.regions.get(index), self.maps.get(index))
            && gpa - region.gpa <= region.len.saturating_sub(8)
            && let Some(word) = load(&map.map, (gpa - region.gpa).saturating_add(map.skip))
        {
            return Ok(word);
        }
        // The word may lie across two adjacent regions.
        let mut word = [0; 8];
        self.read(gpa, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }
}

/// Loads a word, in one access if it is aligned; `None` outside the mapping.
#[inline]
fn load(map: &MmapRegion, offset: u64) -> Option<u64> {
    let offset = usize::try_from(offset).ok()?;
    map.get_ref::<u64>(offset).ok().map(|word| u64::from_le(word.load()))
}

/// Maps `region`, which is at `offset` of a file whose pages have `page` bytes.
fn map_file(region: RamRegion, file: Arc<File>, offset: u64, page: u64) -> Result<Map, MapError> {
    let RamRegion { gpa, len } = region;
    let refuse = |source| MapError::Map { gpa, len, source };
    let size = |len: u64| usize::try_from(len).map_err(|_| refuse(MmapRegionError::InvalidOffsetLength));
    // Only huge pages of a pool cannot be mapped in part; a file elsewhere may name a block size of any kind.
    let is_huge =
        page > BASE_PAGE && rustix::fs::fstatfs(&*file).is_ok_and(|fs| fs.f_type == HUGETLBFS_MAGIC);
    let page = if is_huge { page } else { BASE_PAGE };
    let skip = offset % page;
    let whole = if is_huge { (skip + len).next_multiple_of(page) } else { skip + len };
    let map = MmapRegionBuilder::new(size(whole)?)
        .with_file_offset(FileOffset::from_arc(file, offset - skip))
        .with_mmap_prot(PROT_READ)
        .with_mmap_flags(MAP_SHARED)
        .build()
        .map_err(refuse)?;
    Ok(Map { map: Arc::new(map), skip })
}

/// A mapping too small to read a word from.
fn no_words() -> Result<MmapRegion, MapError> {
    let one = MmapRegionBuilder::new(1).with_mmap_prot(PROT_READ).with_mmap_flags(MAP_ANONYMOUS).build();
    one.map_err(|source| MapError::Map { gpa: 0, len: 1, source })
}

/// Bytes of an ordinary page.
const BASE_PAGE: u64 = 4096;
/// `HUGETLBFS_MAGIC` (Linux: include/uapi/linux/magic.h).
const HUGETLBFS_MAGIC: rustix::fs::FsWord = 0x9584_58f6;

#[expect(clippy::cast_possible_wrap, reason = "small constants of the system interface")]
const PROT_READ: i32 = rustix::mm::ProtFlags::READ.bits() as i32;
#[expect(clippy::cast_possible_wrap, reason = "small constants of the system interface")]
const MAP_SHARED: i32 = rustix::mm::MapFlags::SHARED.bits() as i32;
/// `MAP_ANONYMOUS | MAP_PRIVATE`.
const MAP_ANONYMOUS: i32 = 0x22;

#[cfg(test)]
#[path = "mapped_tests.rs"]
mod tests;
