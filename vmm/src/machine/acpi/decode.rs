//! Reads ACPI tables back from their bytes, for people and for tests.
//!
//! Starts at the RSDP and follows addresses, as an OS does, and trusts nothing: lengths, checksums and
//! signatures are checked. Knows what `build` writes; structures of other types are counted.

use serde::Serialize;

use super::AcpiTables;
use crate::machine::Range;

/// Why tables cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing begins at an address that a table names.
    #[error("no ACPI table at {gpa:#x}, where {referrer} says one is")]
    Missing {
        /// The address.
        gpa: u64,
        /// The table with the address.
        referrer: &'static str,
    },
    /// A table or structure ends before its fields do.
    #[error("{what} ends at byte {len}, before the field at {offset}")]
    Truncated {
        /// Table or structure.
        what: &'static str,
        /// Bytes that exist.
        len: usize,
        /// Bytes that the field needs.
        offset: usize,
    },
    /// Another table than expected.
    #[error("{expected} expected at {gpa:#x}, found {found}")]
    Signature {
        /// The address.
        gpa: u64,
        /// What should be there.
        expected: &'static str,
        /// What is.
        found: String,
    },
    /// The header's length is not the table's.
    #[error("{what} at {gpa:#x} says it has {claimed} bytes, it has {len}")]
    Length {
        /// Table.
        what: String,
        /// The address.
        gpa: u64,
        /// Its header's claim.
        claimed: u32,
        /// Its real length.
        len: usize,
    },
    /// The bytes do not sum up to 0.
    #[error("{what} at {gpa:#x} has a wrong checksum: its bytes sum up to {sum:#x}, not 0")]
    Checksum {
        /// Table.
        what: String,
        /// The address.
        gpa: u64,
        /// The sum.
        sum: u8,
    },
    /// A structure of length 0, or longer than its table.
    #[error("{what}: the structure at byte {offset} has {len} bytes, which does not fit")]
    Structure {
        /// Table.
        what: &'static str,
        /// Where in the table.
        offset: usize,
        /// Its length.
        len: usize,
    },
}

/// All tables, in the order in which an OS meets them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decoded {
    /// Where the RSDP is.
    pub rsdp: u64,
    /// Its revision.
    pub revision: u8,
    /// Where the XSDT is.
    pub xsdt: u64,
    /// What the XSDT and the FADT lead to.
    pub tables: Vec<DecodedTable>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DecodedTable {
    /// Four letters.
    pub signature: String,
    /// Where it is.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// What it says.
    pub content: Content,
}

/// What a table says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// FADT.
    Fadt(Fadt),
    /// MADT.
    Madt(Vec<Controller>),
    /// SRAT.
    Srat(Vec<Affinity>),
    /// SLIT: the matrix.
    Slit(Vec<Vec<u8>>),
    /// HMAT.
    Hmat(Vec<HmatStructure>),
    /// AML or another table without a decoder: bytes after the header.
    Opaque(usize),
}

/// Fields of the FADT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fadt {
    /// Where the DSDT is.
    pub dsdt: u64,
    /// Where the FACS is.
    pub facs: u64,
    /// System control interrupt.
    pub sci: u16,
    /// PM1a event port.
    pub pm1a_evt: u64,
    /// PM1a control port.
    pub pm1a_cnt: u64,
    /// Reset register's port.
    pub reset_port: u64,
    /// What resets.
    pub reset_value: u8,
    /// IA-PC boot architecture flags.
    pub boot_arch: u16,
    /// Whether the hardware-reduced flag is set.
    pub hw_reduced: bool,
}

/// A structure of the MADT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Controller {
    /// Types 0 and 9.
    LocalApic {
        /// ACPI processor UID.
        uid: u32,
        /// APIC id.
        apic_id: u32,
        /// Whether the structure is the x2APIC one.
        x2apic: bool,
        /// Whether the processor can be used.
        enabled: bool,
    },
    /// Type 1.
    IoApic {
        /// APIC id.
        id: u8,
        /// Where its registers are.
        gpa: u32,
        /// First global interrupt.
        gsi_base: u32,
    },
    /// Type 2.
    SourceOverride {
        /// ISA interrupt.
        irq: u8,
        /// Global interrupt.
        gsi: u32,
        /// Polarity and trigger mode.
        flags: u16,
    },
    /// Types 4 and 10.
    Nmi {
        /// Processor, or all ones for all.
        uid: u32,
        /// Pin.
        lint: u8,
    },
    /// Another type.
    Other {
        /// The type.
        kind: u8,
    },
}

