//! Dumps: ELF core files of a whole machine (Linux: kdump's vmcore, QEMU's dump-guest-memory).
//!
//! What is in one, and who reads it:
//! - an NT_PRSTATUS note per CPU: gdb shows each as a thread;
//! - a note VMCOREINFO: lines of text, as of Linux's vmcoreinfo, for crash and drgn;
//! - a note MEMVISOR: JSON with the [`Facts`] and all registers, control registers included, for us;
//! - a PT_LOAD per RAM region, its physical address being the guest-physical one and its virtual
//!   address the one in the direct map where that is known;
//! - PT_LOADs of the kernel image at its link address, over the same bytes of the file.
//!
//! RAM that is zero takes no room in the file where the file system knows holes.

mod elf;
mod open;
mod vmcoreinfo;
mod write;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::{CpuRegisters, Facts};

pub use open::{CoreFile, OpenError};
pub use vmcoreinfo::{Vmcoreinfo, find_linux};
pub use write::{Summary, WriteError, write};

/// Version of the MEMVISOR note.
const NOTE_FORMAT: u32 = 1;

/// Contents of the MEMVISOR note.
#[derive(Debug, Serialize, Deserialize)]
struct MemvisorNote {
    format: u32,
    facts: Facts,
    registers: Vec<CpuRegisters>,
}
