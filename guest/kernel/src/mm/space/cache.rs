//! The page cache of this machine: mappings with what the kernel adds to them, and calls on shared memory (Linux: mm/filemap.c,
//! mm/shmem.c).

use core::ops::Range;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use guest_ipc::Usage;
use memvisor_abi::{NodeStat, PageFlags};
use mm_core::{Folios, MemMap, PAGE_SIZE, Page, Pfn, PolicyAt, Rcu};
use mm_filemap::shmem::{self, FallocFlags, Fallocate};
use mm_filemap::{
    Bound, Cache, CacheError, Node, Sealed, Seek, ShadowNodes, read_cache_page, seek_hole_data,
    truncate_inode_pages_range,
};
use mm_vma::{
    Arena, Cows, Errno, Id, Kernel, MappedError, MappedPage, Mapping, mapping_writably_mapped, put_page,
    unmap_mapping_range,
};

use super::{Spaces, objects, shadows, swapped};
use crate::fs::{self, disk_file, mapped};
use crate::mm::oom::promises;
use crate::mm::{kmap, writeback};
use crate::{elf, ipc, sched, task};

/// Where the contents of a mapping come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Source {
    /// From nowhere: a file in memory.
    Shmem = 0,
    /// The program inside the kernel image.
    Program = 1,
    /// Shared anonymous memory.
    Anonymous = 2,
    /// A segment of System V shared memory.
    SysV = 3,
    /// A device, which has frames and no pages.
    Device = 4,
    /// A file on a disk.
    Disk = 5,
    /// A disk itself.
    Bdev = 6,
    /// What was a file on a disk: removed, or no longer mounted, but mapped still.
    Gone = 7,
}

impl Source {
    /// Whether dirty pages are written back.
    pub const fn is_written_back(self) -> bool {
        matches!(self, Source::Disk | Source::Bdev)
    }
}

/// Pages of shared memory, those in swap areas included (Linux: `shmem_inode_info::alloced`, summed).
static NR_SHMEM: AtomicU64 = AtomicU64::new(0);
/// Of them, those in swap areas (Linux: `shmem_inode_info::swapped`, summed).
static SHMEM_SWAPPED: AtomicI64 = AtomicI64::new(0);
/// The program's mapping, once it was asked for; it keeps one reference.
static PROGRAM: AtomicU64 = AtomicU64::new(0);
/// A page of zeroes.
static ZEROES: [u8; 4096] = [0; 4096];
const _: () = assert!(ZEROES.len() as u64 == PAGE_SIZE);

/// Pages in mappings, those of shared memory included.
pub fn nr_file_pages() -> u64 {
    writeback::nr_file_pages()
}

/// Pages of shared memory (`Shmem` in /proc/meminfo).
pub fn nr_shmem() -> u64 {
    NR_SHMEM.load(Ordering::Relaxed).saturating_add_signed(-SHMEM_SWAPPED.load(Ordering::Relaxed))
}

/// A mapping with a reference for the caller.
///
/// # Errors
/// `ENOMEM`; `EINVAL` for more than a file can have.
pub fn new_mapping(source: Source, bytes: u64) -> Result<Id<Mapping>, Errno> {
    if bytes > shmem::MAX_BYTES {
        return Err(Errno::Einval);
    }
    let id = Arena::<Mapping>::alloc(&Spaces).ok_or(Errno::Enomem)?;
    let mapping: &Mapping = Spaces.at(id);
    mapping.init(bytes);
    objects::of_mapping(id).init(source);
    Ok(id)
}

/// [`new_mapping`] of shared memory, all of which is promised at once (Linux: `shmem_acct_size`).
///
/// # Errors
/// As [`new_mapping`].
pub fn new_accounted(source: Source, bytes: u64) -> Result<Id<Mapping>, Errno> {
    let pages = bytes.div_ceil(PAGE_SIZE);
    if !promises::promise_shmem(pages) {
        return Err(Errno::Enomem);
    }
    let id = new_mapping(source, bytes).inspect_err(|_| promises::unpromise_shmem(pages))?;
    objects::of_mapping(id).set_accounted();
    Ok(id)
}

