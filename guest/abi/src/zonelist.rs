//! The order in which zones are tried (Linux: `struct zonelist`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{MAX_NR_ZONES, MAX_NUMNODES};

/// Zones that a list can hold (Linux: `MAX_ZONES_PER_ZONELIST`).
pub const MAX_ZONES_PER_ZONELIST: usize = MAX_NUMNODES * MAX_NR_ZONES;

/// How a node's fallback list is sorted (`numa_zonelist_order=`; Linux before 4.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum ZonelistOrder {
    /// All zones of the nearest node, then the next node's (Linux: `ZONELIST_ORDER_NODE`).
    #[default]
    Node = 0,
    /// The highest zone of all nodes, nearest first, then the next lower zone (Linux: `ZONELIST_ORDER_ZONE`).
    Zone = 1,
}

impl ZonelistOrder {
    /// The order of a raw number, or `None`.
    pub const fn from_raw(raw: u32) -> Option<ZonelistOrder> {
        match raw {
            0 => Some(ZonelistOrder::Node),
            1 => Some(ZonelistOrder::Zone),
            _ => None,
        }
    }

    /// As the command line spells it.
    pub const fn name(self) -> &'static str {
        match self {
            ZonelistOrder::Node => "node",
            ZonelistOrder::Zone => "zone",
        }
    }
}

/// The zones to try for an allocation on one node, best first, as indices into the table of zones. Only
/// zones with present pages are listed. Indexed by node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Zonelist {
    /// The node.
    pub node: u32,
    /// See [`ZonelistOrder`].
    pub order: u32,
    /// Zones in `fallback`.
    pub count: u32,
    /// Zones in `nofallback`.
    pub nofallback_count: u32,
    /// The node's own zones, highest first, for `__GFP_THISNODE` (Linux: `ZONELIST_NOFALLBACK`).
    pub nofallback: [u16; 8],
    /// All zones (Linux: `ZONELIST_FALLBACK`).
    pub fallback: [u16; MAX_ZONES_PER_ZONELIST],
}
const _: () = assert!(size_of::<Zonelist>() == 672);

impl Zonelist {
    /// A list without zones.
    pub const EMPTY: Zonelist = Zonelist {
        node: 0,
        order: 0,
        count: 0,
        nofallback_count: 0,
        nofallback: [0; 8],
        fallback: [0; MAX_ZONES_PER_ZONELIST],
    };

    /// The zones, or only the node's own.
    #[inline]
    pub fn zones(&self, own_only: bool) -> &[u16] {
        let (list, count): (&[u16], _) =
            if own_only { (&self.nofallback, self.nofallback_count) } else { (&self.fallback, self.count) };
        list.get(..count as usize).unwrap_or(list)
    }
}
