//! FADT and FACS: fixed hardware, power-off and reset (ACPI 6.5 sections 5.2.9 and 5.2.10).
//!
//! The machine is not "hardware-reduced": that would take the PM1 registers away, through which every OS
//! powers off. There is no SMI command port, so the machine is always in ACPI mode, and no PM timer.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::super::layout;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// IA-PC boot architecture: there are ISA devices.
const LEGACY_DEVICES: u16 = 1 << 0;
/// There is no VGA.
const VGA_NOT_PRESENT: u16 = 1 << 2;

pub(super) fn build(dsdt_gpa: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // "Not as fixed hardware": there are no power and sleep buttons, and no wake-up clock.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    // All tables are below 1 MiB; both forms of the address say the same, for readers of either.
    fadt.dsdt = u32::try_from(dsdt_gpa).unwrap_or_default().into();
    fadt.x_dsdt = dsdt_gpa.into();
    fadt.firmware_ctrl = u32::try_from(layout::FACS).unwrap_or_default().into();
    fadt.sci_int = layout::SCI_IRQ.into();

    fadt.pm1a_evt_blk = u32::from(layout::PM1A_EVT).into();
    fadt.pm1_evt_len = layout::PM1A_EVT_LEN;
    fadt.x_pm1a_evt_blk = port(layout::PM1A_EVT, layout::PM1A_EVT_LEN, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(layout::PM1A_CNT).into();
    fadt.pm1_cnt_len = layout::PM1A_CNT_LEN;
    fadt.x_pm1a_cnt_blk = port(layout::PM1A_CNT, layout::PM1A_CNT_LEN, AccessSize::WordAccess);

    fadt.reset_reg = port(layout::I8042_COMMAND, 1, AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    // C2 and C3 do not exist (table 5.9: above 100 and 1000 us).
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    // Bit 1 (8042) stays clear: of a keyboard controller there is only the reset line, and probing for
    // more takes an OS seconds. Bit 5 (no CMOS clock) stays clear: there is one.
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();

    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}

pub(super) fn build_facs() -> Vec<u8> {
    let mut bytes = Vec::new();
    FACS::new().to_aml_bytes(&mut bytes);
    bytes
}

/// A register of `len` bytes at an I/O port.
fn port(port: u16, len: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, len * 8, 0, access, port.into())
}
