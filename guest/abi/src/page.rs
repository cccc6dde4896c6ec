//! `struct page`: one descriptor a frame.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Descriptor of a page frame, 64 bytes (Linux: `struct page`).
///
/// The descriptors of a section are contiguous in physical memory: see [`crate::Section`]. A
/// descriptor of a section that is [`crate::SectionState::Deferred`] is all zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Page {
    /// [`PageFlags`] in the low bits, zone in bits 51..54, node in bits 54..64
    /// (Linux: `page->flags` with `ZONES_PGSHIFT`, `NODES_PGSHIFT`).
    pub flags: u64,
    /// Next frame of the list this page is on, or [`crate::PFN_NONE`]; without meaning on no list. The
    /// head's frame number while [`Page::COMPOUND_TAIL`] is set (Linux: `page->compound_head`).
    pub next: u64,
    /// Previous frame of the list this page is on, or [`crate::PFN_NONE`].
    pub prev: u64,
    /// Owner of the contents (Linux: `page->mapping`). By kind: of a user page the physical address of its anon_vma plus
    /// [`Page::MAPPING_ANON`], or of its mapping; of a slab its cache's number; of a movable page ([`PageFlags::MOVABLE`])
    /// its owner's; behind a vmalloc area the area's address. Else 0.
    pub mapping: u64,
    /// Page offset inside the owner: of an anonymous page the virtual page number where its VMA was first mapped, which
    /// mremap does not change (Linux: `page->index`). A VMA maps a user page, if it does, at
    /// `start + (index - pgoff) * 4096`.
    pub index: u64,
    /// For the owner's use (Linux: `page->private`).
    pub private: u64,
    /// Page-table entries of user space that map this frame, minus one; entries marked [`crate::PTE_PROTNONE`] count, those
    /// marked [`crate::PTE_MIGRATION`] do not (Linux: `page->_mapcount`).
    pub mapcount: i32,
    /// References; 0 when free. Of a user page: one for each entry that `mapcount` counts, and one if its mapping holds it
    /// ([`crate::Mapping::HOLDS_PAGES`]) (Linux: `page->_refcount`).
    pub refcount: i32,
    /// See [`PageKind`]: who owns the frame, as the guest believes.
    pub kind: u8,
    /// Order of the allocated or free block that starts here.
    pub order: u8,
    /// See [`crate::Migratetype`]: the list that a free block is on, or was taken from (Linux:
    /// `get_pcppage_migratetype`).
    pub migratetype: u8,
    /// [`Page::KNOWN_ZERO`] and [`Page::COMPOUND_TAIL`].
    pub bits: u8,
    /// Always 0.
    pub reserved: [u8; 4],
}
const _: () = assert!(
    size_of::<Page>() == 64
        && core::mem::offset_of!(Page, private) == 40
        && core::mem::offset_of!(Page, refcount) == 52
        && core::mem::offset_of!(Page, kind) == 56
);

impl Page {
    /// First bit of the zone in `flags`.
    pub const ZONE_SHIFT: u32 = 51;
    /// First bit of the node in `flags`.
    pub const NODE_SHIFT: u32 = 54;
    /// In `mapping`: the page is anonymous, and the other bits name its anon_vma (Linux: `PAGE_MAPPING_ANON`).
    pub const MAPPING_ANON: u64 = 1;
    /// In `bits` of the head of a free block: every byte of the block is zero, because nobody wrote to it
    /// since the machine was made.
    pub const KNOWN_ZERO: u8 = 1;
    /// In `bits`: a frame of a compound page that is not its head (Linux: `PageTail`).
    pub const COMPOUND_TAIL: u8 = 2;

    /// The zone bits (a [`crate::ZoneKind`] number).
    pub const fn zone(&self) -> u32 {
        ((self.flags >> Page::ZONE_SHIFT) & 0x7) as u32
    }

    /// The node bits.
    pub const fn node(&self) -> u32 {
        (self.flags >> Page::NODE_SHIFT) as u32
    }

    /// The flag bits.
    pub const fn page_flags(&self) -> PageFlags {
        PageFlags::from_bits_retain(self.flags & ((1 << Page::ZONE_SHIFT) - 1))
    }
}

