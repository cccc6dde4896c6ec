//! Both halves of the crate against brute force.
mod e820;
mod memblock;
