//! Tests of the page cache on frames and objects of the host.

mod cache;
mod lookup_model;
mod machine;
mod memfd;
mod shmem;
mod tree;
mod workingset;
