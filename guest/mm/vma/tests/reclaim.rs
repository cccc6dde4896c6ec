//! Reclaim unmaps pages between the calls of random programs, and no program notices; what it asks about pages is answered.

mod common;

use common::canonical;
use common::model::Model;
use common::op::{Op, PAGE, WINDOW, op};
use mm_core::{MemMap, PageFlags, Pfn, VirtAddr};
use mm_pgtable::PteFlags;
use mm_swap::{Swap, SwapIo};
use mm_vma::{
    Arena, FolioReferenced, Kernel, Mm, Owner, VmFlags, Vma, audit, folio_referenced, owner, page_mkclean,
    put_page, try_to_unmap,
};
use proptest::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

const AT: u64 = 300 * PAGE;
const PRIVATE: u64 = 0x32;
const SHARED: u64 = 0x31;

/// As whoever isolated the page does.
fn unmap(model: &Model, pfn: Pfn) -> bool {
    let page = model.k.page(pfn).unwrap();
    page.references().fetch_add(1, Relaxed);
    folio_referenced(&model.k, pfn);
    let mut unflushed = Vec::new();
    let unmapped = try_to_unmap(&model.k, pfn, &mut unflushed);
    model.k.try_to_unmap_flush(&mut unflushed);
    assert_eq!(unmapped, page.mapcount() == -1);
    if unmapped {
        assert_eq!(page.refcount(), 2, "the cache has the page, and nobody else");
    }
    put_page(&model.k, pfn);
    unmapped
}

