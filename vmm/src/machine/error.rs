//! Why a machine cannot be built, and what to change.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::acpi::decode::DecodeError;
use super::{Backing, Range, Size, layout};

/// A machine was refused.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No machine of that name is bundled, and no file of that name exists.
    #[error("no machine is named `{name}`; choose one of {known}, or give the path of a .toml file")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The bundled machines.
        known: String,
    },
    /// The file could not be read.
    #[error("read machine file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of the file or a flag is wrong.
    #[error("{origin}: {problem}")]
    Invalid {
        /// Where.
        origin: Origin,
        /// What, and what to do.
        problem: Box<Problem>,
    },
    /// The ACPI tables that were built cannot be read back: a defect of this program.
    #[error("the ACPI tables that were built are damaged; please report it")]
    Acpi(#[from] DecodeError),
    /// The ACPI tables need more room than firmware memory has.
    #[error(
        "the ACPI tables of machine {machine} end {over} bytes past their room of {} at {:#x}; use fewer CPUs, nodes, memory ranges or [hmat] figures",
        Size::new(layout::ACPI_TABLES_END - layout::FIRMWARE_START), layout::FIRMWARE_START
    )]
    FirmwareFull {
        /// The machine.
        machine: String,
        /// How many bytes too many.
        over: u64,
    },
}

impl MachineError {
    pub(super) fn at(origin: &Origin, problem: Problem) -> MachineError {
        MachineError::Invalid { origin: origin.clone(), problem: Box::new(problem) }
    }
}

/// A line of a machine file, or a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a file.
    Line {
        /// The file as the user knows it.
        file: String,
        /// Counted from 1.
        line: usize,
    },
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line } => write!(f, "{file}:{line}"),
            Place::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Where a value came from: its place and the field's path (`node[1].memory[0]`), which may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Line or flag.
    pub place: Place,
    /// Path of the field.
    pub field: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "{}", self.place),
            field => write!(f, "{}: {field}", self.place),
        }
    }
}

/// A range as errors show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown(pub Range);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.0.base, self.0.end())
    }
}

