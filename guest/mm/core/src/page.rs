//! `struct page` as the memory manager holds it.

use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering::Relaxed};

use memvisor_abi as abi;
use memvisor_abi::{PageFlags, PageKind, ZoneKind};

use crate::Order;

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
    kind: AtomicU8,
    order: AtomicU8,
    reserved: [u8; 6],
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
        && offset_of!(Page, kind) == offset_of!(abi::Page, kind)
        && offset_of!(Page, order) == offset_of!(abi::Page, order)
);

macro_rules! field {
    ($(#[$doc:meta])* $get:ident, $set:ident, $ty:ty) => {
        $(#[$doc])*
        pub fn $get(&self) -> $ty {
            self.$get.load(Relaxed)
        }

        #[doc = concat!("Sets [`Page::", stringify!($get), "`].")]
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
            page.kind.store(kind as u8, Relaxed);
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
    field! {
        /// See [`abi::Page::refcount`].
        refcount, set_refcount, i32
    }

    /// Who owns the frame; an undefined number reads as [`PageKind::None`].
    pub fn kind(&self) -> PageKind {
        PageKind::from_raw(self.kind.load(Relaxed)).unwrap_or(PageKind::None)
    }

    /// Sets [`Page::kind`].
    pub fn set_kind(&self, kind: PageKind) {
        self.kind.store(kind as u8, Relaxed);
    }

    /// Order of the block that starts here; a number past the largest reads as order 0.
    pub fn order(&self) -> Order {
        Order::new(self.order.load(Relaxed)).unwrap_or(Order::ZERO)
    }

    /// Sets [`Page::order`].
    pub fn set_order(&self, order: Order) {
        self.order.store(order.as_u8(), Relaxed);
    }

    /// The node the frame belongs to.
    pub fn node(&self) -> u32 {
        (self.flags.load(Relaxed) >> abi::Page::NODE_SHIFT) as u32
    }

    /// The zone the frame belongs to.
    pub fn zone(&self) -> ZoneKind {
        let raw = (self.flags.load(Relaxed) >> abi::Page::ZONE_SHIFT) & 7;
        ZoneKind::from_raw(raw as u32).unwrap_or(ZoneKind::Dma)
    }

    /// Rewrites the node and zone bits; flags stay (Linux: `set_page_links`).
    pub fn set_links(&self, node: u32, zone: ZoneKind) {
        let low = self.flags.load(Relaxed) & ((1 << abi::Page::ZONE_SHIFT) - 1);
        self.flags.store(low | links(node, zone), Relaxed);
    }

    /// Whether all of `flags` are set.
    pub fn has(&self, flags: PageFlags) -> bool {
        self.flags.load(Relaxed) & flags.bits() == flags.bits()
    }

    /// Sets `flags`.
    pub fn insert(&self, flags: PageFlags) {
        self.flags.fetch_or(flags.bits(), Relaxed);
    }

    /// Clears `flags`.
    pub fn remove(&self, flags: PageFlags) {
        self.flags.fetch_and(!flags.bits(), Relaxed);
    }
}

/// The upper bits of `flags`.
fn links(node: u32, zone: ZoneKind) -> u64 {
    u64::from(node) << abi::Page::NODE_SHIFT | (zone as u64) << abi::Page::ZONE_SHIFT
}
