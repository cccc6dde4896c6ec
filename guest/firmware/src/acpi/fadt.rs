//! Fixed ACPI Description Table: how to power off (ACPI 6.5 sections 5.2.9 and 7.4.2).

use super::{HEADER, Table};
use crate::{Bytes, Memory, Say};

/// What S5 needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerOff {
    /// Port of PM1a_CNT.
    pub pm1a_control: u16,
    /// SLP_TYPa of `\_S5`, three bits.
    pub slp_typ: u16,
}

impl PowerOff {
    /// Reads PM1a_CNT and the DSDT's `\_S5`.
    pub(super) fn read<M: Memory>(
        memory: &M,
        fadt: &Table<'_, M>,
        left: &mut usize,
        say: Say<'_>,
    ) -> Option<PowerOff> {
        let port = fadt.bytes.u32(64).and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0)?;
        let wide = fadt.bytes.u64(140).filter(|&address| address != 0);
        let dsdt = Table::open(memory, wide.or_else(|| fadt.bytes.u32(40).map(u64::from))?, left, say)?;
        let slp_typ = find_s5(&dsdt.bytes).filter(|&slp_typ| slp_typ < 8);
        if slp_typ.is_none() {
            say(format_args!("ACPI: DSDT has no plain \\_S5 package; power-off by ACPI is not available"));
        }
        Some(PowerOff { pm1a_control: port, slp_typ: slp_typ? })
    }
}

/// Finds `Name (_S5_, Package () {n, ...})` by its bytes: name, PackageOp, length, count, first
/// element. An interpreter of AML is out of proportion for one number.
fn find_s5<M: Memory>(dsdt: &Bytes<'_, M>) -> Option<u16> {
    const PACKAGE_OP: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0a;
    // A byte at a time, and the word only where it can begin.
    let at = (HEADER..dsdt.len()).find(|&at| {
        dsdt.u8(at) == Some(b'_')
            && dsdt.u32(at) == Some(u32::from_le_bytes(*b"_S5_"))
            && dsdt.u8(at + 4) == Some(PACKAGE_OP)
    })?;
    // PkgLength: the top two bits of the first byte count the bytes that follow.
    let extra = usize::from(dsdt.u8(at + 5)? >> 6);
    let first = at + 7 + extra;
    match dsdt.u8(first)? {
        BYTE_PREFIX => dsdt.u8(first + 1).map(u16::from),
        constant @ (0 | 1) => Some(u16::from(constant)),
        _ => None,
    }
}
