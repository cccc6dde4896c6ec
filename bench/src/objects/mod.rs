//! Objects: `kmem_cache_alloc` and `kmem_cache_free` of SLUB, SLAB and SLOB, and kmalloc, against allocators of other
//! projects.
//!
//! Ours pay for their checks: whether an object is one, whose cache it is of, whether a free list stays in its slab. The peers that are
//! for one thread are behind a lock where two threads use them.

pub mod machine;
pub mod peers;

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use machine::become_cpu;
use peers::{Kmalloc, Objects, Ours, buddy_alloc, glibc, mimalloc, slabmalloc, talc};

use crate::Options;
use crate::stats::{median, ratio, short};
use crate::table::{Score, Table, Target};

/// Objects of the bulk benchmark.
const BULK: usize = 10_000;

/// Runs the benchmark: all allocators in turn, round after round.
pub fn run(options: &Options) -> anyhow::Result<Score> {
    let share = if options.quick { 20 } else { 4 };
    let mut score = Score::default();
    pin(0);
    for size in [64, 256] {
        let mut all = vec![Vec::new(); NAMES.len()];
        for round in 1..=options.rounds {
            for (name, rounds) in NAMES.iter().zip(&mut all) {
                eprintln!("objects of {size} bytes, round {round} of {}: {name}", options.rounds);
                rounds.push(make(name, size).round(share));
            }
        }
        score = add(score, judge(size, &all).print(&format!("objects of {size} bytes")));
        print_all(&all);
    }
    let mut table =
        Table::new("Memory of 10,000 objects", "Bytes of frames over bytes of objects, in percent above 1.");
    for (slab, size) in [("slub", 64), ("slub", 256), ("slab", 64), ("slab", 256)] {
        let percent = overhead(slab, size) * 100.0;
        let target = if slab == "slub" { Target::AtMost(3.0) } else { Target::None };
        table.row(
            &format!("{slab}, {size} bytes"),
            &format!("{} %", short(percent)),
            ("-", &"-"),
            (percent, " %"),
            target,
        );
    }
    Ok(add(score, table.print("memory of objects")))
}

fn add(a: Score, b: Score) -> Score {
    Score { met: a.met + b.met, judged: a.judged + b.judged }
}

/// Work, value, whether more is better.
type Column = (&'static str, fn(&Times) -> f64, bool);
const COLUMNS: [Column; 5] = [
    ("pair, ns", |times| times.pair, false),
    ("10,000 allocations, ns each", |times| times.bulk_alloc, false),
    ("10,000 frees in random order, ns each", |times| times.bulk_free, false),
    ("two threads, M operations/s", |times| times.threads, true),
    ("freed by another thread, M objects/s", |times| times.cross, true),
];

fn values(rounds: &[Times], value: fn(&Times) -> f64) -> Vec<f64> {
    rounds.iter().map(value).collect()
}

/// SLUB against mimalloc.
fn judge(size: usize, all: &[Vec<Times>]) -> Table {
    let about = "SLUB against mimalloc: medians of the rounds, the best round in brackets. The ratio is above 1 where SLUB is faster: \
                 the median of each round's own.";
    let mut table = Table::new(&format!("Objects of {size} bytes"), about);
    for (work, value, more) in COLUMNS {
        let of = |at: usize| all.get(at).map_or_else(Vec::new, |rounds| values(rounds, value));
        let (ours, theirs) = (of(0), of(PEER));
        let best = |values: &[f64]| {
            let pick = if more { f64::max } else { f64::min };
            let best = values.iter().copied().reduce(pick).unwrap_or(0.0);
            format!("{} ({})", short(median(values)), short(best))
        };
        let ratio = if more { ratio(&ours, &theirs) } else { ratio(&theirs, &ours) };
        table.row(work, &best(&ours), (NAMES[PEER], &best(&theirs)), (ratio, "x"), Target::AtLeast(1.0));
    }
    table
}

/// Medians of everybody.
fn print_all(all: &[Vec<Times>]) {
    println!("\n| | {} |\n|---|{}", NAMES.join(" | "), "---|".repeat(NAMES.len()));
    for (work, value, _) in COLUMNS {
        let cells: Vec<String> = all.iter().map(|rounds| short(median(&values(rounds, value)))).collect();
        println!("| {work} | {} |", cells.join(" | "));
    }
}

/// The peer of the targets.
const PEER: usize = 4;

/// Keeps this thread on a CPU of the host, if it has that many.
fn pin(cpu: u32) {
    // SAFETY: a set of CPUs is plain bits.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set has room for 1024.
    unsafe { libc::CPU_SET(cpu as usize, &mut set) };
    // SAFETY: 0 is this thread; a refusal leaves it where it is.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
}

/// What one allocator did with objects of one size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Nanoseconds of an allocation and the free after it.
    pub pair: f64,
    /// Nanoseconds of one of 10,000 allocations.
    pub bulk_alloc: f64,
    /// Nanoseconds of one of 10,000 frees in random order.
    pub bulk_free: f64,
    /// Million allocations and frees a second of two threads that do pairs.
    pub threads: f64,
    /// Million objects a second that one thread allocates and another frees.
    pub cross: f64,
}

/// An allocator of which all is measured; static inside, so that calls are as direct as a kernel's.
pub trait Round {
    /// One round with `1/share` of the work.
    fn round(&self, share: usize) -> Times;
}

impl<O: Objects> Round for O {
    fn round(&self, share: usize) -> Times {
        become_cpu(0);
        let (bulk_alloc, bulk_free) = bulk(self, 200 / share);
        // What is slow gets less to do: some of the allocators search lists.
        let probe = pairs(self, 10_000);
        let share = if probe > 100.0 { 50 * share } else { share };
        Times {
            pair: pairs(self, 10_000_000 / share),
            bulk_alloc,
            bulk_free,
            threads: threads(self, 10_000_000 / share),
            cross: cross(self, 2_000_000 / share),
        }
    }
}

