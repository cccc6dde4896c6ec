//! Shared memory: files without a disk, mapped by address spaces that no CPU runs.

use guest_fs::Char;
use mm_core::{MemMap, PAGE_SIZE, Pfn, PhysAddr};
use mm_filemap::shmem::FallocFlags;
use mm_vma::{
    Access, Advised, Errno, Fault, Id, Kernel, Layout, Limits, MapFile, MapFlags, Mapping, Mm, MmapRequest,
    ProtFlags, RssKind, Space, audit, dup_mmap, handle_fault, madvise_remove,
};

use super::{Failure, Test, check};
use crate::drivers::frames;
use crate::mm::layout::levels;
use crate::mm::space::{self, Spaces, cache};
use crate::uaccess;

pub const TESTS: [(&str, Test); 6] = [
    ("shared_anonymous_memory_is_one_after_fork", shared_anonymous_memory_is_one_after_fork),
    ("a_file_is_read_written_and_mapped_as_one", a_file_is_read_written_and_mapped_as_one),
    ("truncation_unmaps_what_lies_behind", truncation_unmaps_what_lies_behind),
    ("a_hole_reads_as_zeroes_and_spares_private_copies", a_hole_reads_as_zeroes_and_spares_private_copies),
    ("reads_of_nothing_share_the_zero_page", reads_of_nothing_share_the_zero_page),
    ("a_devices_frames_are_mapped_and_not_counted", a_devices_frames_are_mapped_and_not_counted),
];

const MADV_REMOVE: u64 = 9;

type Outcome<T = ()> = Result<T, Failure>;

fn wrong<E>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |_| Failure::Wrong(what)
}

fn new() -> Outcome<Id<Mm>> {
    space::mm_alloc(Layout::new(levels(), Limits::default().stack, 0)).map_err(wrong("no address space"))
}

fn lock(mm: Id<Mm>) -> Space<'static, Spaces> {
    Space::lock(&Spaces, mm, Limits::default())
}

fn map(mm: Id<Mm>, file: Option<Id<Mapping>>, pages: u64, flags: MapFlags) -> Outcome<u64> {
    let file = file.map(MapFile::of);
    let request = MmapRequest {
        addr: 0,
        len: pages * PAGE_SIZE,
        prot: ProtFlags::READ | ProtFlags::WRITE,
        flags: if file.is_none() { flags | MapFlags::ANONYMOUS } else { flags },
        file,
        offset: 0,
    };
    lock(mm).mmap(&request).map(|(addr, _)| addr).map_err(wrong("mmap failed"))
}

fn write(mm: Id<Mm>, va: u64, value: u8) -> Outcome {
    uaccess::copy_to_user(mm, &Limits::default(), va, &[value]).ok_or(Failure::Wrong("a write was refused"))
}

fn read(mm: Id<Mm>, va: u64) -> Outcome<u8> {
    let mut byte = [0];
    let done = uaccess::copy_from_user(mm, &Limits::default(), va, &mut byte);
    done.map(|()| byte[0]).ok_or(Failure::Wrong("a read was refused"))
}

fn frame(mm: Id<Mm>, va: u64) -> Option<Pfn> {
    space::translate(space::mm_of(mm), va, false).map(PhysAddr::pfn)
}

/// A file of so many pages, with a reference.
fn file(pages: u64) -> Outcome<Id<Mapping>> {
    cache::shmem_file_setup(pages * PAGE_SIZE).map_err(wrong("no file"))
}

/// Ends address spaces and files, after which no shared memory may be left.
fn end(mms: &[Id<Mm>], files: &[Id<Mapping>], before: (u64, u64)) -> Outcome {
    for &mm in mms {
        audit(&Spaces, mm).map_err(|broken| Failure::Wrong(broken.what))?;
    }
    for &file in files {
        Mapping::audit(&Spaces, file).map_err(|broken| Failure::Wrong(broken.what))?;
    }
    mms.iter().for_each(|&mm| space::mm_free(mm));
    files.iter().for_each(|&file| Spaces.mapping_put(file));
    check(counts() == before, "pages of shared memory are left")
}

fn counts() -> (u64, u64) {
    (cache::nr_shmem(), cache::nr_file_pages())
}

fn shared_anonymous_memory_is_one_after_fork() -> Outcome {
    let before = counts();
    let (parent, child) = (new()?, new()?);
    let area = map(parent, None, 4, MapFlags::SHARED)?;
    write(parent, area, 1)?;
    dup_mmap(&lock(parent), &lock(child)).map_err(wrong("dup_mmap failed"))?;
    check(read(child, area)? == 1 && frame(child, area) == frame(parent, area), "the child sees the page")?;
    write(child, area + PAGE_SIZE, 2)?;
    check(read(parent, area + PAGE_SIZE)? == 2, "the parent sees what the child wrote")?;
    check(counts().0 == before.0 + 2, "two pages are shared memory")?;
    end(&[parent, child], &[], before)
}

fn a_file_is_read_written_and_mapped_as_one() -> Outcome {
    let before = counts();
    let (mm, file) = (new()?, file(0)?);
    let text = *b"one page and another";
    let at = PAGE_SIZE - 8;
    check(cache::write(file, at, &text) == Ok(text.len()), "all is written")?;
    check(cache::size(file) == at + text.len() as u64 && cache::nr_pages(file) == 2, "the file grew")?;
    let area = map(mm, Some(file), 4, MapFlags::SHARED)?;
    check(
        read(mm, area + at)? == b'o' && read(mm, area + PAGE_SIZE)? == text[8],
        "the mapping has the text",
    )?;
    write(mm, area + at, b'O')?;
    let mut back = [0; 32];
    check(cache::read(file, at, &mut back) == Ok(text.len()), "a read ends with the file")?;
    check(back[0] == b'O' && back[1..text.len()] == text[1..], "the file has what the mapping wrote")?;
    check(cache::read(file, 1 << 40, &mut back) == Ok(0), "past the end there is nothing")?;
    end(&[mm], &[file], before)
}

