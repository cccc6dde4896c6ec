//! What each allocator has to do.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::Frames;
use super::host::{CPUS, run_on};
use super::mixed::{self, Orders, Outcome, Random};

/// Sizes of the work.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Frames of the machine.
    pub frames: u64,
    /// Pairs of one measurement.
    pub pairs: usize,
    /// Frames that are taken before any is given back.
    pub bulk: usize,
    /// Operations before a mixed measurement.
    pub ageing: usize,
    /// Operations of a mixed measurement.
    pub measured: usize,
}

/// An allocator's name, and each measurement compiled for it.
#[derive(Clone, Copy)]
pub struct Contestant {
    /// Crate.
    pub name: &'static str,
    /// Nanoseconds an order-0 pair.
    pub pair: fn(&Size) -> f64,
    /// Nanoseconds an allocation and a free of many frames, freed in random order.
    pub bulk: fn(&Size) -> (f64, f64),
    /// Million pairs a second of two pinned threads.
    pub threads: fn(&Size) -> f64,
    /// Mixed orders.
    pub mixed: fn(&Size, u64, Orders) -> Outcome,
    /// Milliseconds to the first allocation on that many frames.
    pub bring_up: fn(u64) -> f64,
}

impl Contestant {
    /// The measurements of `F`.
    pub const fn new<F: Frames>(name: &'static str) -> Contestant {
        Contestant {
            name,
            pair: pair::<F>,
            bulk: bulk::<F>,
            threads: threads::<F>,
            mixed: mixed::<F>,
            bring_up: bring_up::<F>,
        }
    }
}

fn ready<F: Frames>(size: &Size) -> F {
    run_on(0);
    let frames = F::start(size.frames);
    frames.bring_all_online();
    frames
}

/// Allocates and frees a block, `count` times.
pub fn pairs<F: Frames>(frames: &F, order: u8, count: usize) {
    for _ in 0..count {
        let frame = black_box(frames.alloc(order)).expect("memory is empty");
        frames.free(frame, order);
    }
}

fn pair<F: Frames>(size: &Size) -> f64 {
    let frames: F = ready(size);
    pairs(&frames, 0, size.pairs / 10);
    let start = Instant::now();
    pairs(&frames, 0, size.pairs);
    start.elapsed().as_nanos() as f64 / size.pairs as f64
}

fn bulk<F: Frames>(size: &Size) -> (f64, f64) {
    let frames: F = ready(size);
    let mut order: Vec<usize> = (0..size.bulk).collect();
    let mut random = Random::new(7);
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last + 1));
    }
    let mut taken = vec![0; size.bulk];
    let (mut alloc, mut free) = (0.0, 0.0);
    // The first round warms up.
    for round in 0..4 {
        let start = Instant::now();
        for place in &mut taken {
            *place = frames.alloc(0).expect("memory is empty");
        }
        let half = Instant::now();
        for &index in &order {
            frames.free(taken[index], 0);
        }
        let end = Instant::now();
        if round > 0 {
            alloc += (half - start).as_nanos() as f64;
            free += (end - half).as_nanos() as f64;
        }
    }
    let count = 3.0 * size.bulk as f64;
    (alloc / count, free / count)
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    // Without a second CPU the figure says so by itself.
    let _pinned = sched_setaffinity(None, &set);
    run_on(cpu);
}

fn threads<F: Frames>(size: &Size) -> f64 {
    let frames: F = ready(size);
    let begin = Barrier::new(CPUS + 1);
    let seconds = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CPUS)
            .map(|cpu| {
                let (frames, begin) = (&frames, &begin);
                scope.spawn(move || {
                    pin(cpu);
                    pairs(frames, 0, size.pairs / 10);
                    begin.wait();
                    let start = Instant::now();
                    pairs(frames, 0, size.pairs);
                    start.elapsed().as_secs_f64()
                })
            })
            .collect();
        begin.wait();
        let times = workers.into_iter().map(|worker| worker.join().expect("a worker does not panic"));
        times.fold(0.0, f64::max)
    });
    (CPUS * size.pairs) as f64 / seconds / 1e6
}

fn mixed<F: Frames>(size: &Size, percent: u64, orders: Orders) -> Outcome {
    let frames: F = ready(size);
    mixed::run(&frames, size.frames, percent, orders, size.ageing, size.measured)
}

fn bring_up<F: Frames>(frames: u64) -> f64 {
    run_on(0);
    let start = Instant::now();
    let frames = F::start(frames);
    let first = frames.alloc(0);
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    assert!(first.is_some(), "a fresh machine has memory");
    milliseconds
}
