//! ACPI tables.

use super::{Machine, MachineError};

/// The tables of a machine as bytes in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// Where the RSDP is.
    pub rsdp_gpa: u64,
    /// All tables, the RSDP included, ascending by address.
    pub tables: Vec<AcpiTable>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTable {
    /// Its signature; `RSDP` for the RSDP, whose own has eight letters.
    pub signature: [u8; 4],
    /// Where its first byte goes.
    pub gpa: u64,
    /// What to write there.
    pub bytes: Vec<u8>,
}

/// Builds the tables.
///
/// # Errors
/// [`MachineError::FirmwareFull`].
pub fn build(machine: &Machine) -> Result<AcpiTables, MachineError> {
    let _ = machine;
    todo!()
}