fn truncation_unmaps_what_lies_behind() -> Outcome {
    let before = counts();
    let (mm, file) = (new()?, file(4)?);
    let shared = map(mm, Some(file), 4, MapFlags::SHARED)?;
    let private = map(mm, Some(file), 4, MapFlags::PRIVATE)?;
    for page in 0..4 {
        write(mm, shared + page * PAGE_SIZE + 100, 7)?;
        write(mm, private + page * PAGE_SIZE, 8)?;
    }
    cache::truncate(file, PAGE_SIZE + 50).map_err(wrong("no truncation"))?;
    check(frame(mm, shared + 2 * PAGE_SIZE).is_none(), "what lies behind the end is mapped")?;
    check(frame(mm, private + 2 * PAGE_SIZE).is_none(), "a private copy lies behind the end")?;
    check(
        read(mm, shared + 100)? == 7 && read(mm, shared + PAGE_SIZE + 100)? == 0,
        "the last page ends in zeroes",
    )?;
    let what = mm_vma::FaultInfo { addr: shared + 2 * PAGE_SIZE, access: Access::Read, present: false };
    let fault = handle_fault(&Spaces, mm, what, Limits::default);
    check(fault == Err(Fault::AdrErr), "a page behind the end is a bus error")?;
    check(cache::nr_pages(file) == 2, "two pages are left")?;
    end(&[mm], &[file], before)
}

fn a_hole_reads_as_zeroes_and_spares_private_copies() -> Outcome {
    let before = counts();
    let (mm, file) = (new()?, file(4)?);
    let shared = map(mm, Some(file), 4, MapFlags::SHARED)?;
    let private = map(mm, Some(file), 4, MapFlags::PRIVATE)?;
    write(mm, shared + PAGE_SIZE, 7)?;
    write(mm, private + PAGE_SIZE, 8)?;
    let advised = lock(mm).madvise(shared, 4 * PAGE_SIZE, MADV_REMOVE);
    let Ok(Advised::Remove(range)) = advised else { return Err(Failure::Wrong("MADV_REMOVE was refused")) };
    madvise_remove(&Spaces, mm, range).map_err(wrong("MADV_REMOVE failed"))?;
    check(cache::nr_pages(file) == 0, "the file is a hole")?;
    check(read(mm, shared + PAGE_SIZE)? == 0 && read(mm, private + PAGE_SIZE)? == 8, "the copy stays")?;
    let refused = cache::fallocate(file, FallocFlags::PUNCH_HOLE, 0, PAGE_SIZE);
    check(refused == Err(Errno::Eopnotsupp), "a hole keeps the size")?;
    let done = cache::fallocate(file, FallocFlags::empty(), 0, 8 * PAGE_SIZE);
    check(
        done == Ok(()) && (cache::size(file), cache::nr_pages(file)) == (8 * PAGE_SIZE, 8),
        "pages are allocated",
    )?;
    end(&[mm], &[file], before)
}

fn reads_of_nothing_share_the_zero_page() -> Outcome {
    let zero = Spaces.zero_page().ok_or(Failure::Wrong("there is no zero page"))?;
    let count = || MemMap::page(&Spaces, zero).map(|page| (page.refcount(), page.mapcount()));
    let before = count();
    let mm = new()?;
    let area = map(mm, None, 2, MapFlags::PRIVATE)?;
    check(read(mm, area)? == 0 && frame(mm, area) == Some(zero), "a read maps the zero page")?;
    check(count() == before, "nobody counts the zero page")?;
    write(mm, area, 1)?;
    check(frame(mm, area) != Some(zero) && read(mm, area)? == 1, "a write gets a page of its own")?;
    check(read(mm, area + PAGE_SIZE)? == 0, "the zero page holds zeroes")?;
    end(&[mm], &[], counts())
}

fn a_devices_frames_are_mapped_and_not_counted() -> Outcome {
    let (parent, child) = (new()?, new()?);
    let device = frames::map(Char::Frames, true).map_err(wrong("no device"))?;
    let attach = |mm: Id<Mm>, flags| {
        let (prot, len) = (ProtFlags::READ | ProtFlags::WRITE, 4 * PAGE_SIZE);
        let request = MmapRequest { addr: 0, len, prot, flags, file: Some(device), offset: PAGE_SIZE };
        lock(mm).mmap(&request).map(|(addr, _)| addr).map_err(wrong("mmap failed"))
    };
    let (shared, private) = (attach(parent, MapFlags::SHARED)?, attach(parent, MapFlags::PRIVATE)?);
    check(frame(parent, shared) == frame(parent, private), "both map the device's frame")?;
    write(parent, shared, 5)?;
    check(read(parent, private)? == 5, "both are the device")?;
    write(parent, private, 6)?;
    check(frame(parent, shared) != frame(parent, private) && read(parent, shared)? == 5, "a write copies")?;
    let rss = |mm: Id<Mm>| space::mm_of(mm).rss(RssKind::Anon) + space::mm_of(mm).rss(RssKind::File);
    check(rss(parent) == 1, "only the copy is resident")?;
    dup_mmap(&lock(parent), &lock(child)).map_err(wrong("dup_mmap failed"))?;
    check(frame(child, shared) == frame(parent, shared) && read(child, private)? == 6, "the child has all")?;
    check(frames::counts() == Some((1, -1)), "somebody counts the device's frames")?;
    end(&[parent, child], &[], counts())?;
    check(frames::counts() == Some((1, -1)), "the frames are not the driver's any more")
}
