//! Block sizes of the buddy allocator.

use memvisor_abi::NR_ORDERS;

/// log2 of the pages of a block, 0..=10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const ZERO: Order = Order(0);
    /// The largest block: 1024 pages, 4 MiB (Linux: `MAX_ORDER`).
    #[expect(clippy::cast_possible_truncation, reason = "10 fits")]
    pub const MAX: Order = Order(NR_ORDERS as u8 - 1);

    /// The order with this number; `None` past [`Order::MAX`].
    #[inline]
    pub const fn new(raw: u8) -> Option<Order> {
        if raw <= Order::MAX.0 { Some(Order(raw)) } else { None }
    }

    /// Smallest order holding `pages`; `None` past [`Order::MAX`] (Linux: `get_order`).
    /// ```
    /// use mm_core::Order;
    /// assert_eq!(Order::covering(1), Order::new(0));
    /// assert_eq!(Order::covering(5), Order::new(3));
    /// assert_eq!(Order::covering(1025), None);
    /// ```
    #[inline]
    pub const fn covering(pages: u64) -> Option<Order> {
        let mut raw = 0;
        while raw <= Order::MAX.0 {
            if 1 << raw >= pages {
                return Some(Order(raw));
            }
            raw += 1;
        }
        None
    }

    /// Pages of a block.
    #[inline]
    pub const fn pages(self) -> u64 {
        1 << self.0
    }

    /// The number.
    #[inline]
    pub const fn as_u8(self) -> u8 {
        self.0
    }

    /// As an index into per-order arrays.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The next larger order; `None` at [`Order::MAX`].
    #[inline]
    pub const fn up(self) -> Option<Order> {
        Order::new(self.0 + 1)
    }

    /// The next smaller order; `None` at 0.
    #[inline]
    pub const fn down(self) -> Option<Order> {
        if self.0 == 0 { None } else { Some(Order(self.0 - 1)) }
    }

    /// The order `more` above this one; `None` past [`Order::MAX`].
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "compared before")]
    pub const fn plus(self, more: u32) -> Option<Order> {
        if more > Order::MAX.0 as u32 { None } else { Order::new(self.0 + more as u8) }
    }

    /// All orders, smallest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Order> {
        (0..=Order::MAX.0).map(Order)
    }
}
