//! Thousands of operations against a multiset of live objects, for each allocator; the same trace on all three.

use std::collections::BTreeMap;

use mm_core::Gfp;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::machine::{CPUS, Sim, boot, options, read, run_on, write};
use crate::{CacheArgs, CacheId, Kmem, Object, SlabFlags};

const KINDS: [&str; 3] = ["slub", "slab", "slob"];

#[derive(Clone, Debug)]
enum Op {
    Cpu(u32),
    Alloc { cache: usize, zero: bool },
    AllocNode { cache: usize, node: u32 },
    Bulk { cache: usize, count: usize },
    Kmalloc { size: u64 },
    Krealloc { pick: usize, size: u64 },
    Free { pick: usize },
    Shrink { cache: usize },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..CPUS).prop_map(Op::Cpu),
        8 => (0..5_usize, any::<bool>()).prop_map(|(cache, zero)| Op::Alloc { cache, zero }),
        2 => (0..5_usize, 0..2_u32).prop_map(|(cache, node)| Op::AllocNode { cache, node }),
        1 => (0..5_usize, 1..150_usize).prop_map(|(cache, count)| Op::Bulk { cache, count }),
        4 => prop_oneof![0..300_u64, 0..9000_u64, 8000..40_000_u64].prop_map(|size| Op::Kmalloc { size }),
        1 => (any::<usize>(), 0..9000_u64).prop_map(|(pick, size)| Op::Krealloc { pick, size }),
        12 => any::<usize>().prop_map(|pick| Op::Free { pick }),
        1 => (0..5_usize).prop_map(|cache| Op::Shrink { cache }),
    ]
}

/// A live object: its cache, or none for kmalloc; its bytes; what its first and last words hold.
#[derive(Clone, Copy)]
struct Live {
    cache: Option<CacheId>,
    size: u64,
    stamp: u64,
}

struct Model {
    live: BTreeMap<u64, Live>,
    stamp: u64,
    /// Addresses of live objects, oldest first.
    ages: Vec<u64>,
}

const SHAPES: [(u32, u32); 5] = [(24, 0), (64, 64), (200, 0), (700, 128), (5000, 0)];

fn create(kmem: &Kmem<Sim>) -> Vec<CacheId> {
    let names = ["a", "b", "c", "d", "e"];
    let args = names.iter().zip(SHAPES).map(|(name, (size, align))| CacheArgs {
        align,
        flags: SlabFlags::NO_MERGE,
        ..CacheArgs::new(name, size)
    });
    args.map(|args| kmem.create(&args).unwrap()).collect()
}

impl Model {
    fn add(&mut self, kmem: &Kmem<Sim>, object: Object, cache: Option<CacheId>, size: u64, align: u64) {
        if object == Object::ZERO_SIZE {
            return;
        }
        let addr = object.addr().as_u64();
        assert!(addr.is_multiple_of(align), "{object} is not aligned to {align}");
        let before = self.live.range(..addr + size.max(1)).next_back();
        assert!(
            before.is_none_or(|(start, live)| start + live.size <= addr),
            "{object} overlaps a live object"
        );
        self.stamp += 1;
        if size >= 8 {
            write(kmem, object, 0, self.stamp);
            write(kmem, object, (size - 8) / 8 * 8, self.stamp);
        }
        self.live.insert(addr, Live { cache, size, stamp: self.stamp });
        self.ages.push(addr);
    }

    fn check(&self, kmem: &Kmem<Sim>, object: Object, live: Live) {
        if live.size >= 8 {
            assert_eq!(read(kmem, object, 0), live.stamp, "{object} changed");
            assert_eq!(read(kmem, object, (live.size - 8) / 8 * 8), live.stamp, "{object} changed");
        }
    }

    fn remove(&mut self, object: Object) {
        let addr = object.addr().as_u64();
        self.live.remove(&addr);
        self.ages.retain(|live| *live != addr);
    }

    fn pick(&self, pick: usize) -> Option<(Object, Live)> {
        // By age, which is the same for all allocators; addresses are not.
        let at = pick % self.ages.len().max(1);
        let addr = self.ages.get(at)?;
        self.live.get(addr).map(|live| (Object::new(mm_core::PhysAddr::new(*addr)), *live))
    }

