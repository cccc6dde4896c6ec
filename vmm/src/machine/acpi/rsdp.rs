//! RSDP and XSDT: the way to all other tables (ACPI 6.5 sections 5.2.5 and 5.2.8).

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// Revision 2, without an RSDT.
pub(super) fn build_rsdp(xsdt_gpa: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Rsdp::new(OEM_ID, xsdt_gpa).to_aml_bytes(&mut bytes);
    bytes
}

pub(super) fn build_xsdt(addresses: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for gpa in addresses {
        xsdt.add_entry(*gpa);
    }
    let mut bytes = Vec::new();
    xsdt.to_aml_bytes(&mut bytes);
    bytes
}