/// A structure of the SRAT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Affinity {
    /// Types 0 and 2.
    Cpu {
        /// APIC id.
        apic_id: u32,
        /// Proximity domain.
        node: u32,
        /// Whether it counts.
        enabled: bool,
    },
    /// Type 1.
    Memory {
        /// The range.
        #[serde(flatten)]
        range: Range,
        /// Proximity domain.
        node: u32,
        /// Whether it counts.
        enabled: bool,
    },
    /// Another type.
    Other {
        /// The type.
        kind: u8,
    },
}

/// A structure of the HMAT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum HmatStructure {
    /// Type 0: memory and the CPUs it is attached to.
    Proximity {
        /// Node with the memory.
        memory: u32,
        /// Node with the CPUs.
        initiator: u32,
    },
    /// Type 1: a matrix.
    Locality {
        /// 0..=2 latency, 3..=5 bandwidth; access, read, write.
        data_type: u8,
        /// Nodes with CPUs: rows.
        initiators: Vec<u32>,
        /// Nodes with memory: columns.
        targets: Vec<u32>,
        /// Entries times base unit: picoseconds, or MB/s.
        figures: Vec<Vec<u64>>,
    },
    /// Another type.
    Other {
        /// The type.
        kind: u16,
    },
}

/// Follows `tables` from the RSDP.
///
/// # Errors
/// [`DecodeError`] at the first thing that an OS would stumble over.
pub fn decode(tables: &AcpiTables) -> Result<Decoded, DecodeError> {
    let rsdp = Bytes::at(tables, tables.rsdp_gpa, "the boot protocol")?;
    rsdp.check_sum(tables.rsdp_gpa, "RSDP")?;
    // The first 20 bytes, all that revision 0 had, have a checksum of their own.
    rsdp.part(0, 20, 20, "RSDP")?.check_sum(tables.rsdp_gpa, "RSDP revision 0")?;
    if rsdp.array::<8>(0, "RSDP")? != *b"RSD PTR " {
        let found = rsdp.text(0, 8);
        return Err(DecodeError::Signature { gpa: tables.rsdp_gpa, expected: "RSDP", found });
    }
    let xsdt_gpa = rsdp.u64(24, "RSDP")?;
    let xsdt = Bytes::table(tables, xsdt_gpa, "the RSDP", Some("XSDT"))?;
    let mut decoded =
        Decoded { rsdp: tables.rsdp_gpa, revision: rsdp.u8(15, "RSDP")?, xsdt: xsdt_gpa, tables: Vec::new() };
    for entry in xsdt.0.get(HEADER..).unwrap_or_default().chunks(8) {
        let gpa = Bytes(entry).u64(0, "XSDT")?;
        let table = Bytes::table(tables, gpa, "the XSDT", None)?;
        decoded.tables.push(decoded_table(&table, gpa)?);
        if let Some(DecodedTable { content: Content::Fadt(fadt), .. }) = decoded.tables.last() {
            let (dsdt, facs) = (fadt.dsdt, fadt.facs);
            let table = Bytes::table(tables, dsdt, "the FADT", Some("DSDT"))?;
            decoded.tables.push(decoded_table(&table, dsdt)?);
            // The FACS has no checksum.
            let table = Bytes::at(tables, facs, "the FADT")?;
            decoded.tables.push(decoded_table(&table, facs)?);
        }
    }
    Ok(decoded)
}

/// Bytes of the common header.
const HEADER: usize = 36;

fn decoded_table(table: &Bytes<'_>, gpa: u64) -> Result<DecodedTable, DecodeError> {
    let signature = table.text(0, 4);
    let content = match signature.as_str() {
        "FACP" => Content::Fadt(fadt(table)?),
        "APIC" => Content::Madt(madt(table)?),
        "SRAT" => Content::Srat(srat(table)?),
        "SLIT" => Content::Slit(slit(table)?),
        "HMAT" => Content::Hmat(hmat(table)?),
        _ => Content::Opaque(table.0.len().saturating_sub(HEADER)),
    };
    Ok(DecodedTable { signature, gpa, len: table.u32(4, "table")?, content })
}

fn fadt(table: &Bytes<'_>) -> Result<Fadt, DecodeError> {
    let what = "FADT";
    Ok(Fadt {
        dsdt: table.u64(140, what)?,
        facs: table.u32(36, what)?.into(),
        sci: table.u16(46, what)?,
        pm1a_evt: table.u64(148 + 4, what)?,
        pm1a_cnt: table.u64(172 + 4, what)?,
        reset_port: table.u64(116 + 4, what)?,
        reset_value: table.u8(128, what)?,
        boot_arch: table.u16(109, what)?,
        hw_reduced: table.u32(112, what)? & 1 << 20 != 0,
    })
}

