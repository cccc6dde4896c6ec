//! What may be promised.

use proptest::prelude::*;

use crate::{
    Committed, Overcommit, OvercommitMemory, Promise, accountable_mapping, user_reserve_kbytes,
    vm_enough_memory,
};

fn machine(mode: OvercommitMemory) -> Overcommit {
    Overcommit {
        mode,
        ratio: 50,
        kbytes: 0,
        admin_reserve_kbytes: 40,
        user_reserve_kbytes: 80,
        totalram_pages: 1000,
        total_swap_pages: 200,
    }
}

fn ask(of: &Overcommit, committed: &Committed, pages: u64) -> bool {
    vm_enough_memory(of, committed, Promise { pages, is_admin: true, total_vm: None })
}

#[test]
fn guessing_refuses_only_what_could_never_be() {
    let (of, committed) = (machine(OvercommitMemory::Guess), Committed::new());
    assert!(ask(&of, &committed, 1200) && ask(&of, &committed, 1200));
    assert!(!ask(&of, &committed, 1201));
    assert_eq!(committed.pages(), 2400);
}

#[test]
fn always_refuses_nothing() {
    let (of, committed) = (machine(OvercommitMemory::Always), Committed::new());
    assert!(ask(&of, &committed, 1 << 40));
    committed.unacct(1 << 40);
    assert_eq!(committed.pages(), 0);
}

#[test]
fn never_stops_below_the_limit() {
    let (of, committed) = (machine(OvercommitMemory::Never), Committed::new());
    assert!(!ask(&of, &committed, 700), "the limit itself is too much");
    assert!(ask(&of, &committed, 699));
    assert!(!ask(&of, &committed, 1));
    committed.unacct(100);
    assert!(ask(&of, &committed, 99));
}

#[test]
fn reserves_are_kept_from_users_and_from_the_large() {
    let of = machine(OvercommitMemory::Never);
    let most = |is_admin, total_vm| {
        let fits = |pages: &u64| {
            vm_enough_memory(&of, &Committed::new(), Promise { pages: *pages, is_admin, total_vm })
        };
        (0..1000).rev().find(fits)
    };
    assert_eq!(most(true, None), Some(699));
    assert_eq!(most(false, None), Some(689));
    assert_eq!(most(false, Some(320)), Some(679));
    assert_eq!(most(false, Some(1 << 30)), Some(669));
}

#[test]
fn only_private_memory_that_may_be_written_counts() {
    assert!(accountable_mapping(false, true, false));
    assert!(!accountable_mapping(true, true, false));
    assert!(!accountable_mapping(false, false, false));
    assert!(!accountable_mapping(false, true, true));
}

#[test]
fn reserves_are_a_share_of_what_is_free_up_to_linuxs_limits() {
    assert_eq!((user_reserve_kbytes(3200), user_reserve_kbytes(1 << 40)), (100, 131_072));
    assert_eq!(crate::admin_reserve_kbytes(1 << 40), 8192);
}

proptest! {
    #[test]
    fn what_is_promised_is_what_was_granted(asks in prop::collection::vec((0..300u64, any::<bool>()), 0..100)) {
        let (of, committed) = (machine(OvercommitMemory::Never), Committed::new());
        let mut granted = Vec::new();
        for (pages, end) in asks {
            if end && let Some(pages) = granted.pop() {
                committed.unacct(pages);
            } else if ask(&of, &committed, pages) {
                granted.push(pages);
            }
            let sum: u64 = granted.iter().sum();
            prop_assert_eq!(committed.pages(), sum);
            prop_assert!(sum < 700);
        }
    }
}
