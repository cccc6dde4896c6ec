//! The order in which zones are tried (Linux: the boot log's "Fallback order").

use std::fmt;

use memvisor_abi::{Zone, ZonelistOrder};
use serde::Serialize;

use super::zones::zone_name;
use crate::{Guest, GuestError, MemorySource};

/// `inspect zonelists`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZonelistsView {
    /// Lists by node.
    pub nodes: Vec<ZonelistRow>,
}

/// A node's lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZonelistRow {
    /// Node.
    pub node: u32,
    /// `node` or `zone`.
    pub order: &'static str,
    /// Zones that any request may use, best first, as node and zone.
    pub fallback: Vec<String>,
    /// Zones of the node itself.
    pub nofallback: Vec<String>,
}

impl ZonelistsView {
    /// Reads the lists.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<ZonelistsView, GuestError> {
        let zones = guest.zones()?;
        let names = |list: &[u16]| list.iter().map(|&zone| name(&zones, zone)).collect();
        let nodes = guest
            .zonelists()?
            .iter()
            .map(|list| ZonelistRow {
                node: list.node,
                order: ZonelistOrder::from_raw(list.order).map_or("undefined", ZonelistOrder::name),
                fallback: names(list.zones(false)),
                nofallback: names(list.zones(true)),
            })
            .collect();
        Ok(ZonelistsView { nodes })
    }
}

fn name(zones: &[Zone], index: u16) -> String {
    match zones.get(usize::from(index)) {
        Some(zone) => format!("{}:{}", zone.node, zone_name(zone.kind)),
        None => format!("zone {index}, which does not exist"),
    }
}

impl fmt::Display for ZonelistsView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "zonelists of {} nodes (node:zone, best first)", self.nodes.len())?;
        for row in &self.nodes {
            writeln!(f, "node {:>2}, by {}: {}", row.node, row.order, row.fallback.join(" "))?;
            writeln!(f, "         this node only: {}", row.nofallback.join(" "))?;
        }
        Ok(())
    }
}
