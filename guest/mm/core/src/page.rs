//! `struct page` as the memory manager holds it.

use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{
    AtomicI32, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use memvisor_abi as abi;
use memvisor_abi::{Migratetype, PageFlags, PageKind, ZoneKind};

use crate::{Order, PageState, Pfn};

/// Descriptor of a frame: [`abi::Page`] with fields that may be written through a shared
/// reference. The lock of the list or owner that a field belongs to guards it, so relaxed order
/// is enough.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Page {
    flags: AtomicU64,
    next: AtomicU64,
    prev: AtomicU64,
    mapping: AtomicU64,
    index: AtomicU64,
    private: AtomicU64,
    mapcount: AtomicI32,
    refcount: AtomicI32,
    state: AtomicU32,
    reserved: [u8; 4],
}

const _: () = assert!(
    size_of::<Page>() == size_of::<abi::Page>()
        && align_of::<Page>() == align_of::<abi::Page>()
        && offset_of!(Page, flags) == offset_of!(abi::Page, flags)
        && offset_of!(Page, next) == offset_of!(abi::Page, next)
        && offset_of!(Page, prev) == offset_of!(abi::Page, prev)
        && offset_of!(Page, mapping) == offset_of!(abi::Page, mapping)
        && offset_of!(Page, index) == offset_of!(abi::Page, index)
        && offset_of!(Page, private) == offset_of!(abi::Page, private)
        && offset_of!(Page, mapcount) == offset_of!(abi::Page, mapcount)
        && offset_of!(Page, refcount) == offset_of!(abi::Page, refcount)
        && offset_of!(Page, state) == offset_of!(abi::Page, kind)
        && offset_of!(abi::Page, order) == offset_of!(abi::Page, kind) + 1
        && offset_of!(abi::Page, migratetype) == offset_of!(abi::Page, kind) + 2
        && offset_of!(abi::Page, bits) == offset_of!(abi::Page, kind) + 3
        && cfg!(target_endian = "little")
);