/// Shared memory of that size, without pages yet, with a reference for the caller (Linux: `shmem_file_setup`).
///
/// # Errors
/// `ENOMEM`; `EINVAL` for more than a file can have.
pub fn shmem_file_setup(bytes: u64) -> Result<Id<Mapping>, Errno> {
    new_mapping(Source::Shmem, bytes)
}

/// The program inside the kernel image as a mapping, with a reference for the caller. All processes share it.
///
/// # Errors
/// `ENOMEM`.
pub fn program_mapping() -> Result<Id<Mapping>, Errno> {
    loop {
        if let Some(id) = Id::new(PROGRAM.load(Ordering::Acquire)) {
            Spaces.mapping_get(id);
            return Ok(id);
        }
        let id = new_mapping(Source::Program, elf::file_len())?;
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        if PROGRAM.compare_exchange(0, id.as_u64(), success, failure).is_err() {
            Spaces.mapping_put(id);
        }
    }
}

/// Frees the mapping of whoever dropped the last reference.
pub(super) fn free_mapping(id: Id<Mapping>) {
    match source(id) {
        Source::Shmem | Source::Anonymous | Source::SysV => {
            let promised =
                if objects::of_mapping(id).is_accounted() { size(id).div_ceil(PAGE_SIZE) } else { 0 };
            shmem::evict(&Spaces, id);
            promises::unpromise_shmem(promised);
        }
        Source::Program => {
            truncate_inode_pages_range(&Spaces, id, 0..u64::MAX);
        }
        Source::Disk | Source::Bdev | Source::Gone => {
            writeback::forget(id);
            writeback::truncate_pages(id, 0, &sched::task_context());
        }
        Source::Device => {}
    }
    mapped::forget(id);
    Arena::<Mapping>::free(&Spaces, id);
}

/// Linux: `filemap_fault`, `shmem_fault`.
pub(super) fn fault(id: Id<Mapping>, at: PolicyAt) -> Result<MappedPage, MappedError> {
    let index = at.index;
    let read = |pfn| {
        let bytes = elf::file_page(index).ok_or(CacheError::PastEnd)?;
        kmap::copy_to_page(pfn, 0, bytes);
        Ok(())
    };
    match source(id) {
        Source::Shmem | Source::Anonymous | Source::SysV => shmem::fault(&Spaces, id, at),
        // Its frames are there from the start.
        Source::Device => Err(MappedError::Sigbus),
        Source::Disk | Source::Bdev => match disk_file::page(id, index, disk_file::Wanted::Fault) {
            Ok((pfn, major)) => Ok(MappedPage { pfn, major }),
            Err(Errno::Enomem) => Err(MappedError::NoMemory),
            Err(_) => Err(MappedError::Sigbus),
        },
        Source::Gone => match mm_filemap::find_get_page(&Spaces, id, index) {
            Some(pfn) => Ok(MappedPage { pfn, major: false }),
            None => Err(MappedError::Sigbus),
        },
        Source::Program => match read_cache_page(&Spaces, id, index, Bound::Size, read) {
            Ok((pfn, _)) => Ok(MappedPage { pfn, major: false }),
            Err(CacheError::NoMemory) => Err(MappedError::NoMemory),
            Err(_) => Err(MappedError::Sigbus),
        },
    }
}

/// Linux: `filemap_map_pages`, which segments of System V shared memory do not have.
pub(super) fn ready_page(id: Id<Mapping>, index: u64) -> Option<Pfn> {
    match source(id) {
        Source::SysV | Source::Device => None,
        _ => mm_filemap::get_ready_page(&Spaces, id, index),
    }
}

/// Calls `f` alone among those that write to the mapping or change its size (Linux: `inode_lock`).
fn with_inode<R>(id: Id<Mapping>, f: impl FnOnce() -> R) -> R {
    let lock = &objects::of_mapping(id).inode_lock;
    while lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        Spaces.relax();
    }
    let result = f();
    lock.store(0, Ordering::Release);
    result
}

