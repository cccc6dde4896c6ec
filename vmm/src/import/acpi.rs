//! ACPI tables of a real machine: SRAT, SLIT, MADT and HMAT, as bytes or as acpidump prints them.
//!
//! Tables are somebody else's: every length is checked, and a damaged table is an error with its place.

use std::sync::Arc;

use super::ImportError;
use super::claims::{At, Claim, Claims, Locality, SratCpu, SratMemory, hex};
use crate::machine::{HmatKind, Range};

/// Bytes of the header that all tables have.
const HEADER: usize = 36;
/// Tables that say something about memory or CPUs.
const READ: [&[u8; 4]; 4] = [b"SRAT", b"SLIT", b"APIC", b"HMAT"];

/// Whether a file of that name in /sys/firmware/acpi/tables is worth reading.
pub(super) fn is_signature(name: &str) -> bool {
    READ.iter().any(|signature| signature.as_slice() == name.as_bytes())
}

/// Whether `bytes` begin like a table that is read here.
pub(super) fn is_table(bytes: &[u8]) -> bool {
    READ.iter().any(|signature| bytes.starts_with(signature.as_slice()))
        && u32_at(bytes, 4).is_some_and(|len| len as usize >= HEADER && len as usize <= bytes.len())
}

/// Signature of a line `SRAT @ 0x00000000C9EA3D58`.
pub(super) fn dump_header(line: &str) -> Option<&str> {
    let (signature, address) = line.split_once(" @ ")?;
    let (_, rest) = hex(address.trim().strip_prefix("0x")?)?;
    (signature.len() == 4 && signature.is_ascii() && rest.is_empty()).then_some(signature)
}

/// Reads the output of acpidump.
pub(super) fn read_dump(file: &Arc<str>, text: &str, claims: &mut Claims) -> Result<(), ImportError> {
    let mut table: Option<(At, Vec<u8>)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let at = At { file: file.clone(), line: number };
        if let Some(signature) = dump_header(line) {
            if let Some((at, bytes)) = table.take() {
                read_table(&bytes, &at, claims)?;
            }
            table = is_signature(signature).then(|| (at, Vec::new()));
        } else if let Some((_, bytes)) = &mut table
            && let Some((offset, data)) = dump_line(line)
        {
            if offset != bytes.len() as u64 {
                let problem =
                    format!("bytes from {offset:#x} on follow byte {:#x}; dump it again", bytes.len());
                return Err(ImportError::Unusable { at, problem });
            }
            bytes.extend(data);
        }
    }
    match table {
        Some((at, bytes)) => read_table(&bytes, &at, claims),
        None => Ok(()),
    }
}

