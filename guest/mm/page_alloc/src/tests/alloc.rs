//! The allocator above the zones, on a machine of two nodes and two CPUs.

mod family;
mod hot;
mod machine;
mod model;
mod paths;
mod references;
