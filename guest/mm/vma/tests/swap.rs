//! Anonymous pages are swapped out and moved between the calls of random programs, and no program notices: every result, word, signal and
//! mapping is that of a twin whose pages stay.

mod common;

use common::canonical;
use common::model::Model;
use common::op::{Op, PAGE, WINDOW, op};
use mm_core::{Gfp, MemMap, Order, PageAlloc, PageFlags, Pfn};
use mm_swap::{SwapError, delete_from_swap_cache, folio_alloc_swap, folio_swap_entry};
use mm_vma::{Arena, Mm, Owner, RssKind, audit, owner, put_page, unuse_mm};
use proptest::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

const AT: u64 = 300 * PAGE;
const PRIVATE: u64 = 0x32;
const SIGBUS: i64 = -7_002;

fn is_anon(model: &Model, pfn: Pfn) -> bool {
    let page = model.k.page(pfn).unwrap();
    matches!(owner(page), Owner::Anon(_)) || folio_swap_entry(page).is_some()
}

fn is_mapped(model: &Model, pfn: Pfn) -> bool {
    model.k.page(pfn).unwrap().mapcount() >= 0
}

fn audit_all(model: &Model) -> Result<(), TestCaseError> {
    for &mm in model.parents.iter().chain([&model.mm]) {
        let audit = audit(&model.k, mm);
        prop_assert!(audit.is_ok(), "{audit:x?}");
    }
    model.k.audit_swap();
    Ok(())
}

/// Every area's pages come back, for all address spaces.
fn unuse(model: &Model, area: u32) -> Result<(), SwapError> {
    model.parents.iter().chain([&model.mm]).try_for_each(|&mm| unuse_mm(&model.k, mm, area))
}

