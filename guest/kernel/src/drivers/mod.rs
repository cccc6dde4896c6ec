//! The few devices that the kernel uses.

pub mod frames;
pub mod memvisor;
pub mod pit;
pub mod power;
pub mod rtc;
pub mod serial;
