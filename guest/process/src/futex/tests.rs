use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::robust::{Death, Entry, OWNER_DIED, WAITERS};
use super::*;

const fn at(address: u64) -> Key {
    Key::Private { mm: 1, address }
}

fn woken(futexes: &mut Futexes<u32>, key: Key, count: u32, bitset: u32) -> Vec<u32> {
    let mut woken = vec![];
    let number = futexes.wake(key, count, bitset, |who| woken.push(who)).unwrap();
    assert_eq!(number as usize, woken.len());
    woken
}

#[test]
fn waiters_wake_in_their_order_and_only_at_their_word() {
    let mut futexes = Futexes::new();
    (0..4).for_each(|who| futexes.wait(at(0x1000), ANY, who).unwrap());
    futexes.wait(Key::Private { mm: 2, address: 0x1000 }, ANY, 9).unwrap();
    futexes.wait(Key::Shared { mapping: 1, offset: 0x1000 }, ANY, 10).unwrap();
    assert_eq!(woken(&mut futexes, at(0x1000), 2, ANY), [0, 1]);
    assert!(futexes.cancel(at(0x1000), &2) && !futexes.cancel(at(0x1000), &2));
    assert_eq!(woken(&mut futexes, at(0x1000), u32::MAX, ANY), [3]);
    assert_eq!(woken(&mut futexes, at(0x1000), 1, ANY), []);
}

#[test]
fn a_wake_of_none_wakes_one_as_on_linux() {
    let mut futexes = Futexes::new();
    futexes.wait(at(0), ANY, 1).unwrap();
    assert_eq!(woken(&mut futexes, at(0), 0, ANY), [1]);
}

#[test]
fn bits_choose_waiters() {
    let mut futexes = Futexes::new();
    futexes.wait(at(0), 1, 1).unwrap();
    futexes.wait(at(0), 6, 2).unwrap();
    assert_eq!(woken(&mut futexes, at(0), 9, 4), [2]);
    assert_eq!(futexes.wait(at(0), 0, 3), Err(Errno::Einval));
    assert_eq!(futexes.wake(at(0), 1, 0, |_| {}), Err(Errno::Einval));
}

#[test]
fn who_was_moved_wakes_at_the_other_word_and_can_still_leave() {
    let mut futexes = Futexes::new();
    (0..5).for_each(|who| futexes.wait(at(0x1000), ANY, who).unwrap());
    let mut first = vec![];
    assert_eq!(futexes.requeue((at(0x1000), at(0x2000)), (1, 3), |who| first.push(who)), Ok(4));
    assert_eq!((first, futexes.waiters(at(0x1000)), futexes.waiters(at(0x2000))), (vec![0], 1, 3));
    assert!(futexes.cancel(at(0x1000), &2));
    assert_eq!(woken(&mut futexes, at(0x2000), 9, ANY), [1, 3]);
    assert_eq!(woken(&mut futexes, at(0x1000), 9, ANY), [4]);
}

#[test]
fn operations_are_read_as_linux_does() {
    let op = |op, bits| Command::parse(op, bits).map(|command| command.op);
    let private = Command::parse(libc::FUTEX_WAIT.cast_unsigned() | 128, 0).unwrap();
    assert!(private.private && private.takes_time());
    assert_eq!(op(9 | 256, 7), Ok(Op::Wait { bitset: 7, absolute: true, realtime: true }));
    assert_eq!(op(9, 0), Err(Errno::Einval));
    assert_eq!(op(10, 0), Err(Errno::Einval));
    assert_eq!(op(256, 0), Err(Errno::Enosys), "a distance has no clock");
    assert_eq!(op(6, 0), Err(Errno::Enosys), "priority inheritance");
    assert_eq!(op(0x1000, 0), Err(Errno::Enosys));
}

#[test]
fn wake_op_computes_and_compares() {
    // FUTEX_OP(op, argument, comparison, with)
    let parse = |op: u32, argument: u32, compare: u32, with: u32| {
        WakeOp::parse(op << 28 | compare << 24 | (argument & 0xfff) << 12 | with & 0xfff)
    };
    let result = |op, argument| parse(op, argument, 0, 0).unwrap().apply(0b1100);
    assert_eq!([0, 1, 2, 3, 4].map(|op| result(op, 0b1010)), [0b1010, 22, 0b1110, 0b0100, 0b0110]);
    assert_eq!(result(1, 0xfff), 11, "-1");
    assert_eq!(result(8, 5), 32, "a shift");
    let wakes = |compare, with: i32| parse(0, 0, compare, with.cast_unsigned()).unwrap().wakes(u32::MAX);
    assert_eq!([0, 1, 2, 3, 4, 5].map(|compare| wakes(compare, -1)), [true, false, false, true, false, true]);
    assert!(wakes(2, 0), "-1 < 0");
    assert_eq!(parse(5, 0, 0, 0), Err(Errno::Enosys));
    assert_eq!(parse(0, 0, 6, 0), Err(Errno::Enosys));
}

