//! Frames of devices, and attachments of System V segments.

mod common;

use common::model::Model;
use common::op::{Op, PAGE, WINDOW};
use mm_core::{Gfp, MemMap, Order, PageAlloc, PageKind, Pfn, PhysMem, VirtAddr};
use mm_pgtable::CacheMode;
use mm_vma::{
    Arena, Errno, Frames, Id, Kernel, MapFile, MapFlags, Mapping, Mm, MmapRequest, ProtFlags, RssKind, Space,
    VmFlags, audit, mapping_writably_mapped,
};

const AT: u64 = WINDOW + 300 * PAGE;
const SHARED: u64 = 0x11;
const PRIVATE: u64 = 0x12;
/// Frames that are no RAM.
const REGISTERS: u64 = 0xfee0_0000 / PAGE;

fn attach(model: &Model, page: u64, pages: u64, flags: u64, file: MapFile) -> Result<(), Errno> {
    let request = MmapRequest {
        addr: AT + page * PAGE,
        len: pages * PAGE,
        prot: ProtFlags::READ | ProtFlags::WRITE,
        flags: MapFlags::from_bits_retain(flags),
        file: Some(file),
        offset: 0,
    };
    Space::lock(&model.k, model.mm, model.limits).mmap(&request).map(|_| ())
}

fn translate(model: &Model, id: Id<Mm>, page: u64) -> Option<(u64, bool)> {
    let at: &Mm = model.k.at(id);
    let va = VirtAddr::new(AT + page * PAGE);
    let found = model.k.tables(at, |tables| at.page_table().translate(tables, va))?;
    Some((found.phys.pfn().as_u64(), found.effective.write))
}

fn run(model: &mut Model, op: Op) -> i64 {
    let result = model.run(7, op).result;
    for &mm in model.parents.iter().chain([&model.mm]) {
        audit(&model.k, mm).unwrap();
    }
    result
}

fn offset(page: u64) -> u64 {
    AT - WINDOW + page * PAGE
}

fn device(model: &Model, first: u64, pages: u64, cache: CacheMode) -> (Id<Mapping>, MapFile) {
    let mapping = model.k.shmem_zero_setup(0, mm_vma::VmFlags::empty()).unwrap();
    let frames = Frames { first: Pfn::new(first), pages, cache };
    (mapping, MapFile { frames: Some(frames), ..MapFile::of(mapping) })
}

#[test]
fn registers_are_mapped_at_once_uncached_and_survive_fork_and_mprotect() {
    let mut model = Model::new();
    let (mapping, file) = device(&model, REGISTERS, 4, CacheMode::UcMinus);
    assert_eq!(attach(&model, 0, 5, SHARED, file), Err(Errno::Einval), "past the device's end");
    attach(&model, 0, 4, SHARED, file).unwrap();
    assert_eq!(translate(&model, model.mm, 3), Some((REGISTERS + 3, true)));
    let at: &Mm = model.k.at(model.mm);
    let vma = at.find(&model.k, AT).map(|id| Arena::<mm_vma::Vma>::at(&model.k, id)).unwrap();
    assert!(vma.flags().contains(VmFlags::REMAPPED));
    assert_eq!((at.rss(RssKind::Anon), at.rss(RssKind::File)), (0, 0));
    let parent = model.mm;
    run(&mut model, Op::Fork);
    assert_eq!(translate(&model, model.mm, 2), translate(&model, parent, 2), "a child has them");
    for (prot, wanted) in [(0, None), (1, Some((REGISTERS + 1, false))), (3, Some((REGISTERS + 1, true)))] {
        run(&mut model, Op::Mprotect { addr: offset(1), len: PAGE, prot });
        assert_eq!(translate(&model, model.mm, 1), wanted);
    }
    let at: &Mm = model.k.at(model.mm);
    let cached = model.k.tables(at, |tables| {
        at.page_table().translate(tables, VirtAddr::new(AT + PAGE)).map(|found| found.effective.cache)
    });
    assert_eq!(cached, Some(CacheMode::UcMinus), "mprotect keeps how they are cached");
    model.k.mapping_put(mapping);
    model.finish();
}

