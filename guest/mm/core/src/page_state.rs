//! What a descriptor says about its frame, in one word, so that the allocator changes it in one store.

use memvisor_abi as abi;
use memvisor_abi::{Migratetype, PageKind};

use crate::Order;

/// [`abi::Page`]'s `kind`, `order`, `migratetype` and `bits`.
///
/// ```
/// use mm_core::{Migratetype, Order, PageKind, PageState};
/// let free = PageState::new(PageKind::Buddy, Order::ZERO).with_migratetype(Migratetype::Movable);
/// assert!(free.is_free_block(Order::ZERO) && !free.is_known_zero());
/// assert_eq!(free.migratetype(), Migratetype::Movable);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PageState(u32);

const ORDER_SHIFT: u32 = 8;
const TYPE_SHIFT: u32 = 16;
const BITS_SHIFT: u32 = 24;
const KNOWN_ZERO: u32 = (abi::Page::KNOWN_ZERO as u32) << BITS_SHIFT;
const COMPOUND_TAIL: u32 = (abi::Page::COMPOUND_TAIL as u32) << BITS_SHIFT;

impl PageState {
    /// A frame of that kind that heads a block of that order; [`Migratetype::Unmovable`], no bits.
    #[inline]
    pub const fn new(kind: PageKind, order: Order) -> PageState {
        PageState(kind as u32 | (order.as_u8() as u32) << ORDER_SHIFT)
    }

    pub(crate) const fn from_raw(raw: u32) -> PageState {
        PageState(raw)
    }

    pub(crate) const fn as_u32(self) -> u32 {
        self.0
    }

    /// Who owns the frame; an undefined number reads as [`PageKind::None`].
    #[inline]
    pub const fn kind(self) -> PageKind {
        match PageKind::from_raw(self.byte(0)) {
            Some(kind) => kind,
            None => PageKind::None,
        }
    }

    /// Order of the block; a number past the largest reads as order 0.
    #[inline]
    pub const fn order(self) -> Order {
        match Order::new(self.byte(ORDER_SHIFT)) {
            Some(order) => order,
            None => Order::ZERO,
        }
    }

    /// See [`abi::Page::migratetype`]; an undefined number reads as [`Migratetype::Unmovable`].
    #[inline]
    pub const fn migratetype(self) -> Migratetype {
        match Migratetype::from_raw(self.byte(TYPE_SHIFT)) {
            Some(migratetype) => migratetype,
            None => Migratetype::Unmovable,
        }
    }

    /// Whether this is the head of a free block of `order` on a zone's list.
    #[inline]
    pub const fn is_free_block(self, order: Order) -> bool {
        self.0 & 0xffff == PageState::new(PageKind::Buddy, order).0
    }

    /// Whether this is the head of a block of `order` that the kernel allocated and gave no other owner.
    #[inline]
    pub const fn is_allocated_block(self, order: Order) -> bool {
        self.0 & 0xffff == PageState::new(PageKind::Allocated, order).0
    }

    /// See [`abi::Page::KNOWN_ZERO`].
    #[inline]
    pub const fn is_known_zero(self) -> bool {
        self.0 & KNOWN_ZERO != 0
    }

    /// See [`abi::Page::COMPOUND_TAIL`].
    #[inline]
    pub const fn is_compound_tail(self) -> bool {
        self.0 & COMPOUND_TAIL != 0
    }

    /// With another kind.
    #[inline]
    pub const fn with_kind(self, kind: PageKind) -> PageState {
        PageState(self.0 & !0xff | kind as u32)
    }

    /// With another order.
    #[inline]
    pub const fn with_order(self, order: Order) -> PageState {
        PageState(self.0 & !(0xff << ORDER_SHIFT) | (order.as_u8() as u32) << ORDER_SHIFT)
    }

    /// With another type.
    #[inline]
    pub const fn with_migratetype(self, migratetype: Migratetype) -> PageState {
        PageState(self.0 & !(0xff << TYPE_SHIFT) | (migratetype as u32) << TYPE_SHIFT)
    }

    /// With or without [`abi::Page::KNOWN_ZERO`].
    #[inline]
    pub const fn with_known_zero(self, zero: bool) -> PageState {
        PageState(if zero { self.0 | KNOWN_ZERO } else { self.0 & !KNOWN_ZERO })
    }

    pub(crate) const fn with_compound_tail(self) -> PageState {
        PageState(self.0 | COMPOUND_TAIL)
    }

    #[expect(clippy::cast_possible_truncation, reason = "one byte is meant")]
    const fn byte(self, shift: u32) -> u8 {
        (self.0 >> shift) as u8
    }
}