/// What is wrong with a value, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Problem {
    #[error("{0}")]
    Syntax(String),
    #[error("a machine needs at least one node: add `[[node]]` with `memory` and `cpus`")]
    NoNodes,
    #[error("{count} nodes; at most {} are supported", layout::MAX_NODES)]
    TooManyNodes { count: usize },
    #[error("this node has neither memory nor CPUs; give it one of them or remove it")]
    EmptyNode,
    #[error("the machine has no memory; give a node `memory = [\"128M\"]`")]
    NoMemory,
    #[error("{} is not a multiple of 4 KiB; use {} or {}", .0, Size::new(.0.bytes() / 4096 * 4096), Size::new((.0.bytes() / 4096).saturating_add(1).saturating_mul(4096)))]
    NotPages(Size),
    #[error("{range} is not made of whole pages of {}, which backing \"{backing}\" takes; make its start and its size multiples of {}, or choose another backing", Size::new(.backing.page_size()), Size::new(.backing.page_size()))]
    NotHugePages { range: Shown, backing: Backing },
    #[error("a range of 0 bytes; give it a size or remove it")]
    EmptyRange,
    #[error("{} overlaps {} of {other} in {}; move or shrink one of them", .range, .other_range, .common)]
    Overlap { range: Shown, other_range: Shown, other: String, common: Shown },
    #[error(
        "RAM at {0} lies in the MMIO hole {start:#x}..{end:#x} (I/O APIC at {ioapic:#x}, local APIC at {lapic:#x}); end it at {start:#x} and continue at {end:#x}",
        start = layout::MMIO_HOLE_START, end = layout::MMIO_HOLE_END, ioapic = layout::IOAPIC, lapic = layout::LAPIC
    )]
    InMmioHole(Shown),
    #[error(
        "RAM at {0} lies in the firmware area {start:#x}..{end:#x}, which holds the ACPI tables; end it at {start:#x} or begin at {end:#x}",
        start = layout::FIRMWARE_START, end = layout::FIRMWARE_END
    )]
    InFirmware(Shown),
    #[error(
        "all of {0} lies in the legacy hole {start:#x}..{end:#x}; begin at {end:#x}",
        start = layout::EBDA_START, end = layout::HIGH_RAM_START
    )]
    AllLegacyHole(Shown),
    #[error("RAM at {range} is past {bits} physical address bits; end it at {:#x} or below{}", 1_u64 << .bits, if *.bits == layout::PHYS_BITS_4_LEVEL { ", or ask for 5 levels, which reach 52 bits" } else { "" })]
    PastPhysBits { range: Shown, bits: u32 },
    #[error("{len} from {base:#x} on go past 2^64; make it smaller")]
    Wraps { base: u64, len: Size },
    #[error("RAM at {0} belongs to no node; add it to a node's memory, or make the entry another type")]
    RamWithoutNode(Shown),
    #[error("the E820 map leaves none of this range as RAM; add an entry of type \"usable\" that covers it")]
    NoRamInRange,
    #[error(
        "{missing} below 1 MiB is not RAM; boot data and the start page of the application processors need all of 0x0..{:#x}: give a node memory there, and keep other E820 types away from it",
        layout::BOOT_DATA_END
    )]
    NoLowMemory { missing: Shown },
    #[error("{count} E820 entries; at most {} can be handed over", layout::E820_MAX_ENTRIES)]
    TooManyEntries { count: u64 },
    #[error("`e820 = \"replace\"` without any `[[e820]]`; add entries or use \"append\"")]
    NothingToReplaceWith,
    #[error("a machine needs at least one CPU; write `cpus = [0]` in a node, or `--cpus 1`")]
    NoCpus,
    #[error("{count} CPUs; at most {} are supported", layout::MAX_CPUS)]
    TooManyCpus { count: u64 },
    #[error("`{0}` is not the number of a CPU; CPUs are numbered 0 to {last}", last = layout::MAX_CPUS - 1)]
    CpuNumber(i64),
    #[error("CPU {cpu} is already in node {node}; a CPU belongs to one node")]
    CpuTwice { cpu: u32, node: usize },
    #[error("CPU {missing} is in no node, but CPU {present} is; number the CPUs from 0 without gaps")]
    CpuInNoNode { missing: u32, present: u32 },
    #[error("node {node} does not exist; the nodes are 0..={last}")]
    NoSuchNode { node: u32, last: usize },
    #[error("distance {distance} from node {from} to itself; it is always 10, leave it out")]
    SelfDistance { from: usize, distance: i64 },
    #[error(
        "distance {distance} from node {from} to node {to}; distances to other nodes are 11 to 254, or 255 for unreachable, and 10 is a node's own"
    )]
    DistanceRange { from: usize, to: u32, distance: i64 },
    #[error(
        "distance {distance} from node {from} to node {to}, but {back} from node {to} to node {from}; make them equal{}",
        if *.in_file { ", or say `asymmetric = true` in [machine]" } else { "" }
    )]
    Asymmetric { from: usize, to: usize, distance: u8, back: u8, in_file: bool },
    #[error("{found} rows; one for each node with CPUs, {initiators:?}, is {}", .initiators.len())]
    HmatRows { found: usize, initiators: Vec<u32> },
    #[error("row {row} has {found} figures; one for each node with memory, {targets:?}, is {}", .targets.len())]
    HmatColumns { row: usize, found: usize, targets: Vec<u32> },
    #[error("figure {figure} of row {row}; figures are 1 to {max}")]
    HmatFigure { figure: i64, row: usize, max: u32 },
    #[error(
        "the figures have no common unit in which all fit in 16 bits; round them (their greatest common divisor is {unit}, the largest is {largest})"
    )]
    HmatUnit { unit: u64, largest: u32 },
    #[error("no figures; give `latency_ns` or `bandwidth_mbps`, or remove [hmat]")]
    HmatEmpty,
    #[error("a command line of {len} bytes; kernels take at most {}", layout::CMDLINE_MAX)]
    CmdlineTooLong { len: usize },
    #[error("a command line is one line of printable text; remove the control character {0:?}")]
    CmdlineControl(char),
    #[error(
        "`{0}` is not a name; use 1 to 44 letters, digits, `.`, `_` and `-`, and begin with a letter or digit"
    )]
    BadName(String),
    #[error("{total} is too little for {ranges} ranges; give at least {}", Size::new(4096 * *.ranges as u64))]
    ScaledToNothing { total: Size, ranges: usize },
    #[error("`{0}` is not KEY=VALUE")]
    NotKeyValue(String),
    #[error("unknown key `{key}`; the keys are {known}")]
    UnknownKey { key: String, known: &'static str },
    #[error("key `{0}` is given twice")]
    DuplicateKey(String),
    #[error("key `{key}` is missing; write {example}")]
    MissingKey { key: &'static str, example: &'static str },
    #[error("`{text}` is not {what}")]
    BadValue { text: String, what: &'static str },
    #[error("no memory zone has the id `{zone}`; the zones are {known}")]
    NoSuchZone { zone: String, known: String },
    #[error("memory zone `{0}` is given twice")]
    ZoneTwice(String),
    #[error("memory zone `{zone}` is already in node {node}")]
    ZoneInTwoNodes { zone: String, node: u32 },
    #[error("memory zone `{0}` is in no node; name it in the memory_zones of a --numa")]
    ZoneUnused(String),
    #[error("node {missing} is missing; guest_numa_id counts from 0 without gaps")]
    NodeGap { missing: u32 },
    #[error("node {0} is given twice")]
    NodeTwice(u32),
    #[error("a disk needs `file`, a file that is there, or `size`, for a temporary one; give one of them")]
    DiskSource,
    #[error("a disk of {0} bytes; give a multiple of 512 from 512 on")]
    DiskSize(u64),
    #[error(
        "`{0}` is not the name of a disk; use 1 to 20 letters, digits, `.`, `_` and `-`, and begin with a letter or digit"
    )]
    DiskName(String),
    #[error("disk `{0}` is given twice; give each disk a name of its own")]
    DiskTwice(String),
    #[error("too many disks; at most {} are supported", layout::MAX_DISKS)]
    TooManyDisks,
    #[error("too many DMA engines; at most {} are supported", layout::MAX_DMA_ENGINES)]
    TooManyDmaEngines,
    #[error("--memory cannot be used together with --memory-zone; the zones have the sizes")]
    MemoryAndZones,
}
