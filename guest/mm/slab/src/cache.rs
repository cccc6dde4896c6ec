//! The published record of a cache, readable while its users run.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use core::sync::atomic::{Ordering, fence};

use bitflags::bitflags;
use memvisor_abi as abi;
use memvisor_abi::{CACHE_NAME_LEN, MAX_CACHES, SlabKind, cache_flags};
use mm_core::Order;

/// Number of a cache, below [`MAX_CACHES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct CacheId(u16);

impl CacheId {
    /// The cache with this number; `None` past the table.
    pub const fn new(raw: u64) -> Option<CacheId> {
        #[expect(clippy::cast_possible_truncation, reason = "checked")]
        if raw < MAX_CACHES as u64 { Some(CacheId(raw as u16)) } else { None }
    }

    /// As an index into the tables.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// As slabs name it in `mapping`.
    #[inline]
    pub const fn as_u64(self) -> u64 {
        self.0 as u64
    }

    /// As events name it.
    pub const fn as_u16(self) -> u16 {
        self.0
    }

    /// All numbers.
    pub fn all() -> impl Iterator<Item = CacheId> {
        #[expect(clippy::cast_possible_truncation, reason = "96")]
        (0..MAX_CACHES as u16).map(CacheId)
    }
}

bitflags! {
    /// `slab_flags_t`, with Linux's names and bits.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SlabFlags: u32 {
        /// Check the sanity of a debugged cache at every alloc and free (`F`).
        const CONSISTENCY_CHECKS = cache_flags::CONSISTENCY_CHECKS;
        /// Red zones around objects (`Z`).
        const RED_ZONE = cache_flags::RED_ZONE;
        /// Poison free objects (`P`).
        const POISON = cache_flags::POISON;
        /// A cache of the kmalloc family.
        const KMALLOC = cache_flags::KMALLOC;
        /// Objects start at a cache line, or at a fraction of one that holds them.
        const HWCACHE_ALIGN = cache_flags::HWCACHE_ALIGN;
        /// Slabs from ZONE_DMA.
        const CACHE_DMA = cache_flags::CACHE_DMA;
        /// Remember who allocated and who freed (`U`).
        const STORE_USER = cache_flags::STORE_USER;
        /// Objects that a shrinker can free.
        const RECLAIM_ACCOUNT = cache_flags::RECLAIM_ACCOUNT;
        /// The kernel cannot do without the cache.
        const PANIC = cache_flags::PANIC;
        /// A freed object stays one until a grace period has passed: readers without locks may look at it.
        const TYPESAFE_BY_RCU = cache_flags::TYPESAFE_BY_RCU;
        /// Never share the cache.
        const NO_MERGE = cache_flags::NO_MERGE;
        /// All of debugging.
        const DEBUG = Self::CONSISTENCY_CHECKS.bits() | Self::RED_ZONE.bits() | Self::POISON.bits() | Self::STORE_USER.bits();
        /// What two caches must share to be one (`SLAB_MERGE_SAME`).
        const MERGE_SAME = Self::RECLAIM_ACCOUNT.bits() | Self::CACHE_DMA.bits();
    }
}

