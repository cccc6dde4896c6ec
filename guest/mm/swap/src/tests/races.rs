//! Users of one slot under every interleaving, in a model checker.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire};
use loom::thread;
use mm_core::Pfn;

use crate::slot::{self, Put, Slot, SlotError, Word};

struct Shared(AtomicU64);

impl Word for Shared {
    fn load(&self) -> u64 {
        self.0.load(Acquire)
    }

    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange(current, new, AcqRel, Acquire)
    }
}

const A: Pfn = Pfn::new(1);
const B: Pfn = Pfn::new(2);

/// Named `count` times, cached in frame A.
fn used(count: u64) -> Arc<Shared> {
    let word = Arc::new(Shared(AtomicU64::new(0)));
    assert!(slot::allocate(&*word, A));
    (0..count).for_each(|_| slot::duplicate(&*word).expect("it is in use"));
    word
}

fn spawn<T: 'static>(word: &Arc<Shared>, f: impl FnOnce(&Shared) -> T + 'static) -> thread::JoinHandle<T> {
    let word = Arc::clone(word);
    thread::spawn(move || f(&word))
}

#[test]
fn exactly_one_sees_that_it_was_the_last() {
    loom::model(|| {
        let word = used(2);
        let (one, two) = (spawn(&word, slot::put), spawn(&word, slot::put));
        let results =
            [slot::drop_cache(&*word, A, 9), one.join().expect("joins"), two.join().expect("joins")];
        assert_eq!(results.iter().filter(|result| **result == Ok(Put::Last)).count(), 1);
        assert!(Slot::of(&*word).is_freeing());
        assert_eq!(slot::finish_free(&*word), Ok(true));
        assert!(Slot::of(&*word).is_free());
    });
}

#[test]
fn a_fork_and_an_exit_lose_no_name() {
    loom::model(|| {
        let word = used(1);
        let exit = spawn(&word, slot::put);
        // The forking task's own entry names the slot, which is the second name.
        slot::duplicate(&*word).expect("it is in use");
        exit.join().expect("joins").expect("it was named");
        assert_eq!((Slot::of(&*word).count(), Slot::of(&*word).cache()), (1, Some(A)));
    });
}

#[test]
fn of_two_readers_one_has_the_cache() {
    loom::model(|| {
        let word = used(1);
        assert_eq!(slot::drop_cache(&*word, A, 5), Ok(Put::Named));
        let other = spawn(&word, |word| slot::add_cache(word, A));
        let mine = slot::add_cache(&*word, B);
        let results = [mine, other.join().expect("joins")];
        assert!(results.contains(&Ok(5)) && results.contains(&Err(SlotError::Cached)));
    });
}

#[test]
fn a_write_error_is_not_lost_to_the_last_free() {
    loom::model(|| {
        let word = used(1);
        assert_eq!(slot::drop_cache(&*word, A, 0), Ok(Put::Named));
        let device = spawn(&word, slot::set_write_error);
        assert_eq!(slot::put(&*word), Ok(Put::Last));
        let told = device.join().expect("joins").is_ok();
        assert_eq!(slot::finish_free(&*word), Ok(!told));
        assert_eq!(Slot::of(&*word).is_bad(), told);
    });
}
