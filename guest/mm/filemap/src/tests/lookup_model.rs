//! Lookups under every interleaving with whoever takes a page or a node out, in a model checker.

use core::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use loom::cell::Cell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, fence};
use loom::thread;
use mm_core::refcount::{self, Counter};
use mm_core::{Id, Pfn};

use crate::entry::Raw;
use crate::lookup::{self, Candidate, Tried, Walk};
use crate::{Entry, Node};

const OWNER: (u64, u64) = (0x40, 7);
const OTHER: (u64, u64) = (0x40, 8);

struct Count(AtomicI32);

impl Counter for Count {
    fn load(&self, order: Ordering) -> i32 {
        self.0.load(order)
    }

    fn fetch_add(&self, value: i32, order: Ordering) -> i32 {
        self.0.fetch_add(value, order)
    }

    fn compare_exchange(
        &self,
        current: i32,
        new: i32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<i32, i32> {
        self.0.compare_exchange(current, new, success, failure)
    }
}

/// One frame, the slot that names it, and what is in it: the index that it belongs to.
struct Frame {
    slot: AtomicU64,
    count: Count,
    mapping: AtomicU64,
    index: AtomicU64,
    contents: Cell<u64>,
    /// A seeded fault: a fresh page's count does not bring with it what was done before.
    relaxed: bool,
}

impl Candidate for Frame {
    type Count = Count;

    fn references(&self) -> &Count {
        &self.count
    }

    fn owner(&self) -> (u64, u64) {
        let mapping = self.mapping.load(Acquire);
        (mapping, self.index.load(Relaxed))
    }
}

impl Frame {
    /// In the cache, which has one reference.
    fn cached(relaxed: bool) -> Arc<Frame> {
        Arc::new(Frame {
            slot: AtomicU64::new(1),
            count: Count(AtomicI32::new(1)),
            mapping: AtomicU64::new(OWNER.0),
            index: AtomicU64::new(OWNER.1),
            contents: Cell::new(OWNER.1),
            relaxed,
        })
    }

    /// Drops a reference. Whoever drops the last one sees the page given out again, for the next index of the same mapping.
    fn put(&self) {
        if refcount::put(&self.count) == Some(true) {
            self.contents.set(OTHER.1);
            self.count.0.store(1, if self.relaxed { Relaxed } else { Release });
            self.index.store(OTHER.1, Relaxed);
            self.mapping.store(OTHER.0, Release);
        }
    }

    /// What a lookup does; whether it found the page.
    fn find(&self) -> bool {
        if self.slot.load(Acquire) == 0 {
            return false;
        }
        match lookup::try_get(self, OWNER) {
            Tried::Free => false,
            Tried::Other => {
                self.put();
                false
            }
            Tried::Got => {
                assert_eq!(self.contents.get(), OWNER.1, "a lookup got another page");
                self.put();
                true
            }
        }
    }

    /// What `delete_from_page_cache` does under the lock, and after it.
    fn delete(&self) {
        self.slot.store(0, Release);
        self.mapping.store(0, Relaxed);
        self.put();
    }
}

fn lookup_against_delete(relaxed: bool, readers: usize) {
    let mut model = loom::model::Builder::new();
    // Three threads have too many orders; two switches show what this protocol is about.
    model.preemption_bound = (readers > 1).then_some(2);
    model.check(move || {
        let frame = Frame::cached(relaxed);
        let threads: std::vec::Vec<_> = (0..readers)
            .map(|_| {
                let frame = frame.clone();
                thread::spawn(move || frame.find())
            })
            .collect();
        frame.delete();
        for reader in threads {
            reader.join().expect("no panic");
        }
        assert_eq!(frame.count.0.load(Relaxed), 1, "the new owner has the only reference");
        assert_eq!(frame.owner(), OTHER, "the page was freed once");
        assert!(!frame.find());
    });
}

#[test]
fn a_lookup_has_the_page_or_nothing_while_it_is_deleted_and_used_again() {
    lookup_against_delete(false, 1);
    lookup_against_delete(false, 2);
}

#[test]
#[should_panic(expected = "")]
fn the_model_notices_a_count_that_is_set_too_weakly() {
    lookup_against_delete(true, 1);
}

/// A node with the two slots that index 1 leads through.
struct ModelNode {
    shift: AtomicU32,
    slots: [AtomicU64; 2],
}

impl ModelNode {
    fn new(shift: u32, slots: [u64; 2]) -> ModelNode {
        ModelNode { shift: AtomicU32::new(shift), slots: slots.map(AtomicU64::new) }
    }
}

struct ModelTree {
    root: AtomicU64,
    changes: AtomicU32,
    nodes: [ModelNode; 2],
    /// A seeded fault: nodes leave without being counted.
    uncounted: bool,
}

fn node(number: u64) -> Raw {
    Raw::of_node(Id::<Node>::new(number * 64).expect("a number"))
}

const PAGE: Entry = Entry::Frame(Pfn::new(1));
const STRANGER: Entry = Entry::Frame(Pfn::new(2));

impl Walk for ModelTree {
    fn changes(&self) -> u32 {
        self.changes.load(Acquire)
    }

    fn changes_after(&self) -> u32 {
        fence(Acquire);
        self.changes.load(Relaxed)
    }

