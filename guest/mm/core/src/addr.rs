//! Addresses and frame numbers. No `+` between addresses; arithmetic is checked or named.

use core::fmt;

use memvisor_abi::{PAGE_SHIFT, PAGE_SIZE};

use crate::Order;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this number.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The number, for registers, the ABI and printing.
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// `bytes` further up; `None` past the end of the number range.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// Rounds down to a multiple of `align`, a power of two.
            pub const fn align_down(self, align: u64) -> Self {
                Self(self.0 & !(align - 1))
            }

            /// Rounds up to a multiple of `align`, a power of two; `None` past the end.
            pub const fn align_up(self, align: u64) -> Option<Self> {
                match self.0.checked_add(align - 1) {
                    Some(raw) => Some(Self(raw & !(align - 1))),
                    None => None,
                }
            }

            /// Whether this is a multiple of `align`, a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }

            /// Bytes past the start of the page.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// Guest-physical address in bytes.
    PhysAddr
}
address! {
    /// Virtual address in bytes. Canonical form depends on the paging depth and is checked where
    /// the depth is known.
    VirtAddr
}

impl PhysAddr {
    /// The frame that holds this address.
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

/// Page frame number: physical address / 4096.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pfn(u64);

impl Pfn {
    /// The frame with this number.
    #[inline]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number, for arithmetic on indices, the ABI and printing.
    #[inline]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// First byte of the frame.
    #[inline]
    pub const fn phys(self) -> PhysAddr {
        PhysAddr(self.0 << PAGE_SHIFT)
    }

    /// The frame `pages` further up.
    #[inline]
    pub const fn offset(self, pages: u64) -> Pfn {
        Pfn(self.0 + pages)
    }

    /// First frame of the buddy of the block of `order` that starts here
    /// (Linux: `__find_buddy_pfn`).
    /// ```
    /// use mm_core::{Order, Pfn};
    /// assert_eq!(Pfn::new(8).buddy(Order::new(3).unwrap()), Pfn::new(0));
    /// ```
    #[inline]
    pub const fn buddy(self, order: Order) -> Pfn {
        Pfn(self.0 ^ order.pages())
    }

    /// First frame of the naturally aligned block of `order` that holds this frame.
    #[inline]
    pub const fn block(self, order: Order) -> Pfn {
        Pfn(self.0 & !(order.pages() - 1))
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
