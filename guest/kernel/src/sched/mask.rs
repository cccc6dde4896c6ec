//! Sets of CPUs (Linux: `struct cpumask`).

use guest_firmware::acpi::MAX_CPUS;

/// Words of a set.
pub const CPU_WORDS: usize = MAX_CPUS.div_ceil(64);

/// A set of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMask([u64; CPU_WORDS]);

impl CpuMask {
    /// No CPU.
    pub const NONE: CpuMask = CpuMask([0; CPU_WORDS]);
    /// All CPUs, those that do not exist too.
    pub const ALL: CpuMask = CpuMask([u64::MAX; CPU_WORDS]);

    /// The CPUs below `count`.
    pub fn below(count: u32) -> CpuMask {
        let mut mask = CpuMask::NONE;
        (0..count).for_each(|cpu| mask.add(cpu));
        mask
    }

    /// Adds a CPU.
    pub fn add(&mut self, cpu: u32) {
        if let Some(word) = self.0.get_mut(cpu as usize / 64) {
            *word |= 1 << (cpu % 64);
        }
    }

    /// Takes out the CPUs for which `f` is false.
    pub fn retain(&mut self, f: impl Fn(u32) -> bool) {
        for (first, word) in (0..).step_by(64).zip(&mut self.0) {
            let mut left = *word;
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                if !f(first + bit) {
                    *word &= !(1 << bit);
                }
            }
        }
    }

    /// Whether a CPU is in it.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.get(cpu as usize / 64).is_some_and(|word| word & 1 << (cpu % 64) != 0)
    }

    /// The CPUs of either.
    pub fn or(&self, other: &CpuMask) -> CpuMask {
        let mut all = *self;
        all.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
        all
    }

    /// The CPUs of both.
    pub fn and(&self, other: &CpuMask) -> CpuMask {
        let mut both = *self;
        both.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
        both
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// The words, lowest CPUs first.
    pub fn words(&self) -> &[u64; CPU_WORDS] {
        &self.0
    }

    /// A set of these words.
    pub const fn from_words(words: [u64; CPU_WORDS]) -> CpuMask {
        CpuMask(words)
    }
}