#[test]
fn locks_of_a_thread_that_ended_say_so() {
    let held = Entry { word: 0, inherits: false, pending: false };
    let pending = Entry { pending: true, ..held };
    assert_eq!(robust::death(5, 5, &held), Death::Write { word: OWNER_DIED, wake: false });
    assert_eq!(robust::death(5 | WAITERS, 5, &held), Death::Write { word: OWNER_DIED | WAITERS, wake: true });
    assert_eq!(robust::death(6, 5, &held), Death::Nothing);
    assert_eq!(robust::death(0, 5, &held), Death::Nothing);
    assert_eq!(robust::death(0, 5, &pending), Death::Wake);
}

#[test]
fn a_list_of_locks_is_walked_once_and_not_for_ever() {
    let walk = |memory: &[(u64, u64)]| {
        let memory: BTreeMap<u64, u64> = memory.iter().copied().collect();
        let mut seen = vec![];
        robust::walk(0x1000, |at| memory.get(&at).copied(), |entry| seen.push((entry.word, entry.pending)));
        seen
    };
    let minus_16 = 16_u64.wrapping_neg();
    let two = [(0x1000, 0x2000), (0x1008, minus_16), (0x1010, 0x3000), (0x2000, 0x3000), (0x3000, 0x1000)];
    assert_eq!(walk(&two), [(0x1ff0, false), (0x2ff0, true)]);
    let own = [(0x1000, 0x2000), (0x1008, 0), (0x1010, 0), (0x2000, 0x2000)];
    assert_eq!(walk(&own).len(), robust::LIMIT);
    let torn = [(0x1000, 0x2000), (0x1008, 0), (0x1010, 0x9000)];
    assert_eq!(walk(&torn), [(0x2000, false)]);
    assert_eq!(walk(&[]), []);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64, u32, u32),
    Wake(u64, u32, u32),
    Requeue(u64, u64, u32, u32),
    Cancel(u32),
}

fn steps() -> impl Strategy<Value = Step> {
    let (key, who) = (0..4_u64, 0..12_u32);
    prop_oneof![
        4 => (key.clone(), 1..8_u32, who.clone()).prop_map(|(key, bits, who)| Step::Wait(key, bits, who)),
        2 => (key.clone(), 1..4_u32, 1..8_u32).prop_map(|(key, count, bits)| Step::Wake(key, count, bits)),
        1 => (key.clone(), key, 0..3_u32, 0..4_u32).prop_map(|(from, to, wakes, moves)| Step::Requeue(from, to, wakes, moves)),
        1 => who.prop_map(Step::Cancel),
    ]
}

proptest! {
    /// One list of all waiters in the order in which they came to their word is the same.
    #[test]
    fn queues_are_as_one_list(steps in prop::collection::vec(steps(), 1..80)) {
        let mut futexes = Futexes::new();
        let mut list: Vec<(u64, u32, u32)> = vec![];
        for step in steps {
            let mut got = vec![];
            match step {
                Step::Wait(key, bits, who) => {
                    if list.iter().any(|waiter| waiter.2 == who) {
                        continue;
                    }
                    futexes.wait(at(key << 12), bits, who).unwrap();
                    list.push((key, bits, who));
                }
                Step::Wake(key, count, bits) => {
                    futexes.wake(at(key << 12), count, bits, |who| got.push(who)).unwrap();
                    let expected: Vec<_> = list.iter().copied()
                        .filter(|waiter| waiter.0 == key && waiter.1 & bits != 0).take(count as usize).collect();
                    list.retain(|waiter| !expected.contains(waiter));
                    prop_assert_eq!(got, expected.iter().map(|waiter| waiter.2).collect::<Vec<_>>());
                }
                Step::Requeue(from, to, wakes, moves) => {
                    if from == to {
                        continue;
                    }
                    let count = futexes.requeue((at(from << 12), at(to << 12)), (wakes, moves), |who| got.push(who)).unwrap();
                    let there: Vec<_> = list.iter().copied().filter(|waiter| waiter.0 == from)
                        .take((wakes + moves) as usize).collect();
                    prop_assert_eq!(count as usize, there.len());
                    let (woken, moved) = there.split_at(there.len().min(wakes as usize));
                    list.retain(|waiter| !there.contains(waiter));
                    list.extend(moved.iter().map(|&(_, bits, who)| (to, bits, who)));
                    prop_assert_eq!(got, woken.iter().map(|waiter| waiter.2).collect::<Vec<_>>());
                }
                Step::Cancel(who) => {
                    let waits = list.iter().any(|waiter| waiter.2 == who);
                    prop_assert_eq!(futexes.cancel(at(0), &who), waits);
                    list.retain(|waiter| waiter.2 != who);
                }
            }
            for key in 0..4 {
                let here = list.iter().filter(|waiter| waiter.0 == key).count();
                prop_assert_eq!(futexes.waiters(at(key << 12)), here);
            }
        }
    }
}