/// Offset and bytes of `    0010: 41 4D 44 00  AMD.`: at most 16 bytes in columns of three, then the same as text.
fn dump_line(line: &str) -> Option<(u64, Vec<u8>)> {
    let (offset, rest) = hex(line.trim_start())?;
    let columns = rest.strip_prefix(": ")?.as_bytes();
    let byte = |column: &[u8]| {
        let (digits, gap) = column.split_at_checked(2)?;
        if gap.first().is_some_and(|gap| *gap != b' ') || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    Some((offset, columns.chunks(3).take(16).map_while(byte).collect()))
}

/// Reads one table; those of other kinds are passed over.
pub(super) fn read_table(bytes: &[u8], at: &At, claims: &mut Claims) -> Result<(), ImportError> {
    let bad = |problem: String| Err(ImportError::Unusable { at: at.clone(), problem });
    let len = u32_at(bytes, 4).map_or(0, |len| len as usize);
    let (Some(table), true) = (bytes.get(..len), len >= HEADER) else {
        return bad(format!(
            "the ACPI table has {} bytes, its header says {len}; dump it again",
            bytes.len()
        ));
    };
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if sum != 0 {
        return bad(format!("the ACPI table's bytes sum up to {sum:#x}, not 0; dump it again"));
    }
    let whole = match &table[..4] {
        b"SRAT" => structures(table, HEADER + 12, |kind, body| srat(kind, body, at, claims)),
        b"APIC" => structures(table, HEADER + 8, |kind, body| madt(kind, body, at, claims)),
        b"SLIT" => slit(table, at, claims),
        b"HMAT" => hmat(table, at, claims),
        _ => Some(()),
    };
    match whole {
        Some(()) => Ok(()),
        None => bad("a structure of the ACPI table does not fit into it; dump it again".to_owned()),
    }
}

/// Calls `f` with type and bytes of each structure that follows `from`. `None` if one does not fit.
fn structures(table: &[u8], from: usize, mut f: impl FnMut(u8, &[u8]) -> Option<()>) -> Option<()> {
    let mut rest = table.get(from..)?;
    while let [kind, len, ..] = *rest {
        let (body, next) = rest.split_at_checked(usize::from(len))?;
        if body.len() < 2 {
            return None;
        }
        f(kind, body)?;
        rest = next;
    }
    rest.is_empty().then_some(())
}

/// ACPI 6.5 section 5.2.16. Disabled structures count for nothing.
fn srat(kind: u8, body: &[u8], at: &At, claims: &mut Claims) -> Option<()> {
    const ENABLED: u32 = 1;
    match kind {
        0 if u32_at(body, 4)? & ENABLED != 0 => {
            let pxm = [*body.get(2)?, *body.get(9)?, *body.get(10)?, *body.get(11)?];
            let value =
                SratCpu { apic_id: u32::from(*body.get(3)?), pxm: u32::from_le_bytes(pxm), node: None };
            claims.srat_cpus.push(Claim { value, at: at.clone() });
        }
        1 if u32_at(body, 28)? & ENABLED != 0 => {
            let range = Range { base: u64_at(body, 8)?, len: u64_at(body, 16)? };
            range.base.checked_add(range.len)?;
            let value = SratMemory { pxm: u32_at(body, 2)?, node: None, range };
            claims.srat_memory.push(Claim { value, at: at.clone() });
        }
        2 if u32_at(body, 12)? & ENABLED != 0 => {
            let value = SratCpu { apic_id: u32_at(body, 8)?, pxm: u32_at(body, 4)?, node: None };
            claims.srat_cpus.push(Claim { value, at: at.clone() });
        }
        _ => {}
    }
    Some(())
}

/// ACPI 6.5 section 5.2.12.
fn madt(kind: u8, body: &[u8], at: &At, claims: &mut Claims) -> Option<()> {
    const ENABLED: u32 = 1;
    let (apic_id, flags) = match kind {
        0 => (u32::from(*body.get(3)?), u32_at(body, 4)?),
        9 => (u32_at(body, 4)?, u32_at(body, 8)?),
        _ => return Some(()),
    };
    // Firmware may give a CPU both structures (Linux skips x2APIC ids below 255 then).
    let known = claims.madt.iter().any(|claim| claim.value == apic_id && claim.at == *at);
    if flags & ENABLED != 0 && !known {
        claims.madt.push(Claim { value: apic_id, at: at.clone() });
    }
    Some(())
}

fn slit(table: &[u8], at: &At, claims: &mut Claims) -> Option<()> {
    let count = usize::try_from(u64_at(table, HEADER)?).ok().filter(|count| *count > 0)?;
    let cells = table.get(HEADER + 8..)?.get(..count.checked_mul(count)?)?;
    let value = cells.chunks(count).map(<[u8]>::to_vec).collect();
    claims.slit.push(Claim { value, at: at.clone() });
    Some(())
}

/// ACPI 6.5 section 5.2.28: the matrices of memory itself; those of memory-side caches are passed over.
fn hmat(table: &[u8], at: &At, claims: &mut Claims) -> Option<()> {
    let revision = *table.get(8)?;
    let mut rest = table.get(HEADER + 4..)?;
    while !rest.is_empty() {
        let (body, next) = rest.split_at_checked(usize::try_from(u32_at(rest, 4)?).ok()?)?;
        if body.len() < 8 {
            return None;
        }
        if u16_at(body, 0)? == 1 {
            locality(body, revision, at, claims)?;
        }
        rest = next;
    }
    Some(())
}

fn locality(body: &[u8], revision: u8, at: &At, claims: &mut Claims) -> Option<()> {
    const HIERARCHY: u8 = 0xf;
    let kind = match body.get(9)? {
        0 => HmatKind::AccessLatency,
        1 => HmatKind::ReadLatency,
        2 => HmatKind::WriteLatency,
        3 => HmatKind::AccessBandwidth,
        4 => HmatKind::ReadBandwidth,
        5 => HmatKind::WriteBandwidth,
        _ => return Some(()),
    };
    if body.get(8)? & HIERARCHY != 0 {
        return Some(());
    }
    let rows = usize::try_from(u32_at(body, 12)?).ok()?;
    let columns = usize::try_from(u32_at(body, 16)?).ok()?;
    let unit = u64_at(body, 24)?;
    let ids = |from: usize, count: usize| -> Option<Vec<u32>> {
        let bytes = body.get(from..)?.get(..count.checked_mul(4)?)?;
        (0..count).map(|index| u32_at(bytes, index * 4)).collect()
    };
    let initiators = ids(32, rows)?;
    let first_target = 32 + rows.checked_mul(4)?;
    let targets = ids(first_target, columns)?;
    let cells = body.get(first_target + columns.checked_mul(4)?..)?;
    cells.get(..rows.checked_mul(columns)?.checked_mul(2)?)?;
    let figure = |row: usize, column: usize| -> Option<u32> {
        let entry = u16_at(cells, (row * columns + column) * 2)?;
        Some(normalize(entry, unit, revision, kind))
    };
    let row = |row| (0..columns).map(|column| figure(row, column)).collect();
    let figures: Option<Vec<Vec<u32>>> = (0..rows).map(row).collect();
    claims
        .localities
        .push(Claim { value: Locality { kind, initiators, targets, figures: figures? }, at: at.clone() });
    Some(())
}

/// Linux's reading of an entry (drivers/acpi/numa/hmat.c, `hmat_normalize`); 0 for none.
fn normalize(entry: u16, unit: u64, revision: u8, kind: HmatKind) -> u32 {
    if entry == u16::MAX {
        return 0;
    }
    let Some(value) = u64::from(entry).checked_mul(unit) else { return 0 };
    let value = match (revision, kind.is_latency()) {
        (1, _) if value < 10 => 0,
        (1, _) => value.div_ceil(10),
        (_, true) => value.div_ceil(1000),
        (_, false) => value,
    };
    u32::try_from(value).unwrap_or(0)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
