//! Tracepoints: what the memory manager tells about its steps (layouts and catalogue: `memvisor_abi`'s trace module).
//!
//! Code that works on frames emits [`Event`]s through the [`Trace`] of the machine that it works on; every [`MemMap`]
//! and [`PageAlloc`] is one. An event costs nothing where the machine does not trace (on the host, unless a
//! test records), and where it may, one relaxed load and a branch while the event is off.
//!
//! Functions that call further ones emit an enter and an exit, so that a reader can rebuild the call tree:
//!
//! ```
//! use mm_core::{Event, Gfp, Order, Pfn, Trace};
//! fn alloc_pages(map: &impl Trace, gfp: Gfp, order: Order) -> Option<Pfn> {
//!     map.emit(Event::AllocPages { gfp, order, node: None });
//!     let pfn = None; // The steps, which emit in their turn.
//!     map.emit(Event::AllocPagesRet { pfn });
//!     pfn
//! }
//! struct Quiet;
//! impl Trace for Quiet {}
//! assert_eq!(alloc_pages(&Quiet, Gfp::KERNEL, Order::ZERO), None);
//! ```
//!
//! [`MemMap`]: crate::MemMap
//! [`PageAlloc`]: crate::PageAlloc

mod mask;
mod ring;

pub use mask::TraceMask;
pub use ring::{Ring, Stamp};

use memvisor_abi::{
    ARG_WORDS, EventId, FieldKind, MAX_NR_ZONES, NO_CACHE, NO_NODE, PFN_NONE, Phase, ZoneKind,
};

use crate::{Gfp, Order, Pfn};

/// Where events go. The default is nowhere.
pub trait Trace {
    /// Whether the event is recorded. Inlined, and one relaxed load at most.
    #[inline(always)]
    fn wants(&self, id: EventId) -> bool {
        let _ = id;
        false
    }

    /// Whether any event is recorded. A short path may ask this once instead of [`Trace::wants`] at every step, and
    /// leave its work to a path that tells its steps. Whoever implements [`Trace::wants`] implements this, too.
    #[inline(always)]
    fn is_tracing(&self) -> bool {
        false
    }

    /// Records an event that [`Trace::wants`] said yes to.
    #[cold]
    fn record(&self, event: &Event) {
        let _ = event;
    }

    /// [`Trace::emit`] whose event is made only if it is wanted, for paths that count instructions.
    #[inline(always)]
    fn emit_with(&self, id: EventId, event: impl FnOnce() -> Event)
    where
        Self: Sized,
    {
        if self.wants(id) {
            record_made(self, event);
        }
    }

    /// Records the event if it is wanted. Arguments should be values at hand: what computing them costs is
    /// saved only if it is pure.
    #[inline(always)]
    fn emit(&self, event: Event) {
        if self.wants(event.id()) {
            self.record(&event);
        }
    }
}

/// Out of the way of those who do not trace.
#[cold]
#[inline(never)]
fn record_made<T: Trace>(trace: &T, event: impl FnOnce() -> Event) {
    trace.record(&event());
}

impl<T: Trace + ?Sized> Trace for &T {
    #[inline(always)]
    fn wants(&self, id: EventId) -> bool {
        (**self).wants(id)
    }

    #[inline(always)]
    fn is_tracing(&self) -> bool {
        (**self).is_tracing()
    }

    fn record(&self, event: &Event) {
        (**self).record(event);
    }
}

/// A zone in an event: node and kind (Linux: `zone_to_nid`, `zone_idx`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneId(u16);

impl ZoneId {
    /// The zone of that kind of `node`, which is below `MAX_NUMNODES`.
    #[inline]
    pub const fn new(node: u32, kind: u32) -> ZoneId {
        #[expect(clippy::cast_possible_truncation, reason = "64 nodes of 5 zones")]
        ZoneId((node * MAX_NR_ZONES as u32 + kind) as u16)
    }

