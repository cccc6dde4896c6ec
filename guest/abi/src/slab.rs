//! Slab caches: what an outsider needs to find every slab, every free object and every in-use count.
//!
//! A slab is a block of frames whose first descriptor has kind [`crate::PageKind::Slab`]. There:
//!
//! | field | SLUB | SLAB | SLOB |
//! |---|---|---|---|
//! | `mapping` | number of the cache | number of the cache | [`SLOB_MAPPING`] |
//! | `index` | first free object, 0 if none | first object (colour included) | first free block, 0 if none |
//! | `mapcount` | [`SlabCounters`] | [`SlabCounters`] | free units of 8 bytes |
//! | `private` | owner and what others freed: [`SLAB_OWNER_SHIFT`] | index array of a slab whose cache has `index_array` 0 | 0 |
//! | `next`, `prev` | list links | list links | list links |
//!
//! The other frames have kind `Tail` and lead to the head.
//!
//! SLUB links free objects through the word at [`Cache::offset`] of each; 0 ends the list. SLAB has an array of
//! `u8` object numbers, of which those from place `inuse` on are free. SLOB's free blocks begin with a word:
//! units in the low half, and the offset of the next free block from the slab's start, in units, in the high half; a next
//! offset that is not above the block's own ends the list.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Caches that can exist at once.
pub const MAX_CACHES: usize = 96;
/// Objects that a CPU's array can hold (Linux's SLAB: `limit` 120 for small objects).
pub const CPU_ARRAY: usize = 120;
/// Bytes of a name, the terminating 0 included.
pub const CACHE_NAME_LEN: usize = 32;
/// `mapping` of a SLOB page, which belongs to no cache.
pub const SLOB_MAPPING: u64 = 0x534c_4f42;
/// `mapping` of the first frame of a kmalloc allocation too large for a cache.
pub const LARGE_MAPPING: u64 = 0x4c41_5247;
/// First bit of `private` of a SLUB slab that holds its owner: the number of a CPU plus 1, which makes it frozen, [`SLAB_FULL`], or 0 of
/// a slab on a node's list. The bits below are the address of the first object that other CPUs freed, linked like the slab's own list;
/// these objects count as in use.
pub const SLAB_OWNER_SHIFT: u32 = 52;
/// The owner of a slab that is full and nobody's: it becomes that of the CPU which frees an object of it first.
pub const SLAB_FULL: u64 = 0xfff;
/// Entries that follow the two words of a row of alien objects (Linux: `alien->limit` 12).
pub const ALIEN_LIMIT: u32 = 12;
/// Words of a row of alien objects: entries in use, limit, entries.
pub const ALIEN_ROW: u64 = 16;

/// Values of [`Cache::allocator`]: who manages the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SlabKind {
    /// Per-CPU slabs with free lists inside the objects.
    Slub = 1,
    /// Full, partial and free slabs with arrays of free objects a CPU.
    Slab = 2,
    /// First fit over lists of pages.
    Slob = 3,
}

impl SlabKind {
    /// The allocator of a raw number, or `None`.
    pub const fn from_raw(raw: u32) -> Option<SlabKind> {
        Some(match raw {
            1 => SlabKind::Slub,
            2 => SlabKind::Slab,
            3 => SlabKind::Slob,
            _ => return None,
        })
    }

    /// Its name on the command line and in views.
    pub const fn name(self) -> &'static str {
        match self {
            SlabKind::Slub => "slub",
            SlabKind::Slab => "slab",
            SlabKind::Slob => "slob",
        }
    }
}

/// A cache of objects of one size (Linux: `struct kmem_cache`). Bytes unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cache {
    /// NUL-padded.
    pub name: [u8; CACHE_NAME_LEN],
    /// Users of the cache: 1, and one more for each cache merged into it; 0 marks an unused slot.
    pub refcount: u32,
    /// See [`SlabKind`].
    pub allocator: u32,
    /// `SLAB_*` bits, with Linux's numbers.
    pub flags: u32,
    /// Bytes that the user may use.
    pub object_size: u32,
    /// From one object to the next.
    pub size: u32,
    /// Alignment of objects.
    pub align: u32,
    /// From an object's start to its free-list word (SLUB).
    pub offset: u32,
    /// From an object's start to the end of its payload and red zone; tracks follow (SLUB).
    pub inuse: u32,
    /// Red zone before the object (SLUB).
    pub red_left: u32,
    /// From an object's start to its two records of alloc and free; 0 without (SLUB).
    pub track: u32,
    /// Order of its slabs.
    pub order: u32,
    /// Order that still holds an object, for when memory is short.
    pub min_order: u32,
    /// Objects of a slab of [`Self::order`].
    pub objects: u32,
    /// Objects of a slab of [`Self::min_order`].
    pub min_objects: u32,
    /// Slabs that stay on a node's partial list when empty.
    pub min_partial: u32,
    /// Objects that a CPU's partial slabs should offer at most (SLUB).
    pub cpu_partial: u32,
    /// Slabs that a CPU keeps on its partial list at most (SLUB).
    pub cpu_partial_slabs: u32,
    /// Objects that a CPU's array holds at most.
    pub limit: u32,
    /// Objects that move in and out of the array at a time.
    pub batchcount: u32,
    /// Batches that the node's shared array holds; 0 without one (SLAB).
    pub shared: u32,
    /// Different colours (SLAB).
    pub colour: u32,
    /// Bytes between colours (SLAB).
    pub colour_off: u32,
    /// Bytes of the index array at the slab's end; 0 if it is in `Page::private` (SLAB).
    pub index_array: u32,
    /// Number of the constructor; 0 without.
    pub ctor: u32,
}
const _: () = assert!(size_of::<Cache>() == 128);

