//! What `memvisor inspect VIEW` shows: one file a view.
//!
//! Each view is built once from what was read, and is then plain data: `Display` is the text for
//! people, `Serialize` the JSON for programs (addresses as strings in hexadecimal, counts and
//! frame numbers as numbers). The first line of the text says what it is.

mod address;
mod bt;
mod buddy;
mod cache;
mod cma;
mod compaction;
mod cpus;
mod e820;
mod events;
mod layout;
mod log;
mod lru;
mod lrugen;
mod map;
mod maps;
mod memblock;
mod numa;
mod numa_maps;
mod oom;
mod page;
mod pagetables;
mod pagetypes;
mod pcp;
mod proc;
mod ps;
mod rmap;
mod sample;
mod slab;
mod smaps;
mod stacks;
mod swap;
mod swiotlb;
mod tlb;
mod translate;
mod vmalloc;
mod zonelists;
mod zones;

#[cfg(test)]
mod process_tests;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;

pub use address::{AddressDepth, AddressIndex, AddressView};
pub use bt::{BtFrame, BtRow, BtView};
pub use buddy::{BuddyRow, BuddyView};
pub use cache::{CacheFileView, CacheRange, CacheView, CachedFile};
pub use cma::{CmaRow, CmaView};
pub use compaction::{CompactionRow, CompactionView, KcompactdRow, MovableOwnerRow};
pub use cpus::{CpuRow, CpusView};
pub use e820::{E820Row, E820View};
pub use events::{EventRow, NumastatRow, NumastatView, VmstatView};
pub use layout::{LayoutRow, LayoutView};
pub use log::LogView;
pub use lru::{LruNode, LruRow, LruView};
pub use lrugen::{GenerationList, GenerationRow, Generations, TierRow};
pub use map::{MapCell, MapRegion, MapView, Use};
pub use maps::{MapsRow, MapsView};
pub use memblock::{MemblockRow, MemblockView};
pub use numa::{NodeRow, NumaView};
pub use numa_maps::{NumaMapsRow, NumaMapsView};
pub use oom::{OomCandidate, OomLast, OomView};
pub use page::{MappedAt, Owner, PageRow, PageView, Space};
pub use pagetypes::{PagetypesRow, PagetypesView, TypeRow};
pub use pcp::{PcpListRow, PcpRow, PcpView};
pub use proc::ProcView;
pub use ps::{PsRow, PsView};
pub use rmap::{RmapEntry, RmapView};
pub use sample::{MemoryKind, Sample, ZoneSample};
pub use slab::{CacheRow, SlabRow, SlabView};
pub use smaps::Smaps;
pub use stacks::{StackRow, StacksView, TaskRow, TasksView};
pub use swap::{SwapRow, SwapView, ZswapEntryRow, ZswapRow};
pub use swiotlb::{SwiotlbRow, SwiotlbView};
pub use tlb::{TlbMm, TlbRow, TlbView};
pub use translate::TranslateView;
pub use vmalloc::{KmapRow, VmAreaRow, VmallocView};
pub use zonelists::{ZonelistRow, ZonelistsView};
pub use zones::{FreeOfType, ZoneRow, ZonesView};

/// Guest-physical bytes, both ends included, as Linux prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemRange {
    /// First byte.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// Last byte. In raw maps it may be below `start`: the entry is empty or wraps.
    #[serde(serialize_with = "crate::hex")]
    pub last: u64,
}

impl MemRange {
    /// The `len` bytes at `start`.
    pub const fn new(start: u64, len: u64) -> MemRange {
        MemRange { start, last: start.wrapping_add(len).wrapping_sub(1) }
    }
}

impl fmt::Display for MemRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[mem {:#018x}-{:#018x}]", self.start, self.last)
    }
}

/// A node number in words.
fn node_name(node: u32) -> String {
    if node == memvisor_abi::NODE_NONE { "-".into() } else { node.to_string() }
}
