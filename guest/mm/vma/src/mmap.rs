//! mmap (Linux: mm/mmap.c, `do_mmap`; mm/vma.c, `mmap_region`).

use mm_core::{Event, PAGE_SHIFT, PAGE_SIZE, Policy};

use crate::flags::MapType;
use crate::id::Id;
use crate::merge::Merge;
use crate::space::{Populate, page_align};
use crate::{Errno, Frames, Kernel, MapFlags, Mapping, ProtFlags, Space, VmFlags};

/// Pages of the longest file (Linux: `MAX_LFS_FILESIZE`, `file_mmap_ok`).
const MAX_FILE_PAGES: u64 = (i64::MAX >> PAGE_SHIFT).cast_unsigned();

/// A file, as mmap looks at it.
#[derive(Clone, Copy, Debug)]
pub struct MapFile {
    /// Its pages.
    pub mapping: Id<Mapping>,
    /// Opened for reading (Linux: `FMODE_READ`).
    pub readable: bool,
    /// Opened for writing (Linux: `FMODE_WRITE`).
    pub writable: bool,
    /// On a file system mounted noexec.
    pub noexec: bool,
    /// Flags that its driver adds.
    pub flags: VmFlags,
    /// Flags that its driver takes away: MAYWRITE of what nobody may ever write.
    pub without: VmFlags,
    /// Frames that its driver maps at once, instead of pages at faults.
    pub frames: Option<Frames>,
    /// There is something to map (Linux: `can_mmap_file`); if not, nothing of the mapping is looked at.
    pub mappable: bool,
}

impl MapFile {
    /// A file that is open for reading and writing, and has pages.
    pub const fn of(mapping: Id<Mapping>) -> MapFile {
        MapFile {
            mapping,
            readable: true,
            writable: true,
            noexec: false,
            flags: VmFlags::empty(),
            without: VmFlags::empty(),
            frames: None,
            mappable: true,
        }
    }

    /// A file that cannot be mapped, such as a pipe: mmap says so, but only after it looked at everything else.
    pub const fn unmappable() -> MapFile {
        // Any number: nobody looks at it.
        let nothing = Id::new(8).expect("not 0");
        MapFile { mappable: false, ..MapFile::of(nothing) }
    }
}

/// Arguments of mmap.
#[derive(Clone, Copy, Debug)]
pub struct MmapRequest {
    /// Address or hint.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Protection.
    pub prot: ProtFlags,
    /// Flags.
    pub flags: MapFlags,
    /// What to map; `None` if and only if the caller saw MAP_ANONYMOUS, else it answered EBADF.
    pub file: Option<MapFile>,
    /// Offset in the file, bytes.
    pub offset: u64,
}