/// Whether the call does or tells something that swapping is free to change: what is in memory, or whether contents that are not
/// needed any more are still there (`MADV_FREE` drops what is in swap at once: Linux's `madvise_free_pte_range`).
fn depends_on_residence(op: Op) -> bool {
    op.tells_what_is_mapped() || op.gives_pages_away() || matches!(op, Op::Mincore { .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_program_notices_that_its_pages_are_swapped_out(
        calls in proptest::collection::vec((op(), any::<u64>(), any::<u64>(), any::<u64>(), 0..12_u32), 1..80),
    ) {
        let (mut pressed, mut twin) = (Model::new(), Model::new());
        pressed.k.swapon();
        for (index, &(op, picks, written, moves, comes_back)) in calls.iter().enumerate() {
            for (number, pfn) in pressed.user_frames().into_iter().enumerate() {
                if picks >> (number % 64) & 1 == 1 && is_anon(&pressed, pfn) {
                    pressed.k.swap_out(pfn, written >> (number % 64) & 1 == 1);
                }
            }
            for (number, pfn) in pressed.user_frames().into_iter().enumerate() {
                if moves >> (number % 64) & 1 == 1 && is_mapped(&pressed, pfn) {
                    prop_assert!(pressed.k.migrate(pfn).is_ok(), "nobody else holds the page");
                }
            }
            audit_all(&pressed)?;
            if comes_back < 2 {
                prop_assert_eq!(unuse(&pressed, comes_back), Ok(()));
                audit_all(&pressed)?;
            }
            if depends_on_residence(op) {
                continue;
            }
            pressed.by_kernel = picks >> 63 == 1;
            let mut both = [pressed.run(index, op), twin.run(index, op)];
            canonical(&mut both);
            let [ours, theirs] = both;
            prop_assert_eq!(ours, theirs, "left: pages are swapped out, call {}: {:?}", index, op);
            audit_all(&pressed)?;
        }
        pressed.finish();
        twin.finish();
    }
}

fn run(model: &mut Model, op: Op) -> i64 {
    model.run(1, op).result
}

fn mapped(pages: u64) -> Model {
    let mut model = Model::new();
    model.k.swapon();
    assert!(run(&mut model, Op::Mmap { addr: AT, len: pages * PAGE, prot: 3, flags: PRIVATE }) > 0);
    for page in 0..pages {
        model.access(WINDOW + AT + page * PAGE, Some(100 + page));
    }
    model
}

fn counts(model: &Model) -> (u64, u64) {
    let mm: &Mm = model.k.at(model.mm);
    (mm.rss(RssKind::Anon), mm.swapents())
}

fn swap_all_out(model: &Model) -> usize {
    let frames = model.user_frames().into_iter().filter(|pfn| is_anon(model, *pfn));
    frames.filter(|pfn| model.k.swap_out(*pfn, true)).count()
}

#[test]
fn pages_go_out_and_come_back_with_what_was_in_them() {
    let model = mapped(20);
    let used = model.k.ram.used();
    assert_eq!(swap_all_out(&model), 20);
    assert_eq!((counts(&model), model.k.swap.inuse(), used - model.k.ram.used()), ((0, 20), 20, 20));
    for page in 0..20 {
        assert_eq!(model.access(WINDOW + AT + page * PAGE, None), 100 + page.cast_signed());
    }
    // Read only, they keep their slots, so that they need not be written again.
    assert_eq!((counts(&model), model.k.swap.inuse()), ((20, 0), 20));
    for page in 0..20 {
        model.access(WINDOW + AT + page * PAGE, Some(7));
    }
    assert_eq!(model.k.swap.inuse(), 0, "what is written to gives its slot up");
    audit_all(&model).unwrap();
    model.finish();
}

#[test]
fn a_page_in_the_swap_cache_moves_with_its_slot() {
    let mut model = mapped(20);
    swap_all_out(&model);
    run(&mut model, Op::Fork);
    for page in 0..20 {
        model.access(WINDOW + AT + page * PAGE, None);
    }
    let cached = model.user_frames();
    for &pfn in &cached {
        let to = model.k.migrate(pfn).unwrap();
        assert!(model.k.page(to).unwrap().has(PageFlags::SWAPCACHE) && to != pfn);
    }
    audit_all(&model).unwrap();
    // The parent's entries name slots, and find them in the cache.
    model.k.swap_reads_fail.store(true, Relaxed);
    let child = std::mem::replace(&mut model.mm, model.parents[0]);
    for page in 0..20 {
        assert_eq!(model.access(WINDOW + AT + page * PAGE, None), 100 + page.cast_signed());
    }
    model.mm = child;
    assert_eq!((cached.len(), model.k.swap.inuse()), (20, 20));
    audit_all(&model).unwrap();
    model.finish();
}

#[test]
fn a_write_to_a_page_in_swap_makes_it_the_writers_own() {
    let model = mapped(1);
    swap_all_out(&model);
    let faults = Arena::<Mm>::at(&model.k, model.mm).maj_flt();
    model.access(WINDOW + AT, Some(8));
    assert_eq!((counts(&model), model.k.swap.inuse()), ((1, 0), 0));
    assert_eq!(Arena::<Mm>::at(&model.k, model.mm).maj_flt(), faults + 1);
    assert_eq!(model.access(WINDOW + AT, None), 8);
    model.finish();
}

#[test]
fn a_child_that_writes_leaves_its_parents_page_in_swap_as_it_was() {
    let mut model = mapped(1);
    swap_all_out(&model);
    run(&mut model, Op::Fork);
    assert_eq!((counts(&model), model.k.swap.inuse()), ((0, 1), 1));
    model.access(WINDOW + AT, Some(8));
    audit_all(&model).unwrap();
    let child = std::mem::replace(&mut model.mm, model.parents[0]);
    assert_eq!(model.access(WINDOW + AT, None), 100);
    model.mm = child;
    assert_eq!(model.access(WINDOW + AT, None), 8);
    audit_all(&model).unwrap();
    model.finish();
}

#[test]
fn a_page_that_comes_back_to_the_child_first_is_found_from_its_parent() {
    let mut model = mapped(1);
    swap_all_out(&model);
    run(&mut model, Op::Fork);
    assert_eq!(model.access(WINDOW + AT, None), 100);
    let child = std::mem::replace(&mut model.mm, model.parents[0]);
    assert_eq!(model.access(WINDOW + AT, None), 100);
    audit_all(&model).unwrap();
    // Both entries go in one step.
    assert_eq!(swap_all_out(&model), 1);
    assert_eq!(counts(&model), (0, 1));
    model.mm = child;
    assert_eq!(counts(&model), (0, 1));
    model.finish();
}

#[test]
fn a_page_that_cannot_be_read_is_a_sigbus_for_who_needs_it_and_nothing_to_others() {
    let mut model = mapped(2);
    model.access(WINDOW + AT + PAGE, Some(5));
    let pfn = model.user_frames().into_iter().find(|pfn| is_anon(&model, *pfn)).unwrap();
    assert!(model.k.swap_out(pfn, true));
    let gone = (0..2).find(|page| {
        let entries = [0, 1].map(|page| model.k.tables_entry(model.mm, WINDOW + AT + page * PAGE));
        entries[*page] & 1 == 0
    });
    let gone = gone.unwrap() as u64;
    model.k.swap_reads_fail.store(true, Relaxed);
    assert_eq!(model.access(WINDOW + AT + gone * PAGE, None), SIGBUS);
    assert_eq!(model.access(WINDOW + AT + (1 - gone) * PAGE, Some(6)), 0);
    assert_eq!(unuse(&model, 0).and(unuse(&model, 1)), Err(SwapError::Io));
    audit_all(&model).unwrap();
    run(&mut model, Op::Munmap { addr: AT, len: 2 * PAGE });
    assert_eq!(model.k.swap.inuse(), 0);
    model.finish();
}

#[test]
fn a_page_that_failed_with_its_neighbours_is_read_alone() {
    let model = mapped(3);
    swap_all_out(&model);
    model.k.swap_readahead_fails.store(true, Relaxed);
    assert_eq!(model.access(WINDOW + AT + PAGE, None), 101);
    model.finish();
}

#[test]
fn a_page_of_locked_memory_stays_and_locking_brings_pages_in() {
    let mut model = mapped(2);
    swap_all_out(&model);
    assert_eq!(run(&mut model, Op::Mlock { addr: AT, len: 2 * PAGE, flags: 0 }), 0);
    assert_eq!((counts(&model), model.k.swap.inuse()), ((2, 0), 0));
    assert_eq!(swap_all_out(&model), 0);
    run(&mut model, Op::Munlock { addr: AT, len: 2 * PAGE });
    assert_eq!(swap_all_out(&model), 2);
    model.finish();
}

#[test]
fn pages_go_out_when_a_program_says_so_unless_others_map_them() {
    let mut model = mapped(40);
    let pageout = |pages: u64| Op::Madvise { addr: AT, len: pages * PAGE, advice: 21 };
    assert_eq!(run(&mut model, pageout(39)), 0);
    assert_eq!((counts(&model), model.k.swap.inuse()), ((1, 39), 39));
    run(&mut model, Op::Fork);
    assert_eq!(run(&mut model, pageout(40)), 0);
    assert_eq!(counts(&model), (1, 39));
    run(&mut model, Op::Mlock { addr: AT, len: PAGE, flags: 0 });
    assert_eq!(run(&mut model, pageout(1)), -22);
    audit_all(&model).unwrap();
    model.finish();
}

#[test]
fn entries_move_with_mremap_and_go_with_advice() {
    let mut model = mapped(4);
    swap_all_out(&model);
    let to = AT + 16 * PAGE;
    let moved = Op::Mremap { addr: AT, old_len: 4 * PAGE, new_len: 4 * PAGE, flags: 3, new_addr: to };
    assert!(run(&mut model, moved) > 0);
    assert_eq!(model.access(WINDOW + to, None), 100);
    for (page, advice) in [(1, 4), (2, 8)] {
        run(&mut model, Op::Madvise { addr: to + page * PAGE, len: PAGE, advice });
        assert_eq!(model.access(WINDOW + to + page * PAGE, None), 0);
    }
    assert_eq!((counts(&model), model.k.swap.inuse()), ((1, 1), 2));
    audit_all(&model).unwrap();
    model.finish();
}

#[test]
fn a_page_that_is_written_while_it_is_on_its_way_out_is_not_lost() {
    let model = mapped(1);
    let pfn = model.user_frames().into_iter().find(|pfn| is_anon(&model, *pfn)).unwrap();
    model.k.swap_out(pfn, false);
    assert_eq!((counts(&model), model.k.swap.inuse()), ((0, 1), 1));
    // Found in the swap cache: no read.
    model.k.swap_reads_fail.store(true, Relaxed);
    assert_eq!(model.access(WINDOW + AT, Some(9)), 0);
    assert_eq!(model.access(WINDOW + AT, None), 9);
    assert!(model.k.page(pfn).unwrap().has(PageFlags::DIRTY));
    audit_all(&model).unwrap();
    model.finish();
}

#[test]
fn without_a_free_slot_a_page_stays_mapped() {
    let model = mapped(1);
    let pfn = model.user_frames().into_iter().find(|pfn| is_anon(&model, *pfn)).unwrap();
    let mut others = Vec::new();
    loop {
        let frame = model.k.alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        if folio_alloc_swap(&model.k, frame).is_none() {
            put_page(&model.k, frame);
            break;
        }
        others.push(frame);
    }
    assert_eq!(others.len(), 300 + 200 - 2, "all slots but the headers");
    assert!(!model.k.swap_out(pfn, true));
    assert_eq!((counts(&model), model.access(WINDOW + AT, None)), ((1, 0), 100));
    for frame in others {
        delete_from_swap_cache(&model.k, frame, 0).unwrap();
        put_page(&model.k, frame);
    }
    assert!(model.k.swap_out(pfn, true));
    model.finish();
}