fn madt(table: &Bytes<'_>) -> Result<Vec<Controller>, DecodeError> {
    let what = "MADT";
    let decode = |entry: Bytes<'_>| {
        Ok(match entry.u8(0, what)? {
            0 => Controller::LocalApic {
                uid: entry.u8(2, what)?.into(),
                apic_id: entry.u8(3, what)?.into(),
                x2apic: false,
                enabled: entry.u32(4, what)? & 1 != 0,
            },
            1 => Controller::IoApic {
                id: entry.u8(2, what)?,
                gpa: entry.u32(4, what)?,
                gsi_base: entry.u32(8, what)?,
            },
            2 => Controller::SourceOverride {
                irq: entry.u8(3, what)?,
                gsi: entry.u32(4, what)?,
                flags: entry.u16(8, what)?,
            },
            4 => Controller::Nmi { uid: entry.u8(2, what)?.into(), lint: entry.u8(5, what)? },
            9 => Controller::LocalApic {
                apic_id: entry.u32(4, what)?,
                enabled: entry.u32(8, what)? & 1 != 0,
                uid: entry.u32(12, what)?,
                x2apic: true,
            },
            10 => Controller::Nmi { uid: entry.u32(4, what)?, lint: entry.u8(8, what)? },
            kind => Controller::Other { kind },
        })
    };
    table.structures(HEADER + 8, what)?.into_iter().map(decode).collect()
}

fn srat(table: &Bytes<'_>) -> Result<Vec<Affinity>, DecodeError> {
    let what = "SRAT";
    let decode = |entry: Bytes<'_>| {
        Ok(match entry.u8(0, what)? {
            0 => {
                let [b, c, d] = entry.array::<3>(9, what)?;
                Affinity::Cpu {
                    node: u32::from_le_bytes([entry.u8(2, what)?, b, c, d]),
                    apic_id: entry.u8(3, what)?.into(),
                    enabled: entry.u32(4, what)? & 1 != 0,
                }
            }
            1 => Affinity::Memory {
                node: entry.u32(2, what)?,
                range: Range { base: entry.u64(8, what)?, len: entry.u64(16, what)? },
                enabled: entry.u32(28, what)? & 1 != 0,
            },
            2 => Affinity::Cpu {
                node: entry.u32(4, what)?,
                apic_id: entry.u32(8, what)?,
                enabled: entry.u32(12, what)? & 1 != 0,
            },
            kind => Affinity::Other { kind },
        })
    };
    table.structures(HEADER + 12, what)?.into_iter().map(decode).collect()
}

fn slit(table: &Bytes<'_>) -> Result<Vec<Vec<u8>>, DecodeError> {
    let len = table.0.len();
    let localities = usize::try_from(table.u64(HEADER, "SLIT")?).unwrap_or(usize::MAX);
    let entries = table.0.get(HEADER + 8..).unwrap_or_default();
    if localities == 0 || localities.checked_mul(localities) != Some(entries.len()) {
        let offset = localities.saturating_mul(localities).saturating_add(HEADER + 8);
        return Err(DecodeError::Truncated { what: "SLIT", len, offset });
    }
    Ok(entries.chunks(localities).map(<[u8]>::to_vec).collect())
}

fn hmat(table: &Bytes<'_>) -> Result<Vec<HmatStructure>, DecodeError> {
    let what = "HMAT";
    let mut found = Vec::new();
    let mut offset = HEADER + 4;
    while offset < table.0.len() {
        let len = usize::try_from(table.u32(offset + 4, what)?).unwrap_or(usize::MAX);
        let entry = table.part(offset, len, 8, what)?;
        found.push(match entry.u16(0, what)? {
            0 => HmatStructure::Proximity { initiator: entry.u32(12, what)?, memory: entry.u32(16, what)? },
            1 => hmat_locality(&entry)?,
            kind => HmatStructure::Other { kind },
        });
        offset += len;
    }
    Ok(found)
}

