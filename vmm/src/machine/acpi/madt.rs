//! MADT: interrupt controllers (ACPI 6.5 section 5.2.12).

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};

use super::super::{Cpu, Machine, layout};
use super::{FIRST_X2APIC_ID, table};

/// Id of the I/O APIC; APIC ids of CPUs and of I/O APICs are separate since xAPIC.
const IOAPIC_ID: u8 = 0;
/// Interrupt source override: the PIT's ISA interrupt 0 arrives at input 2 of the I/O APIC.
const PIT_GSI: u32 = 2;
/// MPS INTI flags: as the bus says (ISA: active high, edge).
const CONFORMS: u16 = 0;
/// MPS INTI flags: active high, level, as KVM's I/O APIC takes the SCI.
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
/// Local interrupt pin to which NMI is wired.
const NMI_LINT: u8 = 1;

pub(super) fn build(machine: &Machine) -> Vec<u8> {
    let mut body = Vec::new();
    #[expect(clippy::cast_possible_truncation, reason = "below 4 GiB")]
    body.extend((layout::LAPIC as u32).to_le_bytes());
    // Flags: PCAT_COMPAT stays clear, there is no pair of 8259s to be masked.
    body.extend(0_u32.to_le_bytes());
    for cpu in &machine.cpus {
        local_apic(cpu, &mut body);
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 4 GiB")]
    IoApic::new(IOAPIC_ID, layout::IOAPIC as u32, 0).to_aml_bytes(&mut body);
    source_override(0, PIT_GSI, CONFORMS, &mut body);
    #[expect(clippy::cast_possible_truncation, reason = "an ISA interrupt")]
    source_override(layout::SCI_IRQ as u8, layout::SCI_IRQ.into(), ACTIVE_HIGH_LEVEL, &mut body);
    // Type 4, NMI of all processors with 8-bit ids.
    body.extend([4, 6, 0xff, 0, 0, NMI_LINT]);
    if machine.cpus.iter().any(|cpu| cpu.apic_id >= FIRST_X2APIC_ID) {
        // Type 10, NMI of all x2APIC processors.
        body.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, NMI_LINT, 0, 0, 0]);
    }
    table(*b"APIC", 4, &body)
}

fn local_apic(cpu: &Cpu, body: &mut Vec<u8>) {
    match (u8::try_from(cpu.apic_id), u8::try_from(cpu.index)) {
        (Ok(apic_id), Ok(uid)) if cpu.apic_id < FIRST_X2APIC_ID => {
            ProcessorLocalApic::new(uid, apic_id, EnabledStatus::Enabled).to_aml_bytes(body);
        }
        _ => {
            // Type 9, processor local x2APIC.
            body.extend([9, 16, 0, 0]);
            for word in [cpu.apic_id, EnabledStatus::Enabled as u32, cpu.index] {
                body.extend(word.to_le_bytes());
            }
        }
    }
}

/// Type 2, interrupt source override.
fn source_override(isa_irq: u8, gsi: u32, flags: u16, body: &mut Vec<u8>) {
    body.extend([2, 10, 0, isa_irq]);
    body.extend(gsi.to_le_bytes());
    body.extend(flags.to_le_bytes());
}
