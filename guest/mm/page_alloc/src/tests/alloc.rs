//! The allocator above the zones, on a machine of two nodes and two CPUs.

mod family;
pub(super) mod machine;
mod model;
mod paths;
mod references;
mod trace;