/// A CPU's part of a cache, one of [`MAX_CACHES`] in the CPU's table (Linux: `struct kmem_cache_cpu`, `struct array_cache`).
/// It says nothing while [`Self::span_words`] is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CacheCpu {
    /// First free object of [`Self::slab`] that this CPU holds, or 0 (SLUB).
    pub freelist: u64,
    /// Head frame of the CPU's slab, or [`crate::PFN_NONE`] (SLUB).
    pub slab: u64,
    /// Head frame of the first slab of the CPU's partial list, linked by `next` and `prev` (SLUB).
    pub partial: u64,
    /// Copy of [`Cache::offset`]; `u32::MAX` in SLAB.
    pub offset: u32,
    /// Slabs on the partial list.
    pub partial_slabs: u32,
    /// Objects in [`Self::array`]. Their slabs count them as in use.
    pub avail: u32,
    /// Objects that the array may hold; 0 before the first use.
    pub limit: u32,
    /// Node of this CPU.
    pub node: u32,
    /// Words that the objects of a slab of [`Cache::order`] take; 0 before the first use.
    pub span_words: u32,
    /// 2^64 / [`Cache::size`], rounded up: a multiple of the size times this is below this.
    pub divisor: u64,
    /// Times that the slow path had to help.
    pub refills: u64,
    /// Head frame of the first of the CPU's slabs without a used object, linked as [`Self::partial`] (SLUB).
    pub empty: u64,
    /// Slabs on the empty list.
    pub empty_slabs: u32,
    /// This CPU's number plus 1, as slabs name their owner; `u32::MAX` in SLAB.
    pub owner: u32,
    /// Slabs on the partial list above which all go to their nodes (SLUB).
    pub partial_max: u32,
    /// Slabs on the empty list above which all are given back (SLUB).
    pub empty_max: u32,
    /// Always 0; the array starts a cache line.
    pub reserved: [u32; 10],
    /// Objects ready for reuse, last freed last.
    pub array: [u64; CPU_ARRAY],
}
const _: () = assert!(size_of::<CacheCpu>() == 128 + 8 * CPU_ARRAY);

impl CacheCpu {
    /// A CPU that has nothing of the cache.
    pub const EMPTY: CacheCpu = CacheCpu {
        freelist: 0,
        slab: crate::PFN_NONE,
        partial: crate::PFN_NONE,
        offset: 0,
        partial_slabs: 0,
        avail: 0,
        limit: 0,
        node: 0,
        span_words: 0,
        divisor: 0,
        refills: 0,
        empty: crate::PFN_NONE,
        empty_slabs: 0,
        owner: 0,
        partial_max: 0,
        empty_max: 0,
        reserved: [0; 10],
        array: [0; CPU_ARRAY],
    };
}

/// Slabs linked through `next` and `prev` of their heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SlabList {
    /// Head frame of the first slab, or [`crate::PFN_NONE`].
    pub head: u64,
    /// Head frame of the last slab, or [`crate::PFN_NONE`].
    pub tail: u64,
    /// Slabs on the list.
    pub nr: u64,
}

impl SlabList {
    /// A list without slabs.
    pub const EMPTY: SlabList = SlabList { head: crate::PFN_NONE, tail: crate::PFN_NONE, nr: 0 };
}

/// Indices into [`CacheNode::lists`]: SLUB has partial and, with debugging, full slabs; SLAB all three. SLOB's pages are
/// on the lists of cache 0: small objects on list 0, medium on 1, large on 2; full pages on none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SlabListKind {
    /// Slabs with free and used objects; in SLUB also empty ones.
    Partial = 0,
    /// Slabs without a free object.
    Full = 1,
    /// Slabs without a used object.
    Free = 2,
}

