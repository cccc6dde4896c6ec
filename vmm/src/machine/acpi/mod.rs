//! ACPI tables of a machine, as bytes at their guest-physical addresses.
//!
//! A1  every table lies in [`layout::FIRMWARE_START`]..[`layout::FIRMWARE_END`], and none overlaps another;
//! A2  the RSDP leads to the XSDT, the XSDT to every other table but the DSDT and the FACS, to which the
//!     FADT leads; there is no RSDT;
//! A3  checksums are right; `iasl -d` reads every table without a complaint.
//!
//! A file a table. Where the crate acpi_tables has no structure (processor affinity, x2APIC, interrupt
//! overrides) or one that does not fit (its SLIT is symmetric, its HMAT has revision 1, whose units Linux
//! reads differently), the table is put together from fields.

pub mod decode;
mod dsdt;
mod fadt;
mod hmat;
mod madt;
mod rsdp;
mod slit;
mod srat;

use acpi_tables::sdt::Sdt;

use super::{Machine, MachineError, layout};

/// OEM of every table.
const OEM_ID: [u8; 6] = *b"MEMVIS";
/// OEM's name of every table.
const OEM_TABLE_ID: [u8; 8] = *b"MEMVISOR";
/// OEM's revision of every table.
const OEM_REVISION: u32 = 1;
/// Tables begin at multiples of this.
const TABLE_ALIGN: u64 = 16;
/// The first local APIC id that needs x2APIC structures.
const FIRST_X2APIC_ID: u32 = 255;

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

/// Builds the tables of `machine`: RSDP, XSDT, FADT, FACS, DSDT, MADT and SRAT; SLIT with more than one
/// node; HMAT with figures.
///
/// # Errors
/// [`MachineError::FirmwareFull`].
pub fn build(machine: &Machine) -> Result<AcpiTables, MachineError> {
    let mut room = Room { next: layout::FIRMWARE_START, tables: Vec::new() };
    let dsdt = room.put(dsdt::build(machine));
    let listed = [Some(fadt::build(dsdt)), Some(madt::build(machine)), Some(srat::build(machine))]
        .into_iter()
        .chain([slit::build(machine), hmat::build(machine)]);
    let addresses: Vec<u64> = listed.flatten().map(|table| room.put(table)).collect();
    let xsdt = room.put(rsdp::build_xsdt(&addresses));
    if room.next > layout::ACPI_TABLES_END {
        let over = room.next - layout::ACPI_TABLES_END;
        return Err(MachineError::FirmwareFull { machine: machine.name.clone(), over });
    }
    let mut tables = room.tables;
    tables.push(AcpiTable { signature: *b"RSDP", gpa: layout::RSDP, bytes: rsdp::build_rsdp(xsdt) });
    tables.push(AcpiTable { signature: *b"FACS", gpa: layout::FACS, bytes: fadt::build_facs() });
    Ok(AcpiTables { rsdp_gpa: layout::RSDP, tables })
}

/// Gives tables their places, one after the other. Too many are noticed at the end.
struct Room {
    next: u64,
    tables: Vec<AcpiTable>,
}

impl Room {
    /// Puts `bytes`, a table with a common header, and says where.
    fn put(&mut self, bytes: Vec<u8>) -> u64 {
        let gpa = self.next;
        self.next = (gpa + bytes.len() as u64).next_multiple_of(TABLE_ALIGN);
        let signature = bytes.first_chunk().copied().unwrap_or_default();
        self.tables.push(AcpiTable { signature, gpa, bytes });
        gpa
    }
}

/// A table with the common header and `body` behind it.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut sdt = Sdt::new(signature, HEADER_LEN, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.append_slice(body);
    sdt.as_slice().to_vec()
}

/// Bytes of the common header.
const HEADER_LEN: u32 = 36;

#[cfg(test)]
mod tests;
