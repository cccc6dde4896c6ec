//! Blocks of mixed orders at a fixed occupancy.

use std::time::{Duration, Instant};

use super::Frames;

/// How orders 0 to 10 are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orders {
    /// Each order half as likely as the one below.
    Geometric,
    /// All orders alike.
    Uniform,
}

/// xorshift64*: the same sequence for every allocator.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed other than 0.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    #[inline]
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    fn order(&mut self, orders: Orders) -> u8 {
        match orders {
            Orders::Geometric => ((self.next() >> 32).trailing_zeros() as u8).min(10),
            Orders::Uniform => self.below(11) as u8,
        }
    }
}

/// What a run found.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Nanoseconds an allocation or free, after ageing.
    pub nanoseconds: f64,
    /// Blocks of 2 MiB that could still be had afterwards.
    pub huge_blocks: f64,
    /// Whether the ageing took too long and was cut.
    pub cut: bool,
}

/// Ageing stops here: some allocators search all memory for a block.
const PATIENCE: Duration = Duration::from_secs(4);

struct Aged<'a, F> {
    frames: &'a F,
    random: Random,
    orders: Orders,
    live: Vec<(usize, u8)>,
    used: usize,
    wanted: usize,
}

impl<F: Frames> Aged<'_, F> {
    /// One operation: an allocation below the wanted occupancy, a free of a random block above it.
    #[inline]
    fn step(&mut self) {
        if self.used < self.wanted {
            let order = self.random.order(self.orders);
            if let Some(frame) = self.frames.alloc(order) {
                self.live.push((frame, order));
                self.used += 1 << order;
                return;
            }
        }
        if self.live.is_empty() {
            return;
        }
        let victim = self.random.below(self.live.len());
        let (frame, order) = self.live.swap_remove(victim);
        self.frames.free(frame, order);
        self.used -= 1 << order;
    }
}

/// Ages `total` frames at `percent` occupancy with a million operations, then measures another `measured`.
pub fn run<F: Frames>(
    frames: &F,
    total: u64,
    percent: u64,
    orders: Orders,
    ageing: usize,
    measured: usize,
) -> Outcome {
    let wanted = (total * percent / 100) as usize;
    let mut aged = Aged {
        frames,
        random: Random::new(0x9e37_79b9_7f4a_7c15),
        orders,
        live: Vec::with_capacity(total as usize),
        used: 0,
        wanted,
    };
    let begin = Instant::now();
    let mut cut = false;
    // The first fill is not ageing.
    while aged.used < wanted && !cut {
        aged.step();
        cut = aged.live.len().is_multiple_of(256) && begin.elapsed() > PATIENCE;
    }
    for index in 0..ageing {
        aged.step();
        if index % 256 == 0 && begin.elapsed() > PATIENCE {
            cut = true;
            break;
        }
    }
    let start = Instant::now();
    let mut done = 0;
    while done < measured && (done % 256 != 0 || start.elapsed() < PATIENCE) {
        aged.step();
        done += 1;
    }
    let nanoseconds = start.elapsed().as_nanos() as f64 / done as f64;
    let huge_blocks = frames.free_huge_blocks() as f64;
    Outcome { nanoseconds, huge_blocks, cut }
}
