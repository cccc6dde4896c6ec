//! The three allocators on a simulated machine of two nodes and four CPUs.

mod audit;
mod machine;
mod model;