    /// Index in the zone table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Turns an argument into the bits of its field.
trait Arg {
    fn raw(self) -> u64;
}

macro_rules! plain_arg {
    ($($ty:ty),*) => {$(
        impl Arg for $ty {
            #[inline]
            fn raw(self) -> u64 {
                u64::from(self)
            }
        }
    )*};
}
plain_arg!(u64, u32, u16, u8, bool);

impl Arg for i32 {
    #[inline]
    #[expect(clippy::cast_sign_loss, reason = "the reader extends the sign")]
    fn raw(self) -> u64 {
        u64::from(self as u32)
    }
}

impl Arg for Pfn {
    #[inline]
    fn raw(self) -> u64 {
        self.as_u64()
    }
}

impl Arg for Order {
    #[inline]
    fn raw(self) -> u64 {
        u64::from(self.as_u8())
    }
}

impl Arg for Option<Pfn> {
    #[inline]
    fn raw(self) -> u64 {
        self.map_or(PFN_NONE, Pfn::as_u64)
    }
}

impl Arg for Option<Order> {
    #[inline]
    fn raw(self) -> u64 {
        u64::from(self.map_or(u8::MAX, Order::as_u8))
    }
}

impl Arg for Gfp {
    #[inline]
    fn raw(self) -> u64 {
        u64::from(self.bits())
    }
}

impl Arg for ZoneId {
    #[inline]
    fn raw(self) -> u64 {
        u64::from(self.0)
    }
}

impl Arg for ZoneKind {
    #[inline]
    fn raw(self) -> u64 {
        self as u64
    }
}

/// A node, or none.
impl Arg for Option<u32> {
    #[inline]
    fn raw(self) -> u64 {
        u64::from(self.and_then(|node| u16::try_from(node).ok()).unwrap_or(NO_NODE))
    }
}

/// The index of a cache, or none.
impl Arg for Option<u16> {
    #[inline]
    fn raw(self) -> u64 {
        u64::from(self.unwrap_or(NO_CACHE))
    }
}

/// The Rust type of a field's kind.
macro_rules! arg_type {
    (Pfn) => { Pfn };
    (MaybePfn) => { Option<Pfn> };
    (Order) => { Order };
    (MaybeOrder) => { Option<Order> };
    (Gfp) => { Gfp };
    (Zone) => { ZoneId };
    (ZoneKind) => { ZoneKind };
    (Node) => { Option<u32> };
    (Cache) => { Option<u16> };
    (Bool) => { bool };
    (Migratetype) => { u8 };
    (Byte) => { u8 };
    (Int) => { i32 };
    (AllocFlags) => { u32 };
    (Pid) => { u32 };
    (Addr) => { u64 };
    (Phys) => { u64 };
    (Pages) => { u64 };
    (Bytes) => { u64 };
    (Count) => { u64 };
}

macro_rules! define_events {
    ($(
        $(#[$doc:meta])*
        $number:literal $id:ident $name:literal $system:literal $group:ident $phase:ident
        { $($field:ident: $kind:ident),* }
    )*) => {
        /// An event with its arguments. The catalogue in `memvisor_abi` says what the fields are; migratetypes are
        /// given by number, rights of an attempt (`AllocFlags`) by their bits.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "fields have Linux's names; the catalogue has their kinds")]
        pub enum Event {
            $($(#[$doc])* $id { $($field: arg_type!($kind)),* },)*
        }

        impl Event {
            /// Its number.
            #[inline(always)]
            pub const fn id(&self) -> EventId {
                match self {
                    $(Event::$id { .. } => EventId::$id,)*
                }
            }

            /// Whether it is a point of the call tree, an enter or an exit.
            pub const fn phase(&self) -> Phase {
                match self {
                    $(Event::$id { .. } => Phase::$phase,)*
                }
            }

            /// The arguments as a record has them.
            pub fn args(&self) -> [u64; ARG_WORDS] {
                let mut packer = Packer { words: [0; ARG_WORDS], at: 0 };
                match *self {
                    $(Event::$id { $($field),* } => { $(packer.put(FieldKind::$kind.size(), $field.raw());)* })*
                }
                packer.words
            }
        }
    };
}
memvisor_abi::for_each_event!(define_events);

/// Lays arguments out as `EventInfo::offset` says: in order, each aligned to its size.
struct Packer {
    words: [u64; ARG_WORDS],
    at: usize,
}

impl Packer {
    #[inline]
    fn put(&mut self, size: usize, value: u64) {
        self.at = self.at.next_multiple_of(size);
        // The catalogue asserts that arguments fit, and aligned ones do not straddle words.
        if let Some(word) = self.words.get_mut(self.at / 8) {
            *word |= (value & (u64::MAX >> (64 - size * 8))) << (self.at % 8 * 8);
        }
        self.at += size;
    }
}

#[cfg(test)]
mod tests;
