//! memblock at hand-over to the buddy allocator (Linux: /sys/kernel/debug/memblock).

use std::fmt;

use memvisor_abi::MemblockRegion;
use serde::Serialize;

use super::{MemRange, node_name};
use crate::{Guest, GuestError, MemorySource};

/// `inspect memblock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemblockView {
    /// RAM.
    pub memory: Vec<MemblockRow>,
    /// What was reserved.
    pub reserved: Vec<MemblockRow>,
}

/// A region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemblockRow {
    /// The bytes.
    #[serde(flatten)]
    pub range: MemRange,
    /// Length in bytes.
    pub size: u64,
    /// Node; `None` where it does not matter.
    pub node: Option<u32>,
}

impl MemblockView {
    /// Reads both lists.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<MemblockView, GuestError> {
        let rows = |regions: Vec<MemblockRegion>| {
            let row = |region: &MemblockRegion| MemblockRow {
                range: MemRange::new(region.base, region.size),
                size: region.size,
                node: (region.node != memvisor_abi::NODE_NONE).then_some(region.node),
            };
            regions.iter().map(row).collect()
        };
        Ok(MemblockView {
            memory: rows(guest.memblock_memory()?),
            reserved: rows(guest.memblock_reserved()?),
        })
    }
}

impl fmt::Display for MemblockView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib =
            |rows: &[MemblockRow]| rows.iter().fold(0u64, |sum, row| sum.saturating_add(row.size)) >> 10;
        writeln!(
            f,
            "memblock at hand-over: {} KiB memory, {} KiB reserved",
            kib(&self.memory),
            kib(&self.reserved)
        )?;
        for (name, rows) in [("memory", &self.memory), ("reserved", &self.reserved)] {
            writeln!(f, "{name}:")?;
            for (index, row) in rows.iter().enumerate() {
                let node = node_name(row.node.unwrap_or(memvisor_abi::NODE_NONE));
                writeln!(f, "  {index:>4}: {} {:>12} KiB  node {node}", row.range, row.size >> 10)?;
            }
        }
        Ok(())
    }
}
