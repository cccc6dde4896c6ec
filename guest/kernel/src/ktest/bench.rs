//! What an allocation and its free cost on this machine. It measures and judges nothing: a row fails only if an allocator does.
//!
//! `ktest=bench` prints a line a row, for programs to read:
//!
//! ```text
//! bench: alloc_pages order=0 ns=123.4 min=120.0 max=150.2 pairs=4096 batches=11
//! ```
//!
//! A value is the time of one pair, allocation and free: the median of the batches, then the fastest and the slowest batch. Time
//! is the time-stamp counter's. Where no timer tells its frequency, `cycles=` stands in the place of `ns=`, and all three are cycles.

use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use mm_core::{Gfp, Order, PAGE_SIZE};
use mm_vmalloc::Request;

use super::{Failure, Test, check};
use crate::arch::regs::rdtsc;
use crate::drivers::pit;
use crate::mm::slab::KMEM;
use crate::mm::{page_alloc, vmalloc};
use crate::{println, sched};

type Outcome = Result<(), Failure>;

/// `ktest=bench`.
pub const TESTS: [(&str, Test); 4] = [
    ("the_frequency_of_the_tsc_is_known", the_frequency_of_the_tsc_is_known),
    ("alloc_pages_pairs", alloc_pages_pairs),
    ("kmalloc_pairs", kmalloc_pairs),
    ("vmalloc_pairs", vmalloc_pairs),
];

/// Counted batches of a row; those before them warm caches and per-CPU lists. Odd, for the median.
const BATCHES: usize = 11;
/// A batch of a row without a number of its own takes at least these cycles: a millisecond or more.
const MIN_CYCLES: u64 = 1 << 22;
/// Address space that a batch of vmalloc uses up: two CPUs purge lazy areas every 64 MiB, so each batch pays for that too.
const VMALLOC_BATCH: u64 = 128 << 20;

/// Frequency of the time-stamp counter, 0 if it is not known.
static TSC_KHZ: AtomicU64 = AtomicU64::new(0);

fn the_frequency_of_the_tsc_is_known() -> Outcome {
    let khz = pit::calibrate_tsc().ok_or(Failure::Skip("there is no PIT: cycles are printed"))?;
    println!("bench: tsc_khz={khz}");
    TSC_KHZ.store(khz, Ordering::Relaxed);
    Ok(())
}

fn alloc_pages_pairs() -> Outcome {
    for order in Order::all() {
        row("alloc_pages", "order", order.as_u8().into(), None, || {
            let pfn = page_alloc::alloc_here(Gfp::KERNEL, order, None);
            let pfn = black_box(pfn).ok_or(Failure::Wrong("no block"))?;
            page_alloc::free_pages(pfn, order);
            Ok(())
        })?;
    }
    Ok(())
}

fn kmalloc_pairs() -> Outcome {
    for size in (3..=13).map(|shift| 1 << shift) {
        row("kmalloc", "bytes", size, None, || {
            let object = black_box(KMEM.kmalloc(size, Gfp::KERNEL)).ok_or(Failure::Wrong("no object"))?;
            check(KMEM.kfree(object).is_ok(), "kfree refused its own object")
        })?;
    }
    Ok(())
}

fn vmalloc_pairs() -> Outcome {
    let context = sched::task_context();
    for size in (12..=22).map(|shift| 1 << shift) {
        // An area has a guard page.
        let pairs = VMALLOC_BATCH / (size + PAGE_SIZE);
        row("vmalloc", "bytes", size, Some(pairs), || {
            let area = vmalloc::vmalloc(&Request::new(size), &context);
            let area = black_box(area).map_err(|_| Failure::Wrong("no area"))?;
            check(vmalloc::vfree(area), "vfree refused its own area")
        })?;
    }
    Ok(())
}

/// Measures `pair` and prints a line. Without a number of `pairs` batches are as long as [`MIN_CYCLES`] asks.
fn row(
    work: &str,
    what: &str,
    amount: u64,
    pairs: Option<u64>,
    mut pair: impl FnMut() -> Outcome,
) -> Outcome {
    let mut batch = |pairs: u64| {
        let begin = rdtsc();
        for _ in 0..pairs {
            pair()?;
        }
        Ok(rdtsc() - begin)
    };
    let mut count = pairs.unwrap_or(16);
    // A batch that was interrupted says nothing about its length: the shorter of two does.
    while batch(count)?.min(batch(count)?) < MIN_CYCLES && pairs.is_none() {
        count *= 2;
    }
    let mut cycles = [0; BATCHES];
    for one in &mut cycles {
        *one = batch(count)?;
    }
    cycles.sort_unstable();
    let [min, .., max] = cycles;
    let khz = TSC_KHZ.load(Ordering::Relaxed);
    let unit = if khz == 0 { "cycles" } else { "ns" };
    let [median, min, max] = [cycles[BATCHES / 2], min, max].map(|cycles| tenths(cycles, count, khz));
    println!(
        "bench: {work} {what}={amount} {unit}={}.{} min={}.{} max={}.{} pairs={count} batches={BATCHES}",
        median / 10,
        median % 10,
        min / 10,
        min % 10,
        max / 10,
        max % 10,
    );
    Ok(())
}

/// Tenths of a nanosecond that one of `pairs` pairs takes; of a cycle if the frequency is not known.
fn tenths(cycles: u64, pairs: u64, khz: u64) -> u64 {
    let (cycles, pairs) = (u128::from(cycles), u128::from(pairs));
    let each = match khz {
        0 => cycles * 10 / pairs,
        _ => cycles * 10_000_000 / (u128::from(khz) * pairs),
    };
    u64::try_from(each).unwrap_or(u64::MAX)
}
