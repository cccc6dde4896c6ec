//! user
fn main() {}
