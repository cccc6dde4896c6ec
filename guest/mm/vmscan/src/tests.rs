//! Host tests.

mod batches;
mod decisions;
mod generations;
mod lists_model;
mod machine;
mod pressure;
mod threads;
mod watermarks;
