//! memvisor: launches a guest on the machine that a file describes, and verifies its memory from outside.

pub mod suite;
