//! Which events are on.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use memvisor_abi::{EventId, MASK_WORDS};

/// The events that a machine records; all off at first.
#[derive(Debug, Default)]
pub struct TraceMask([AtomicU64; MASK_WORDS]);

impl TraceMask {
    /// Nothing.
    pub const fn new() -> TraceMask {
        TraceMask([const { AtomicU64::new(0) }; MASK_WORDS])
    }

    /// Whether the event is on: one relaxed load, because the word is known where the event is.
    #[inline(always)]
    pub fn has(&self, id: EventId) -> bool {
        self.0[id as usize / 64].load(Relaxed) >> (id as usize % 64) & 1 != 0
    }

    /// Whether any event is on: loads of one cache line.
    #[inline(always)]
    pub fn is_any(&self) -> bool {
        self.0.iter().fold(0, |bits, word| bits | word.load(Relaxed)) != 0
    }

    /// Turns on exactly the events of `words`, as `memvisor_abi::select_events` gives them.
    pub fn set(&self, words: [u64; MASK_WORDS]) {
        for (slot, word) in self.0.iter().zip(words) {
            slot.store(word, Relaxed);
        }
    }

    /// As [`TraceMask::set`] takes them.
    pub fn words(&self) -> [u64; MASK_WORDS] {
        self.0.each_ref().map(|word| word.load(Relaxed))
    }
}
