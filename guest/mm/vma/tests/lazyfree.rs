//! MADV_FREE: what a program gave away may be gone, and what it wrote since is not.

mod common;

use common::model::Model;
use common::op::{MADV_FREE, Op, PAGE, WINDOW};
use mm_core::{MemMap, PageFlags, Pfn};
use mm_vma::{Arena, Kernel, Mm, RssKind, audit, folio_referenced, put_page, try_to_unmap, unuse_mm};
use proptest::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

const AT: u64 = 300 * PAGE;
const PRIVATE: u64 = 0x32;

/// As reclaim does with an anonymous page that needs no swap; whether the frame is free.
fn reclaim(model: &Model, pfn: Pfn) -> bool {
    let page = model.k.page(pfn).unwrap();
    assert!(!page.has(PageFlags::SWAPBACKED));
    mm_core::refcount::get(page.references());
    folio_referenced(&model.k, pfn);
    let mut unflushed = Vec::new();
    let unmapped = try_to_unmap(&model.k, pfn, &mut unflushed);
    model.k.try_to_unmap_flush(&mut unflushed);
    assert_eq!(unmapped, page.mapcount() < 0);
    if unmapped {
        assert_eq!(page.refcount(), 1, "who maps it no more has no reference");
    } else {
        assert!(page.has(PageFlags::SWAPBACKED), "it is needed, and is like others");
    }
    put_page(&model.k, pfn);
    unmapped
}

fn given_away(model: &Model) -> Vec<Pfn> {
    let is_lazy = |pfn: &Pfn| {
        let page = model.k.page(*pfn).unwrap();
        page.mapping() & memvisor_abi::Page::MAPPING_ANON != 0 && !page.has(PageFlags::SWAPBACKED)
    };
    model.user_frames().into_iter().filter(is_lazy).collect()
}

fn run(model: &mut Model, op: Op) {
    let result = model.run(1, op).result;
    assert!(result >= 0, "{op:?}: {result}");
}

fn mapped(pages: u64) -> Model {
    let mut model = Model::new();
    run(&mut model, Op::Mmap { addr: AT, len: pages * PAGE, prot: 3, flags: PRIVATE });
    for page in 0..pages {
        model.access(WINDOW + AT + page * PAGE, Some(100 + page));
    }
    model
}

fn free(model: &mut Model, pages: u64) {
    run(model, Op::Madvise { addr: AT, len: pages * PAGE, advice: MADV_FREE });
}

fn word(model: &Model, page: u64) -> i64 {
    model.access(WINDOW + AT + page * PAGE, None)
}

fn rss(model: &Model) -> u64 {
    let mm: &Mm = model.k.at(model.mm);
    mm.rss(RssKind::Anon)
}

#[test]
fn what_was_given_away_goes_without_swap_and_reads_as_zeroes() {
    let mut model = mapped(4);
    free(&mut model, 4);
    assert_eq!(word(&model, 1), 101, "as long as nobody needs the frame");
    let lazy = given_away(&model);
    assert_eq!(lazy.len(), 4);
    assert!(lazy.into_iter().all(|pfn| reclaim(&model, pfn)), "a read keeps nothing");
    assert_eq!((rss(&model), word(&model, 1)), (0, 0));
    model.finish();
}

#[test]
fn what_was_written_since_stays_whoever_wrote_it() {
    for by_kernel in [false, true] {
        let mut model = mapped(4);
        free(&mut model, 4);
        model.by_kernel = by_kernel;
        model.access(WINDOW + AT + PAGE, Some(7));
        let gone = given_away(&model).into_iter().filter(|pfn| reclaim(&model, *pfn)).count();
        assert_eq!((gone, rss(&model), word(&model, 1), word(&model, 2)), (3, 1, 7, 0));
        assert!(given_away(&model).is_empty());
        // It can be given away again.
        free(&mut model, 4);
        assert_eq!(given_away(&model).len(), 1);
        model.finish();
    }
}

#[test]
fn only_what_was_used_since_is_flushed() {
    let mut model = mapped(3);
    let flushes = |model: &Model| model.k.flushes.load(Relaxed);
    let before = flushes(&model);
    free(&mut model, 3);
    assert_eq!(flushes(&model), before + 1);
    free(&mut model, 3);
    assert_eq!(flushes(&model), before + 1, "no CPU can have an entry that says that it was used");
    assert_eq!(word(&model, 2), 102);
    free(&mut model, 3);
    assert_eq!(flushes(&model), before + 2);
    model.finish();
}

#[test]
fn the_zero_page_is_not_given_away() {
    let mut model = Model::new();
    run(&mut model, Op::Mmap { addr: AT, len: PAGE, prot: 3, flags: PRIVATE });
    assert_eq!(word(&model, 0), 0);
    let zero = |model: &Model| {
        let page = model.k.page(model.k.zero_page().unwrap()).unwrap();
        (page.flags(), page.refcount(), page.mapcount())
    };
    let before = zero(&model);
    free(&mut model, 1);
    assert_eq!(zero(&model), before);
    assert_eq!((word(&model, 0), rss(&model)), (0, 0));
    model.finish();
}

