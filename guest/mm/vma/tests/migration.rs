//! Pages move between the calls of random programs, and no program notices: every result, word, signal and mapping is that of a twin whose
//! pages stay where they are.

mod common;

use common::canonical;
use common::model::Model;
use common::op::{Op, PAGE, WINDOW, op};
use mm_core::{MemMap, MigrateError, Pfn};
use mm_vma::{audit, for_each_pte, put_page};
use proptest::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

const AT: u64 = 300 * PAGE;
const READ_WRITE: u64 = 3;
const PRIVATE: u64 = 0x32;
const SHARED: u64 = 0x31;

fn audit_all(model: &Model) -> Result<(), TestCaseError> {
    for &mm in model.parents.iter().chain([&model.mm]) {
        let audit = audit(&model.k, mm);
        prop_assert!(audit.is_ok(), "{audit:x?}");
    }
    Ok(())
}

/// Both run the calls; before each, the pages that `moves` picks go elsewhere in one of them.
fn compare(calls: &[(Op, u64)]) -> Result<(), TestCaseError> {
    let (mut moving, mut twin) = (Model::new(), Model::new());
    for (index, &(op, moves)) in calls.iter().enumerate() {
        for (number, pfn) in moving.user_frames().into_iter().enumerate() {
            if moves >> (number % 64) & 1 == 1 {
                prop_assert!(moving.k.migrate(pfn).is_ok(), "nobody else holds the page");
            }
        }
        audit_all(&moving)?;
        let mut both = [moving.run(index, op), twin.run(index, op)];
        canonical(&mut both);
        let [ours, theirs] = both;
        prop_assert_eq!(ours, theirs, "left: pages move, call {}: {:?}", index, op);
        audit_all(&moving)?;
    }
    prop_assert_eq!(moving.k.ram.used(), twin.k.ram.used());
    moving.finish();
    twin.finish();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_program_notices_that_its_pages_move(
        calls in proptest::collection::vec((op(), any::<u64>()), 1..60),
    ) {
        compare(&calls)?;
    }
}

fn run(model: &mut Model, op: Op) -> i64 {
    model.run(1, op).result
}

fn map(model: &mut Model, pages: u64, flags: u64) {
    assert!(run(model, Op::Mmap { addr: AT, len: pages * PAGE, prot: READ_WRITE, flags }) > 0);
}

fn nr_ptes(model: &Model, pfn: Pfn) -> usize {
    let mut count = 0;
    for_each_pte(&model.k, pfn, |_, _, _, _| {
        count += 1;
        true
    });
    count
}

#[test]
fn a_shared_page_moves_under_everybody_and_in_its_mapping() {
    let mut model = Model::new();
    map(&mut model, 1, SHARED);
    model.access(WINDOW + AT, Some(42));
    run(&mut model, Op::Fork);
    assert_eq!(model.access(WINDOW + AT, None), 42);
    let old = model.user_frames()[0];
    assert_eq!(nr_ptes(&model, old), 2);
    let new = model.k.migrate(old).unwrap();
    assert_eq!((model.user_frames(), nr_ptes(&model, new)), (vec![new], 2));
    let page = model.k.page(new).unwrap();
    // Two entries and the mapping.
    assert_eq!((page.refcount(), page.mapcount()), (3, 1));
    assert_eq!(model.access(WINDOW + AT, None), 42);
    // Found in the mapping, too, by whoever maps it anew.
    run(&mut model, Op::Madvise { addr: AT, len: PAGE, advice: 4 });
    assert_eq!(model.access(WINDOW + AT, None), 42);
    audit_all(&model).unwrap();
    model.finish();
}

#[test]
fn a_page_that_somebody_holds_stays_where_it_is() {
    let mut model = Model::new();
    for flags in [PRIVATE | 0x10, SHARED | 0x10] {
        map(&mut model, 1, flags);
        model.access(WINDOW + AT, Some(7));
        let pfn = model.user_frames()[0];
        let page = model.k.page(pfn).unwrap();
        page.references().fetch_add(1, Relaxed);
        let counts = (page.refcount(), page.mapcount());
        let flushes = model.k.flushes.load(Relaxed);
        assert_eq!(model.k.migrate(pfn), Err(MigrateError::Again));
        assert_eq!((page.refcount(), page.mapcount()), counts);
        assert_eq!(model.k.flushes.load(Relaxed), flushes, "it was unmapped for nothing");
        put_page(&model.k, pfn);
        assert_eq!(model.access(WINDOW + AT, Some(8)), 0);
        audit_all(&model).unwrap();
    }
    model.finish();
}

#[test]
fn a_page_whose_users_have_gone_is_freed_by_whoever_wanted_to_move_it() {
    let mut model = Model::new();
    map(&mut model, 1, PRIVATE);
    model.access(WINDOW + AT, Some(7));
    let pfn = model.user_frames()[0];
    model.k.page(pfn).unwrap().references().fetch_add(1, Relaxed);
    run(&mut model, Op::Munmap { addr: AT, len: PAGE });
    assert_eq!(model.k.page(pfn).unwrap().refcount(), 1);
    put_page(&model.k, pfn);
    assert!(model.user_frames().is_empty());
    model.finish();
}

#[test]
fn a_moved_page_is_written_only_as_its_mapping_allows_by_then() {
    let mut model = Model::new();
    map(&mut model, 1, PRIVATE);
    model.access(WINDOW + AT, Some(7));
    for prot in [1, 0, 3] {
        run(&mut model, Op::Mprotect { addr: AT, len: PAGE, prot });
        model.k.migrate(model.user_frames()[0]).unwrap();
        audit_all(&model).unwrap();
        let refused = -11_002;
        let (read, write) = match prot {
            0 => (refused, refused),
            1 => (7, refused),
            _ => (7, 0),
        };
        assert_eq!(model.access(WINDOW + AT, None), read);
        assert_eq!(model.access(WINDOW + AT, Some(7)), write);
    }
    model.finish();
}
