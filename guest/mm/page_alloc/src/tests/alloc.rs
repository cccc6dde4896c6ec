//! The allocator above the zones, on a machine of two nodes and two CPUs.

mod compaction;
mod deferral;
mod family;
mod hot;
pub(super) mod machine;
mod migration;
mod model;
mod movable;
mod paths;
mod references;
mod runs;
mod trace;
