//! Bytes of files (Linux: mm/shmem.c), each page in a frame that the file owns.
//!
//! Differs from Linux: a fault copies the page, so that a mapping does not see what is written to the file afterwards; shared
//! mappings are refused.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use mm_core::{Gfp, Order, PAGE_SIZE, PageAlloc, Pfn};
use mm_vma::{Arena, Errno, Id, Mapping};

use super::{Spaces, objects};
use crate::mm::kmap;
use crate::sync::Lock;

/// A file.
#[derive(Debug, Default)]
struct File {
    size: u64,
    pages: Vec<Option<Pfn>>,
}

static FILES: Lock<BTreeMap<u64, File>> = Lock::new(BTreeMap::new());

/// Largest file: its table of pages must fit into one block.
const LARGEST: u64 = 1 << 30;

/// A file of that size, without pages yet, with a reference for the caller.
///
/// # Errors
/// `ENOMEM`.
pub fn shmem_file_setup(bytes: u64) -> Result<Id<Mapping>, Errno> {
    let id = Arena::<Mapping>::alloc(&Spaces).ok_or(Errno::Enomem)?;
    objects::of_mapping(id).references.store(1, Ordering::Relaxed);
    FILES.lock().insert(id.as_u64(), File { size: bytes, pages: Vec::new() });
    Ok(id)
}

/// Frees what the mapping's file has, if it has one.
pub(super) fn free_mapping(id: Id<Mapping>) {
    let file = FILES.lock().remove(&id.as_u64());
    for pfn in file.into_iter().flat_map(|file| file.pages).flatten() {
        Spaces.free_pages(pfn, Order::ZERO);
    }
}

/// Whether the mapping is a file of this kind, and the frame of a page below its end; `None` inside for a hole.
pub(super) fn page(id: Id<Mapping>, index: u64) -> Option<Result<Option<Pfn>, Errno>> {
    let files = FILES.lock();
    let file = files.get(&id.as_u64())?;
    if index >= file.size.div_ceil(PAGE_SIZE) {
        return Some(Err(Errno::Einval));
    }
    Some(Ok(usize::try_from(index).ok().and_then(|index| file.pages.get(index).copied().flatten())))
}

/// Reads; how many bytes, 0 past the end.
pub fn read(id: Id<Mapping>, offset: u64, to: &mut [u8]) -> usize {
    let left = size(id).saturating_sub(offset);
    let len = usize::try_from(left).map_or(to.len(), |left| left.min(to.len()));
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let room = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(0).min(len - done);
        let Some(part) = to.get_mut(done..done + room) else { break };
        match page(id, at / PAGE_SIZE) {
            Some(Ok(Some(pfn))) => kmap::copy_from_page(pfn, at % PAGE_SIZE, part),
            _ => part.fill(0),
        }
        done += room;
    }
    done
}

/// Writes; how many bytes.
///
/// # Errors
/// `EFBIG`, `ENOMEM`, if not a byte was written.
pub fn write(id: Id<Mapping>, offset: u64, from: &[u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < from.len() {
        let at = offset + done as u64;
        let room = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(0).min(from.len() - done);
        let Some(part) = from.get(done..done + room) else { break };
        let pfn = match page_to_write(id, at / PAGE_SIZE) {
            Ok(pfn) => pfn,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        };
        kmap::copy_to_page(pfn, at % PAGE_SIZE, part);
        done += room;
        if let Some(file) = FILES.lock().get_mut(&id.as_u64()) {
            file.size = file.size.max(offset + done as u64);
        }
    }
    Ok(done)
}

fn page_to_write(id: Id<Mapping>, index: u64) -> Result<Pfn, Errno> {
    let at = usize::try_from(index).ok().filter(|_| index < LARGEST / PAGE_SIZE).ok_or(Errno::Efbig)?;
    {
        let mut files = FILES.lock();
        let file = files.get_mut(&id.as_u64()).ok_or(Errno::Eio)?;
        if let Some(Some(pfn)) = file.pages.get(at) {
            return Ok(*pfn);
        }
        if at >= file.pages.len() {
            file.pages.try_reserve(at + 1 - file.pages.len()).map_err(|_| Errno::Enomem)?;
            file.pages.resize(at + 1, None);
        }
    }
    let pfn = Spaces.alloc_pages(Gfp::HIGHUSER, Order::ZERO, None).ok_or(Errno::Enomem)?;
    kmap::clear_highpage(pfn);
    let mut files = FILES.lock();
    let slot = files.get_mut(&id.as_u64()).and_then(|file| file.pages.get_mut(at));
    match slot {
        Some(slot @ None) => {
            *slot = Some(pfn);
            Ok(pfn)
        }
        Some(Some(other)) => {
            let other = *other;
            drop(files);
            Spaces.free_pages(pfn, Order::ZERO);
            Ok(other)
        }
        None => {
            drop(files);
            Spaces.free_pages(pfn, Order::ZERO);
            Err(Errno::Eio)
        }
    }
}

/// Bytes.
pub fn size(id: Id<Mapping>) -> u64 {
    FILES.lock().get(&id.as_u64()).map_or(0, |file| file.size)
}

/// Pages that it takes.
pub fn nr_pages(id: Id<Mapping>) -> u64 {
    FILES.lock().get(&id.as_u64()).map_or(0, |file| file.pages.iter().flatten().count() as u64)
}

/// Makes it longer or shorter.
///
/// # Errors
/// `EFBIG`.
pub fn truncate(id: Id<Mapping>, bytes: u64) -> Result<(), Errno> {
    if bytes > i64::MAX.cast_unsigned() {
        return Err(Errno::Efbig);
    }
    let keep = usize::try_from(bytes.div_ceil(PAGE_SIZE)).unwrap_or(usize::MAX);
    let mut gone = Vec::new();
    let mut last = None;
    if let Some(file) = FILES.lock().get_mut(&id.as_u64()) {
        file.size = bytes;
        if keep < file.pages.len() {
            gone = file.pages.split_off(keep);
        }
        last = file.pages.get(keep.wrapping_sub(1)).copied().flatten();
    }
    // What is behind the end reads as zeroes if the file grows again.
    if let Some(pfn) = last.filter(|_| !bytes.is_multiple_of(PAGE_SIZE)) {
        const ZEROES: [u8; 256] = [0; 256];
        let mut at = bytes % PAGE_SIZE;
        while at < PAGE_SIZE {
            let len = usize::try_from(PAGE_SIZE - at).unwrap_or(0).min(ZEROES.len());
            kmap::copy_to_page(pfn, at, ZEROES.get(..len).unwrap_or(&ZEROES));
            at += len as u64;
        }
    }
    gone.into_iter().flatten().for_each(|pfn| Spaces.free_pages(pfn, Order::ZERO));
    Ok(())
}

/// Pages in files.
pub fn nr_file_pages() -> u64 {
    FILES.lock().values().map(|file| file.pages.iter().flatten().count() as u64).sum()
}

/// Pages of shared memory: all are.
pub fn nr_shmem() -> u64 {
    nr_file_pages()
}
