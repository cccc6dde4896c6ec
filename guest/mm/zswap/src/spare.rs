//! Frames that a store may need, allocated before the lock is taken.

use mm_core::Pfn;

/// At most two: one for the pool and one for entries. What is left over the caller frees.
#[derive(Debug, Default)]
pub struct Spare([Option<Pfn>; 2]);

impl Spare {
    /// None.
    pub const fn new() -> Spare {
        Spare([None; 2])
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.iter().flatten().count()
    }

    /// Adds one; it comes back if there are two.
    ///
    /// # Errors
    /// The frame.
    pub fn add(&mut self, frame: Pfn) -> Result<(), Pfn> {
        let free = self.0.iter_mut().find(|place| place.is_none()).ok_or(frame)?;
        *free = Some(frame);
        Ok(())
    }

    /// Takes one.
    pub fn take(&mut self) -> Option<Pfn> {
        self.0.iter_mut().find_map(Option::take)
    }
}
