//! Faults, fork, copy on write, reverse mapping and failures, one behaviour a test.

mod common;

use std::sync::atomic::Ordering::Relaxed;

use common::model::Model;
use common::op::{Op, PAGE, WINDOW};
use mm_core::{Gfp, MemMap, Order, PageAlloc};
use mm_vma::{
    Access, Arena, Done, Fault, FaultInfo, Id, Kernel, MapFile, MapFlags, Mm, MmapRequest, ProtFlags,
    RssKind, Space, Unmapped, audit, for_each_pte, handle_fault, put_page, remove_migration_ptes,
    try_to_migrate,
};

const AT: u64 = 300 * PAGE;
const READ: u64 = 1;
const WRITE: u64 = 3;
const PRIVATE: u64 = 0x32;
const SHARED: u64 = 0x31;
const GROWSDOWN: u64 = 0x100;

fn map(model: &mut Model, page: u64, pages: u64, prot: u64, flags: u64) {
    let op = Op::Mmap { addr: AT + page * PAGE, len: pages * PAGE, prot, flags };
    assert!(model.run(0, op).result > 0, "{op:x?}");
}

fn run(model: &mut Model, op: Op) -> i64 {
    let result = model.run(7, op).result;
    audit(&model.k, model.mm).unwrap();
    result
}

fn write(model: &Model, page: u64, value: u64) -> i64 {
    model.access(WINDOW + AT + page * PAGE, Some(value))
}

fn read(model: &Model, page: u64) -> i64 {
    model.access(WINDOW + AT + page * PAGE, None)
}

fn mm(model: &Model, id: Id<Mm>) -> &Mm {
    model.k.at(id)
}

/// The frame behind a page.
fn frame(model: &Model, id: Id<Mm>, page: u64) -> Option<mm_core::Pfn> {
    let va = mm_core::VirtAddr::new(WINDOW + AT + page * PAGE);
    let at = mm(model, id);
    model.k.tables(at, |tables| at.page_table().translate(tables, va)).map(|found| found.phys.pfn())
}

#[test]
fn a_read_maps_the_zero_page_and_a_write_replaces_it() {
    let mut model = Model::new();
    map(&mut model, 0, 2, WRITE, PRIVATE);
    assert_eq!(read(&model, 0), 0);
    assert_eq!(frame(&model, model.mm, 0), model.k.zero_page());
    assert_eq!(mm(&model, model.mm).rss(RssKind::Anon), 0);
    assert_eq!(write(&model, 0, 5), 0);
    assert_ne!(frame(&model, model.mm, 0), model.k.zero_page());
    assert_eq!((read(&model, 0), read(&model, 1)), (5, 0));
    assert_eq!(mm(&model, model.mm).rss(RssKind::Anon), 1);
    assert_eq!(mm(&model, model.mm).min_flt(), 3);
    model.finish();
}

#[test]
fn without_a_zero_page_a_read_maps_a_page_of_its_own() {
    let mut model = Model::new();
    model.k.forbids_zero_page.store(true, Relaxed);
    map(&mut model, 0, 1, WRITE, PRIVATE);
    map(&mut model, 1, 1, READ, PRIVATE);
    assert_eq!((read(&model, 0), read(&model, 1)), (0, 0));
    assert_eq!(mm(&model, model.mm).rss(RssKind::Anon), 2);
    let first = frame(&model, model.mm, 0);
    assert_eq!(write(&model, 0, 5), 0);
    assert_eq!(frame(&model, model.mm, 0), first, "the page is written in place");
    assert_eq!(write(&model, 1, 5), -11_002);
    audit(&model.k, model.mm).unwrap();
    model.finish();
}

#[test]
fn signals_tell_nothing_there_from_not_allowed() {
    let mut model = Model::new();
    map(&mut model, 0, 1, READ, PRIVATE);
    map(&mut model, 1, 1, 0, PRIVATE);
    assert_eq!(write(&model, 0, 1), -11_002);
    assert_eq!(read(&model, 1), -11_002);
    assert_eq!(read(&model, 2), -11_001);
    let fetch = |present| {
        handle_fault(
            &model.k,
            model.mm,
            FaultInfo { addr: WINDOW + AT, access: Access::Fetch, present },
            || model.limits,
        )
    };
    assert_eq!(fetch(true), Err(Fault::AccErr));
    model.finish();
}