impl<K: Kernel> Space<'_, K> {
    /// Maps, and returns where, and what to bring in.
    ///
    /// # Errors
    /// Linux's for mmap.
    pub fn mmap(&self, request: &MmapRequest) -> Result<(u64, Populate), Errno> {
        if request.offset & (PAGE_SIZE - 1) != 0 || request.len == 0 {
            return Err(Errno::Einval);
        }
        let mut map = request.flags;
        if map.contains(MapFlags::HUGETLB) {
            // Linux: `ksys_mmap_pgoff`, `hstate_sizelog`. No file is of huge pages, and no pool has any.
            let unknown = request.file.is_some() || !map.has_known_huge_size();
            return Err(if unknown { Errno::Einval } else { Errno::Enomem });
        }
        map.set(MapFlags::FIXED, map.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE));
        let hint = if map.contains(MapFlags::FIXED) { request.addr } else { self.round_hint(request.addr) };
        let len = page_align(request.len);
        if len == 0 {
            return Err(Errno::Enomem);
        }
        let pgoff = request.offset >> PAGE_SHIFT;
        if pgoff.checked_add(len >> PAGE_SHIFT).is_none() {
            return Err(Errno::Eoverflow);
        }
        if self.mm.map_count() > self.limits.max_map_count {
            return Err(Errno::Enomem);
        }
        let addr = self.unmapped_area(hint, len, map)?;
        if map.contains(MapFlags::FIXED_NOREPLACE) && self.intersection(addr, addr + len).is_some() {
            return Err(Errno::Eexist);
        }
        let mut flags = request.prot.vm_flags() | map.vm_flags() | self.mm.def_flags() | VmFlags::MAY_ALL;
        if map.contains(MapFlags::LOCKED) {
            self.limits.can_do_mlock()?;
        }
        if !self.limits.mlock_future_ok(self.mm, flags, len) {
            return Err(Errno::Eagain);
        }
        let pgoff = match request.file {
            Some(file) => {
                if pgoff + (len >> PAGE_SHIFT) > MAX_FILE_PAGES {
                    return Err(Errno::Eoverflow);
                }
                flags = file_flags(&file, map, flags)?;
                pgoff
            }
            None => match map.map_type() {
                Some(MapType::Shared) if flags.contains(VmFlags::GROWSDOWN) => return Err(Errno::Einval),
                Some(MapType::Shared) => {
                    flags |= VmFlags::SHARED | VmFlags::MAYSHARE;
                    0
                }
                Some(MapType::Private) => addr >> PAGE_SHIFT,
                Some(MapType::SharedValidate) | None => return Err(Errno::Einval),
            },
        };
        flags.set(VmFlags::NORESERVE, map.contains(MapFlags::NORESERVE) && self.k.honours_noreserve());
        let (write, exec) = (flags.contains(VmFlags::WRITE), flags.contains(VmFlags::EXEC));
        self.k.emit(Event::MmapRegion { address: addr, len, write, exec });
        let before = self.mm.map_count();
        let mapped = self.map_region(addr, len, flags, pgoff, request.file.as_ref());
        self.k.emit(Event::MmapRegionRet { ok: mapped.is_ok(), merged: self.mm.map_count() <= before });
        mapped?;
        let populate = flags.contains(VmFlags::LOCKED)
            || map & (MapFlags::POPULATE | MapFlags::NONBLOCK) == MapFlags::POPULATE;
        Ok((addr, Populate { start: addr, len: if populate { len } else { 0 } }))
    }

    /// Linux: `round_hint_to_min`.
    fn round_hint(&self, hint: u64) -> u64 {
        let hint = hint & !(PAGE_SIZE - 1);
        if hint != 0 && hint < self.limits.mmap_min_addr {
            page_align(self.limits.mmap_min_addr)
        } else {
            hint
        }
    }

    /// Linux: `mmap_region`.
    fn map_region(
        &self,
        addr: u64,
        len: u64,
        mut flags: VmFlags,
        pgoff: u64,
        file: Option<&MapFile>,
    ) -> Result<(), Errno> {
        let (end, pages) = (addr + len, len >> PAGE_SHIFT);
        if !self.limits.may_expand(self.mm, flags, pages - self.pages_in(addr, end)) {
            return Err(Errno::Enomem);
        }
        // All memory before anything changes, but for the splits.
        self.mm.tree.reserve(self.k, 3)?;
        self.unmap_range(addr, end)?;
        if flags.is_accountable() {
            flags |= VmFlags::ACCOUNT;
        }
        let charged = self.charge(flags, pages)?;
        self.map_charged((addr, end), flags, pgoff, file)
            .inspect_err(|_| self.k.vm_unacct_memory(charged))?;
        self.mm.account(flags, pages.cast_signed());
        if flags.contains(VmFlags::LOCKED) {
            self.lock_new(addr, pages);
        }
        if let Some(frames) = file.and_then(|file| file.frames)
            && let Err(error) = self.remap_pfn_range(addr, pgoff, frames)
        {
            self.unmap_range(addr, end)?;
            return Err(error);
        }
        Ok(())
    }

    /// Makes the VMA, or grows a neighbour; its pages are promised.
    fn map_charged(
        &self,
        (addr, end): (u64, u64),
        flags: VmFlags,
        pgoff: u64,
        file: Option<&MapFile>,
    ) -> Result<(), Errno> {
        let mapping = file.map(|file| file.mapping);
        let prev = self.before(addr);
        let next = self.find(end);
        let merge = Merge {
            start: addr,
            end,
            pgoff,
            flags,
            mapping,
            policy: Policy::Default,
            anon_vma: None,
            prev,
            next,
            middle: None,
            copied_from: None,
            just_expand: false,
        };
        // Each shared anonymous mapping is a file of its own, and merges with nothing.
        let merged =
            if mapping.is_none() && flags.contains(VmFlags::SHARED) { None } else { self.merge_new(&merge) };
        if merged.is_none() {
            let shm = if mapping.is_none() && flags.contains(VmFlags::SHARED) {
                Some(self.k.shmem_zero_setup(end - addr, flags)?)
            } else {
                None
            };
            let made = self
                .mm
                .tree
                .reserve(self.k, 1)
                .and_then(|()| self.new_vma((addr, end), pgoff, flags, mapping.or(shm)));
            if let Some(shm) = shm {
                self.k.mapping_put(shm);
            }
            self.insert(made?);
        }
        Ok(())
    }

    /// Counts a new locked range; what is special is not locked after all.
    fn lock_new(&self, addr: u64, pages: u64) {
        let Some(id) = self.lookup(addr) else { return };
        let flags = self.vma(id).flags();
        if flags.intersects(VmFlags::SPECIAL) {
            self.set_flags(id, flags - VmFlags::LOCKED_MASK);
        } else {
            self.mm.set_locked_vm(self.mm.locked_vm() + pages);
        }
    }

    /// Pages of VMAs in the range (Linux: `count_vma_pages_range`).
    fn pages_in(&self, start: u64, end: u64) -> u64 {
        let mut pages = 0;
        let mut next = self.intersection(start, end);
        while let Some(id) = next {
            let vma = self.vma(id);
            if vma.start() >= end {
                break;
            }
            pages += (vma.end().min(end) - vma.start().max(start)) >> PAGE_SHIFT;
            next = vma.next();
        }
        pages
    }
}

/// What a file allows, and what it adds (Linux: `do_mmap`'s part for files).
fn file_flags(file: &MapFile, map: MapFlags, mut flags: VmFlags) -> Result<VmFlags, Errno> {
    let shared = match map.map_type() {
        Some(MapType::Shared) => true,
        Some(MapType::SharedValidate) if map.has_unknown() => return Err(Errno::Eopnotsupp),
        Some(MapType::SharedValidate) => true,
        Some(MapType::Private) => false,
        None => return Err(Errno::Einval),
    };
    if shared {
        if flags.contains(VmFlags::WRITE) && !file.writable {
            return Err(Errno::Eacces);
        }
        flags |= VmFlags::SHARED | VmFlags::MAYSHARE;
        if !file.writable {
            flags -= VmFlags::MAYWRITE | VmFlags::SHARED;
        }
    }
    if !file.readable {
        return Err(Errno::Eacces);
    }
    if file.noexec {
        if flags.contains(VmFlags::EXEC) {
            return Err(Errno::Eperm);
        }
        flags -= VmFlags::MAYEXEC;
    }
    if !file.mappable {
        return Err(Errno::Enodev);
    }
    if flags.contains(VmFlags::GROWSDOWN) {
        return Err(Errno::Einval);
    }
    if file.frames.is_some() {
        flags |= VmFlags::REMAPPED;
    }
    Ok((flags | file.flags) - file.without)
}