fn audit_all(model: &Model) -> Result<(), TestCaseError> {
    for &mm in model.parents.iter().chain([&model.mm]) {
        let audit = audit(&model.k, mm);
        prop_assert!(audit.is_ok(), "{audit:x?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_program_notices_that_its_pages_are_unmapped(
        calls in proptest::collection::vec((op(), any::<u64>()), 1..60),
    ) {
        let (mut pressed, mut twin) = (Model::new(), Model::new());
        for (index, &(op, picks)) in calls.iter().enumerate() {
            for (number, pfn) in pressed.user_frames().into_iter().enumerate() {
                if picks >> (number % 64) & 1 == 1 {
                    unmap(&pressed, pfn);
                }
            }
            audit_all(&pressed)?;
            if op.tells_what_is_mapped() || op.gives_pages_away() {
                continue;
            }
            pressed.by_kernel = picks >> 63 == 1;
            let mut both = [pressed.run(index, op), twin.run(index, op)];
            canonical(&mut both);
            let [ours, theirs] = both;
            prop_assert_eq!(ours, theirs, "left: pages are unmapped, call {}: {:?}", index, op);
            audit_all(&pressed)?;
        }
        pressed.finish();
        twin.finish();
    }
}

/// No CPU has a translation that a program's VMAs do not permit.
fn translations_are_permitted(model: &Model) -> Result<(), TestCaseError> {
    let mm: &Mm = model.k.at(model.mm);
    let root = mm.page_table().root.as_u64();
    for (&(of, va), entry) in model.k.tlb.lock().unwrap().iter().filter(|((of, _), _)| *of == root) {
        let vma = mm.find(&model.k, va).map(|id| -> &Vma { model.k.at(id) });
        let flags = vma.filter(|vma| vma.start() <= va).map(Vma::flags);
        prop_assert!(flags.is_some(), "{va:#x} of {of:#x} is not mapped any more");
        let may_write = flags.is_some_and(|flags| flags.contains(VmFlags::WRITE));
        prop_assert!(
            may_write || !entry.has(PteFlags::WRITE),
            "{va:#x} of {of:#x} may not be written any more"
        );
    }
    Ok(())
}

/// Pages whose translations are to be flushed later, each with a reference.
#[derive(Default)]
struct Late {
    pages: Vec<Pfn>,
    unflushed: Vec<(u64, u64)>,
}

impl Late {
    fn unmap(&mut self, model: &Model, pfn: Pfn) {
        model.k.page(pfn).unwrap().references().fetch_add(1, Relaxed);
        try_to_unmap(&model.k, pfn, &mut self.unflushed);
        self.pages.push(pfn);
    }

    fn flush(&mut self, model: &Model) {
        model.k.try_to_unmap_flush(&mut self.unflushed);
        self.pages.drain(..).for_each(|pfn| put_page(&model.k, pfn));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_program_notices_that_a_flush_is_put_off(
        calls in proptest::collection::vec((op(), any::<u64>()), 1..60),
    ) {
        let (mut pressed, mut twin, mut late) = (Model::new(), Model::new(), Late::default());
        for (index, &(op, picks)) in calls.iter().enumerate() {
            if picks >> 62 == 0 {
                late.flush(&pressed);
                audit_all(&pressed)?;
            }
            // Shared pages that CPUs have just written: those of others stay mapped.
            let share = Op::Mmap { addr: AT, len: 16 * PAGE, prot: 3, flags: SHARED };
            let touched = (0..4).map(|n| Op::Write { addr: AT + (picks >> (4 * n) & 15) * PAGE });
            for op in (picks >> 16 & 3 == 0).then_some(share).into_iter().chain(touched) {
                let mut both = [pressed.run(index, op), twin.run(index, op)];
                canonical(&mut both);
                let [ours, theirs] = both;
                prop_assert_eq!(ours, theirs, "left: flushes are put off, before call {}: {:?}", index, op);
            }
            for (number, pfn) in pressed.user_frames().into_iter().enumerate() {
                if picks >> (number % 62) & 1 == 1 && !late.pages.contains(&pfn) {
                    late.unmap(&pressed, pfn);
                }
            }
            if op.tells_what_is_mapped() || op.gives_pages_away() {
                continue;
            }
            let mut both = [pressed.run(index, op), twin.run(index, op)];
            canonical(&mut both);
            let [ours, theirs] = both;
            prop_assert_eq!(ours, theirs, "left: flushes are put off, call {}: {:?}", index, op);
            translations_are_permitted(&pressed)?;
        }
        late.flush(&pressed);
        audit_all(&pressed)?;
        pressed.finish();
        twin.finish();
    }
}

#[test]
fn what_was_put_off_is_done_before_protection_changes() {
    let mut model = Model::new();
    let pfn = mapped(&mut model, SHARED, 42);
    let mut late = Late::default();
    late.unmap(&model, pfn);
    assert_eq!(run(&mut model, Op::Mprotect { addr: AT, len: PAGE, prot: 1 }), 0);
    assert!(model.k.tlb.lock().unwrap().is_empty());
    late.flush(&model);
    assert_eq!(model.access(WINDOW + AT, None), 42);
    model.finish();
}

#[test]
fn what_was_put_off_is_done_before_another_page_is_mapped() {
    let mut model = Model::new();
    assert!(run(&mut model, Op::Mmap { addr: AT, len: 2 * PAGE, prot: 3, flags: SHARED }) > 0);
    model.access(WINDOW + AT, Some(42));
    let pfn = model.user_frames()[0];
    let mut late = Late::default();
    late.unmap(&model, pfn);
    let is_cached = |model: &Model| model.k.tlb.lock().unwrap().keys().any(|(_, va)| *va == WINDOW + AT);
    assert!(is_cached(&model), "the flush is put off");
    model.access(WINDOW + AT + PAGE, Some(7));
    assert!(!is_cached(&model), "a CPU reads the old page beside writes to a new one");
    late.flush(&model);
    assert_eq!(model.access(WINDOW + AT, None), 42);
    model.finish();
}

fn run(model: &mut Model, op: Op) -> i64 {
    model.run(1, op).result
}

fn mapped(model: &mut Model, flags: u64, value: u64) -> Pfn {
    assert!(run(model, Op::Mmap { addr: AT, len: PAGE, prot: 3, flags }) > 0);
    model.access(WINDOW + AT, Some(value));
    model.user_frames()[0]
}

fn asked(model: &Model, pfn: Pfn) -> (u32, bool) {
    let FolioReferenced { ptes, vm_flags } = folio_referenced(&model.k, pfn);
    (ptes, vm_flags.contains(VmFlags::LOCKED))
}

#[test]
fn each_entry_that_was_used_is_counted_once() {
    for flags in [PRIVATE, SHARED] {
        let mut model = Model::new();
        let pfn = mapped(&mut model, flags, 7);
        assert_eq!(asked(&model, pfn), (1, false));
        assert_eq!(asked(&model, pfn), (0, false));
        // The child's entry is a copy of one that was not used.
        run(&mut model, Op::Fork);
        assert_eq!(asked(&model, pfn).0, 0);
        model.access(WINDOW + AT, None);
        assert_eq!(asked(&model, pfn), (1, false));
        audit_all(&model).unwrap();
        model.finish();
    }
}

#[test]
fn what_the_kernel_reads_and_writes_for_a_program_is_used_and_dirty() {
    for flags in [PRIVATE, SHARED] {
        let mut model = Model::new();
        let pfn = mapped(&mut model, flags, 7);
        let is_dirty = |model: &Model| {
            let mm: &Mm = model.k.at(model.mm);
            let entry =
                model.k.tables(mm, |tables| mm.page_table().translate(tables, VirtAddr::new(WINDOW + AT)));
            entry.unwrap().flags.contains(PteFlags::DIRTY)
        };
        assert_eq!(asked(&model, pfn), (1, false));
        model.by_kernel = true;
        assert_eq!(model.access(WINDOW + AT, None), 7);
        assert_eq!(asked(&model, pfn), (1, false));
        let clean = if flags == PRIVATE {
            run(&mut model, Op::Madvise { addr: AT, len: PAGE, advice: 8 })
        } else {
            model.k.lock_page(pfn);
            let cleaned = page_mkclean(&model.k, pfn);
            model.k.unlock_page(pfn);
            i64::from(!cleaned)
        };
        assert_eq!((clean, is_dirty(&model)), (0, false));
        model.access(WINDOW + AT, None);
        assert!(!is_dirty(&model));
        model.access(WINDOW + AT, Some(8));
        assert!(is_dirty(&model), "or it would be lost when the page is reclaimed");
        assert_eq!((asked(&model, pfn), model.access(WINDOW + AT, None)), ((1, false), 8));
        // The kernel means the byte that the program means.
        model.access(WINDOW + AT + 24, Some(9));
        model.by_kernel = false;
        assert_eq!((model.access(WINDOW + AT + 24, None), model.access(WINDOW + AT, None)), (9, 8));
        model.finish();
    }
}

#[test]
fn a_page_of_locked_memory_says_so_and_stays() {
    let mut model = Model::new();
    let pfn = mapped(&mut model, SHARED, 7);
    assert_eq!(run(&mut model, Op::Mlock { addr: AT, len: PAGE, flags: 0 }), 0);
    assert_eq!(asked(&model, pfn), (0, true));
    assert!(!unmap(&model, pfn));
    audit_all(&model).unwrap();
    model.finish();
}

#[test]
fn a_read_from_end_to_end_is_no_use() {
    let mut model = Model::new();
    let pfn = mapped(&mut model, SHARED, 7);
    assert_eq!(run(&mut model, Op::Madvise { addr: AT, len: PAGE, advice: 2 }), 0);
    assert_eq!(asked(&model, pfn), (0, false));
    model.finish();
}

#[test]
fn an_unmapped_page_keeps_what_was_written_and_comes_back() {
    let mut model = Model::new();
    let pfn = mapped(&mut model, SHARED, 42);
    run(&mut model, Op::Fork);
    assert!(unmap(&model, pfn));
    let page = model.k.page(pfn).unwrap();
    assert!(page.has(PageFlags::DIRTY), "the entries had it");
    assert!(matches!(owner(page), Owner::Mapped(_)));
    assert_eq!(model.access(WINDOW + AT, None), 42);
    assert_eq!((page.refcount(), page.mapcount()), (2, 0));
    audit_all(&model).unwrap();
    model.finish();
}

#[test]
fn an_anonymous_page_stays_mapped() {
    let mut model = Model::new();
    let pfn = mapped(&mut model, PRIVATE, 42);
    assert!(!unmap(&model, pfn));
    assert_eq!(model.access(WINDOW + AT, None), 42);
    model.finish();
}
