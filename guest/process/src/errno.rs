//! Error numbers: the type that the whole guest uses.

pub use mm_vma::Errno;
