//! Bounce buffers (Linux: /sys/kernel/debug/swiotlb).

use std::fmt;

use memvisor_abi::IO_TLB_SIZE;
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource};

/// Pools of bounce slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SwiotlbView {
    /// Pools that there are.
    pub pools: Vec<SwiotlbRow>,
}

/// A pool; slots have 2 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SwiotlbRow {
    /// First byte, guest-physical.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// Slots (Linux: `io_tlb_nslabs`).
    pub nslabs: u32,
    /// Areas with a lock each.
    pub nareas: u32,
    /// Whether every mapping bounces.
    pub force: bool,
    /// Slots in use (Linux: `io_tlb_used`).
    pub used: u64,
    /// Most slots of an area in use at once, summed over areas (Linux: `io_tlb_used_hiwater`).
    pub used_hiwater: u64,
    /// Mappings that were made.
    pub mapped: u64,
    /// Mappings that were undone.
    pub unmapped: u64,
}

impl SwiotlbView {
    /// Reads the pools.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<SwiotlbView, GuestError> {
        let mut pools = Vec::new();
        for pool in guest.swiotlb_pools()?.into_iter().filter(|pool| pool.nslabs > 0) {
            let areas = guest.swiotlb_areas(&pool)?;
            let sum =
                |of: fn(&memvisor_abi::SwiotlbArea) -> u64| areas.iter().map(of).fold(0, u64::saturating_add);
            pools.push(SwiotlbRow {
                start: pool.start,
                nslabs: pool.nslabs,
                nareas: pool.nareas,
                force: pool.force != 0,
                used: sum(|area| area.used.into()),
                used_hiwater: sum(|area| area.used_hiwater),
                mapped: sum(|area| area.mapped),
                unmapped: sum(|area| area.unmapped),
            });
        }
        Ok(SwiotlbView { pools })
    }
}

impl fmt::Display for SwiotlbView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pools.is_empty() {
            return writeln!(
                f,
                "the guest has no bounce buffers: all memory lies below 4 GiB, or it says swiotlb=noforce"
            );
        }
        writeln!(
            f,
            "{:>14} {:>9} {:>7} {:>6} {:>7} {:>8} {:>10} {:>10}",
            "bounce at", "KiB", "slots", "areas", "used", "hiwater", "mapped", "unmapped"
        )?;
        for pool in &self.pools {
            writeln!(
                f,
                "{:#14x} {:>9} {:>7} {:>6} {:>7} {:>8} {:>10} {:>10}{}",
                pool.start,
                u64::from(pool.nslabs) * IO_TLB_SIZE / 1024,
                pool.nslabs,
                pool.nareas,
                pool.used,
                pool.used_hiwater,
                pool.mapped,
                pool.unmapped,
                if pool.force { "  all mappings bounce" } else { "" },
            )?;
        }
        Ok(())
    }
}