    /// Applies an operation; what a user sees of it.
    fn apply(&mut self, kmem: &Kmem<Sim>, ids: &[CacheId], op: &Op) -> Vec<u64> {
        let shape = |cache: usize| (u64::from(SHAPES[cache].0), u64::from(SHAPES[cache].1.max(8)));
        match *op {
            Op::Cpu(cpu) => run_on(kmem, cpu),
            Op::Alloc { cache, zero } => {
                let gfp = if zero { Gfp::KERNEL | Gfp::ZERO } else { Gfp::KERNEL };
                let object = kmem.alloc(ids[cache], gfp).expect("there is memory");
                let (size, align) = shape(cache);
                if zero {
                    assert!(
                        (0..size / 8).all(|word| read(kmem, object, 8 * word) == 0),
                        "{object} is not zero"
                    );
                }
                self.add(kmem, object, Some(ids[cache]), size, align);
            }
            Op::AllocNode { cache, node } => {
                let object = kmem.alloc_node(ids[cache], Gfp::KERNEL, node).expect("there is memory");
                assert_eq!(
                    object.addr().as_u64() / 4096 / 2048,
                    u64::from(node),
                    "{object} is on another node"
                );
                let (size, align) = shape(cache);
                self.add(kmem, object, Some(ids[cache]), size, align);
            }
            Op::Bulk { cache, count } => {
                let mut objects = vec![Object::ZERO_SIZE; count];
                assert!(kmem.alloc_bulk(ids[cache], Gfp::KERNEL, &mut objects));
                let (size, align) = shape(cache);
                for object in objects {
                    self.add(kmem, object, Some(ids[cache]), size, align);
                }
            }
            Op::Kmalloc { size } => {
                let object = kmem.kzalloc(size, Gfp::KERNEL).expect("there is memory");
                assert!(kmem.ksize(object).expect("it is an allocation") >= size);
                assert!((0..size / 8).all(|word| read(kmem, object, 8 * word) == 0), "{object} is not zero");
                let align = if size.is_power_of_two() { size.clamp(8, 4096) } else { 8 };
                self.add(kmem, object, None, size, align);
                return vec![u64::from(object == Object::ZERO_SIZE)];
            }
            Op::Krealloc { pick, size } => {
                let Some((old, live)) = self.pick(pick).filter(|(_, live)| live.cache.is_none()) else {
                    return vec![];
                };
                self.check(kmem, old, live);
                self.remove(old);
                let new = kmem.krealloc(Some(old), size, Gfp::KERNEL).expect("there is memory");
                if size >= 8 && live.size >= 8 {
                    assert_eq!(read(kmem, new, 0), live.stamp, "the contents did not move along");
                }
                self.add(kmem, new, None, size, 8);
            }
            Op::Free { pick } => {
                let Some((object, live)) = self.pick(pick) else { return vec![] };
                self.check(kmem, object, live);
                self.remove(object);
                let freed = match live.cache {
                    Some(id) => kmem.free(id, object),
                    None => kmem.kfree(object),
                };
                assert_eq!(freed, Ok(()));
            }
            Op::Shrink { cache } => kmem.shrink(ids[cache]),
        }
        vec![self.live.len() as u64]
    }

    fn free_all(&mut self, kmem: &Kmem<Sim>, ids: &[CacheId]) {
        while !self.live.is_empty() {
            self.apply(kmem, ids, &Op::Free { pick: 0 });
        }
    }
}

/// Runs a trace on one allocator; what a user saw.
fn replay(kind: &str, ops: &[Op]) -> Vec<Vec<u64>> {
    let kmem = boot(options(kind));
    let ids = create(&kmem);
    let mut model = Model { live: BTreeMap::new(), stamp: 0, ages: Vec::new() };
    let seen = ops
        .iter()
        .enumerate()
        .map(|(number, op)| {
            let seen = model.apply(&kmem, &ids, op);
            if number % 40 == 0 {
                super::audit::audit(&kmem, model.live.len() as u64);
            }
            seen
        })
        .collect();
    model.free_all(&kmem, &ids);
    super::audit::audit(&kmem, 0);
    for id in CacheId::all() {
        kmem.shrink(id);
    }
    for id in ids {
        assert_eq!(kmem.destroy(id), Ok(()));
    }
    assert_eq!(kmem.machine().pages.allocated(), 0, "{kind} keeps pages when nothing is allocated");
    assert_eq!(kmem.machine().take_lines(), [""; 0], "{kind} complains");
    seen
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(4), cases: 6, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn all_three_obey_a_multiset_and_agree(ops in prop::collection::vec(op(), 1..250)) {
        let seen = KINDS.map(|kind| replay(kind, &ops));
        prop_assert_eq!(&seen[0], &seen[1]);
        prop_assert_eq!(&seen[0], &seen[2]);
    }
}

#[test]
fn a_long_trace_agrees() {
    // A fixed generator: the trace is the same for ever.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let ops: Vec<Op> = (0..3000)
        .map(|_| match next(20) {
            0 => Op::Cpu(u32::try_from(next(CPUS.into())).unwrap()),
            1..10 => Op::Alloc { cache: usize::try_from(next(5)).unwrap(), zero: next(2) == 0 },
            10 => Op::Kmalloc { size: next(10_000) },
            11 => Op::Shrink { cache: usize::try_from(next(5)).unwrap() },
            _ => Op::Free { pick: usize::try_from(next(1 << 20)).unwrap() },
        })
        .collect();
    let seen = KINDS.map(|kind| replay(kind, &ops));
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
}
