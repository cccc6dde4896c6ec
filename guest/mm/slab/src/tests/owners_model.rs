//! The word of a slab under every interleaving of two or three CPUs, in a model checker.
//!
//! List, counter and links are cells: the checker fails if two CPUs touch one without order between them.

use core::sync::atomic::Ordering;

use loom::cell::Cell;
use loom::sync::atomic::AtomicU64;
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::owner::{Home, Owner, Word};

/// Objects of the slab, numbered from 1 on.
const OBJECTS: usize = 3;

/// One slab, and the list lock of its node.
struct Slab {
    word: AtomicU64,
    /// Changed before every access of the word. The checker remembers one access of an object, the last, and tries no other order
    /// with those before: a CPU's own load before its exchange would hide the loads of others.
    turn: AtomicU64,
    /// A seeded fault: exchanges are a load and a store.
    torn: bool,
    index: Cell<u64>,
    inuse: Cell<usize>,
    /// By number; the first is no object's.
    links: [Cell<u64>; OBJECTS + 1],
    /// Slabs on the node's list.
    node: Mutex<u32>,
}

impl Word for Slab {
    fn load(&self, order: Ordering) -> u64 {
        self.word().load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.word().store(value, order);
    }

    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.word().swap(value, order)
    }

    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        if !self.torn {
            return self.word().compare_exchange(current, new, success, failure);
        }
        let found = self.word().load(Ordering::Acquire);
        if found != current {
            return Err(found);
        }
        self.word().store(new, Ordering::Release);
        Ok(found)
    }
}

impl Slab {
    /// A slab of `owner` with all objects in use.
    fn of(owner: Owner, torn: bool) -> Arc<Slab> {
        let slab = Slab {
            word: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            torn,
            index: Cell::new(0),
            inuse: Cell::new(OBJECTS),
            links: core::array::from_fn(|_| Cell::new(0)),
            node: Mutex::new(0),
        };
        owner.take(&slab);
        Arc::new(slab)
    }

    fn word(&self) -> &AtomicU64 {
        self.turn.fetch_add(1, Ordering::Relaxed);
        &self.word
    }

    fn link(&self, object: u64) -> &Cell<u64> {
        &self.links[usize::try_from(object).expect("a small number")]
    }

    fn push(&self, object: u64) {
        self.link(object).set(self.index.get());
        self.index.set(object);
        self.inuse.set(self.inuse.get() - 1);
    }

    /// `Here::collect`.
    fn collect(&self, cpu: Owner) {
        let mut object = cpu.take_freed_by_others(self);
        while object != 0 {
            let next = self.link(object).get();
            self.push(object);
            object = next;
        }
    }

    /// `Kmem::put`, then `Here::give_back`; whether the slab became the CPU's.
    fn free(&self, cpu: Owner, object: u64) -> bool {
        match Owner::in_page(self) {
            owner if owner == cpu => {
                self.push(object);
                return false;
            }
            Owner::FULL if cpu.take_full(self) => {
                self.push(object);
                return true;
            }
            _ => {}
        }
        let _node = self.node.lock().expect("no panic");
        let home = cpu.send_home(self, object, |first| self.link(object).set(first));
        assert_ne!(home, Home::Twice, "object {object} was free");
        if home != Home::Gathered {
            self.push(object);
        }
        home == Home::Adopted
    }

    /// `Here::retire`: who has the slab then.
    fn retire(&self, cpu: Owner) -> Owner {
        cpu.give_up(self, || {
            self.collect(cpu);
            if self.index.get() == 0 { Owner::FULL } else { cpu }
        })
    }

    /// `Here::unfreeze`: who has the slab then.
    fn unfreeze(&self, cpu: Owner) -> Owner {
        let mut node = self.node.lock().expect("no panic");
        let next = cpu.give_up(self, || {
            self.collect(cpu);
            if self.index.get() == 0 { Owner::FULL } else { Owner::NODE }
        });
        *node += u32::from(next == Owner::NODE);
        next
    }

    /// Once all is quiet: `owner` has the slab, and exactly `free` are its free objects when it collected. The slab is on the
    /// node's list if it is the node's.
    fn expect(&self, owner: Owner, free: &[u64]) {
        assert_eq!(Owner::in_page(self), owner);
        if owner == Owner::NODE || owner == Owner::FULL {
            assert_eq!(Owner::freed_by_others(self), 0, "nobody collects these");
        } else {
            self.collect(owner);
        }
        let mut found = Vec::new();
        let mut object = self.index.get();
        while object != 0 && found.len() <= OBJECTS {
            found.push(object);
            object = self.link(object).get();
        }
        found.sort_unstable();
        assert_eq!(found, free, "free objects");
        assert_eq!(self.inuse.get(), OBJECTS - free.len(), "objects in use");
        assert_eq!(
            *self.node.lock().expect("no panic"),
            u32::from(owner == Owner::NODE),
            "on the node's list"
        );
    }
}

/// Runs `f` under every interleaving with at most this many preemptions: with all of them it would take minutes.
fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(f);
}