bitflags! {
    /// Flag bits of [`Page::flags`] (Linux: `enum pageflags`; same names, own numbers).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageFlags: u64 {
        /// `PG_locked`.
        const LOCKED = 1 << 0;
        /// `PG_referenced`.
        const REFERENCED = 1 << 1;
        /// `PG_uptodate`.
        const UPTODATE = 1 << 2;
        /// `PG_dirty`.
        const DIRTY = 1 << 3;
        /// `PG_lru`.
        const LRU = 1 << 4;
        /// A top-level page table with a second one for ring 3, whose frame `private` has (Linux: the page behind it).
        const PGD_PAIR = 1 << 5;
        /// `PG_head`: first page of a compound page.
        const HEAD = 1 << 6;
        /// The owner registered how to move the contents elsewhere (Linux: `__PageMovable`).
        const MOVABLE = 1 << 7;
        /// Taken off the owner's lists for a migration (Linux: `PG_isolated`).
        const ISOLATED = 1 << 8;
        /// Allocated ahead and not written yet: a hole for whoever looks for data (Linux: a page of shmem that is not
        /// `PG_uptodate`).
        const UNWRITTEN = 1 << 9;
        /// `PG_reserved`: never given to the buddy allocator.
        const RESERVED = 1 << 10;
        /// `PG_active`: on an active list, or to be put on one.
        const ACTIVE = 1 << 11;
        /// `PG_unevictable`: on the list of what reclaim leaves alone, or to be put on it.
        const UNEVICTABLE = 1 << 12;
        /// `PG_swapbacked`: anonymous or shared memory, which goes to swap and not to a file.
        const SWAPBACKED = 1 << 13;
        /// `PG_swapcache`: `private` names its slot of a swap area.
        const SWAPCACHE = 1 << 14;
        /// `PG_writeback`: being written to its device.
        const WRITEBACK = 1 << 15;
        /// `PG_reclaim`: to be freed once it is written.
        const RECLAIM = 1 << 16;
        /// `PG_workingset`: was in use when it was deactivated or evicted.
        const WORKINGSET = 1 << 17;
        /// In a CPU's batch of pages to be put on an LRU list (not in Linux, where the batch holds a reference).
        const LRU_ADD = 1 << 18;
        /// Place of the generation whose list the page is on, plus one (Linux: `LRU_GEN_MASK`).
        const LRU_GEN = 7 << 19;
        /// Uses beyond those that REFERENCED and WORKINGSET tell (Linux: `LRU_REFS_MASK`).
        const LRU_REFS = 3 << 22;
        const _ = !0;
    }
}

/// Values of [`Page::kind`] (Linux spreads this over flags and `page_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageKind {
    /// Descriptor not initialised, or a frame in a hole.
    None = 0,
    /// Head of a free block on a free list (Linux: `PageBuddy`).
    Buddy = 1,
    /// Frame of a free or allocated block that is not its head: the head speaks for it.
    Tail = 2,
    /// Reserved in memblock, without a more exact owner.
    Reserved = 3,
    /// Kernel image.
    Kernel = 4,
    /// Holds page descriptors.
    Memmap = 5,
    /// A page table (Linux: `PageTable`).
    Table = 6,
    /// A per-CPU area.
    PerCpu = 7,
    /// Of user address spaces: anonymous, or of a mapping.
    User = 8,
    /// Allocated by the kernel for anything else.
    Allocated = 9,
    /// Head of a free block on a per-CPU list.
    Pcp = 10,
    /// Head of a slab (Linux: `PageSlab`).
    Slab = 11,
    /// Behind a vmalloc area.
    Vmalloc = 12,
    /// Part of a kernel stack.
    KernelStack = 13,
    /// Of zswap: compressed pages, or where they are.
    Zswap = 14,
}

impl PageKind {
    /// The kind of a raw number, or `None`.
    pub const fn from_raw(raw: u8) -> Option<PageKind> {
        Some(match raw {
            0 => PageKind::None,
            1 => PageKind::Buddy,
            2 => PageKind::Tail,
            3 => PageKind::Reserved,
            4 => PageKind::Kernel,
            5 => PageKind::Memmap,
            6 => PageKind::Table,
            7 => PageKind::PerCpu,
            8 => PageKind::User,
            9 => PageKind::Allocated,
            10 => PageKind::Pcp,
            11 => PageKind::Slab,
            12 => PageKind::Vmalloc,
            13 => PageKind::KernelStack,
            14 => PageKind::Zswap,
            _ => return None,
        })
    }

    /// Name used by every view.
    pub const fn name(self) -> &'static str {
        match self {
            PageKind::None => "none",
            PageKind::Buddy => "buddy",
            PageKind::Tail => "tail",
            PageKind::Reserved => "reserved",
            PageKind::Kernel => "kernel image",
            PageKind::Memmap => "memmap",
            PageKind::Table => "page table",
            PageKind::PerCpu => "per-CPU",
            PageKind::User => "user",
            PageKind::Allocated => "allocated",
            PageKind::Pcp => "per-CPU list",
            PageKind::Slab => "slab",
            PageKind::Vmalloc => "vmalloc",
            PageKind::KernelStack => "kernel stack",
            PageKind::Zswap => "zswap",
        }
    }
}
