//! Free blocks by order (Linux: /proc/buddyinfo), counted by walking the lists.

use std::fmt;

use memvisor_abi::{Migratetype, NR_ORDERS};
use serde::Serialize;

use super::zones::zone_name;
use crate::{FreeList, Guest, GuestError, MemorySource, Reading, consistent};

/// Walks of the lists of a running guest before they are given up as changing.
const ATTEMPTS: u32 = 8;

/// `inspect buddy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BuddyView {
    /// Zones with frames.
    pub zones: Vec<BuddyRow>,
    /// Whether all lists were well formed in one reading. If not, the guest changed them
    /// meanwhile, or they are damaged.
    pub consistent: bool,
    /// Readings made.
    pub attempts: u32,
}

/// A zone's lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BuddyRow {
    /// Node.
    pub node: u32,
    /// Zone.
    pub zone: &'static str,
    /// Blocks found on each list, by order.
    pub blocks: Vec<u64>,
    /// Blocks that the zone claims, by order.
    pub claimed: Vec<u64>,
    /// Pages on the lists that were found.
    pub free_pages: u64,
    /// Pages that the zone claims.
    pub claimed_pages: u64,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

impl BuddyView {
    /// Walks all lists, again while they look torn.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<BuddyView, GuestError> {
        let Reading { value: zones, attempts, consistent } =
            consistent(ATTEMPTS, || rows(guest), |rows| rows.iter().all(|row| row.problems.is_empty()))?;
        Ok(BuddyView { zones, consistent, attempts })
    }
}

fn rows<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Vec<BuddyRow>, GuestError> {
    let mut rows = Vec::new();
    for (index, zone) in guest.zones()?.iter().enumerate().filter(|(_, zone)| zone.spanned_pages != 0) {
        let lists: Vec<FreeList> = lists_of(guest, zone, index)?;
        let mut problems: Vec<_> = lists
            .iter()
            .filter_map(|list| {
                Some(format!("order {} {}: {}", list.order, list.migratetype.name(), list.problem.as_ref()?))
            })
            .collect();
        let usable = lists.iter().filter(|list| list.migratetype != Migratetype::Isolate);
        let free_pages = usable.map(|list| (list.blocks.len() as u64) << list.order).sum();
        let by_order = |count: &dyn Fn(&FreeList) -> u64| {
            lists
                .chunks(Migratetype::ALL.len())
                .map(|lists| lists.iter().map(count).fold(0, u64::saturating_add))
                .collect()
        };
        if problems.is_empty() && free_pages != zone.free_pages {
            problems.push(format!("the lists hold {free_pages} pages, the zone says {}", zone.free_pages));
        }
        rows.push(BuddyRow {
            node: zone.node,
            zone: zone_name(zone.kind),
            blocks: by_order(&|list| list.blocks.len() as u64),
            claimed: by_order(&|list| list.nr_free),
            free_pages,
            claimed_pages: zone.free_pages,
            problems,
        });
    }
    Ok(rows)
}

/// All lists of a zone, by order and type.
pub(super) fn lists_of<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    zone: &memvisor_abi::Zone,
    index: usize,
) -> Result<Vec<FreeList>, GuestError> {
    let kinds = (0..NR_ORDERS).flat_map(|order| Migratetype::ALL.map(|migratetype| (order, migratetype)));
    kinds.map(|(order, migratetype)| guest.free_list_of(zone, index, order, migratetype)).collect()
}

impl fmt::Display for BuddyView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "free blocks by order, counted on the lists")?;
        if !self.consistent {
            write!(
                f,
                " (inconsistent in {} readings: the guest runs, or the lists are damaged; pause it to know)",
                self.attempts
            )?;
        }
        write!(f, "\nnode zone    ")?;
        for order in 0..NR_ORDERS {
            write!(f, " {order:>6}")?;
        }
        writeln!(f, "      pages")?;
        for row in &self.zones {
            write!(f, "{:>4} {:<8}", row.node, row.zone)?;
            for blocks in &row.blocks {
                write!(f, " {blocks:>6}")?;
            }
            writeln!(f, " {:>10}", row.free_pages)?;
            for problem in &row.problems {
                writeln!(f, "     ! {problem}")?;
            }
        }
        Ok(())
    }
}