macro_rules! field {
    ($(#[$doc:meta])* $get:ident, $set:ident, $ty:ty) => {
        $(#[$doc])*
        #[inline]
        pub fn $get(&self) -> $ty {
            self.$get.load(Relaxed)
        }

        #[doc = concat!("Sets [`Page::", stringify!($get), "`].")]
        #[inline]
        pub fn $set(&self, value: $ty) {
            self.$get.store(value, Relaxed);
        }
    };
}

impl Page {
    /// Writes a fresh descriptor over an all-zero one: no references, no mapping, on no list
    /// (Linux: `__init_single_page`). `node` is below `MAX_NUMNODES`. A kind other than `None` and
    /// `Tail` makes the frame reserved, with one reference.
    pub fn init(&self, node: u32, zone: ZoneKind, kind: PageKind) {
        Page::init_all(core::slice::from_ref(self), node, zone, kind);
    }

    /// [`Page::init`] for a run of descriptors; six stores each, everything else outside the loop.
    pub fn init_all(pages: &[Page], node: u32, zone: ZoneKind, kind: PageKind) {
        let reserved = kind != PageKind::None && kind != PageKind::Tail;
        let flags = if reserved { PageFlags::RESERVED } else { PageFlags::empty() };
        let flags = links(node, zone) | flags.bits();
        let refcount = i32::from(reserved);
        for page in pages {
            page.flags.store(flags, Relaxed);
            page.next.store(abi::PFN_NONE, Relaxed);
            page.prev.store(abi::PFN_NONE, Relaxed);
            page.mapcount.store(-1, Relaxed);
            page.refcount.store(refcount, Relaxed);
            page.state.store(kind as u32, Relaxed);
        }
    }

    field! {
        /// Next frame of the list, or `PFN_NONE`.
        next, set_next, u64
    }
    field! {
        /// Previous frame of the list, or `PFN_NONE`.
        prev, set_prev, u64
    }
    field! {
        /// See [`abi::Page::mapping`].
        mapping, set_mapping, u64
    }
    field! {
        /// See [`abi::Page::index`].
        index, set_index, u64
    }
    field! {
        /// See [`abi::Page::private`].
        private, set_private, u64
    }
    field! {
        /// See [`abi::Page::mapcount`].
        mapcount, set_mapcount, i32
    }

    /// See [`abi::Page::refcount`].
    #[inline]
    pub fn refcount(&self) -> i32 {
        self.refcount.load(Relaxed)
    }

    /// Sets [`Page::refcount`]. Whoever takes a reference of it sees what was written to the page before: a page that
    /// was freed has lost its owner for all who find it by its number.
    #[inline]
    pub fn set_refcount(&self, value: i32) {
        self.refcount.store(value, Release);
    }

    /// Sets [`Page::index`] and then [`Page::mapping`]: who sees the owner sees the index that it gave.
    #[inline]
    pub fn set_owner(&self, mapping: u64, index: u64) {
        self.index.store(index, Relaxed);
        self.mapping.store(mapping, Release);
    }

    /// [`Page::mapping`] and [`Page::index`], as [`Page::set_owner`] set them.
    #[inline]
    pub fn owner(&self) -> (u64, u64) {
        let mapping = self.mapping.load(Acquire);
        (mapping, self.index.load(Relaxed))
    }

    /// The word behind [`Page::private`], for owners that exchange it.
    #[inline]
    pub const fn private_word(&self) -> &AtomicU64 {
        &self.private
    }

    /// The counter behind [`Page::refcount`], for those who share the page.
    #[inline]
    pub const fn references(&self) -> &AtomicI32 {
        &self.refcount
    }

    /// The counter behind [`Page::mapcount`], for those who map the page under different locks.
    #[inline]
    pub const fn mappings(&self) -> &AtomicI32 {
        &self.mapcount
    }

    /// Kind, order, migratetype and bits at once. One CPU at a time changes them: the one that holds the lock
    /// of the list or owner that the frame has.
    #[inline]
    pub fn state(&self) -> PageState {
        PageState::from_raw(self.state.load(Relaxed))
    }

    /// Sets [`Page::state`].
    #[inline]
    pub fn set_state(&self, state: PageState) {
        self.state.store(state.as_u32(), Relaxed);
    }

    /// Who owns the frame; an undefined number reads as [`PageKind::None`].
    #[inline]
    pub fn kind(&self) -> PageKind {
        self.state().kind()
    }

    /// Sets [`Page::kind`].
    #[inline]
    pub fn set_kind(&self, kind: PageKind) {
        self.set_state(self.state().with_kind(kind));
    }

    /// Order of the block that starts here; a number past the largest reads as order 0.
    #[inline]
    pub fn order(&self) -> Order {
        self.state().order()
    }

    /// Sets [`Page::order`].
    #[inline]
    pub fn set_order(&self, order: Order) {
        self.set_state(self.state().with_order(order));
    }

    /// The list that a free block is on, or that it was taken from; see [`PageState::migratetype`].
    #[inline]
    pub fn migratetype(&self) -> Migratetype {
        self.state().migratetype()
    }

    /// Sets [`Page::migratetype`].
    #[inline]
    pub fn set_migratetype(&self, migratetype: Migratetype) {
        self.set_state(self.state().with_migratetype(migratetype));
    }

    /// Whether the block that starts here is known to be zero (it is free, or was just taken from a list).
    #[inline]
    pub fn is_known_zero(&self) -> bool {
        self.state().is_known_zero()
    }

    /// The head of the compound page that this frame is a tail of; `None` for any other frame (Linux:
    /// `compound_head`, which gives the page itself then).
    pub fn compound_head(&self) -> Option<Pfn> {
        self.state().is_compound_tail().then(|| Pfn::new(self.next()))
    }

    /// Makes this frame a tail of a compound page (Linux: `set_compound_head`).
    pub fn set_compound_head(&self, head: Pfn) {
        self.set_next(head.as_u64());
        self.set_state(PageState::new(PageKind::Tail, Order::ZERO).with_compound_tail());
    }

    /// Makes this frame a tail of an ordinary block (Linux: `clear_compound_head`).
    pub fn clear_compound_head(&self) {
        self.set_state(PageState::new(PageKind::Tail, Order::ZERO));
    }

    /// Node and zone as one number, equal for the frames of one zone (Linux: `page_zone_id`).
    #[inline]
    pub fn zone_id(&self) -> u64 {
        self.flags.load(Relaxed) >> abi::Page::ZONE_SHIFT
    }

    /// [`Page::zone_id`] of the frames of that zone.
    #[inline]
    pub const fn zone_id_of(node: u32, zone: u32) -> u64 {
        ((node as u64) << (abi::Page::NODE_SHIFT - abi::Page::ZONE_SHIFT)) | zone as u64
    }

    /// The node the frame belongs to.
    #[inline]
    pub fn node(&self) -> u32 {
        (self.flags.load(Relaxed) >> abi::Page::NODE_SHIFT) as u32
    }

    /// The zone the frame belongs to.
    #[inline]
    pub fn zone(&self) -> ZoneKind {
        let raw = (self.flags.load(Relaxed) >> abi::Page::ZONE_SHIFT) & 7;
        ZoneKind::from_raw(raw as u32).unwrap_or(ZoneKind::Dma)
    }

    /// Rewrites the node and zone bits; flags stay (Linux: `set_page_links`).
    pub fn set_links(&self, node: u32, zone: ZoneKind) {
        let low = self.flags.load(Relaxed) & ((1 << abi::Page::ZONE_SHIFT) - 1);
        self.flags.store(low | links(node, zone), Relaxed);
    }

    /// All flags.
    #[inline]
    pub fn flags(&self) -> PageFlags {
        PageFlags::from_bits_retain(self.flags.load(Relaxed) & ((1 << abi::Page::ZONE_SHIFT) - 1))
    }

    /// Whether all of `flags` are set.
    #[inline]
    pub fn has(&self, flags: PageFlags) -> bool {
        self.flags.load(Relaxed) & flags.bits() == flags.bits()
    }

    /// Whether any of `flags` is set.
    #[inline]
    pub fn has_any(&self, flags: PageFlags) -> bool {
        self.flags.load(Relaxed) & flags.bits() != 0
    }

    /// Sets `flags`.
    pub fn insert(&self, flags: PageFlags) {
        self.flags.fetch_or(flags.bits(), Relaxed);
    }

    /// Clears `flags`.
    pub fn remove(&self, flags: PageFlags) {
        self.flags.fetch_and(!flags.bits(), Relaxed);
    }

    /// Clears `flags`; whether all of them were set. Of several who call it one learns so (Linux: `folio_test_clear_lru` and others).
    pub fn take(&self, flags: PageFlags) -> bool {
        self.flags.fetch_and(!flags.bits(), AcqRel) & flags.bits() == flags.bits()
    }

    /// [`Page::take`] that clears `others` in the same step, and nothing if not all of `flags` were set.
    pub fn take_with(&self, flags: PageFlags, others: PageFlags) -> bool {
        let taken = self.flags.fetch_update(AcqRel, Acquire, |seen| {
            (seen & flags.bits() == flags.bits()).then_some(seen & !(flags | others).bits())
        });
        taken.is_ok()
    }

    /// Replaces `from`, if all of them are set, by `to` in one step; whether they were.
    pub fn exchange(&self, from: PageFlags, to: PageFlags) -> bool {
        let replaced = self.flags.fetch_update(AcqRel, Acquire, |flags| {
            (flags & from.bits() == from.bits()).then_some(flags & !from.bits() | to.bits())
        });
        replaced.is_ok()
    }

    /// Replaces all flags by what `f` makes of them, in one step; what they were (Linux: `set_mask_bits`).
    pub fn update_flags(&self, f: impl Fn(PageFlags) -> PageFlags) -> PageFlags {
        let links = !((1 << abi::Page::ZONE_SHIFT) - 1);
        let mut old = self.flags.load(Relaxed);
        loop {
            let new = f(PageFlags::from_bits_retain(old & !links)).bits() & !links | old & links;
            match self.flags.compare_exchange_weak(old, new, AcqRel, Relaxed) {
                Ok(_) => return PageFlags::from_bits_retain(old & !links),
                Err(now) => old = now,
            }
        }
    }

    /// Locks the page unless it is locked already (Linux: `trylock_page`). Whoever did unlocks it soon, and does not sleep
    /// meanwhile, unless it is a user page: its lock is waited for by sleeping, never by [`Page::lock`].
    pub fn try_lock(&self) -> bool {
        self.flags.fetch_or(PageFlags::LOCKED.bits(), Acquire) & PageFlags::LOCKED.bits() == 0
    }

    /// Waits for the page's lock and takes it (Linux: `lock_page`, which may sleep).
    pub fn lock(&self) {
        while !self.try_lock() {
            core::hint::spin_loop();
        }
    }

    /// Opens the page's lock (Linux: `unlock_page`).
    pub fn unlock(&self) {
        self.flags.fetch_and(!PageFlags::LOCKED.bits(), Release);
    }

    /// Marks the page as one whose contents `owner` can move, see [`crate::Migrate`] (Linux: `__SetPageMovable`). The
    /// caller has the page locked, or nobody else knows it yet.
    pub fn set_movable(&self, owner: u64) {
        self.set_mapping(owner);
        self.insert(PageFlags::MOVABLE);
    }

    /// Ends [`Page::set_movable`] (Linux: `__ClearPageMovable`). The caller has the page locked. An isolated page
    /// stays so until migration sees that its owner has gone.
    pub fn clear_movable(&self) {
        self.remove(PageFlags::MOVABLE);
        self.set_mapping(0);
    }
}

/// The upper bits of `flags`.
fn links(node: u32, zone: ZoneKind) -> u64 {
    u64::from(node) << abi::Page::NODE_SHIFT | (zone as u64) << abi::Page::ZONE_SHIFT
}
