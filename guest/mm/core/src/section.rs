//! Sections and pageblocks as the memory manager holds them.

use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use memvisor_abi as abi;
use memvisor_abi::{Migratetype, PAGEBLOCK_SKIP, PAGEBLOCK_TYPE_MASK, PAGEBLOCKS_PER_SECTION, SectionState};

use crate::Pfn;

/// A memory section: [`abi::Section`] with fields that change through a shared reference.
#[derive(Debug)]
#[repr(C)]
pub struct Section {
    /// See [`abi::Section::number`].
    pub number: u64,
    /// See [`abi::Section::memmap_pfn`].
    pub memmap_pfn: u64,
    state: AtomicU32,
    reserved: u32,
    pageblocks: [Pageblock; PAGEBLOCKS_PER_SECTION],
}

const _: () = assert!(
    size_of::<Section>() == size_of::<abi::Section>()
        && align_of::<Section>() == align_of::<abi::Section>()
        && offset_of!(Section, state) == offset_of!(abi::Section, state)
        && offset_of!(Section, pageblocks) == offset_of!(abi::Section, pageblocks)
);

impl Section {
    /// See [`abi::Section::deferred`].
    pub const fn deferred(number: u64, memmap_pfn: u64) -> Section {
        Section {
            number,
            memmap_pfn,
            state: AtomicU32::new(SectionState::Deferred as u32),
            reserved: 0,
            pageblocks: [const { Pageblock::new(Migratetype::Movable) }; PAGEBLOCKS_PER_SECTION],
        }
    }

    /// Whether the descriptors are initialised.
    pub fn is_online(&self) -> bool {
        self.state.load(core::sync::atomic::Ordering::Acquire) == SectionState::Online as u32
    }

    /// Says that the descriptors are initialised, after they were written.
    pub fn set_online(&self) {
        self.state.store(SectionState::Online as u32, core::sync::atomic::Ordering::Release);
    }

    /// The pageblock of a frame of this section.
    #[inline]
    pub fn pageblock(&self, pfn: Pfn) -> &Pageblock {
        let index = (pfn.as_u64() >> abi::PAGEBLOCK_ORDER) as usize % PAGEBLOCKS_PER_SECTION;
        &self.pageblocks[index]
    }
}

/// What is known of a pageblock, 512 frames (Linux: `pageblock_flags`). The zone's lock guards it.
#[derive(Debug)]
#[repr(transparent)]
pub struct Pageblock(AtomicU8);

impl Pageblock {
    /// A pageblock of that type.
    pub const fn new(migratetype: Migratetype) -> Pageblock {
        Pageblock(AtomicU8::new(migratetype as u8))
    }

    /// The type; an undefined number reads as [`Migratetype::Unmovable`] (Linux:
    /// `get_pageblock_migratetype`).
    #[inline]
    pub fn migratetype(&self) -> Migratetype {
        Migratetype::from_raw(self.0.load(Relaxed) & PAGEBLOCK_TYPE_MASK).unwrap_or(Migratetype::Unmovable)
    }

    /// Sets the type; the hint stays (Linux: `set_pageblock_migratetype`).
    pub fn set_migratetype(&self, migratetype: Migratetype) {
        self.0.store(self.0.load(Relaxed) & !PAGEBLOCK_TYPE_MASK | migratetype as u8, Relaxed);
    }

    /// Writes the whole byte, whatever it means: for seeded faults.
    pub fn set_raw(&self, raw: u8) {
        self.0.store(raw, Relaxed);
    }

    /// Whether compaction found nothing here (Linux: `get_pageblock_skip`).
    pub fn is_skipped(&self) -> bool {
        self.0.load(Relaxed) & PAGEBLOCK_SKIP != 0
    }

    /// Sets or clears the hint (Linux: `set_pageblock_skip`, `clear_pageblock_skip`).
    pub fn set_skipped(&self, skip: bool) {
        let rest = self.0.load(Relaxed) & !PAGEBLOCK_SKIP;
        self.0.store(if skip { rest | PAGEBLOCK_SKIP } else { rest }, Relaxed);
    }
}
