//! Simulated memory for host tests of the memory manager.