/// A node's part of a cache, indexed by node * [`MAX_CACHES`] + cache (Linux: `struct kmem_cache_node`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CacheNode {
    /// Indexed by [`SlabListKind`].
    pub lists: [SlabList; 3],
    /// Slabs of the cache on this node, on a list or not.
    pub nr_slabs: u64,
    /// Objects of those slabs, used and free.
    pub total_objects: u64,
    /// Free objects of slabs on the lists (SLAB); free units of all pages (SLOB, cache 0).
    pub free_objects: u64,
    /// Objects that were handed out and did not come back (SLOB).
    pub live: u64,
    /// Free objects above which empty slabs are given back (SLAB).
    pub free_limit: u32,
    /// The next slab's colour (SLAB).
    pub colour_next: u32,
    /// Array of free objects shared by the node's CPUs: its address, 0 without (SLAB).
    pub shared: u64,
    /// Objects in the shared array.
    pub shared_avail: u32,
    /// Objects that the shared array may hold.
    pub shared_limit: u32,
    /// Rows of [`ALIEN_ROW`] words, one a node, for objects of other nodes freed here; 0 without (SLAB).
    pub alien: u64,
    /// Rows of [`Self::alien`].
    pub alien_rows: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<CacheNode>() == 144);

impl CacheNode {
    /// A node that has nothing of the cache.
    pub const EMPTY: CacheNode = CacheNode {
        lists: [SlabList::EMPTY; 3],
        nr_slabs: 0,
        total_objects: 0,
        free_objects: 0,
        live: 0,
        free_limit: 0,
        colour_next: 0,
        shared: 0,
        shared_avail: 0,
        shared_limit: 0,
        alien: 0,
        alien_rows: 0,
        reserved: 0,
    };
}

/// What `mapcount` of a slab's head holds (Linux: `struct slab` `inuse`, `objects`, `frozen`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabCounters {
    /// Objects that are not free in the slab: used, on a CPU's free list, or in an array.
    pub inuse: u32,
    /// Objects of the slab.
    pub objects: u32,
    /// Whether a CPU owns the slab, as its current or on its partial list.
    pub frozen: bool,
}

impl SlabCounters {
    /// From `mapcount`.
    #[expect(clippy::cast_sign_loss, reason = "the field holds bits")]
    pub const fn from_raw(raw: i32) -> SlabCounters {
        let raw = raw as u32;
        SlabCounters { inuse: raw & 0xffff, objects: raw >> 16 & 0x7fff, frozen: raw >> 31 == 1 }
    }

    /// For `mapcount`; the counts are below 2^15.
    #[expect(clippy::cast_possible_wrap, reason = "the field holds bits")]
    pub const fn as_raw(self) -> i32 {
        (self.inuse & 0xffff | (self.objects & 0x7fff) << 16 | (self.frozen as u32) << 31) as i32
    }
}

/// `SLAB_*` bits of [`Cache::flags`] (Linux 6.1: include/linux/slab.h).
pub mod cache_flags {
    /// `SLAB_CONSISTENCY_CHECKS` (F).
    pub const CONSISTENCY_CHECKS: u32 = 0x100;
    /// `SLAB_RED_ZONE` (Z).
    pub const RED_ZONE: u32 = 0x400;
    /// `SLAB_POISON` (P).
    pub const POISON: u32 = 0x800;
    /// `SLAB_KMALLOC`: a cache of the kmalloc family.
    pub const KMALLOC: u32 = 0x1000;
    /// `SLAB_HWCACHE_ALIGN`.
    pub const HWCACHE_ALIGN: u32 = 0x2000;
    /// `SLAB_CACHE_DMA`.
    pub const CACHE_DMA: u32 = 0x4000;
    /// `SLAB_STORE_USER` (U).
    pub const STORE_USER: u32 = 0x1_0000;
    /// `SLAB_RECLAIM_ACCOUNT`.
    pub const RECLAIM_ACCOUNT: u32 = 0x2_0000;
    /// `SLAB_PANIC`: the kernel cannot do without the cache.
    pub const PANIC: u32 = 0x4_0000;
    /// `SLAB_TYPESAFE_BY_RCU`: readers without locks may look at freed objects.
    pub const TYPESAFE_BY_RCU: u32 = 0x8_0000;
    /// `SLAB_NO_MERGE`.
    pub const NO_MERGE: u32 = 0x100_0000;
}

/// Bytes that debugging writes (Linux: include/linux/poison.h).
pub mod poison {
    /// Red zone of a free object.
    pub const RED_INACTIVE: u8 = 0xbb;
    /// Red zone of a used object.
    pub const RED_ACTIVE: u8 = 0xcc;
    /// A used object that was not written yet.
    pub const INUSE: u8 = 0x5a;
    /// A free object.
    pub const FREE: u8 = 0x6b;
    /// Last byte of a poisoned object.
    pub const END: u8 = 0xa5;
}

/// A record of who allocated or freed an object (Linux: `struct track`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Track {
    /// Return addresses, innermost first; 0 ends them.
    pub stack: [u64; 8],
    /// Process id.
    pub pid: u32,
    /// CPU.
    pub cpu: u32,
    /// Time in the machine's units; 0 for a record that was never written.
    pub when: u64,
}
const _: () = assert!(size_of::<Track>() == 80);
