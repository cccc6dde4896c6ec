//! Guest memory that counts.

use std::cell::Cell;

use memvisor_inspect::{MemorySource, RamRegion, ReadError};

/// A source whose readers have a budget: more work than a reader of guest memory can need is a hang
/// that has not been waited for.
#[derive(Debug)]
pub struct Watched<S> {
    source: S,
    left: Cell<u64>,
    budget: u64,
}

impl<S: MemorySource> Watched<S> {
    /// `source` for readers that may spend `budget`: each read costs 64 and its bytes.
    pub const fn new(source: S, budget: u64) -> Watched<S> {
        Watched { source, left: Cell::new(budget), budget }
    }

    /// What has been spent.
    pub fn spent(&self) -> u64 {
        self.budget - self.left.get()
    }

    fn spend(&self, cost: u64) {
        let left = self.left.get().checked_sub(cost);
        assert!(left.is_some(), "a reader spends more than its {} on guest memory", self.budget);
        self.left.set(left.unwrap_or(0));
    }
}

impl<S: MemorySource> MemorySource for Watched<S> {
    fn regions(&self) -> &[RamRegion] {
        self.source.regions()
    }

    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.spend(64 + buf.len() as u64);
        let result = self.source.read(gpa, buf);
        assert!(
            result.is_err() || self.source.is_ram(gpa, buf.len() as u64),
            "{gpa:#x} (+{:#x}) was read and is not RAM",
            buf.len()
        );
        result
    }

    fn next_data(&self, gpa: u64) -> Option<u64> {
        self.spend(64);
        self.source.next_data(gpa)
    }
}