fn nanoseconds(start: Instant, count: usize) -> f64 {
    start.elapsed().as_secs_f64() * 1e9 / count as f64
}

/// Nanoseconds of a pair: the median of short runs, of which other work on the machine spoils few.
fn pairs<O: Objects>(objects: &O, count: usize) -> f64 {
    const RUN: usize = 10_000;
    let runs: Vec<f64> = (0..count.div_ceil(RUN))
        .map(|_| {
            let start = Instant::now();
            for _ in 0..RUN {
                objects.free(black_box(objects.alloc()));
            }
            nanoseconds(start, RUN)
        })
        .collect();
    median(&runs)
}

/// Frees in an order that has nothing to do with that of the allocations.
fn bulk<O: Objects>(objects: &O, rounds: usize) -> (f64, f64) {
    let mut order: Vec<usize> = (0..BULK).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..BULK).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(at, (state % (at as u64 + 1)) as usize);
    }
    let mut live = vec![0; BULK];
    let (mut alloc, mut free) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    // The first round touches fresh memory and does not count.
    for round in 0..=rounds {
        if round > 1 && begin.elapsed() > Duration::from_millis(500) {
            break;
        }
        let start = Instant::now();
        for slot in &mut live {
            *slot = objects.alloc();
        }
        let middle = Instant::now();
        for at in &order {
            objects.free(live[*at]);
        }
        if round > 0 {
            free.push(nanoseconds(middle, BULK));
            alloc.push((middle - start).as_secs_f64() * 1e9 / BULK as f64);
        }
    }
    (median(&alloc), median(&free))
}

/// Runs `f` on two threads that begin together, each on its own CPU; seconds until both ended.
fn two<O: Objects>(objects: &O, f: impl Fn(&O, u32) + Sync) -> f64 {
    let barrier = Barrier::new(3);
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (barrier, f) = (&barrier, &f);
            scope.spawn(move || {
                become_cpu(cpu);
                pin(cpu);
                barrier.wait();
                f(objects, cpu);
                barrier.wait();
            });
        }
        barrier.wait();
        let start = Instant::now();
        barrier.wait();
        start.elapsed().as_secs_f64()
    })
}

/// Million allocations and frees a second: the sum of what both threads do, each by the median of its short runs.
fn threads<O: Objects>(objects: &O, count: usize) -> f64 {
    let rates = [const { AtomicU64::new(0) }; 2];
    two(objects, |objects, cpu| {
        let rate = 2e3 / pairs(objects, count);
        rates[cpu as usize].store(rate.to_bits(), Ordering::Relaxed);
    });
    rates.iter().map(|rate| f64::from_bits(rate.load(Ordering::Relaxed))).sum()
}

/// Objects go through a ring of 1024 slots, 64 at a time.
fn cross<O: Objects>(objects: &O, count: usize) -> f64 {
    const RING: usize = 1024;
    const BATCH: usize = 64;
    let ring: Vec<AtomicUsize> = (0..RING).map(|_| AtomicUsize::new(0)).collect();
    let (head, tail) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let count = count / BATCH * BATCH;
    let wait = |done: &dyn Fn() -> bool| {
        let mut spins = 0_u32;
        while !done() {
            spins += 1;
            std::hint::spin_loop();
            // The other thread may have lost its CPU to somebody else.
            if spins.is_multiple_of(10_000) {
                thread::yield_now();
            }
        }
    };
    let seconds = two(objects, |objects, cpu| {
        for start in (0..count).step_by(BATCH) {
            if cpu == 0 {
                wait(&|| start + BATCH - tail.load(Ordering::Acquire) <= RING);
                for at in start..start + BATCH {
                    ring[at % RING].store(objects.alloc(), Ordering::Relaxed);
                }
                head.store(start + BATCH, Ordering::Release);
            } else {
                wait(&|| head.load(Ordering::Acquire) >= start + BATCH);
                for at in start..start + BATCH {
                    objects.free(ring[at % RING].load(Ordering::Relaxed));
                }
                tail.store(start + BATCH, Ordering::Release);
            }
        }
    });
    count as f64 / seconds / 1e6
}

/// Bytes of frames for 10,000 live objects, over the bytes asked for, minus 1.
pub fn overhead(slab: &str, size: usize) -> f64 {
    become_cpu(0);
    let ours = Ours::new(slab, size);
    let before = ours.used_bytes();
    for _ in 0..BULK {
        ours.alloc();
    }
    (ours.used_bytes() - before) as f64 / (BULK * size) as f64 - 1.0
}

/// Allocators by name; the first is the one that is judged.
pub const NAMES: [&str; 9] = [
    "SLUB",
    "SLAB",
    "SLOB",
    "kmalloc (SLUB)",
    "mimalloc",
    "glibc malloc",
    "buddy-alloc",
    "talc",
    "slabmalloc",
];

/// A fresh allocator of objects of `size` bytes.
pub fn make(name: &str, size: usize) -> Box<dyn Round> {
    match name {
        "SLUB" => Box::new(Ours::new("slub", size)),
        "SLAB" => Box::new(Ours::new("slab", size)),
        "SLOB" => Box::new(Ours::new("slob", size)),
        "kmalloc (SLUB)" => Box::new(Kmalloc::new(size)),
        "mimalloc" => Box::new(mimalloc(size)),
        "glibc malloc" => Box::new(glibc(size)),
        "talc" => Box::new(talc(size)),
        "slabmalloc" => Box::new(slabmalloc(size)),
        _ => Box::new(buddy_alloc(size)),
    }
}