#[test]
fn a_page_past_the_end_of_a_mapping_is_a_bus_error() {
    let mut model = Model::new();
    map(&mut model, 0, 2, WRITE, SHARED);
    // Only two pages exist behind it.
    assert!(
        run(&mut model, Op::Mremap { addr: AT, old_len: 2 * PAGE, new_len: 3 * PAGE, flags: 0, new_addr: 0 })
            > 0
    );
    assert_eq!(write(&model, 1, 1), 0);
    assert_eq!(write(&model, 2, 1), -7_002);
    model.finish();
}

#[test]
fn a_second_fault_on_the_same_page_is_spurious() {
    let mut model = Model::new();
    map(&mut model, 0, 1, WRITE, PRIVATE);
    let fault = || {
        handle_fault(
            &model.k,
            model.mm,
            FaultInfo { addr: WINDOW + AT, access: Access::Write, present: false },
            || model.limits,
        )
    };
    assert_eq!(fault(), Ok(Done::Minor));
    assert_eq!(fault(), Ok(Done::Spurious));
    model.finish();
}

#[test]
fn fork_shares_pages_until_one_side_writes() {
    let mut model = Model::new();
    map(&mut model, 0, 2, WRITE, PRIVATE);
    write(&model, 0, 1);
    write(&model, 1, 2);
    let parent = model.mm;
    run(&mut model, Op::Fork);
    let child = model.mm;
    let shared = frame(&model, child, 0).unwrap();
    assert_eq!(frame(&model, parent, 0), Some(shared));
    let page = model.k.page(shared).unwrap();
    assert_eq!((page.refcount(), page.mapcount()), (2, 1));
    let mut found = Vec::new();
    for_each_pte(&model.k, shared, |mm, _, va, _| {
        found.push((mm, va));
        true
    });
    found.sort_by_key(|(mm, _)| mm.as_u64());
    assert_eq!(found, [(parent, WINDOW + AT), (child, WINDOW + AT)]);

    assert_eq!(write(&model, 0, 9), 0);
    assert_eq!((page.refcount(), page.mapcount()), (1, 0));
    audit(&model.k, parent).unwrap();
    audit(&model.k, child).unwrap();
    // The parent, alone again, writes in place.
    model.mm = parent;
    assert_eq!(read(&model, 0), 1);
    assert_eq!(write(&model, 0, 3), 0);
    assert_eq!(frame(&model, parent, 0), Some(shared));
    model.mm = child;
    model.parents = vec![parent];
    assert_eq!((read(&model, 0), read(&model, 1)), (9, 2));
    model.finish();
}

#[test]
fn shared_memory_is_written_by_both() {
    let mut model = Model::new();
    map(&mut model, 0, 1, WRITE, SHARED);
    write(&model, 0, 1);
    let parent = model.mm;
    run(&mut model, Op::Fork);
    assert_eq!(read(&model, 0), 1);
    write(&model, 0, 2);
    let child = core::mem::replace(&mut model.mm, parent);
    assert_eq!(read(&model, 0), 2);
    assert_eq!(mm(&model, parent).rss(RssKind::File), 1);
    model.mm = child;
    model.finish();
}

#[test]
fn a_wiped_vma_is_empty_in_the_child_and_one_that_is_not_copied_is_missing() {
    let mut model = Model::new();
    map(&mut model, 0, 1, WRITE, PRIVATE);
    map(&mut model, 2, 1, WRITE, PRIVATE);
    write(&model, 0, 1);
    write(&model, 2, 1);
    assert_eq!(run(&mut model, Op::Madvise { addr: AT, len: PAGE, advice: 18 }), 0);
    assert_eq!(run(&mut model, Op::Madvise { addr: AT + 2 * PAGE, len: PAGE, advice: 10 }), 0);
    run(&mut model, Op::Fork);
    assert_eq!((read(&model, 0), read(&model, 2)), (0, -11_001));
    model.finish();
}

