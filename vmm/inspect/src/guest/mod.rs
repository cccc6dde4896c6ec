//! A memvisor guest, read through the tables that it publishes.
//!
//! A [`Guest`] is a reader of a machine that may be running, wrong or hostile. So:
//! G1  every address is checked against RAM before it is read;
//! G2  every count has a maximum that follows from the machine, and nothing is allocated beyond it;
//! G3  every list has a bound and cycle detection;
//! G4  what is returned is owned: later changes in the guest do not reach it.
//!
//! The root descriptor is copied at attach; [`Guest::refresh`] copies it again. Tables are read
//! when they are asked for. What several reads put together may be torn while the guest runs: see
//! [`consistent`].

mod cma;
mod consistent;
mod entries;
mod error;
mod free_list;
mod log;
mod lru;
mod node_stats;
mod pages;
mod pcp;
mod rest;
mod rmap;
mod shadows;
mod slab;
mod spaces;
mod swap;
mod swiotlb;
mod tables;
mod vmalloc;
mod zswap;

use std::mem::size_of;
use std::sync::OnceLock;

use memvisor_abi as abi;
use memvisor_abi::{Counters, PAGE_SIZE, Root, Section};
use zerocopy::FromZeros;

use crate::{Levels, MemorySource, Walker};

pub use consistent::{Reading, consistent};
pub use entries::{EntryKind, MapCounts, UserEntries, UserEntry};
pub use error::{AttachError, GuestError, TableName};
pub use free_list::{FreeList, ListProblem};
pub use log::{LogLine, LogProblem, LogWalk};
pub use lru::{LruGenWalk, LruWalk};
pub use node_stats::{DERIVED as DERIVED_STATS, ZoneCounts};
pub use pages::section_start_pfn;
pub use pcp::PcpBlocks;
pub use rest::{Busy, cpu_rests};
pub use rmap::{RmapIndex, RmapPlace, address_of};
pub use shadows::NodeAt;
pub use slab::{Keeper, Slab, SlabWalk, Slabs, cache_name};
pub use spaces::{AddressSpace, CachedPage, LinkProblem, Linked, MmSpace, TreeEntry, VmaAt};
pub use swap::{ShmemSlot, SlotWord, slot_of_value};
pub use vmalloc::{KmapWindowSlots, VmAreaAt};
pub use zswap::{ZbudFrame, ZswapEntryAt, ZswapLeaf, ZswapWalk};

#[cfg(test)]
mod tests;

/// A guest's published state. See the module's text for what it promises.
#[derive(Debug)]
pub struct Guest<'a, S: MemorySource + ?Sized> {
    source: &'a S,
    gpa: u64,
    root: Root,
    levels: Levels,
    sections: OnceLock<Vec<Section>>,
}

impl<'a, S: MemorySource + ?Sized> Guest<'a, S> {
    /// Accepts the root descriptor at `root_gpa` if it is one that this build understands.
    ///
    /// # Errors
    /// [`AttachError`] says what is there instead.
    pub fn attach(source: &'a S, root_gpa: u64) -> Result<Self, AttachError> {
        let (root, levels) = read_root(source, root_gpa)?;
        Ok(Guest { source, gpa: root_gpa, root, levels, sections: OnceLock::new() })
    }

    /// Copies the root descriptor again: a booting guest publishes table after table.
    ///
    /// # Errors
    /// As [`Guest::attach`]; the guest is then as before.
    pub fn refresh(&mut self) -> Result<(), AttachError> {
        (self.root, self.levels) = read_root(self.source, self.gpa)?;
        self.sections = OnceLock::new();
        Ok(())
    }

