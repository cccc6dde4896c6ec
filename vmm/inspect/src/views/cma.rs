//! Contiguous areas (Linux: /sys/kernel/debug/cma).

use std::fmt;

use memvisor_abi::{NODE_NONE, PAGE_SIZE};
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource};

/// `inspect cma`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CmaView {
    /// Areas by number.
    pub areas: Vec<CmaRow>,
}

/// An area; quantities are frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CmaRow {
    /// Linux's name.
    pub name: String,
    /// Node that it was made for, if for one.
    pub node: Option<u32>,
    /// First frame.
    pub base_pfn: u64,
    /// Frames.
    pub count: u64,
    /// Frames that were asked for.
    pub used: u64,
    /// Frames of the longest run that nobody asked for.
    pub maxchunk: u64,
    /// Frames handed out so far.
    pub succeeded: u64,
    /// Frames of requests that failed.
    pub failed: u64,
}

impl CmaView {
    /// Reads the areas and their bitmaps.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<CmaView, GuestError> {
        let mut areas = Vec::new();
        for area in guest.cma_areas()? {
            let words = guest.cma_bitmap(&area)?;
            let name = area.name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte));
            let (mut used, mut run, mut longest) = (0_u64, 0_u64, 0_u64);
            for bit in 0..area.bits() {
                let word = usize::try_from(bit / 64).ok().and_then(|index| words.get(index)).copied();
                if word.unwrap_or(0) >> (bit % 64) & 1 == 1 {
                    (used, run) = (used + 1, 0);
                } else {
                    run += 1;
                    longest = longest.max(run);
                }
            }
            let frames = |bits: u64| bits.checked_shl(area.order_per_bit).unwrap_or(u64::MAX);
            areas.push(CmaRow {
                name: name.collect(),
                node: (area.node != NODE_NONE).then_some(area.node),
                base_pfn: area.base_pfn,
                count: area.count,
                used: frames(used),
                maxchunk: frames(longest),
                succeeded: area.nr_pages_succeeded,
                failed: area.nr_pages_failed,
            });
        }
        Ok(CmaView { areas })
    }
}

impl fmt::Display for CmaView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "contiguous areas: {} (quantities in frames)", self.areas.len())?;
        if self.areas.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "name             node   base pfn     count       MiB      used  maxchunk  succeeded     failed"
        )?;
        for area in &self.areas {
            writeln!(
                f,
                "{:<16} {:>4} {:>#10x} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
                area.name.escape_default().to_string(),
                area.node.map_or_else(|| "any".to_owned(), |node| node.to_string()),
                area.base_pfn,
                area.count,
                area.count.saturating_mul(PAGE_SIZE) >> 20,
                area.used,
                area.maxchunk,
                area.succeeded,
                area.failed
            )?;
        }
        Ok(())
    }
}
