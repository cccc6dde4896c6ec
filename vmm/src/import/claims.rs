//! What sources say, with the place where they say it.

use std::fmt;
use std::sync::Arc;

use memvisor_inspect::FactE820;

use crate::machine::{HmatKind, Range};

/// A place in a source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The source as the user named it.
    pub file: Arc<str>,
    /// Line, from 1; 0 where there are no lines (binary tables).
    pub line: usize,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// Something that the user should know about an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// Two sources cannot both be right. The first claim is used.
    Contradiction {
        /// What they speak of.
        about: String,
        /// The claim that is used, and its place.
        used: (String, At),
        /// The other one.
        other: (String, At),
    },
    /// The machine was bent because memvisor cannot build it as it is.
    Adapted(String),
    /// Anything else.
    Note(String),
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::Contradiction { about, used, other } => {
                write!(f, "contradiction: {about}: {} ({}), but {} ({})", used.0, used.1, other.0, other.1)?;
                f.write_str("; the first is used")
            }
            Remark::Adapted(text) => write!(f, "adapted: {text}"),
            Remark::Note(text) => write!(f, "note: {text}"),
        }
    }
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim<T> {
    pub value: T,
    pub at: At,
}

/// Whose view a memory map is. Ascending by trust (I1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapSource {
    Firmware,
    Kernel,
}

/// A node, the nodes that a row of distances names, and the distances to them.
pub(super) type DistanceRow = (u32, Vec<u32>, Vec<u8>);

/// A whole memory map.
#[derive(Clone, Debug)]
pub(super) struct MapClaim {
    pub source: MapSource,
    pub entries: Vec<Claim<FactE820>>,
}

/// Memory affinity. `node` is known where Linux printed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SratMemory {
    pub pxm: u32,
    pub node: Option<u32>,
    pub range: Range,
}

/// CPU affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SratCpu {
    pub apic_id: u32,
    pub pxm: u32,
    pub node: Option<u32>,
}

/// One matrix of an HMAT, rows and columns by proximity domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Locality {
    pub kind: HmatKind,
    pub initiators: Vec<u32>,
    pub targets: Vec<u32>,
    /// Nanoseconds or MB/s; 0 where the table says nothing.
    pub figures: Vec<Vec<u32>>,
}

/// Everything that all sources say.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    pub maps: Vec<MapClaim>,
    pub srat_memory: Vec<Claim<SratMemory>>,
    pub srat_cpus: Vec<Claim<SratCpu>>,
    /// Local APICs that are enabled, in the order of the MADT.
    pub madt: Vec<Claim<u32>>,
    /// Node ranges that Linux printed ("Early memory node ranges").
    pub early: Vec<Claim<(u32, Range)>>,
    /// Nodes with all their CPUs by Linux's numbers.
    pub node_cpus: Vec<Claim<(u32, Vec<u32>)>>,
    /// Node and number of a CPU as it came up; CPU 0 is never among them.
    pub booted: Vec<Claim<(u32, u32)>>,
    /// CPUs that came up.
    pub online: Vec<Claim<u32>>,
    /// CPUs that are present.
    pub present: Vec<Claim<u32>>,
    /// Distances by proximity domain.
    pub slit: Vec<Claim<Vec<Vec<u8>>>>,
    /// Distances from a node to the nodes that are listed first.
    pub distances: Vec<Claim<DistanceRow>>,
    /// Bytes that Linux manages on a node.
    pub totals: Vec<Claim<(u32, u64)>>,
    pub localities: Vec<Claim<Locality>>,
    /// The last lines of a log that has no map.
    pub last_lines: Vec<String>,
    pub remarks: Vec<Remark>,
}

impl Claims {
    pub(super) fn contradict(&mut self, about: impl Into<String>, used: (String, At), other: (String, At)) {
        self.remarks.push(Remark::Contradiction { about: about.into(), used, other });
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.remarks.push(Remark::Note(text.into()));
    }
}

/// A half-open range from first and last byte, as Linux prints them. `None` if it is none, or is all of
/// 2^64 bytes.
pub(super) fn inclusive(first: u64, last: u64) -> Option<Range> {
    let len = last.checked_sub(first)?.checked_add(1)?;
    Some(Range { base: first, len })
}

/// A hexadecimal number with or without 0x, and what follows it.
pub(super) fn hex(text: &str) -> Option<(u64, &str)> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let end = digits.bytes().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(digits.len());
    let (number, rest) = digits.split_at_checked(end)?;
    Some((u64::from_str_radix(number, 16).ok()?, rest))
}

/// A decimal number and what follows it.
pub(super) fn decimal(text: &str) -> Option<(u32, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, rest))
}

/// A list like `0-3,8,10-11` (Linux: `cpulist_parse`), at most `limit` numbers.
pub(super) fn number_list(text: &str, limit: usize) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let len = usize::try_from(last.checked_sub(first)?).ok()?;
        if numbers.len().checked_add(len)? >= limit {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// Most CPUs that a source may list.
pub(super) const LIST_LIMIT: usize = 1 << 16;

/// An E820 type by any of the names that Linux gives it in its log, in /sys/firmware/memmap and in /proc/iomem.
pub(super) fn e820_kind(name: &str) -> Option<u32> {
    Some(match name.trim() {
        "usable" | "System RAM" => 1,
        "reserved" | "Reserved" | "device reserved" => 2,
        "ACPI data" | "ACPI Tables" => 3,
        "ACPI NVS" | "ACPI Non-volatile Storage" => 4,
        "unusable" | "Unusable memory" => 5,
        "persistent (type 7)" | "persistent RAM" | "Persistent Memory" => 7,
        "persistent (type 12)" | "Persistent Memory (legacy)" | "persistent RAM (type 12)" => 12,
        // EFI_MEMORY_SP: memory for a special purpose, which Linux leaves to drivers.
        "soft reserved" | "Soft Reserved" => 0xefff_ffff,
        other => return other.strip_prefix("type ")?.trim().parse().ok(),
    })
}
