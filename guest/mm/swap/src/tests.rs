//! Host tests.

mod header;
mod machine;
mod model;
mod races;
mod slots;
mod swapoff;
mod threads;
