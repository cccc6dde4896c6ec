//! Tests.

mod compressor;
mod machine;
mod model;
mod pool;