/// Reads; how many bytes, 0 past the end (Linux: `shmem_file_read_iter`, `filemap_read`).
///
/// # Errors
/// `EIO`, `ENOMEM` of a disk or a swap area, if not a byte was read.
pub fn read(id: Id<Mapping>, offset: u64, to: &mut [u8]) -> Result<usize, Errno> {
    if source(id).is_written_back() {
        return disk_file::read(id, offset, to);
    }
    let mapping: &Mapping = Spaces.at(id);
    let left = mapping.size().saturating_sub(offset);
    let len = usize::try_from(left).map_or(to.len(), |left| left.min(to.len()));
    let mut at = offset;
    for part in parts(offset, to.get_mut(..len).unwrap_or_default()) {
        let step = part.len() as u64;
        match shmem::read_page(&Spaces, id, at / PAGE_SIZE) {
            // What cannot be read ends it here; a program that maps the page gets SIGBUS.
            Err(error) if at == offset => return Err(error.errno()),
            Err(_) => return Ok(usize::try_from(at - offset).unwrap_or(len)),
            Ok(Some(pfn)) => {
                kmap::copy_from_page(pfn, at % PAGE_SIZE, part);
                if let Some(page) = Spaces.page(pfn) {
                    Spaces.folio_mark_accessed(pfn, page);
                }
                put_page(&Spaces, pfn);
            }
            Ok(None) => part.fill(0),
        }
        at += step;
    }
    Ok(len)
}

/// Cuts a buffer where the pages of a file end.
fn parts(offset: u64, buffer: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    let head = usize::try_from(PAGE_SIZE - offset % PAGE_SIZE).unwrap_or(0).min(buffer.len());
    let (head, rest) = buffer.split_at_mut(head);
    core::iter::once(head).chain(rest.chunks_mut(ZEROES.len())).filter(|part| !part.is_empty())
}

/// Writes to shared memory; how many bytes (Linux: `shmem_file_write_iter`).
///
/// # Errors
/// `EFBIG`, `ENOMEM`, `ENOSPC`, `EPERM` for a seal, if not a byte was written.
pub fn write(id: Id<Mapping>, offset: u64, mut from: &[u8]) -> Result<usize, Errno> {
    if source(id).is_written_back() {
        return with_inode(id, || disk_file::write(id, offset, from));
    }
    with_inode(id, || {
        let (mut at, mut done) = (offset, 0);
        while !from.is_empty() {
            let room = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(0).min(from.len());
            let (part, rest) = from.split_at(room);
            let seals = objects::of_mapping(id).sealed.seals();
            let begun = seals
                .check_write(at.saturating_add(room as u64), size(id))
                .and_then(|()| shmem::write_begin(&Spaces, id, at / PAGE_SIZE));
            let pfn = match begun {
                Ok(pfn) => pfn,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error.errno()),
            };
            kmap::copy_to_page(pfn, at % PAGE_SIZE, part);
            at += room as u64;
            done += room;
            shmem::write_end(&Spaces, id, at, pfn);
            from = rest;
        }
        Ok(done)
    })
}

/// Begins to write at `offset` and ends without a byte: the page is there then, and the file goes up to `offset` at least.
///
/// # Errors
/// As [`write`].
pub fn write_nothing(id: Id<Mapping>, offset: u64) -> Result<(), Errno> {
    if source(id).is_written_back() {
        // Linux: `fault_in_iov_iter_readable` comes first, and nothing is begun.
        return Ok(());
    }
    with_inode(id, || {
        let seals = objects::of_mapping(id).sealed.seals();
        let begun = seals
            .check_write(offset.saturating_add(1), size(id))
            .and_then(|()| shmem::write_begin(&Spaces, id, offset / PAGE_SIZE));
        let pfn = begun.map_err(CacheError::errno)?;
        shmem::write_end(&Spaces, id, offset, pfn);
        Ok(())
    })
}

