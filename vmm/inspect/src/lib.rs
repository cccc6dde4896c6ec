//! Reads guest memory from outside.
//!
//! No KVM here, and none of the guest's logic: this crate has its own page-table walker and its own
//! list readers, and shares only layouts with the guest (`memvisor-abi`). It trusts nothing it
//! reads: every address is checked against RAM, every list has a bound, every read is a copy.
//!
//! From the bottom up: a [`MemorySource`] gives guest-physical memory ([`MappedMemory`] of a running
//! guest or a memory file, [`CoreFile`] of a dump, [`SparseMemory`] of a test); a [`Walker`]
//! translates addresses on it and [`ptdump`] lists all of them; a [`Guest`] reads what our own
//! kernel publishes; [`views`] put that into words and JSON.

#![forbid(unsafe_code)]

pub mod core_file;
mod facts;
mod guest;
mod mapped;
pub mod ptdump;
mod registers;
mod source;
mod sparse;
mod symbols;
pub mod testing;
pub mod trace;
pub mod views;
mod walk;

use serde::Serializer;

pub use core_file::CoreFile;
pub use facts::{FactCpu, FactE820, FactNodeMemory, Facts};
pub use guest::{
    AddressSpace, AttachError, Busy, CachedPage, DERIVED_STATS, EntryKind, FreeList, Guest, GuestError,
    Keeper, KmapWindowSlots, LinkProblem, Linked, ListProblem, LogLine, LogProblem, LogWalk, LruGenWalk,
    LruWalk, MapCounts, MmSpace, NodeAt, PcpBlocks, Reading, RmapIndex, RmapPlace, ShmemSlot, Slab, SlabWalk,
    Slabs, SlotWord, TableName, TreeEntry, UserEntries, UserEntry, VmAreaAt, VmaAt, ZbudFrame, ZoneCounts,
    ZswapEntryAt, ZswapLeaf, ZswapWalk, address_of, cache_name, consistent, cpu_rests, find_root,
    section_start_pfn, slot_of_value,
};
pub use mapped::{MapError, MappedMemory};
pub use registers::CpuRegisters;
pub use source::{MemorySource, RamRegion, ReadError, RegionError};
pub use sparse::SparseMemory;
pub use symbols::{Place, Symbols};
pub use walk::{
    Access, Entry, Fault, Levels, Mapped, Outcome, PageSize, Stage2, Stage2Info, Stage2Pages, Step,
    Translation, TwoStage, TwoStageStep, Walker, hardware_references,
};

/// Addresses go into JSON as strings like "0xffff888000000000": many readers of JSON hold numbers
/// as floats, which have 53 bits.
fn hex<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}

fn hex_option<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => hex(value, serializer),
        None => serializer.serialize_none(),
    }
}
