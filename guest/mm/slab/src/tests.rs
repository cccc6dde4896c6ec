//! The three allocators on a simulated machine of two nodes and four CPUs.

mod audit;
mod bad_input;
mod debugging;
mod grace;
mod machine;
mod model;
mod owners;
mod owners_model;
