//! Devices: everything the guest reaches by port I/O or MMIO exits.
//!
//! A device answers at once and never blocks on the guest. What an access means for the whole
//! machine (power-off, checkpoint, exit) comes back as an [`Effect`], which the vCPU loop acts on
//! after the access is complete.

mod acpi_pm;
mod bus;
mod cmos;
mod console;
pub mod dma;
mod i8042;
mod memvisor;
pub mod pci;
mod serial;
pub mod virtio;

pub use acpi_pm::AcpiPm;
pub use bus::{Bus, BusError};
pub use cmos::Cmos;
pub use console::{Console, ConsoleTarget, RING_BYTES};
pub use i8042::I8042;
pub use memvisor::{DeviceState, MemvisorDevice};
pub use serial::{COM1_IRQ, SerialPort};

use serde::Serialize;

/// What an access means for the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The machine turns off.
    PowerOff,
    /// The machine resets.
    Reset,
    /// The guest ends with this code ([`memvisor_abi::port::ExitCode`]).
    Exit(u8),
    /// The guest wants to be audited; the vCPU waits for the answer.
    Checkpoint {
        /// Number that the guest gave.
        number: u32,
        /// Name that the guest gave; empty if none.
        name: String,
    },
}

/// A device on a [`Bus`].
pub trait Device: Send {
    /// Fills `data` from `offset` bytes after the device's base.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data` at `offset` bytes after the device's base.
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect>;
}
