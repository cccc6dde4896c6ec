//! What boot loaders and firmware leave in memory: the boot protocols' structures and ACPI tables.
//!
//! Nothing here is trusted. Every read is checked against what is mapped; a table with a bad length
//! or checksum, an entry that does not fit, a chain that does not end is reported and ignored, and
//! what is left is used. Reports go to the caller's [`Say`], because a person wants to know which
//! table the firmware got wrong.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod acpi;
mod bootinfo;
mod bytes;
#[cfg(test)]
mod testing;

pub use bootinfo::{BootInfo, MAX_COMMAND_LINE};
pub use bytes::{Bytes, Memory};

/// Where reports go: one line a call.
pub type Say<'a> = &'a mut dyn FnMut(core::fmt::Arguments<'_>);
