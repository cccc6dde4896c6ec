//! Fixed ACPI Description Table: how to power off (ACPI 6.5 sections 5.2.9 and 7.4.2).

use super::{HEADER, Table, open};
use crate::mm::phys::Bytes;
use crate::println;
use crate::sync::Lock;

/// What S5 needs.
#[derive(Clone, Copy, Debug)]
pub struct PowerOff {
    /// Port of PM1a_CNT.
    pub pm1a_control: u16,
    /// SLP_TYPa of `\_S5`.
    pub slp_typ: u16,
}

static POWER_OFF: Lock<Option<PowerOff>> = Lock::new(None);

/// How to reach S5; `None` if the tables do not say.
pub fn power_off_method() -> Option<PowerOff> {
    *POWER_OFF.lock()
}

/// Reads PM1a_CNT and the DSDT's `\_S5`.
pub fn read(fadt: &Table) {
    let port = fadt.bytes.u32(64).and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
    let wide = fadt.bytes.u64(140).filter(|&address| address != 0);
    let dsdt = wide.or_else(|| fadt.bytes.u32(40).map(u64::from));
    let Some((port, dsdt)) = port.zip(dsdt.and_then(open)) else { return };
    match find_s5(&dsdt.bytes) {
        Some(slp_typ) => *POWER_OFF.lock() = Some(PowerOff { pm1a_control: port, slp_typ }),
        None => println!("ACPI: DSDT has no plain \\_S5 package; power-off by ACPI is not available"),
    }
}

/// Finds `Name (_S5_, Package () {n, ...})` by its bytes: NameOp, name, PackageOp, length, count,
/// first element. An interpreter of AML is out of proportion for one number.
fn find_s5(dsdt: &Bytes) -> Option<u16> {
    const PACKAGE_OP: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0a;
    for at in HEADER..dsdt.len() {
        if dsdt.u32(at) != Some(u32::from_le_bytes(*b"_S5_")) || dsdt.u8(at + 4) != Some(PACKAGE_OP) {
            continue;
        }
        // PkgLength: the top two bits of the first byte count the bytes that follow.
        let extra = usize::from(dsdt.u8(at + 5)? >> 6);
        let first = at + 7 + extra;
        return match dsdt.u8(first)? {
            BYTE_PREFIX => dsdt.u8(first + 1).map(u16::from),
            constant @ (0 | 1) => Some(u16::from(constant)),
            _ => None,
        };
    }
    None
}
