//! ACPI tables (ACPI 6.5 chapters 5 and 17).

mod fadt;
mod madt;
mod slit;
mod srat;
#[cfg(test)]
mod tests;

use core::fmt::{self, Write};

pub use fadt::PowerOff;
pub use madt::{DEFAULT_APIC_BASE, MAX_CPUS, Madt};
pub use slit::Slit;
pub use srat::{MAX_RANGES, Srat};

use crate::{Bytes, Memory, Say};

const HEADER: usize = 36;
/// No table that this kernel reads is larger.
const MAX_TABLE: usize = 1 << 20;
/// Tables that a root table may name; real firmware names less than a hundred.
const MAX_TABLES: usize = 256;
/// Bytes of all tables together. A checksum reads every byte, and a root table that names one large
/// table ten thousand times would keep the kernel busy for hours.
const MAX_BYTES: usize = 4 << 20;

/// A table whose length and checksum are right, header included.
#[derive(Debug)]
pub struct Table<'m, M> {
    bytes: Bytes<'m, M>,
}

impl<M> Clone for Table<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Table<'_, M> {}

impl<'m, M: Memory> Table<'m, M> {
    /// The table's signature.
    pub fn signature(&self) -> [u8; 4] {
        signature(&self.bytes)
    }

    /// Checks a table's length and checksum and says the line that Linux prints for it. `left` is how
    /// many bytes of tables may still be read.
    fn open(memory: &'m M, address: u64, left: &mut usize, say: Say<'_>) -> Option<Self> {
        let header = Bytes::at(memory, address, HEADER);
        let Some(len) = header.u32(4).and_then(|len| usize::try_from(len).ok()) else {
            say(format_args!("ACPI: table at {address:#x} is out of reach; ignored"));
            return None;
        };
        let name = Name(signature(&header));
        let bytes = Bytes::at(memory, address, len);
        if !(HEADER..=MAX_TABLE).contains(&len) || bytes.u8(len - 1).is_none() {
            say(format_args!("ACPI: {name} {address:#018x}: length {len:#x} is wrong; ignored"));
            return None;
        }
        let Some(rest) = left.checked_sub(len) else {
            say(format_args!("ACPI: {name} {address:#018x}: past {MAX_BYTES:#x} bytes of tables; ignored"));
            return None;
        };
        *left = rest;
        if !bytes.checksum_holds() {
            say(format_args!("ACPI: {name} {address:#018x}: checksum is wrong; ignored"));
            return None;
        }
        let revision = header.u8(8).unwrap_or(0);
        say(format_args!("ACPI: {name} {address:#018x} {len:06X} (v{revision:02})"));
        Some(Table { bytes })
    }

    /// Calls `f` with the type and the bytes of every entry from `start` on. Entries begin with a type
    /// byte and a length byte (MADT, SRAT).
    fn for_each_entry(&self, start: usize, say: Say<'_>, mut f: impl FnMut(u8, Bytes<'m, M>, Say<'_>)) {
        let mut at = start;
        while let (Some(kind), Some(len)) = (self.bytes.u8(at), self.bytes.u8(at + 1)) {
            let Some(bytes) = self.bytes.slice(at, usize::from(len)).filter(|_| len >= 2) else {
                let name = Name(self.signature());
                say(format_args!("ACPI: {name}: entry at {at:#x} has length {len}; rest ignored"));
                return;
            };
            f(kind, bytes, say);
            at += usize::from(len);
        }
    }
}

fn signature<M: Memory>(bytes: &Bytes<'_, M>) -> [u8; 4] {
    bytes.u32(0).unwrap_or(0).to_le_bytes()
}

/// A signature as text.
struct Name([u8; 4]);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|&byte| f.write_char(if byte.is_ascii_graphic() { byte.into() } else { '?' }))
    }
}

/// The tables that the root pointer leads to.
#[derive(Debug)]
pub struct Tables<'m, M> {
    /// CPUs and interrupt controllers.
    pub madt: Option<Table<'m, M>>,
    /// CPUs and memory by node.
    pub srat: Option<Table<'m, M>>,
    /// Distances.
    pub slit: Option<Table<'m, M>>,
    /// Latencies and bandwidths.
    pub hmat: Option<Table<'m, M>>,
    /// How to power off.
    pub power_off: Option<PowerOff>,
}

impl<'m, M: Memory> Tables<'m, M> {
    /// Finds and checks all tables. `rsdp` is the loader's hint, or 0.
    pub fn find(memory: &'m M, rsdp: u64, say: Say<'_>) -> Self {
        let mut tables = Tables { madt: None, srat: None, slit: None, hmat: None, power_off: None };
        let Some(pointer) = find_rsdp(memory, rsdp, say) else {
            say(format_args!("ACPI: no root pointer: one node, one CPU"));
            return tables;
        };
        let revision = pointer.u8(15).unwrap_or(0);
        let xsdt = if revision >= 2 { pointer.u64(24).unwrap_or(0) } else { 0 };
        let (root, word) = if xsdt != 0 { (xsdt, 8) } else { (u64::from(pointer.u32(16).unwrap_or(0)), 4) };
        say(format_args!("ACPI: RSDP {:#018x} (v{revision:02})", pointer.address()));
        let mut left = MAX_BYTES;
        let Some(root) = Table::open(memory, root, &mut left, say) else { return tables };
        if (root.bytes.len() - HEADER) / word > MAX_TABLES {
            say(format_args!("ACPI: the root table names more than {MAX_TABLES} tables; rest ignored"));
        }
        for at in (HEADER..root.bytes.len()).step_by(word).take(MAX_TABLES) {
            let address = match word {
                8 => root.bytes.u64(at),
                _ => root.bytes.u32(at).map(u64::from),
            };
            // Firmware leaves entries empty (ACPICA skips them, too).
            let Some(address) = address.filter(|&address| address != 0) else { continue };
            let Some(table) = Table::open(memory, address, &mut left, say) else { continue };
            match &table.signature() {
                b"APIC" => tables.madt = Some(table),
                b"SRAT" => tables.srat = Some(table),
                b"SLIT" => tables.slit = Some(table),
                b"HMAT" => tables.hmat = Some(table),
                b"FACP" => tables.power_off = PowerOff::read(memory, &table, &mut left, say),
                _ => {}
            }
        }
        tables
    }
}

/// ACPI 6.5 section 5.2.5.1: the loader's hint, the first KiB of the EBDA, the BIOS area.
fn find_rsdp<'m, M: Memory>(memory: &'m M, hint: u64, say: Say<'_>) -> Option<Bytes<'m, M>> {
    if hint != 0 {
        return check_rsdp(memory, hint, say);
    }
    let ebda = Bytes::at(memory, 0x40e, 2).u16(0).map_or(0, |segment| u64::from(segment) << 4);
    let in_ebda = (ebda..ebda + 1024).step_by(16).filter(|_| ebda >= 0x400);
    in_ebda.chain((0xe_0000..0x10_0000).step_by(16)).find_map(|address| check_rsdp(memory, address, say))
}

fn check_rsdp<'m, M: Memory>(memory: &'m M, address: u64, say: Say<'_>) -> Option<Bytes<'m, M>> {
    // One read at first: the scan asks 8,192 times.
    if memory.read(address)? != *b"RSD PTR " {
        return None;
    }
    let first = Bytes::at(memory, address, 20);
    let whole = Bytes::at(memory, address, if first.u8(15)? >= 2 { 36 } else { 20 });
    if !first.checksum_holds() || !whole.checksum_holds() {
        say(format_args!("ACPI: RSDP {address:#x}: checksum is wrong; ignored"));
        return None;
    }
    Some(whole)
}