#[test]
fn a_private_write_goes_to_a_copy_and_nobody_counts_the_frame() {
    let mut model = Model::new();
    let frame = model.k.alloc_pages(Gfp::KERNEL | Gfp::ZERO, Order::ZERO, None).unwrap();
    let page = || model.k.page(frame).map(|page| (page.refcount(), page.mapcount())).unwrap();
    model.k.page(frame).unwrap().set_kind(PageKind::Allocated);
    model.k.write_u64(frame.phys(), 77);
    let before = page();
    let (mapping, file) = device(&model, frame.as_u64(), 1, CacheMode::Wb);
    attach(&model, 0, 1, PRIVATE, file).unwrap();
    assert_eq!(model.access(AT, None), 77);
    assert_eq!(translate(&model, model.mm, 0), Some((frame.as_u64(), false)));
    assert_eq!(model.access(AT, Some(5)), 0);
    assert_ne!(translate(&model, model.mm, 0).map(|found| found.0), Some(frame.as_u64()));
    assert_eq!((model.access(AT, None), model.k.read_u64(frame.phys())), (5, 77));
    let at: &Mm = model.k.at(model.mm);
    assert_eq!(at.rss(RssKind::Anon), 1);
    audit(&model.k, model.mm).unwrap();
    assert_eq!(page(), before);
    run(&mut model, Op::Munmap { addr: offset(0), len: PAGE });
    model.k.mapping_put(mapping);
    model.k.page(frame).unwrap().set_kind(PageKind::None);
    model.k.free_pages(frame, Order::ZERO);
    model.finish();
}

#[test]
fn registers_are_not_copied() {
    let mut model = Model::new();
    let (mapping, file) = device(&model, REGISTERS, 1, CacheMode::UcMinus);
    attach(&model, 0, 1, PRIVATE, file).unwrap();
    assert_eq!(model.access(AT, Some(5)), -7002, "a bus error");
    run(&mut model, Op::Munmap { addr: offset(0), len: PAGE });
    model.k.mapping_put(mapping);
    model.finish();
}

#[test]
fn a_detachment_finds_the_pieces_of_its_attachment_and_no_others() {
    let mut model = Model::new();
    let mapping = model.k.shmem_zero_setup(4 * PAGE, mm_vma::VmFlags::empty()).unwrap();
    let file = MapFile { flags: VmFlags::COUNTED, ..MapFile::of(mapping) };
    attach(&model, 0, 4, SHARED, file).unwrap();
    attach(&model, 4, 4, SHARED, file).unwrap();
    let pieces = |model: &Model| {
        let at: &Mm = model.k.at(model.mm);
        at.vmas(&model.k).filter(|(_, vma)| (AT..AT + 8 * PAGE).contains(&vma.start())).count()
    };
    run(&mut model, Op::Munmap { addr: offset(1), len: PAGE });
    run(&mut model, Op::Mprotect { addr: offset(3), len: PAGE, prot: 1 });
    run(&mut model, Op::Mprotect { addr: offset(3), len: PAGE, prot: 3 });
    assert_eq!(pieces(&model), 4, "pieces do not merge again");
    assert!(mapping_writably_mapped(&model.k, mapping));
    let detach = |model: &Model, page: u64| {
        let size_of = |other| (other == mapping).then_some(4 * PAGE);
        Space::lock(&model.k, model.mm, model.limits).shmdt(AT + page * PAGE, size_of)
    };
    assert_eq!(detach(&model, 0), Ok(()));
    assert_eq!(pieces(&model), 1);
    assert_eq!(detach(&model, 0), Err(Errno::Einval), "the second lies elsewhere");
    assert_eq!(detach(&model, 4), Ok(()));
    assert!(!mapping_writably_mapped(&model.k, mapping));
    model.k.mapping_put(mapping);
    model.finish();
}
