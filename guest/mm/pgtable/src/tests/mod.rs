//! The operations on simulated tables, with and without a simulated CPU.

mod cpu;
mod examples;
mod mem;
mod model;
mod random;
