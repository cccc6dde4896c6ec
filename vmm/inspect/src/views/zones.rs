//! Zones (Linux: /proc/zoneinfo).

use std::fmt;

use memvisor_abi::{Counters, Migratetype, Page, Zone, ZoneKind};
use serde::Serialize;

use super::buddy::lists_of;
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
    /// Without the boost, which is added to each.
    pub min: u64,
    pub low: u64,
    pub high: u64,
    pub boost: u64,
    /// Pages kept from requests that could have used a higher zone, by that zone (Linux: `protection`).
    pub lowmem_reserve: Vec<u64>,
    /// Pages of pageblocks that are kept for high-order atomic requests.
    pub reserved_highatomic: u64,
    /// Pages of contiguous areas, and the free ones of them.
    pub cma: u64,
    pub free_cma: u64,
    /// Pageblocks that are isolated.
    pub isolated_pageblocks: u64,
    /// Free pages by type, counted on the lists; those of isolated pageblocks are not part of `free`.
    pub free_by_type: Vec<FreeOfType>,
    /// Free pages that are known to be zero, counted on the lists.
    pub known_zero: u64,
}

/// Free pages of a type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FreeOfType {
    /// Linux's name.
    pub migratetype: &'static str,
    /// Pages.
    pub pages: u64,
}

impl ZonesView {
    /// Reads the zones and walks their lists. On a running guest they change meanwhile.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<ZonesView, GuestError> {
        let Counters { pgfault, pgalloc, pgfree, .. } = guest.counters()?;
        let zones = guest.zones()?;
        let zones = zones.iter().enumerate().filter(|(_, zone)| zone.spanned_pages != 0);
        let zones = zones.map(|(index, zone)| ZoneRow::new(guest, zone, index)).collect::<Result<_, _>>()?;
        Ok(ZonesView { zones, pgfault, pgalloc, pgfree })
    }
}

/// Linux's name of a zone.
pub(super) fn zone_name(kind: u32) -> &'static str {
    ZoneKind::from_raw(kind).map_or("undefined", ZoneKind::name)
}

impl ZoneRow {
    fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        zone: &Zone,
        index: usize,
    ) -> Result<ZoneRow, GuestError> {
        let [min, low, high] = zone.watermark;
        let (mut free_by_type, mut known_zero) = ([0; Migratetype::ALL.len()], 0);
        for list in lists_of(guest, zone, index)? {
            free_by_type[list.migratetype as usize] += (list.blocks.len() as u64) << list.order;
            for &head in &list.blocks {
                if guest.page(head)?.is_some_and(|page| page.bits & Page::KNOWN_ZERO != 0) {
                    known_zero += 1 << list.order;
                }
            }
        }
        let free_by_type = Migratetype::ALL
            .into_iter()
            .zip(free_by_type)
            .map(|(migratetype, pages)| FreeOfType { migratetype: migratetype.name(), pages });
        Ok(ZoneRow {
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
            boost: zone.watermark_boost,
            lowmem_reserve: zone.lowmem_reserve.to_vec(),
            reserved_highatomic: zone.nr_reserved_highatomic,
            cma: zone.cma_pages,
            free_cma: zone.nr_free_cma,
            isolated_pageblocks: zone.nr_isolate_pageblock,
            free_by_type: free_by_type.collect(),
            known_zero,
        })
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
        writeln!(
            f,
            "node zone       boost highatomic      cma  free cma isolated blocks known zero  free by type"
        )?;
        for zone in &self.zones {
            let present = zone.free_by_type.iter().filter(|of| of.pages != 0);
            let types: Vec<_> = present.map(|of| format!("{} {}", of.migratetype, of.pages)).collect();
            writeln!(
                f,
                "{:>4} {:<8} {:>7} {:>10} {:>8} {:>9} {:>15} {:>10}  {}",
                zone.node,
                zone.zone,
                zone.boost,
                zone.reserved_highatomic,
                zone.cma,
                zone.free_cma,
                zone.isolated_pageblocks,
                zone.known_zero,
                types.join(", ")
            )?;
        }
        writeln!(f, "pgfault {}, pgalloc {}, pgfree {}", self.pgfault, self.pgalloc, self.pgfree)
    }
}
