//! What mmap says about files, and what smaps says about pages.

mod common;

use common::model::Model;
use common::op::{Op, PAGE, WINDOW};
use mm_core::{MemMap, PolicyAt, VirtAddr};
use mm_filemap::shmem::{self, FallocFlags};
use mm_vma::{Arena, Errno, Kernel, MapFile, MapFlags, Mm, MmapRequest, ProtFlags, Resident, Space};

const AT: u64 = WINDOW + 300 * PAGE;

fn mmap(model: &Model, file: MapFile, flags: MapFlags, offset: u64) -> Result<u64, Errno> {
    mmap_pages(model, 2, file, (flags, offset))
}

fn mmap_pages(
    model: &Model,
    pages: u64,
    file: MapFile,
    (flags, offset): (MapFlags, u64),
) -> Result<u64, Errno> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = flags | MapFlags::FIXED;
    let request = MmapRequest { addr: AT, len: pages * PAGE, prot, flags, file: Some(file), offset };
    Space::lock(&model.k, model.mm, model.limits).mmap(&request).map(|(addr, _)| addr)
}

#[test]
fn a_file_that_cannot_be_mapped_says_so_after_everything_else() {
    let model = Model::new();
    let pipe = MapFile { writable: false, ..MapFile::unmappable() };
    assert_eq!(mmap(&model, pipe, MapFlags::PRIVATE, 0), Err(Errno::Enodev));
    assert_eq!(mmap(&model, pipe, MapFlags::SHARED, 0), Err(Errno::Eacces));
    assert_eq!(mmap(&model, pipe, MapFlags::empty(), 0), Err(Errno::Einval));
    assert_eq!(mmap(&model, pipe, MapFlags::PRIVATE, 1), Err(Errno::Einval));
    let unread = MapFile { readable: false, ..MapFile::unmappable() };
    assert_eq!(mmap(&model, unread, MapFlags::PRIVATE, 0), Err(Errno::Eacces));
    model.finish();
}

#[test]
fn no_mapping_goes_past_the_longest_file() {
    let model = Model::new();
    let mapping = model.k.shmem_zero_setup(PAGE, mm_vma::VmFlags::empty()).unwrap();
    let file = MapFile::of(mapping);
    let last = i64::MAX.unsigned_abs() & !(PAGE - 1);
    assert_eq!(mmap(&model, file, MapFlags::PRIVATE, last), Err(Errno::Eoverflow));
    assert_eq!(mmap(&model, file, MapFlags::PRIVATE, last - PAGE), Err(Errno::Eoverflow));
    assert_eq!(mmap(&model, file, MapFlags::PRIVATE, last - 2 * PAGE), Ok(AT));
    model.k.mapping_put(mapping);
    model.finish();
}

fn resident(model: &Model) -> Resident {
    let space = Space::lock(&model.k, model.mm, model.limits);
    let id = space.mm().find(&model.k, AT).unwrap();
    space.resident(id)
}

#[test]
fn resident_pages_are_told_apart_by_who_maps_them_and_by_writes() {
    let mut model = Model::new();
    let map = Op::Mmap { addr: AT - WINDOW, len: 8 * PAGE, prot: 3, flags: 0x32 };
    assert!(model.run(0, map).result > 0);
    assert_eq!(resident(&model), Resident::default());
    // The page of zeroes belongs to nobody.
    model.access(AT, None);
    assert_eq!(resident(&model), Resident::default());
    for page in 1..4 {
        model.access(AT + page * PAGE, Some(7));
    }
    let own = resident(&model);
    assert_eq!((own.rss, own.anonymous, own.private_dirty), (3 * PAGE, 3 * PAGE, 3 * PAGE));
    assert_eq!((own.pss, own.shared_dirty, own.locked), (3 * PAGE, 0, 0));
    model.run(0, Op::Fork);
    model.access(AT + PAGE, Some(8));
    model.run(0, Op::Mlock { addr: AT - WINDOW, len: 2 * PAGE, flags: 1 });
    let shared = resident(&model);
    // The lock split the area: what is left of it has the page of zeroes and the copy.
    assert_eq!((shared.rss, shared.private_dirty, shared.shared_dirty), (PAGE, PAGE, 0));
    assert_eq!(shared.locked, PAGE);
    model.run(0, Op::Munlockall);
    let shared = resident(&model);
    assert_eq!((shared.rss, shared.private_dirty, shared.shared_dirty), (3 * PAGE, PAGE, 2 * PAGE));
    assert_eq!(shared.pss, 2 * PAGE);
    model.finish();
}

/// A mapping of 20 pages of a file of 18: the first 4 lie in one block of 64 KiB, the others in the next. Page 6 is not there, page 7 was never
/// written, and somebody has page 9 locked.
fn file_of_18_pages(model: &Model, flags: MapFlags) -> mm_vma::Id<mm_vma::Mapping> {
    let mapping = model.k.shmem_zero_setup(18 * PAGE, mm_vma::VmFlags::empty()).unwrap();
    shmem::fallocate(&model.k, mapping, FallocFlags::empty(), 7 * PAGE, PAGE).unwrap();
    for index in (0..18).filter(|index| !(6..8).contains(index)) {
        let found = shmem::fault(&model.k, mapping, PolicyAt::of_task(index)).unwrap();
        if index == 9 {
            MemMap::page(&model.k, found.pfn).unwrap().lock();
        }
        mm_vma::put_page(&model.k, found.pfn);
    }
    assert_eq!((AT / PAGE) % 16, 12);
    assert_eq!(mmap_pages(model, 20, MapFile::of(mapping), (flags, 0)), Ok(AT));
    mapping
}

fn finish(model: Model, mapping: mm_vma::Id<mm_vma::Mapping>) {
    let locked = mm_filemap::find_get_page(&model.k, mapping, 9).unwrap();
    MemMap::page(&model.k, locked).unwrap().unlock();
    mm_vma::put_page(&model.k, locked);
    model.k.mapping_put(mapping);
    model.finish();
}

#[test]
fn a_read_maps_what_is_ready_around_it() {
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let model = Model::new();
        let mapping = file_of_18_pages(&model, flags);
        let mm: &Mm = model.k.at(model.mm);
        let mapped = |page: u64| {
            let va = VirtAddr::new(AT + page * PAGE);
            model.k.tables(mm, |tables| mm.page_table().translate(tables, va).is_some())
        };
        model.access(AT + 5 * PAGE, None);
        let around = [4, 5, 8, 10, 11, 12, 13, 14, 15, 16, 17];
        assert_eq!((0..20).filter(|page| mapped(*page)).collect::<Vec<_>>(), around);
        assert_eq!(resident(&model).rss, 11 * PAGE);
        model.access(AT + 3 * PAGE, None);
        assert!((0..4).all(mapped));
        assert_eq!(resident(&model).rss, 15 * PAGE);
        // What is there stays as it is, and what was not ready has faults of its own.
        model.access(AT + 7 * PAGE, None);
        assert_eq!(resident(&model).rss, 16 * PAGE);
        finish(model, mapping);
    }
}

#[test]
fn a_write_maps_its_own_page_alone() {
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let model = Model::new();
        let mapping = file_of_18_pages(&model, flags);
        model.access(AT + 5 * PAGE, Some(1));
        assert_eq!(resident(&model).rss, PAGE);
        // A read maps around what is there already.
        model.access(AT + 4 * PAGE, None);
        assert_eq!(resident(&model).rss, 11 * PAGE);
        finish(model, mapping);
    }
}
