//! ACPI tables, read defensively: a table with a bad length or checksum is reported and ignored, and
//! so is an entry that does not fit (ACPI 6.5 chapters 5 and 17).

mod fadt;
mod madt;
mod numa;

use mm_core::PhysAddr;

pub use fadt::power_off_method;
pub use madt::{MAX_CPUS, Madt, madt};
pub use numa::{Slit, Srat, slit, srat};

use crate::mm::phys::Bytes;
use crate::println;

const HEADER: usize = 36;
/// No table that this kernel reads is larger.
const MAX_TABLE: usize = 1 << 20;

/// A table whose length and checksum are right.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The whole table, header included.
    pub bytes: Bytes,
}

impl Table {
    /// The table's signature.
    pub fn signature(&self) -> [u8; 4] {
        signature(&self.bytes)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Calls `f` with every subtable from `start` on: (type, bytes). The subtables begin with a type
    /// byte and a length byte (MADT, SRAT).
    pub fn for_each_subtable(&self, start: usize, mut f: impl FnMut(u8, Bytes)) {
        let mut at = start;
        while let (Some(kind), Some(len)) = (self.bytes.u8(at), self.bytes.u8(at + 1)) {
            let Some(bytes) = self.bytes.slice(at, usize::from(len)).filter(|_| len >= 2) else {
                let name = self.signature();
                println!("ACPI: {}: entry at {at:#x} has length {len}; rest ignored", Name(name));
                return;
            };
            f(kind, bytes);
            at += usize::from(len);
        }
    }
}

fn signature(bytes: &Bytes) -> [u8; 4] {
    bytes.u32(0).unwrap_or(0).to_le_bytes()
}

/// A signature as text.
struct Name([u8; 4]);

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        use core::fmt::Write;
        self.0
            .iter()
            .try_for_each(|&byte| f.write_char(if byte.is_ascii_graphic() { byte.into() } else { '?' }))
    }
}

/// The tables that the root pointer leads to.
#[derive(Debug, Default)]
pub struct Tables {
    /// CPUs and interrupt controllers.
    pub madt: Option<Table>,
    /// CPUs and memory by node.
    pub srat: Option<Table>,
    /// Distances.
    pub slit: Option<Table>,
    /// Latencies and bandwidths.
    pub hmat: Option<Table>,
}

/// Finds and checks all tables. `rsdp` is the loader's hint, or 0.
pub fn find(rsdp: u64) -> Tables {
    let mut tables = Tables::default();
    let Some(pointer) = find_rsdp(rsdp) else {
        println!("ACPI: no root pointer: one node, one CPU");
        return tables;
    };
    let revision = pointer.u8(15).unwrap_or(0);
    let xsdt = if revision >= 2 { pointer.u64(24).unwrap_or(0) } else { 0 };
    let (root, word) = if xsdt != 0 { (xsdt, 8) } else { (u64::from(pointer.u32(16).unwrap_or(0)), 4) };
    println!("ACPI: RSDP {:#018x} (v{revision:02})", pointer.address());
    let Some(root) = open(root) else { return tables };
    for at in (HEADER..root.len()).step_by(word) {
        let address = match word {
            8 => root.bytes.u64(at),
            _ => root.bytes.u32(at).map(u64::from),
        };
        let Some(table) = address.and_then(open) else { continue };
        match &table.signature() {
            b"APIC" => tables.madt = Some(table),
            b"SRAT" => tables.srat = Some(table),
            b"SLIT" => tables.slit = Some(table),
            b"HMAT" => tables.hmat = Some(table),
            b"FACP" => fadt::read(&table),
            _ => {}
        }
    }
    tables
}

/// Checks a table's length and checksum and prints the line that Linux prints for it.
fn open(address: u64) -> Option<Table> {
    let header = Bytes::at(PhysAddr::new(address), HEADER);
    let Some(len) = header.u32(4).map(|len| len as usize) else {
        println!("ACPI: table at {address:#x} is out of reach; ignored");
        return None;
    };
    let name = Name(signature(&header));
    let bytes = Bytes::at(PhysAddr::new(address), len);
    if !(HEADER..=MAX_TABLE).contains(&len) || bytes.u8(len - 1).is_none() {
        println!("ACPI: {name} {address:#018x}: length {len:#x} is wrong; ignored");
        return None;
    }
    if bytes.checksum() != 0 {
        println!("ACPI: {name} {address:#018x}: checksum is wrong; ignored");
        return None;
    }
    println!("ACPI: {name} {address:#018x} {len:06X} (v{:02})", header.u8(8).unwrap_or(0));
    Some(Table { bytes })
}

/// ACPI 6.5 section 5.2.5.1: the loader's hint, the first KiB of the EBDA, the BIOS area.
fn find_rsdp(hint: u64) -> Option<Bytes> {
    if hint != 0 {
        return check_rsdp(hint);
    }
    let ebda = u64::from(Bytes::at(PhysAddr::new(0x40e), 2).u16(0)?) << 4;
    let in_ebda = (ebda..ebda + 1024).step_by(16).filter(|_| ebda >= 0x400);
    in_ebda.chain((0xe_0000..0x10_0000).step_by(16)).find_map(check_rsdp)
}

fn check_rsdp(address: u64) -> Option<Bytes> {
    let first = Bytes::at(PhysAddr::new(address), 20);
    if first.u64(0) != Some(u64::from_le_bytes(*b"RSD PTR ")) {
        return None;
    }
    let len = if first.u8(15)? >= 2 { 36 } else { 20 };
    let whole = Bytes::at(PhysAddr::new(address), len);
    if first.checksum() != 0 || whole.checksum() != 0 {
        println!("ACPI: RSDP {address:#x}: checksum is wrong; ignored");
        return None;
    }
    Some(whole)
}
