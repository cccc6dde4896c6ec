//! Synthetic machines for tests, of this crate and of the rules.
//!
//! [`Tables`] builds page tables in any [`SparseMemory`](crate::SparseMemory); [`SyntheticGuest`] a whole guest that
//! publishes everything and is right in every detail, to be damaged by a test afterwards. Mistakes of
//! the test (addresses outside RAM, too little RAM) panic with the reason.

mod guest;
mod process;
mod tables;

pub use guest::{Machine, SyntheticGuest};
pub use process::SyntheticProcess;
pub use tables::Tables;