#[test]
fn a_stack_grows_to_its_limit_and_keeps_its_distance() {
    let mut model = Model::new();
    map(&mut model, 0, 1, WRITE, PRIVATE | GROWSDOWN);
    assert_eq!(model.access(WINDOW + AT - 10 * PAGE, Some(1)), 0);
    // 64 pages in all.
    assert_eq!(model.access(WINDOW + AT - 63 * PAGE, Some(1)), 0);
    assert_eq!(model.access(WINDOW + AT - 64 * PAGE, Some(1)), -11_001);
    // A neighbour that can be accessed within the guard gap stops another one.
    map(&mut model, 100, 1, WRITE, PRIVATE);
    map(&mut model, 120, 1, WRITE, PRIVATE | GROWSDOWN);
    assert_eq!(write(&model, 119, 1), -11_001);
    audit(&model.k, model.mm).unwrap();
    model.finish();
}

fn write_all(model: &Model, pages: u64) {
    for page in 0..pages {
        assert_eq!(write(model, page, page + 1), 0);
    }
}

#[test]
fn mprotect_takes_rights_away_at_once_and_gives_them_back() {
    let mut model = Model::new();
    map(&mut model, 0, 4, WRITE, PRIVATE);
    write_all(&model, 4);
    assert_eq!(run(&mut model, Op::Mprotect { addr: AT + PAGE, len: 2 * PAGE, prot: 0 }), 0);
    assert_eq!((read(&model, 1), write(&model, 2, 1)), (-11_002, -11_002));
    assert_eq!(run(&mut model, Op::Mprotect { addr: AT, len: 4 * PAGE, prot: READ }), 0);
    assert_eq!((read(&model, 1), write(&model, 0, 9)), (2, -11_002));
    assert_eq!(run(&mut model, Op::Mprotect { addr: AT, len: 4 * PAGE, prot: WRITE }), 0);
    assert_eq!(model.lines().len(), 1);
    assert_eq!((write(&model, 3, 7), read(&model, 3), read(&model, 2)), (0, 7, 3));
    model.finish();
}

#[test]
fn a_moved_mapping_keeps_its_pages() {
    let mut model = Model::new();
    map(&mut model, 0, 4, WRITE, PRIVATE);
    write_all(&model, 4);
    let op = Op::Mremap {
        addr: AT + PAGE,
        old_len: 2 * PAGE,
        new_len: 5 * PAGE,
        flags: 3,
        new_addr: AT + 9 * PAGE,
    };
    assert!(run(&mut model, op) > 0);
    assert_eq!((read(&model, 1), read(&model, 9), read(&model, 10), read(&model, 11)), (-11_001, 2, 3, 0));
    model.finish();
}

#[test]
fn a_page_moves_to_another_frame_and_everybody_follows() {
    let mut model = Model::new();
    map(&mut model, 0, 1, WRITE, PRIVATE);
    write(&model, 0, 42);
    let parent = model.mm;
    run(&mut model, Op::Fork);
    let old = frame(&model, parent, 0).unwrap();
    let references = model.k.page(old).unwrap().references();
    references.fetch_add(1, Relaxed);
    assert_eq!(try_to_migrate(&model.k, old, 1), Unmapped::Yes);
    let fault = || {
        handle_fault(
            &model.k,
            model.mm,
            FaultInfo { addr: WINDOW + AT, access: Access::Read, present: false },
            || model.limits,
        )
    };
    assert_eq!(fault(), Ok(Done::Wait));
    let new = model.k.alloc_pages(Gfp::HIGHUSER_MOVABLE, Order::ZERO, None).unwrap();
    model.k.copy_page(new, old);
    remove_migration_ptes(&model.k, old, new);
    put_page(&model.k, new);
    put_page(&model.k, old);
    for mm in [parent, model.mm] {
        assert_eq!(frame(&model, mm, 0), Some(new));
        audit(&model.k, mm).unwrap();
    }
    let page = model.k.page(new).unwrap();
    assert_eq!((page.refcount(), page.mapcount()), (2, 1));
    assert_eq!(read(&model, 0), 42);
    model.finish();
}