/// Bytes.
pub fn size(id: Id<Mapping>) -> u64 {
    Arena::<Mapping>::at(&Spaces, id).size()
}

/// Pages that shared memory takes.
pub fn nr_pages(id: Id<Mapping>) -> u64 {
    Arena::<Mapping>::at(&Spaces, id).nrpages()
}

/// Makes shared memory longer or shorter; what lies behind is unmapped (Linux: `do_truncate`).
///
/// # Errors
/// `EFBIG`; `EPERM` for a seal.
pub fn truncate(id: Id<Mapping>, bytes: u64) -> Result<(), Errno> {
    if source(id) == Source::Disk {
        // The file systems' lock keeps others away.
        disk_file::set_size(id, bytes);
        return Ok(());
    }
    let seals = || objects::of_mapping(id).sealed.seals();
    with_inode(id, || shmem::set_size_sealed(&Spaces, id, seals(), bytes)).map_err(CacheError::errno)
}

/// Linux: `vfs_fallocate`.
///
/// # Errors
/// `ENODEV` for what has no such call, else those of [`shmem::fallocate`].
pub fn fallocate(id: Id<Mapping>, mode: FallocFlags, offset: u64, len: u64) -> Result<(), Errno> {
    let request = Fallocate { mode, offset, len };
    match source(id) {
        Source::Shmem | Source::Anonymous | Source::SysV => with_inode(id, || {
            let seals = objects::of_mapping(id).sealed.seals();
            shmem::fallocate_sealed(&Spaces, id, seals, &request).map_err(CacheError::errno)
        }),
        Source::Program | Source::Device | Source::Disk | Source::Bdev | Source::Gone => {
            Err(Errno::Eopnotsupp)
        }
    }
}

/// Whether [`set_name`] was called.
pub fn has_name(id: Id<Mapping>) -> bool {
    objects::of_mapping(id).has_name()
}

/// Says which file it is of: number of the file system and of the inode, and a path by which it was opened.
pub fn set_name(id: Id<Mapping>, dev: u64, ino: u64, path: &[u8]) {
    objects::of_mapping(id).set_name(dev, ino, path);
}

/// Where its contents come from.
pub fn source(id: Id<Mapping>) -> Source {
    objects::of_mapping(id).source()
}

/// The next data or hole at or after `offset` (Linux: `shmem_file_llseek`).
///
/// # Errors
/// `ENXIO` past the end, and if there is no more data.
pub fn seek(id: Id<Mapping>, offset: u64, what: Seek) -> Result<u64, Errno> {
    if source(id) == Source::Disk {
        // All of it is data (Linux: `generic_file_llseek_size`).
        let size = size(id);
        return match what {
            _ if offset >= size => Err(Errno::Enxio),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        };
    }
    with_inode(id, || seek_hole_data(&Spaces, id, offset, what)).ok_or(Errno::Enxio)
}

/// A page of a mapping was written by an entry. Its mapping may be gone.
pub(super) fn page_dirtied(pfn: Pfn, page: &Page) {
    let (raw, _) = page.owner();
    let is_file = raw & memvisor_abi::Page::MAPPING_ANON == 0;
    let written_back =
        is_file && Spaces.rcu_read(|| Id::<Mapping>::new(raw).is_some_and(|id| source(id).is_written_back()));
    if written_back {
        writeback::mark_dirty(pfn);
    } else {
        page.insert(PageFlags::DIRTY);
    }
}

/// Seals of a file in memory.
pub fn sealed(id: Id<Mapping>) -> &'static Sealed {
    &objects::of_mapping(id).sealed
}

/// F_ADD_SEALS. `executable` is whether anybody may execute the file.
///
/// # Errors
/// Those of [`Sealed::add`].
pub fn add_seals(id: Id<Mapping>, seals: u32, executable: bool) -> Result<(), Errno> {
    with_inode(id, || sealed(id).add(seals, executable, || mapping_writably_mapped(&Spaces, id)))
}