/// Frees an object on another CPU.
fn spawn_free(slab: &Arc<Slab>, cpu: u32, object: u64) -> thread::JoinHandle<bool> {
    let slab = slab.clone();
    thread::spawn(move || slab.free(Owner::of(cpu), object))
}

/// Whom of the CPUs, each with whether it took it, the slab became; nobody's otherwise.
fn adopter(cpus: [(u32, bool); 2]) -> Option<Owner> {
    let mut took = cpus.into_iter().filter(|(_, took)| *took).map(|(cpu, _)| Owner::of(cpu));
    let first = took.next();
    assert_eq!(took.next(), None, "two CPUs own the slab");
    first
}

fn two_cpus_free_into_a_full_slab(torn: bool) {
    model(move || {
        let slab = Slab::of(Owner::FULL, torn);
        let thread = spawn_free(&slab, 2, 2);
        let here = slab.free(Owner::of(1), 1);
        let there = thread.join().expect("no panic");
        let owner = adopter([(1, here), (2, there)]).expect("one of them owns the slab");
        slab.expect(owner, &[1, 2]);
    });
}

#[test]
fn a_full_slab_becomes_that_of_one_of_two_cpus_and_both_objects_come_home() {
    two_cpus_free_into_a_full_slab(false);
}

#[test]
#[should_panic]
fn the_model_notices_a_full_slab_taken_with_a_load_and_a_store() {
    two_cpus_free_into_a_full_slab(true);
}

fn another_frees_while_the_owner_collects(torn: bool) {
    model(move || {
        let slab = Slab::of(Owner::of(0), torn);
        let other = slab.clone();
        let thread = thread::spawn(move || other.free(Owner::of(1), 1) | other.free(Owner::of(1), 2));
        slab.collect(Owner::of(0));
        // The owner's own list is its alone.
        slab.free(Owner::of(0), 3);
        slab.collect(Owner::of(0));
        assert!(!thread.join().expect("no panic"), "the slab was not full");
        slab.expect(Owner::of(0), &[1, 2, 3]);
    });
}

fn another_frees_behind_an_object_that_the_owner_collects(torn: bool) {
    model(move || {
        let slab = Slab::of(Owner::of(0), torn);
        assert!(!slab.free(Owner::of(1), 1), "the slab was not full");
        let thread = spawn_free(&slab, 2, 2);
        slab.collect(Owner::of(0));
        assert!(!thread.join().expect("no panic"), "the slab was not full");
        slab.expect(Owner::of(0), &[1, 2]);
    });
}

#[test]
fn an_object_that_was_collected_is_not_gathered_again() {
    another_frees_behind_an_object_that_the_owner_collects(false);
}

#[test]
#[should_panic]
fn the_model_notices_an_object_gathered_behind_another_with_a_load_and_a_store() {
    another_frees_behind_an_object_that_the_owner_collects(true);
}

#[test]
fn what_others_free_is_collected_once() {
    another_frees_while_the_owner_collects(false);
}

#[test]
#[should_panic]
fn the_model_notices_an_object_gathered_with_a_load_and_a_store() {
    another_frees_while_the_owner_collects(true);
}

fn others_free_while_a_cpu_retires_its_slab(torn: bool) {
    model(move || {
        let slab = Slab::of(Owner::of(0), torn);
        let threads = [spawn_free(&slab, 1, 1), spawn_free(&slab, 2, 2)];
        let next = slab.retire(Owner::of(0));
        let [first, second] = threads.map(|thread| thread.join().expect("no panic"));
        let owner = match adopter([(1, first), (2, second)]) {
            Some(owner) => {
                assert_eq!(next, Owner::FULL, "the slab was kept and taken");
                owner
            }
            None => next,
        };
        slab.expect(owner, &[1, 2]);
    });
}

#[test]
fn a_cpu_keeps_the_slab_in_which_others_freed_or_gives_it_up_full() {
    others_free_while_a_cpu_retires_its_slab(false);
}

#[test]
#[should_panic]
fn the_model_notices_a_slab_given_up_with_a_load_and_a_store() {
    others_free_while_a_cpu_retires_its_slab(true);
}

#[test]
fn a_slab_goes_to_the_node_or_to_the_cpu_that_frees_first_never_both() {
    model(|| {
        let slab = Slab::of(Owner::of(0), false);
        let threads = [spawn_free(&slab, 1, 1), spawn_free(&slab, 2, 2)];
        let next = slab.unfreeze(Owner::of(0));
        let [first, second] = threads.map(|thread| thread.join().expect("no panic"));
        let owner = adopter([(1, first), (2, second)]).unwrap_or(next);
        slab.expect(owner, &[1, 2]);
    });
}

#[test]
fn what_is_freed_after_a_slab_went_to_the_node_stays_there() {
    model(|| {
        let slab = Slab::of(Owner::of(0), false);
        slab.free(Owner::of(0), 3);
        let thread = spawn_free(&slab, 1, 1);
        assert_eq!(slab.unfreeze(Owner::of(0)), Owner::NODE);
        assert!(!thread.join().expect("no panic"), "the slab was not full");
        slab.expect(Owner::NODE, &[1, 3]);
    });
}