fn hmat_locality(entry: &Bytes<'_>) -> Result<HmatStructure, DecodeError> {
    let what = "HMAT locality";
    let rows = usize::try_from(entry.u32(12, what)?).unwrap_or(usize::MAX);
    let columns = usize::try_from(entry.u32(16, what)?).unwrap_or(usize::MAX);
    let len = entry.0.len();
    // Each row and column takes 4 bytes, so more than `len` cannot be meant.
    if rows > len || columns > len {
        return Err(DecodeError::Truncated { what, len, offset: rows.max(columns) });
    }
    let base_unit = entry.u64(24, what)?;
    let words = |from: usize, count: usize| -> Result<Vec<u32>, DecodeError> {
        (0..count).map(|index| entry.u32(from + 4 * index, what)).collect()
    };
    let matrix = 32 + 4 * (rows + columns);
    let figure = |row: usize, column: usize| -> Result<u64, DecodeError> {
        let raw = entry.u16(matrix + 2 * (row * columns + column), what)?;
        Ok(u64::from(raw).saturating_mul(base_unit))
    };
    let figures: Result<Vec<Vec<u64>>, DecodeError> =
        (0..rows).map(|row| (0..columns).map(|column| figure(row, column)).collect()).collect();
    Ok(HmatStructure::Locality {
        data_type: entry.u8(9, what)?,
        initiators: words(32, rows)?,
        targets: words(32 + 4 * rows, columns)?,
        figures: figures?,
    })
}

/// Bytes of a table or structure, with checked reads.
#[derive(Clone, Copy, Debug)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// What begins at `gpa`.
    fn at(tables: &'a AcpiTables, gpa: u64, referrer: &'static str) -> Result<Bytes<'a>, DecodeError> {
        let table = tables.tables.iter().find(|table| table.gpa == gpa);
        table.map(|table| Bytes(&table.bytes)).ok_or(DecodeError::Missing { gpa, referrer })
    }

    /// The table with a common header at `gpa`, its length and checksum verified.
    fn table(
        tables: &'a AcpiTables,
        gpa: u64,
        referrer: &'static str,
        expected: Option<&'static str>,
    ) -> Result<Bytes<'a>, DecodeError> {
        let table = Bytes::at(tables, gpa, referrer)?;
        let what = table.text(0, 4);
        if let Some(expected) = expected.filter(|expected| *expected != what) {
            return Err(DecodeError::Signature { gpa, expected, found: what });
        }
        let claimed = table.u32(4, "table header")?;
        if usize::try_from(claimed) != Ok(table.0.len()) {
            return Err(DecodeError::Length { what, gpa, claimed, len: table.0.len() });
        }
        table.check_sum(gpa, &what)?;
        Ok(table)
    }

    fn check_sum(&self, gpa: u64, what: &str) -> Result<(), DecodeError> {
        match self.0.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) {
            0 => Ok(()),
            sum => Err(DecodeError::Checksum { what: what.to_owned(), gpa, sum }),
        }
    }

    /// Structures with a type byte and a length byte, from `offset` to the end.
    fn structures(&self, mut offset: usize, what: &'static str) -> Result<Vec<Bytes<'a>>, DecodeError> {
        let mut found = Vec::new();
        while offset < self.0.len() {
            let len = usize::from(self.u8(offset + 1, what)?);
            found.push(self.part(offset, len, 2, what)?);
            offset += len;
        }
        Ok(found)
    }

    /// The structure of `len` bytes, at least `least`, at `offset`.
    fn part(
        &self,
        offset: usize,
        len: usize,
        least: usize,
        what: &'static str,
    ) -> Result<Bytes<'a>, DecodeError> {
        let end = offset.checked_add(len).filter(|_| len >= least);
        end.and_then(|end| self.0.get(offset..end)).map(Bytes).ok_or(DecodeError::Structure {
            what,
            offset,
            len,
        })
    }

    fn array<const N: usize>(&self, offset: usize, what: &'static str) -> Result<[u8; N], DecodeError> {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.copied().ok_or(DecodeError::Truncated { what, len: self.0.len(), offset })
    }

    fn u8(&self, offset: usize, what: &'static str) -> Result<u8, DecodeError> {
        self.array(offset, what).map(u8::from_le_bytes)
    }

    fn u16(&self, offset: usize, what: &'static str) -> Result<u16, DecodeError> {
        self.array(offset, what).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: usize, what: &'static str) -> Result<u32, DecodeError> {
        self.array(offset, what).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: usize, what: &'static str) -> Result<u64, DecodeError> {
        self.array(offset, what).map(u64::from_le_bytes)
    }

    /// Letters for messages.
    fn text(&self, offset: usize, len: usize) -> String {
        let bytes = self.0.get(offset..offset.saturating_add(len)).unwrap_or_default();
        bytes.escape_ascii().to_string()
    }
}
