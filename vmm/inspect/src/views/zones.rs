//! Zones (Linux: /proc/zoneinfo).

use std::fmt;

use memvisor_abi::{Counters, Zone, ZoneKind};
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource};

/// `inspect zones`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZonesView {
    /// Zones with frames, by node and kind.
    pub zones: Vec<ZoneRow>,
    /// Page faults taken from ring 3.
    pub pgfault: u64,
    /// Pages allocated from the buddy.
    pub pgalloc: u64,
    /// Pages given back.
    pub pgfree: u64,
}

/// A zone; all quantities are pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields of `memvisor_abi::Zone`, and its names for watermarks")]
pub struct ZoneRow {
    pub node: u32,
    pub zone: &'static str,
    pub start_pfn: u64,
    pub spanned: u64,
    pub present: u64,
    pub managed: u64,
    pub free: u64,
    pub deferred: u64,
    pub min: u64,
    pub low: u64,
    pub high: u64,
    pub lowmem_reserve: Vec<u64>,
}

impl ZonesView {
    /// Reads the zones.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<ZonesView, GuestError> {
        let Counters { pgfault, pgalloc, pgfree, .. } = guest.counters()?;
        let zones = guest.zones()?.iter().filter(|zone| zone.spanned_pages != 0).map(ZoneRow::new).collect();
        Ok(ZonesView { zones, pgfault, pgalloc, pgfree })
    }
}

/// Linux's name of a zone.
pub(super) fn zone_name(kind: u32) -> &'static str {
    ZoneKind::from_raw(kind).map_or("undefined", ZoneKind::name)
}

impl ZoneRow {
    fn new(zone: &Zone) -> ZoneRow {
        let [min, low, high] = zone.watermark;
        ZoneRow {
            node: zone.node,
            zone: zone_name(zone.kind),
            start_pfn: zone.start_pfn,
            spanned: zone.spanned_pages,
            present: zone.present_pages,
            managed: zone.managed_pages,
            free: zone.free_pages,
            deferred: zone.deferred_pages,
            min,
            low,
            high,
            lowmem_reserve: zone.lowmem_reserve.to_vec(),
        }
    }
}

impl fmt::Display for ZonesView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "zones with memory: {} (quantities in pages)", self.zones.len())?;
        writeln!(
            f,
            "node zone      start pfn   spanned   present   managed      free  deferred    min    low   high  protection"
        )?;
        for zone in &self.zones {
            let reserve: Vec<_> = zone.lowmem_reserve.iter().map(u64::to_string).collect();
            writeln!(
                f,
                "{:>4} {:<8} {:>#10x} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6} {:>6} {:>6}  ({})",
                zone.node,
                zone.zone,
                zone.start_pfn,
                zone.spanned,
                zone.present,
                zone.managed,
                zone.free,
                zone.deferred,
                zone.min,
                zone.low,
                zone.high,
                reserve.join(", ")
            )?;
        }
        writeln!(f, "pgfault {}, pgalloc {}, pgfree {}", self.pgfault, self.pgalloc, self.pgfree)
    }
}
