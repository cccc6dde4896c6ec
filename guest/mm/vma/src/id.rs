//! Names of objects (`mm_core::Id`), and their fields.

pub use mm_core::{Id, Link};

/// Defines readers and writers of atomic fields that a lock guards, so that relaxed order is enough.
macro_rules! fields {
    ($($(#[$doc:meta])* $get:ident, $set:ident, $ty:ty;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $get(&self) -> $ty {
            self.$get.load(core::sync::atomic::Ordering::Relaxed)
        }

        #[doc = concat!("Sets `", stringify!($get), "`.")]
        #[inline]
        pub(crate) fn $set(&self, value: $ty) {
            self.$get.store(value, core::sync::atomic::Ordering::Relaxed);
        }
    )*};
}
pub(crate) use fields;