/// How a System V segment is used: the table of segments has one reference, everybody else's is an attachment.
pub fn segment_usage(id: Id<Mapping>) -> Usage {
    let object = objects::of_mapping(id);
    Usage {
        nattch: object.references.load(Ordering::Acquire).saturating_sub(1).into(),
        atime: object.atime.load(Ordering::Relaxed).cast_signed(),
        dtime: object.dtime.load(Ordering::Relaxed).cast_signed(),
        lpid: object.lpid.load(Ordering::Relaxed),
        rss: nr_pages(id),
    }
}

/// A VMA came or went.
fn used(object: &objects::MappingObject, time: &AtomicU64) {
    if object.source() == Source::SysV {
        time.store(fs::now().sec.cast_unsigned(), Ordering::Relaxed);
        object.lpid.store(task::current_pid(), Ordering::Relaxed);
    }
}

/// One more VMA or program uses it.
pub(super) fn get(id: Id<Mapping>) {
    let object = objects::of_mapping(id);
    object.references.fetch_add(1, Ordering::Relaxed);
    used(object, &object.atime);
}

/// Drops a reference that [`super::backing::try_get`] took.
pub fn release(id: Id<Mapping>) {
    put(id);
}

/// One less; the last frees it, and the last but the table's may end a segment.
pub(super) fn put(id: Id<Mapping>) {
    let object = objects::of_mapping(id);
    used(object, &object.dtime);
    // Whoever drops the last but one reference of a segment may not look at it any more.
    let segment = object.source() == Source::SysV;
    match object.references.fetch_sub(1, Ordering::AcqRel) {
        1 => free_mapping(id),
        2 if segment => ipc::shm::detached(id),
        _ => {}
    }
}

impl Cache for Spaces {
    fn pages_lock<R>(&self, mapping: Id<Mapping>, f: impl FnOnce() -> R) -> R {
        let _held = objects::of_mapping(mapping).pages_lock.lock();
        f()
    }

    fn unmap_mapping_range(&self, mapping: Id<Mapping>, pages: Range<u64>, cows: Cows) {
        unmap_mapping_range(self, mapping, pages, cows);
    }

    fn zero_user(&self, pfn: Pfn, bytes: Range<u64>) {
        let len = usize::try_from(bytes.end.saturating_sub(bytes.start)).unwrap_or(ZEROES.len());
        kmap::copy_to_page(pfn, bytes.start, ZEROES.get(..len).unwrap_or(&ZEROES));
    }

    fn shadow_nodes<R>(&self, f: impl FnOnce(&mut ShadowNodes) -> R) -> R {
        shadows::with(f)
    }

    fn mod_kmem_state(&self, node: Id<Node>, stat: NodeStat, delta: i64) {
        shadows::mod_kmem_state(node, stat, delta);
    }

    fn count_file_pages(&self, pages: i64) {
        writeback::count_file_pages(pages);
    }

    fn is_shmem(&self, mapping: Id<Mapping>) -> bool {
        matches!(source(mapping), Source::Shmem | Source::Anonymous | Source::SysV)
    }

    fn count_swapped(&self, mapping: Id<Mapping>, pages: i64) {
        SHMEM_SWAPPED.fetch_add(pages, Ordering::Relaxed);
        if pages > 0 {
            swapped::link(mapping);
        }
    }

    fn forget_swapped(&self, mapping: Id<Mapping>) {
        swapped::unlink(mapping);
    }

    fn shmem_acct_blocks(&self, mapping: Id<Mapping>, pages: u64) -> bool {
        if !objects::of_mapping(mapping).is_accounted() && !promises::promise_shmem(pages) {
            return false;
        }
        NR_SHMEM.fetch_add(pages, Ordering::Relaxed);
        true
    }

    fn shmem_unacct_blocks(&self, mapping: Id<Mapping>, pages: u64) {
        if !objects::of_mapping(mapping).is_accounted() {
            promises::unpromise_shmem(pages);
        }
        NR_SHMEM.fetch_sub(pages, Ordering::Relaxed);
    }
}
