//! Free blocks by type and order, and pageblocks by type (Linux: /proc/pagetypeinfo).

use std::fmt;

use memvisor_abi::{Migratetype, NR_ORDERS, PAGEBLOCK_PAGES, PAGEBLOCK_TYPE_MASK};
use serde::Serialize;

use super::buddy::lists_of;
use super::zones::zone_name;
use crate::{Guest, GuestError, MemorySource, section_start_pfn};

/// `inspect pagetypes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PagetypesView {
    /// Zones with frames.
    pub zones: Vec<PagetypesRow>,
}

/// A zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PagetypesRow {
    /// Node.
    pub node: u32,
    /// Zone.
    pub zone: &'static str,
    /// All types, by number.
    pub types: Vec<TypeRow>,
}

/// A type in a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TypeRow {
    /// Linux's name.
    pub migratetype: &'static str,
    /// Free blocks found on each list, by order.
    pub blocks: Vec<u64>,
    /// Pageblocks of this type whose first frame with a descriptor is the zone's.
    pub pageblocks: u64,
}

impl PagetypesView {
    /// Walks all lists and counts the pageblocks of online sections.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<PagetypesView, GuestError> {
        let mut zones = Vec::new();
        for (index, zone) in guest.zones()?.iter().enumerate().filter(|(_, zone)| zone.spanned_pages != 0) {
            let lists = lists_of(guest, zone, index)?;
            let types = Migratetype::ALL.map(|migratetype| {
                let of_type = lists.iter().filter(|list| list.migratetype == migratetype);
                let blocks = of_type.map(|list| list.blocks.len() as u64).collect();
                TypeRow { migratetype: migratetype.name(), blocks, pageblocks: 0 }
            });
            zones.push(PagetypesRow { node: zone.node, zone: zone_name(zone.kind), types: types.to_vec() });
        }
        let mut view = PagetypesView { zones };
        let mut pages = Vec::new();
        for section in guest.checked_sections()? {
            if !guest.read_section(section, &mut pages)? {
                continue;
            }
            let frames = usize::try_from(PAGEBLOCK_PAGES).unwrap_or(usize::MAX);
            let start = section_start_pfn(section);
            for (number, (pages, raw)) in (0..).zip(pages.chunks(frames).zip(section.pageblocks)) {
                let ram =
                    |index: u64| guest.source().is_ram((start + number * PAGEBLOCK_PAGES + index) << 12, 1);
                let Some((_, first)) = (0..).zip(pages).find(|(index, _)| ram(*index)) else { continue };
                view.count(first.node(), zone_name(first.zone()), raw & PAGEBLOCK_TYPE_MASK);
            }
        }
        Ok(view)
    }

    fn count(&mut self, node: u32, zone: &str, migratetype: u8) {
        let row = self.zones.iter_mut().find(|row| row.node == node && row.zone == zone);
        let row = row.and_then(|row| row.types.get_mut(usize::from(migratetype)));
        if let Some(row) = row {
            row.pageblocks += 1;
        }
    }
}

impl fmt::Display for PagetypesView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "free blocks by type and order, counted on the lists, and pageblocks of 512 pages")?;
        write!(f, "node zone     type        pageblocks")?;
        for order in 0..NR_ORDERS {
            write!(f, " {order:>6}")?;
        }
        writeln!(f)?;
        for row in &self.zones {
            for kind in &row.types {
                write!(
                    f,
                    "{:>4} {:<8} {:<11} {:>10}",
                    row.node, row.zone, kind.migratetype, kind.pageblocks
                )?;
                for blocks in &kind.blocks {
                    write!(f, " {blocks:>6}")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}