#[test]
fn a_page_that_somebody_holds_stays() {
    let mut model = Model::new();
    map(&mut model, 0, 1, WRITE, PRIVATE);
    write(&model, 0, 42);
    let pfn = frame(&model, model.mm, 0).unwrap();
    model.k.page(pfn).unwrap().references().fetch_add(2, Relaxed);
    assert_eq!(try_to_migrate(&model.k, pfn, 1), Unmapped::Pinned);
    remove_migration_ptes(&model.k, pfn, pfn);
    put_page(&model.k, pfn);
    put_page(&model.k, pfn);
    assert_eq!((write(&model, 0, 43), read(&model, 0)), (0, 43));
    audit(&model.k, model.mm).unwrap();
    model.finish();
}

#[test]
fn no_call_breaks_anything_when_memory_runs_out() {
    let calls = [
        Op::Mmap { addr: AT + 2 * PAGE, len: 3 * PAGE, prot: READ, flags: PRIVATE },
        Op::Mmap { addr: AT + 2 * PAGE, len: 3 * PAGE, prot: READ, flags: SHARED },
        Op::Munmap { addr: AT + PAGE, len: PAGE },
        Op::Mprotect { addr: AT + PAGE, len: PAGE, prot: READ },
        Op::Mremap { addr: AT, old_len: 2 * PAGE, new_len: 3 * PAGE, flags: 3, new_addr: AT + 20 * PAGE },
        Op::Mremap { addr: AT, old_len: 8 * PAGE, new_len: 8 * PAGE, flags: 5, new_addr: 0 },
        Op::Madvise { addr: AT + PAGE, len: PAGE, advice: 14 },
        Op::Mlock { addr: AT + PAGE, len: PAGE, flags: 1 },
        Op::Fork,
    ];
    for call in calls {
        for budget in 0..40 {
            let mut model = Model::new();
            map(&mut model, 0, 8, WRITE, PRIVATE);
            write_all(&model, 8);
            model.k.ram.budget.store(budget, Relaxed);
            let fork = call == Op::Fork;
            // A fork's child and its root table are the test's own.
            if fork && budget < 2 {
                continue;
            }
            let before = model.mm;
            let result = model.run(1, call).result;
            model.k.ram.budget.store(usize::MAX, Relaxed);
            assert!(result >= 0 || [-12, -11].contains(&result), "{call:?}: {result}");
            audit(&model.k, before).unwrap_or_else(|broken| panic!("{call:?} with {budget}: {broken:x?}"));
            if fork && result < 0 {
                assert_eq!(model.mm, before);
                continue;
            }
            if result < 0 && !matches!(call, Op::Mmap { .. }) {
                let words: Vec<_> = (0..8).map(|page| read(&model, page)).collect();
                assert_eq!(words, [1, 2, 3, 4, 5, 6, 7, 8], "{call:?} with {budget} lost pages");
            }
            model.finish();
        }
    }
}

#[test]
fn a_writer_elsewhere_does_not_stop_a_reader_of_another_vma() {
    let mut model = Model::new();
    map(&mut model, 0, 1, WRITE, PRIVATE);
    map(&mut model, 4, 1, WRITE, PRIVATE);
    let (k, id) = (&model.k, model.mm);
    let at = mm(&model, id);
    let space = mm_vma::Space::lock(k, id, model.limits);
    space.mprotect(WINDOW + AT, PAGE, mm_vma::ProtFlags::READ).unwrap();
    assert!(at.lock_vma(k, id, WINDOW + AT).is_none(), "the writer changed it");
    assert!(at.lock_vma(k, id, WINDOW + AT + 4 * PAGE).is_some());
    assert!(at.lock_vma(k, id, WINDOW + AT + 2 * PAGE).is_none(), "nothing is there");
    drop(space);
    assert!(at.lock_vma(k, id, WINDOW + AT).is_some());
    model.finish();
}