    fn root(&self) -> Raw {
        Raw(self.root.load(Acquire))
    }

    fn step(&self, id: Id<Node>, index: u64, _first: bool) -> Option<(u32, Raw)> {
        let node = &self.nodes[usize::try_from(id.as_u64() / 64).unwrap() - 1];
        let shift = node.shift.load(Relaxed);
        let offset = usize::try_from(index >> shift & 63).unwrap();
        Some((shift, Raw(node.slots[offset].load(Acquire))))
    }
}

impl ModelTree {
    /// Node 2 above node 1, which has the page at index 1.
    fn new(uncounted: bool) -> Arc<ModelTree> {
        let nodes = [ModelNode::new(0, [0, Raw::of(PAGE).0]), ModelNode::new(6, [node(1).0, 0])];
        Arc::new(ModelTree { root: AtomicU64::new(node(2).0), changes: AtomicU32::new(0), nodes, uncounted })
    }

    /// `Tree::shrink`, and then another tree takes the node for the bottom.
    fn shrink(&self) {
        self.root.store(node(1).0, Release);
        if !self.uncounted {
            self.changes.fetch_add(1, Release);
        }
        let freed = &self.nodes[1];
        freed.slots[0].store(0, Release);
        freed.shift.store(0, Release);
        freed.slots[1].store(Raw::of(STRANGER).0, Release);
    }
}

fn walk_against_shrink(uncounted: bool) {
    loom::model(move || {
        let tree = ModelTree::new(uncounted);
        let other = tree.clone();
        let writer = thread::spawn(move || other.shrink());
        let found = lookup::walk(&*tree, 1).map(Raw::entry);
        assert!(found.is_none_or(|entry| entry == PAGE), "a walk found {found:?}");
        writer.join().expect("no panic");
        assert_eq!(lookup::walk(&*tree, 1).map(Raw::entry), Some(PAGE));
    });
}

#[test]
fn a_walk_finds_its_page_or_notices_that_the_tree_changed() {
    walk_against_shrink(false);
}

#[test]
#[should_panic(expected = "a walk found")]
fn the_model_notices_nodes_that_leave_uncounted() {
    walk_against_shrink(true);
}

/// A slot that names one of two frames: the page that moves, and where to.
struct Moving {
    slot: AtomicU64,
    frames: [Frame; 2],
    /// A seeded fault: references are looked at and not frozen.
    unfrozen: bool,
}

const WRITTEN: u64 = 1 << 8;

impl Moving {
    /// The cache and the one who moves it have references of the first, the latter one of the second.
    fn new(unfrozen: bool) -> Arc<Moving> {
        let frame = |count, (mapping, index): (u64, u64)| Frame {
            slot: AtomicU64::new(0),
            count: Count(AtomicI32::new(count)),
            mapping: AtomicU64::new(mapping),
            index: AtomicU64::new(index),
            contents: Cell::new(index),
            relaxed: false,
        };
        Arc::new(Moving { slot: AtomicU64::new(0), frames: [frame(2, OWNER), frame(1, (0, 0))], unfrozen })
    }

    fn frame(&self) -> &Frame {
        &self.frames[usize::try_from(self.slot.load(Acquire)).unwrap()]
    }

    /// A lookup that writes to the page; whether it got it.
    fn write(&self) -> bool {
        for _ in 0..2 {
            let frame = self.frame();
            match lookup::try_get(frame, OWNER) {
                Tried::Free => {}
                Tried::Other => frame.put(),
                Tried::Got => {
                    frame.contents.set(frame.contents.get() + WRITTEN);
                    frame.put();
                    return true;
                }
            }
        }
        false
    }

    /// What `replace_page` does under the lock, and `migrate_pages` after it; whether the page moved.
    fn migrate(&self) -> bool {
        let [old, new] = &self.frames;
        let alone =
            if self.unfrozen { old.count.0.load(Acquire) == 2 } else { refcount::freeze(&old.count, 2) };
        if alone {
            new.contents.set(old.contents.get());
            new.index.store(OWNER.1, Relaxed);
            new.mapping.store(OWNER.0, Release);
            refcount::get(&new.count);
            self.slot.store(1, Release);
            old.mapping.store(0, Release);
            if self.unfrozen {
                // The cache's.
                old.put();
            } else {
                refcount::unfreeze(&old.count, 1);
            }
        }
        new.put();
        old.put();
        alone
    }
}

fn write_against_migration(unfrozen: bool) {
    loom::model(move || {
        let moving = Moving::new(unfrozen);
        let other = moving.clone();
        let writer = thread::spawn(move || other.write());
        let moved = moving.migrate();
        let written = writer.join().expect("no panic");
        let frame = moving.frame();
        assert_eq!(core::ptr::eq(frame, &moving.frames[1]), moved);
        assert_eq!(frame.owner(), OWNER, "the page is where it was looked for");
        assert_eq!(frame.contents.get(), OWNER.1 + u64::from(written) * WRITTEN, "a write was lost");
        assert_eq!(frame.count.0.load(Relaxed), 1, "the cache has the only reference");
    });
}

#[test]
fn a_page_that_moves_loses_no_write_of_a_lookup() {
    write_against_migration(false);
}

#[test]
#[should_panic(expected = "")]
fn the_model_notices_references_that_are_not_frozen() {
    write_against_migration(true);
}