    /// Where the memory comes from.
    pub const fn source(&self) -> &'a S {
        self.source
    }

    /// Guest-physical address of the root descriptor.
    pub const fn root_gpa(&self) -> u64 {
        self.gpa
    }

    /// The root descriptor as of attach or [`Guest::refresh`].
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// Paging levels that the guest says it uses.
    pub const fn levels(&self) -> Levels {
        self.levels
    }

    /// A walker of the kernel's own page tables.
    pub const fn kernel_walker(&self) -> Walker {
        Walker::new(self.root.pgd_pfn << abi::PAGE_SHIFT, self.levels).with_phys_bits(self.root.phys_bits)
    }

    /// The event counters as they are now.
    ///
    /// # Errors
    /// [`GuestError::Read`].
    pub fn counters(&self) -> Result<Counters, GuestError> {
        let mut counters = Counters::default();
        let offset = std::mem::offset_of!(Root, counters) as u64;
        self.source.read(self.gpa + offset, zerocopy::IntoBytes::as_mut_bytes(&mut counters))?;
        Ok(counters)
    }
}

/// Pages that a scan looks at before it asks for the next data again: asking is a system call, and
/// looking at a hole of a memory file may allocate its frame.
const SCAN_PAGES: u32 = 64;

/// Scans RAM for a root descriptor; the first acceptable one. Copies that the guest may hold (its
/// image in an initramfs, an earlier kernel) are told apart by [`Root::self_gpa`].
pub fn find_root<S: MemorySource + ?Sized>(source: &S) -> Option<u64> {
    let mut at = source.next_data(0)?;
    loop {
        let mut gpa = at.checked_next_multiple_of(Root::ALIGN)?;
        for _ in 0..SCAN_PAGES {
            let mut magic = [0; Root::MAGIC.len()];
            if source.read(gpa, &mut magic).is_ok() && magic == Root::MAGIC && read_root(source, gpa).is_ok()
            {
                return Some(gpa);
            }
            gpa = gpa.checked_add(Root::ALIGN)?;
        }
        at = source.next_data(gpa)?;
    }
}

fn read_root<S: MemorySource + ?Sized>(source: &S, gpa: u64) -> Result<(Root, Levels), AttachError> {
    if !gpa.is_multiple_of(Root::ALIGN) || !source.is_ram(gpa, PAGE_SIZE) {
        return Err(AttachError::Address { gpa });
    }
    let mut root = Root::new_zeroed();
    source
        .read(gpa, zerocopy::IntoBytes::as_mut_bytes(&mut root))
        .map_err(|_| AttachError::Address { gpa })?;
    if root.magic != Root::MAGIC {
        return Err(AttachError::Magic { gpa });
    }
    if root.version != Root::VERSION {
        return Err(AttachError::Version { gpa, found: root.version, known: Root::VERSION });
    }
    if u32::try_from(size_of::<Root>()) != Ok(root.size) || root.layout_hash != abi::LAYOUT_HASH {
        return Err(AttachError::Layout {
            gpa,
            size: root.size,
            hash: root.layout_hash,
            known_size: u32::try_from(size_of::<Root>()).unwrap_or(u32::MAX),
            known_hash: abi::LAYOUT_HASH,
        });
    }
    if root.self_gpa != gpa {
        return Err(AttachError::Copy { gpa, self_gpa: root.self_gpa });
    }
    let field = |field, value| AttachError::Field { gpa, field, value };
    let levels = Levels::new(root.levels).ok_or(field("levels", root.levels.into()))?;
    if !(32..=abi::MAX_PHYSMEM_BITS).contains(&root.phys_bits) {
        return Err(field("phys_bits", root.phys_bits.into()));
    }
    if root.pgd_pfn >> (abi::MAX_PHYSMEM_BITS - abi::PAGE_SHIFT) != 0 {
        return Err(field("pgd_pfn", root.pgd_pfn));
    }
    if root.kernel_gpa.checked_add(root.kernel_len).is_none() {
        return Err(field("kernel_len", root.kernel_len));
    }
    if root.text_len > root.rodata_end || root.rodata_end > root.kernel_len {
        return Err(field("text_len or rodata_end", root.text_len.max(root.rodata_end)));
    }
    Ok((root, levels))
}