macro_rules! cache {
    ($($field:ident),*) => {
        /// A cache's record: [`abi::Cache`] with fields that may be read while a creator writes another slot. Written under
        /// [`crate::Machine::with_caches`] before anybody has the number.
        #[derive(Debug, Default)]
        #[repr(C)]
        pub struct Cache {
            name: [AtomicU64; CACHE_NAME_LEN / 8],
            $($field: AtomicU32),*
        }

        const _: () = assert!(
            size_of::<Cache>() == size_of::<abi::Cache>() $(&& offset_of!(Cache, $field) == offset_of!(abi::Cache, $field))*
        );

        impl Cache {
            /// An unused slot.
            pub const fn new() -> Cache {
                Cache { name: [const { AtomicU64::new(0) }; CACHE_NAME_LEN / 8], $($field: AtomicU32::new(0)),* }
            }

            $(
                #[doc = concat!("See [`abi::Cache::", stringify!($field), "`].")]
                #[inline]
                pub fn $field(&self) -> u32 {
                    self.$field.load(Relaxed)
                }
            )*

            /// Writes the record; the slot counts as used last.
            pub(crate) fn store(&self, cache: &abi::Cache) {
                self.refcount.store(0, Relaxed);
                for (word, bytes) in self.name.iter().zip(cache.name.chunks_exact(8)) {
                    word.store(u64::from_le_bytes(bytes.try_into().unwrap_or_default()), Relaxed);
                }
                fence(Ordering::Release);
                $(if stringify!($field) != "refcount" { self.$field.store(cache.$field, Relaxed); })*
                self.refcount.store(cache.refcount, Ordering::Release);
            }

            /// A copy of the record.
            pub fn load(&self) -> abi::Cache {
                let mut cache = abi::Cache::default();
                for (word, bytes) in self.name.iter().zip(cache.name.chunks_exact_mut(8)) {
                    bytes.copy_from_slice(&word.load(Relaxed).to_le_bytes());
                }
                $(cache.$field = self.$field.load(Relaxed);)*
                cache
            }
        }
    };
}

cache!(
    refcount,
    allocator,
    flags,
    object_size,
    size,
    align,
    offset,
    inuse,
    red_left,
    track,
    order,
    min_order,
    objects,
    min_objects,
    min_partial,
    cpu_partial,
    cpu_partial_slabs,
    limit,
    batchcount,
    shared,
    colour,
    colour_off,
    index_array,
    ctor
);

impl Cache {
    /// Whether the slot is in use.
    pub fn is_used(&self) -> bool {
        self.refcount.load(Ordering::Acquire) != 0
    }

    /// The flags.
    pub fn slab_flags(&self) -> SlabFlags {
        SlabFlags::from_bits_retain(self.flags())
    }

    /// Who manages it; SLUB for an unused slot.
    #[inline]
    pub fn kind(&self) -> SlabKind {
        SlabKind::from_raw(self.allocator()).unwrap_or(SlabKind::Slub)
    }

    /// Whether the allocator checks every alloc and free (Linux: `kmem_cache_debug`).
    #[inline]
    pub fn is_debugged(&self) -> bool {
        self.slab_flags().intersects(SlabFlags::DEBUG)
    }

    pub(crate) fn slab_order(&self) -> Order {
        u8::try_from(self.order()).ok().and_then(Order::new).unwrap_or(Order::MAX)
    }

    pub(crate) fn slab_min_order(&self) -> Order {
        u8::try_from(self.min_order()).ok().and_then(Order::new).unwrap_or(Order::MAX)
    }

    /// One user more or less; the number that is left.
    pub(crate) fn add_user(&self) {
        self.refcount.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn drop_user(&self) -> u32 {
        self.refcount.fetch_sub(1, Ordering::AcqRel).saturating_sub(1)
    }

    pub(crate) fn set_object_size(&self, object_size: u32, inuse: u32) {
        self.object_size.store(object_size, Relaxed);
        self.inuse.store(inuse, Relaxed);
    }
}

/// A name in a record: text up to the first NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name([u8; CACHE_NAME_LEN]);

impl Name {
    /// `None` for a name that is empty, too long, or not printable ASCII without spaces.
    pub(crate) fn new(text: &str) -> Option<Name> {
        let bytes = text.as_bytes();
        let mut name = [0; CACHE_NAME_LEN];
        if bytes.is_empty() || bytes.len() >= CACHE_NAME_LEN || !bytes.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        name.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Name(name))
    }

    pub(crate) const fn from_raw(raw: [u8; CACHE_NAME_LEN]) -> Name {
        Name(raw)
    }

    pub(crate) const fn as_raw(self) -> [u8; CACHE_NAME_LEN] {
        self.0
    }

    pub(crate) fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(CACHE_NAME_LEN);
        self.0.get(..len).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("?")
    }
}
