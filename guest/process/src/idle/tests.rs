//! Halting and waking under the interleavings and memory orders of two CPUs.

use core::sync::atomic::Ordering;

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::thread;

use super::{BUSY, Barrier, CLAIMED, claim, may_halt, wakes};

impl_word!(AtomicU32);

struct Model;

impl Barrier for Model {
    fn full() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// Forgets the barrier.
struct Torn;

impl Barrier for Torn {
    fn full() {}
}

/// A CPU goes idle while another makes a task ready: whether the task is left lying, with nobody who looks at it.
fn is_left<B: Barrier>() -> bool {
    let (state, ready) = (Arc::new(AtomicU32::new(BUSY)), Arc::new(AtomicU32::new(0)));
    let idle = {
        let (state, ready) = (Arc::clone(&state), Arc::clone(&ready));
        thread::spawn(move || may_halt::<B>(&*state, || ready.load(Ordering::Relaxed) > 0))
    };
    ready.store(1, Ordering::Relaxed);
    let claimed = claim::<B, _, _>([((), &*state)].into_iter());
    let halts = idle.join().expect("the model's thread");
    halts && claimed.is_none()
}

#[test]
fn no_task_is_left_to_a_cpu_that_halts() {
    loom::model(|| assert!(!is_left::<Model>()));
}

#[test]
#[should_panic(expected = "left")]
fn without_barriers_one_would_be() {
    loom::model(|| assert!(!is_left::<Torn>(), "left"));
}

#[test]
fn two_who_bring_work_claim_two_cpus() {
    loom::model(|| {
        let states = Arc::new([AtomicU32::new(BUSY), AtomicU32::new(BUSY)]);
        for state in &*states {
            assert!(may_halt::<Model>(state, || false));
        }
        let other = {
            let states = Arc::clone(&states);
            thread::spawn(move || claim::<Model, _, _>((0..).zip(&*states)))
        };
        let own = claim::<Model, _, _>((0..).zip(&*states));
        let other = other.join().expect("the model's thread");
        assert!(own.is_some() && other.is_some() && own != other);
        assert!(states.iter().all(|state| state.load(Ordering::Relaxed) == CLAIMED));
    });
}

#[test]
fn who_goes_on_is_not_claimed() {
    loom::model(|| {
        let state = AtomicU32::new(BUSY);
        assert!(may_halt::<Model>(&state, || false));
        wakes(&state);
        assert_eq!(claim::<Model, _, _>([((), &state)].into_iter()), None);
    });
}
