use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn nice(nice: i32) -> Priority {
    Priority::NORMAL.with_nice(nice)
}

#[test]
fn weights_are_linuxs_to_a_hundredth() {
    // What kernel/sched/core.c has for these, as its comment derives it.
    for (value, linux) in [(-20, 88761), (-10, 9548), (-1, 1277), (0, 1024), (1, 820), (10, 110), (19, 15)] {
        let ours = i64::try_from(nice(value).weight()).unwrap();
        assert!((ours - linux).abs() <= (linux / 100).max(1), "nice {value}: {ours} and Linux's {linux}");
    }
    assert!((-20..19).all(|value| nice(value).weight() > nice(value + 1).weight()));
    let idle = Priority::NORMAL.with_policy(5, 0).unwrap();
    assert_eq!(idle.weight(), 3);
}

#[test]
fn real_time_goes_first_by_priority_then_by_arrival() {
    let fifo = |priority| Priority::NORMAL.with_policy(1, priority).unwrap();
    let order = [fifo(99).place(7), fifo(5).place(1), fifo(5).place(2), nice(0).place(0), nice(0).place(1)];
    assert!(order.is_sorted_by(|a, b| a < b));
}

#[test]
fn policies_take_the_priorities_that_linux_lets_them() {
    for (policy, priority, good) in [
        (0, 0, true),
        (0, 1, false),
        (1, 0, false),
        (1, 1, true),
        (2, 99, true),
        (2, 100, false),
        (3, 0, true),
    ] {
        assert_eq!(nice(3).with_policy(policy, priority).is_ok(), good, "{policy} {priority}");
    }
    for unknown in [4, 6, 7, u32::MAX] {
        assert_eq!(nice(0).with_policy(unknown, 0), Err(Errno::Einval));
    }
    assert_eq!(nice(0).with_policy(1, -1), Err(Errno::Einval));
    let reset = nice(-5).with_policy(2 | RESET_ON_FORK, 7).unwrap();
    assert_eq!(reset.policy_number(), 2 | RESET_ON_FORK);
    assert_eq!(reset.of_child(), Priority::NORMAL);
    assert_eq!(nice(7).of_child(), nice(7));
}

#[test]
fn numbers_are_shown_as_linux_shows_them() {
    assert_eq!((nice(-20).nice_to_rlimit(), nice(19).nice_to_rlimit()), (40, 1));
    assert_eq!((nice(5).shown(), Priority::NORMAL.with_policy(1, 50).unwrap().shown()), (25, -51));
    assert_eq!((nice(-99).nice, nice(99).nice), (-20, 19));
}

proptest! {
    /// Tasks that always want to run get the CPU by their weights, whatever the tick.
    #[test]
    fn shares_follow_weights(values in prop::collection::vec(-20..=19_i32, 2..6), tick in 1_000_000..100_000_000_u64) {
        let tasks: Vec<Priority> = values.iter().map(|&value| nice(value)).collect();
        let (mut at, mut ran) = (vec![0_u64; tasks.len()], vec![0_u64; tasks.len()]);
        for _ in 0..20_000 {
            let first = (0..tasks.len()).min_by_key(|&i| (tasks[i].place(at[i]), i)).unwrap();
            at[first] += tasks[first].virtual_time(tick);
            ran[first] += 1;
        }
        let all: u64 = tasks.iter().map(|task| task.weight()).sum();
        for (task, ran) in tasks.iter().zip(&ran) {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let (wanted, had) = (20_000.0 * task.weight() as f64 / all as f64, *ran as f64);
            prop_assert!((had - wanted).abs() <= wanted.mul_add(0.02, 2.0), "{had} of {wanted}: {values:?} {ran}");
        }
    }
}

proptest! {
    #[test]
    fn keys_are_ordered_as_places_then_by_serial(a in any::<(u8, u64, u32)>(), b in any::<(u8, u64, u32)>()) {
        let place = |(class, at, _): (u8, u64, u32)| Place { class, at };
        let key = |x: (u8, u64, u32)| place(x).key(u64::from(x.2));
        prop_assert_eq!(key(a).cmp(&key(b)), place(a).cmp(&place(b)).then(a.2.cmp(&b.2)));
    }
}
