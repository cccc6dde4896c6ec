//! Why a block is not taken back.

use core::fmt;

use mm_core::{Order, PageKind, Pfn, ZoneKind};

/// A free that is refused; nothing was changed (Linux reports most of these as "bad page").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError {
    /// The frame is no multiple of the block's size, so it cannot start such a block.
    Misaligned {
        /// First frame.
        pfn: Pfn,
        /// Order that the caller named.
        order: Order,
    },
    /// The block is not wholly inside the zone's span.
    OutsideZone {
        /// First frame.
        pfn: Pfn,
        /// Frames.
        pages: u64,
    },
    /// A frame has no initialised descriptor: a hole, or a deferred section.
    NoDescriptor {
        /// That frame.
        pfn: Pfn,
    },
    /// A frame belongs to another zone.
    WrongZone {
        /// That frame.
        pfn: Pfn,
        /// Its node.
        node: u32,
        /// Its zone.
        zone: ZoneKind,
    },
    /// A frame is free already.
    DoubleFree {
        /// That frame.
        pfn: Pfn,
    },
    /// A frame is reserved and was never the allocator's.
    Reserved {
        /// That frame.
        pfn: Pfn,
    },
    /// The frame does not start a block of this order.
    WrongOrder {
        /// First frame.
        pfn: Pfn,
        /// Order that the caller named.
        order: Order,
        /// Order it was allocated with.
        allocated: Order,
    },
    /// A frame is referenced by somebody else: the caller must hold the only reference of the head,
    /// and nobody any of the other frames.
    InUse {
        /// That frame.
        pfn: Pfn,
        /// Its references.
        refcount: i32,
    },
    /// A frame is still mapped.
    Mapped {
        /// That frame.
        pfn: Pfn,
        /// Its mappings, minus one.
        mapcount: i32,
    },
    /// The frame is inside an allocated block; its head is what is freed.
    Tail {
        /// That frame.
        pfn: Pfn,
    },
    /// The block is a compound page, which is not split like this.
    Compound {
        /// First frame.
        pfn: Pfn,
    },
    /// A frame of a range that is handed over for the first time has an owner.
    Owned {
        /// That frame.
        pfn: Pfn,
        /// The owner.
        kind: PageKind,
    },
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FreeError::Misaligned { pfn, order } => {
                write!(
                    f,
                    "free of pfn {pfn} as order {}: not a multiple of {:#x}",
                    order.as_u8(),
                    order.pages()
                )
            }
            FreeError::OutsideZone { pfn, pages } => {
                write!(f, "free of {pages} pages at pfn {pfn}: outside the zone's span")
            }
            FreeError::NoDescriptor { pfn } => {
                write!(f, "free of pfn {pfn}: no descriptor, initialise its section first")
            }
            FreeError::WrongZone { pfn, node, zone } => {
                write!(f, "free of pfn {pfn}: belongs to node {node} zone {}", zone.name())
            }
            FreeError::DoubleFree { pfn } => write!(f, "double free of pfn {pfn}"),
            FreeError::Reserved { pfn } => write!(f, "free of pfn {pfn}: reserved"),
            FreeError::WrongOrder { pfn, order, allocated } => {
                write!(f, "free of pfn {pfn} as order {}: is order {}", order.as_u8(), allocated.as_u8())
            }
            FreeError::InUse { pfn, refcount } => {
                write!(f, "free of pfn {pfn}: {refcount} references, only the caller's may be left")
            }
            FreeError::Mapped { pfn, mapcount } => {
                write!(f, "free of pfn {pfn}: mapcount {mapcount}, unmap it first")
            }
            FreeError::Tail { pfn } => write!(f, "free of pfn {pfn}: inside a block, free its first frame"),
            FreeError::Compound { pfn } => write!(f, "split of pfn {pfn}: a compound page"),
            FreeError::Owned { pfn, kind } => {
                write!(f, "hand-over of pfn {pfn}: owned as {}", kind.name())
            }
        }
    }
}