#[test]
fn what_somebody_holds_stays() {
    let mut model = mapped(1);
    free(&mut model, 1);
    let pfn = given_away(&model)[0];
    mm_core::refcount::get(model.k.page(pfn).unwrap().references());
    assert!(!reclaim(&model, pfn));
    put_page(&model.k, pfn);
    assert_eq!(word(&model, 0), 100);
    model.finish();
}

#[test]
fn a_child_keeps_what_its_parent_gives_away() {
    let mut model = mapped(2);
    run(&mut model, Op::Fork);
    // `mm` is the child's; the parent gives away what both have.
    let child = std::mem::replace(&mut model.mm, model.parents[0]);
    free(&mut model, 2);
    for pfn in given_away(&model) {
        assert!(!reclaim(&model, pfn), "the child's entry says that it was written");
    }
    model.parents[0] = std::mem::replace(&mut model.mm, child);
    assert_eq!((word(&model, 0), word(&model, 1)), (100, 101));
    model.finish();
}

#[test]
fn a_page_with_a_slot_gives_it_up_first() {
    let mut model = mapped(3);
    model.k.swapon();
    for pfn in model.user_frames() {
        if model.k.page(pfn).unwrap().mapping() & memvisor_abi::Page::MAPPING_ANON != 0 {
            model.k.swap_out(pfn, true);
        }
    }
    // The first is only read, and keeps its slot; the second has none; the third is out.
    assert_eq!(word(&model, 0), 100);
    model.access(WINDOW + AT + PAGE, Some(5));
    free(&mut model, 3);
    assert_eq!((model.k.swap.inuse(), given_away(&model).len()), (0, 2));
    assert_eq!(word(&model, 0), 100);
    assert!(given_away(&model).into_iter().all(|pfn| reclaim(&model, pfn)));
    assert_eq!([0, 1, 2].map(|page| word(&model, page)), [0; 3]);
    model.finish();
}

#[test]
fn a_slot_that_another_names_keeps_the_page() {
    let mut model = mapped(1);
    model.k.swapon();
    let pfn = model
        .user_frames()
        .into_iter()
        .find(|pfn| model.k.page(*pfn).unwrap().mapping() & memvisor_abi::Page::MAPPING_ANON != 0)
        .unwrap();
    model.k.swap_out(pfn, true);
    run(&mut model, Op::Fork);
    // Only the child's entry is a page again.
    assert_eq!(word(&model, 0), 100);
    free(&mut model, 1);
    assert!(given_away(&model).is_empty(), "the parent's entry still names the slot");
    let child = std::mem::replace(&mut model.mm, model.parents[0]);
    assert_eq!(word(&model, 0), 100);
    model.parents[0] = std::mem::replace(&mut model.mm, child);
    model.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each page has what was last written to it, or, if it was given away since, that or zeroes.
    #[test]
    fn nothing_is_lost_that_was_not_given_away(
        steps in proptest::collection::vec((0..8_u8, 0..16_usize, any::<u64>()), 1..120),
    ) {
        let mut model = mapped(16);
        model.k.swapon();
        let mut kept: Vec<(u64, bool)> = (0..16).map(|page| (100 + page, false)).collect();
        for (index, &(what, page, picks)) in (1000..).zip(&steps) {
            let number = page as u64;
            let va = WINDOW + AT + number * PAGE;
            model.by_kernel = picks >> 63 == 1;
            match what {
                0 | 1 => {
                    model.access(va, Some(index));
                    kept[page] = (index, false);
                }
                2 => {
                    run(&mut model, Op::Madvise { addr: AT + number * PAGE, len: PAGE, advice: MADV_FREE });
                    kept[page].1 = true;
                }
                3 => {
                    for (number, pfn) in given_away(&model).into_iter().enumerate() {
                        if picks >> (number % 16) & 1 == 1 {
                            reclaim(&model, pfn);
                        }
                    }
                }
                4 => {
                    for (number, pfn) in model.user_frames().into_iter().enumerate() {
                        let flags = model.k.page(pfn).unwrap();
                        if picks >> (number % 64) & 1 == 1 && flags.has(PageFlags::SWAPBACKED) {
                            model.k.swap_out(pfn, picks >> 62 & 1 == 1);
                        }
                    }
                }
                5 if model.parents.len() < 3 => run(&mut model, Op::Fork),
                6 => prop_assert!(unuse_mm(&model.k, model.mm, 0).is_ok()),
                7 => {
                    for (number, pfn) in model.user_frames().into_iter().enumerate() {
                        if picks >> (number % 64) & 1 == 1 && model.k.page(pfn).unwrap().mapcount() >= 0 {
                            prop_assert!(model.k.migrate(pfn).is_ok());
                        }
                    }
                }
                _ => {}
            }
            let (value, is_free) = kept[page];
            let found = word(&model, number);
            prop_assert!(found == value.cast_signed() || is_free && found == 0, "page {page}: {found}, not {value}");
            if found == 0 {
                // Gone, and it does not come back.
                kept[page].0 = 0;
            }
            let sound = audit(&model.k, model.mm);
            prop_assert!(sound.is_ok(), "{sound:x?}");
            model.k.audit_swap();
        }
        model.finish();
    }
}
