//! DSDT: what is not in a fixed table (ACPI 6.5 section 5.2.11.1). Processors with their nodes, the serial
//! port, and how to power off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope, ZERO,
};

use super::super::{Cpu, Machine, layout};
use super::table;

/// `_STA`: present, enabled, shown and working.
const STA_ALL: u8 = 0xf;

pub(super) fn build(machine: &Machine) -> Vec<u8> {
    let mut aml = Vec::new();
    let slp_typ = layout::S5_SLP_TYP;
    Name::new("_S5_".into(), &Package::new(vec![&slp_typ, &slp_typ, &ZERO, &ZERO])).to_aml_bytes(&mut aml);
    let mut devices = Vec::new();
    for cpu in &machine.cpus {
        processor(cpu, &mut devices);
    }
    serial(&mut devices);
    if !machine.disks.is_empty() || !machine.dma.is_empty() {
        pci(&mut devices);
    }
    aml.extend(Scope::raw("_SB_".into(), devices));
    table(*b"DSDT", 2, &aml)
}

fn processor(cpu: &Cpu, aml: &mut Vec<u8>) {
    // Three digits hold every index: there are at most 1024 CPUs.
    let name = Path::new(&format!("C{:03X}", cpu.index & 0xfff));
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &cpu.index);
    let sta = Name::new("_STA".into(), &STA_ALL);
    let pxm = Name::new("_PXM".into(), &cpu.node);
    Device::new(name, vec![&hid, &uid, &sta, &pxm]).to_aml_bytes(aml);
}

fn serial(aml: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &1_u8);
    let sta = Name::new("_STA".into(), &STA_ALL);
    #[expect(clippy::cast_possible_truncation, reason = "8 ports")]
    let ports = IO::new(layout::COM1, layout::COM1, 1, layout::COM1_LEN as u8);
    let irq = Interrupt::new(true, true, false, false, layout::COM1_IRQ);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &irq]));
    Device::new("COM1".into(), vec![&hid, &uid, &sta, &crs]).to_aml_bytes(aml);
}

/// The root bridge: bus 0, its configuration ports, the window for BARs. No function has an interrupt line, so there
/// is no `_PRT`.
fn pci(aml: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &0_u8);
    let seg = Name::new("_SEG".into(), &0_u8);
    let bbn = Name::new("_BBN".into(), &0_u8);
    let sta = Name::new("_STA".into(), &STA_ALL);
    let buses = AddressSpace::new_bus_number(0_u16, 0_u16);
    #[expect(clippy::cast_possible_truncation, reason = "8 ports")]
    let ports = IO::new(layout::PCI_CONFIG, layout::PCI_CONFIG, 1, layout::PCI_CONFIG_LEN as u8);
    #[expect(clippy::cast_possible_truncation, reason = "below 4 GiB")]
    let (first, last) = (layout::PCI_WINDOW as u32, (layout::PCI_WINDOW_END - 1) as u32);
    let window = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&buses, &ports, &window]));
    Device::new("PCI0".into(), vec![&hid, &uid, &seg, &bbn, &sta, &crs]).to_aml_bytes(aml);
}