#[test]
fn a_descriptor_of_another_address_space_is_not_believed() {
    let mut model = Model::new();
    map(&mut model, 0, 1, WRITE, PRIVATE);
    let parent = model.mm;
    run(&mut model, Op::Fork);
    let (k, child) = (&model.k, model.mm);
    assert!(mm(&model, parent).lock_vma(k, child, WINDOW + AT).is_none());
    assert!(mm(&model, child).lock_vma(k, child, WINDOW + AT).is_some());
    model.finish();
}

#[test]
fn a_page_that_leaves_its_file_during_a_fault_is_not_mapped() {
    const PRIVATE_FILE: u64 = 0x12;
    for flags in [0x11, PRIVATE_FILE] {
        let mut model = Model::new();
        let mapping = model.k.shmem_zero_setup(PAGE, mm_vma::VmFlags::empty()).unwrap();
        let file = MapFile::of(mapping);
        let request = MmapRequest {
            addr: WINDOW + AT,
            len: PAGE,
            prot: ProtFlags::from_bits_retain(WRITE),
            flags: MapFlags::from_bits_retain(flags) | MapFlags::FIXED,
            file: Some(file),
            offset: 0,
        };
        let _ = Space::lock(&model.k, model.mm, model.limits).mmap(&request).unwrap();
        model.k.mapping_put(mapping);
        model.k.truncates_on_fault.store(true, Relaxed);
        // The fault is tried again, and finds the end of the file.
        assert_eq!(write(&model, 0, 5), -7002);
        assert!(frame(&model, model.mm, 0).is_none(), "a page behind the end is mapped");
        run(&mut model, Op::Read { addr: AT });
        model.finish();
    }
}

#[test]
fn a_page_that_nobody_else_has_is_writable_again_without_a_fault() {
    let mut model = Model::new();
    map(&mut model, 0, 2, WRITE, PRIVATE);
    assert_eq!(write(&model, 0, 5), 0);
    let protect = |prot| Op::Mprotect { addr: AT, len: 2 * PAGE, prot };
    assert_eq!(run(&mut model, protect(READ)), 0);
    assert_eq!(write(&model, 0, 6), -11002);
    assert_eq!(run(&mut model, protect(WRITE)), 0);
    let faults = mm(&model, model.mm).min_flt();
    assert_eq!(write(&model, 0, 6), 0);
    assert_eq!(mm(&model, model.mm).min_flt(), faults);
    // The child has it too: now it is copied.
    assert_eq!(run(&mut model, protect(READ)), 0);
    assert_eq!(run(&mut model, Op::Fork), 0);
    assert_eq!(run(&mut model, protect(WRITE)), 0);
    let (faults, shared) = (mm(&model, model.mm).min_flt(), frame(&model, model.mm, 0));
    assert_eq!(write(&model, 0, 7), 0);
    assert_eq!(mm(&model, model.mm).min_flt(), faults + 1);
    assert_ne!(frame(&model, model.mm, 0), shared);
    model.finish();
}

#[test]
fn mremap_says_efault_if_the_old_range_goes_with_what_is_at_the_new_place() {
    let mut model = Model::new();
    map(&mut model, 0, 13, WRITE, PRIVATE);
    let old_len = u64::MAX - PAGE;
    let op = Op::Mremap { addr: AT + PAGE, old_len, new_len: 2 * PAGE, flags: 3, new_addr: AT };
    assert_eq!(run(&mut model, op), -14);
    model.finish();
}

#[test]
fn huge_pages_are_out_of_memory_or_of_a_size_that_is_not() {
    const HUGETLB: u64 = 0x4_0000;
    let mut model = Model::new();
    let mut mmap = |size: u64| {
        let flags = PRIVATE | HUGETLB | size << 26;
        run(&mut model, Op::Mmap { addr: AT, len: 2 << 20, prot: WRITE, flags })
    };
    // As Linux 6.18 with an empty pool: ENOMEM, and EINVAL for 4 MiB.
    assert_eq!([0, 21, 30, 22].map(&mut mmap), [-12, -12, -12, -22]);
}
