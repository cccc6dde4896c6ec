//! memvisor.
fn main() {}
