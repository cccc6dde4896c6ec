//! What the OOM reaper takes and what it leaves, and waits for page tables where memory has ended.

mod common;

use common::model::Model;
use common::op::{Op, PAGE, WINDOW, op};
use memvisor_abi::mm_flags;
use mm_vma::{Access, Fault, FaultInfo, Mm, RssKind, Space, VmFlags, audit, handle_fault, oom_reap};
use proptest::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

const AT: u64 = 300 * PAGE;
const PRIVATE: u64 = 0x32;
const SHARED: u64 = 0x31;

fn mm(model: &Model) -> &Mm {
    model.k.mms.at(model.mm)
}

fn mapped(model: &mut Model, at: u64, flags: u64) {
    assert!(model.run(1, Op::Mmap { addr: at, len: 4 * PAGE, prot: 3, flags }).result > 0);
    for page in 0..4 {
        model.access(WINDOW + at + page * PAGE, Some(7));
    }
}

fn rss(model: &Model) -> [u64; 2] {
    [RssKind::Anon, RssKind::File].map(|kind| mm(model).rss(kind))
}

#[test]
fn private_pages_go_and_shared_ones_stay() {
    let mut model = Model::new();
    mapped(&mut model, AT, PRIVATE);
    mapped(&mut model, AT + 8 * PAGE, SHARED);
    assert_eq!(rss(&model), [4, 4]);
    assert!(oom_reap(&model.k, mm(&model)));
    assert_eq!(rss(&model), [0, 4]);
    audit(&model.k, model.mm).unwrap();
    assert_eq!(model.access(WINDOW + AT + 8 * PAGE, None), 7, "the shared page was seen by others");
    model.finish();
}

#[test]
fn nobody_reads_zeroes_where_a_page_was_taken() {
    let mut model = Model::new();
    mapped(&mut model, AT, PRIVATE);
    assert!(oom_reap(&model.k, mm(&model)));
    assert_ne!(mm(&model).oom() & mm_flags::UNSTABLE, 0);
    for access in [Access::Read, Access::Write] {
        let what = FaultInfo { addr: WINDOW + AT, access, present: false };
        assert_eq!(handle_fault(&model.k, model.mm, what, || model.limits), Err(Fault::AdrErr));
    }
    assert_eq!(rss(&model), [0, 0]);
    model.finish();
}

#[test]
fn a_child_keeps_what_its_parent_loses() {
    let mut model = Model::new();
    mapped(&mut model, AT, PRIVATE);
    model.run(1, Op::Fork);
    let parent = model.parents[0];
    assert!(oom_reap(&model.k, model.k.mms.at(parent)));
    assert_eq!(model.access(WINDOW + AT, None), 7);
    audit(&model.k, parent).unwrap();
    audit(&model.k, model.mm).unwrap();
    model.finish();
}

#[test]
fn the_reaper_does_not_wait_for_a_writer() {
    let model = Model::new();
    let held = Space::lock(&model.k, model.mm, model.limits);
    assert!(!oom_reap(&model.k, mm(&model)));
    drop(held);
    assert_eq!(mm(&model).oom(), 0);
    assert!(oom_reap(&model.k, mm(&model)));
    model.finish();
}

#[test]
fn a_fault_waits_for_its_page_table() {
    let mut model = Model::new();
    assert!(model.run(1, Op::Mmap { addr: AT, len: PAGE, prot: 3, flags: PRIVATE }).result > 0);
    // The VMA's AnonVma is there, and a page; no table for it.
    model.access(WINDOW + AT, Some(1));
    model.run(1, Op::Madvise { addr: AT, len: PAGE, advice: 4 });
    let fault = |model: &Model, refills| {
        model.k.ram.budget.store(1, Relaxed);
        model.k.refills.store(refills, Relaxed);
        let far = FaultInfo { addr: WINDOW + AT, access: Access::Read, present: false };
        let result = handle_fault(&model.k, model.mm, far, || model.limits);
        model.k.ram.budget.store(usize::MAX, Relaxed);
        result
    };
    assert!(fault(&model, 0).is_ok(), "the tables are there");
    let mut fresh = Model::new();
    assert!(fresh.run(1, Op::Mmap { addr: AT, len: PAGE, prot: 1, flags: PRIVATE }).result > 0);
    assert_eq!(fault(&fresh, 0), Err(Fault::NoMemory), "three levels are missing");
    assert!(fault(&fresh, 8).is_ok());
    model.finish();
    fresh.finish();
}

/// Whether a fork succeeds with that many allocations, and waits that make some more.
fn forks(budget: usize, refills: usize) -> bool {
    let mut model = Model::new();
    mapped(&mut model, AT, PRIVATE);
    model.k.ram.budget.store(budget, Relaxed);
    model.k.refills.store(refills, Relaxed);
    let forked = model.run(1, Op::Fork).result == 0;
    model.k.ram.budget.store(usize::MAX, Relaxed);
    if forked {
        assert_eq!(model.access(WINDOW + AT, None), 7);
        audit(&model.k, model.parents[0]).unwrap();
    }
    audit(&model.k, model.mm).unwrap();
    forked
}

#[test]
fn fork_waits_for_the_childs_page_tables() {
    // The child itself takes two; objects come before tables.
    let saved = (2..60).filter(|&budget| !forks(budget, 0) && forks(budget, 64)).count();
    assert!(saved >= 3, "tables of three levels: {saved}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_calls_the_reaper_leaves_an_address_space_whole(
        calls in proptest::collection::vec(op(), 1..40),
    ) {
        let mut model = Model::new();
        for (index, &op) in calls.iter().enumerate() {
            model.run(index, op);
        }
        prop_assert!(oom_reap(&model.k, mm(&model)));
        prop_assert_eq!(mm(&model).rss(RssKind::Anon), 0);
        let audit = audit(&model.k, model.mm);
        prop_assert!(audit.is_ok(), "{:x?}", audit);
        model.finish();
    }

    #[test]
    fn what_is_promised_is_the_sum_over_accounted_vmas(
        calls in proptest::collection::vec(op(), 1..60),
        limit in prop_oneof![Just(u64::MAX), 0_u64..400],
        budget in prop_oneof![Just(usize::MAX), 40_usize..400],
    ) {
        let mut model = Model::new();
        let room = promised(&model);
        prop_assert_eq!(model.k.committed.load(Relaxed), room);
        model.k.commit_limit.store(limit.saturating_add(room), Relaxed);
        for (index, &op) in calls.iter().enumerate() {
            let touches = matches!(op, Op::Read { .. } | Op::Write { .. } | Op::Fork);
            // A process without memory for its pages is another test's.
            model.k.ram.budget.store(if touches { usize::MAX } else { budget }, Relaxed);
            model.run(index, op);
            prop_assert_eq!(model.k.committed.load(Relaxed), promised(&model), "{}: {:?}", index, op);
        }
        model.k.ram.budget.store(usize::MAX, Relaxed);
        model.finish();
    }
}

/// Pages of all VMAs that are accounted.
fn promised(model: &Model) -> u64 {
    let pages = |id: &mm_vma::Id<Mm>| -> u64 {
        let all = model.k.mms.at(*id).vmas(&model.k);
        all.filter(|(_, vma)| vma.flags().contains(VmFlags::ACCOUNT)).map(|(_, vma)| vma.pages()).sum()
    };
    model.parents.iter().chain([&model.mm]).map(pages).sum()
}
