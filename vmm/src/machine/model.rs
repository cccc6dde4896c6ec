//! The machine that is built: what a machine file and the command line resolve to.

use std::collections::BTreeMap;
use std::path::PathBuf;

use memvisor_inspect::{FactCpu, FactE820, FactNodeMemory, Facts};
use serde::Serialize;

use super::{Disk, Size, e820, layout};

/// A machine, complete and checked. Made by [`super::resolve`] only, so that:
///
/// M1  node `i` of [`Machine::nodes`] has id `i`, and CPU `i` of [`Machine::cpus`] has index `i`;
/// M2  the nodes' memory ranges do not overlap and together are exactly the RAM of the effective
///     E820 map ([`Machine::effective_e820`]);
/// M3  no RAM lies in the firmware area, in the MMIO hole or past the physical address width;
/// M4  everything below [`layout::BOOT_DATA_END`] is RAM;
/// M5  the distance matrix is square, 10 on its diagonal and more than 10 elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Machine {
    /// Name of the machine: the file's `name`, or its file name.
    pub name: String,
    /// One line about it.
    pub description: String,
    /// Name under which the running guest is reached: `--name`, or [`Machine::name`].
    pub vm_name: String,
    /// The E820 map in the order in which the guest gets it, hostile entries included.
    pub e820: Vec<FactE820>,
    /// Nodes by id.
    pub nodes: Vec<Node>,
    /// CPUs by index; the first one boots.
    pub cpus: Vec<Cpu>,
    /// What the host backs RAM with where the machine says so, ascending and disjoint; the rest is as the
    /// host likes. Every slot is inside one of them or outside all.
    pub backed: Vec<Backed>,
    /// Distances (ACPI SLIT): `distances[from][to]`, one row a node.
    pub distances: Vec<Vec<u8>>,
    /// Latency and bandwidth between nodes, if the file gives figures.
    pub hmat: Option<Hmat>,
    /// Paging depth asked for.
    pub paging: Paging,
    /// Boot protocol.
    pub boot: Boot,
    /// Kernel image; `None` boots the bundled one.
    pub kernel: Option<PathBuf>,
    /// Initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line, without a terminator.
    pub cmdline: String,
    /// Disks, in the order of their slots on the PCI bus, which is there only if they or DMA engines are.
    pub disks: Vec<Disk>,
    /// DMA engines, in the slots behind the disks.
    pub dma: Vec<Dma>,
}

/// A DMA engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Dma {
    /// Address bits that it drives: 24, 32 or 64.
    pub address_bits: u32,
}

/// A range of guest-physical addresses, half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Range {
    /// First byte.
    pub base: u64,
    /// Length in bytes; `base + len` does not wrap.
    pub len: u64,
}

impl Range {
    /// The range from `base` to `end`; empty if `end` is not past `base`.
    pub const fn new(base: u64, end: u64) -> Range {
        Range { base, len: end.saturating_sub(base) }
    }

    /// First byte past the range.
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.len)
    }

    /// Whether no byte is inside.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the two have in common, possibly nothing.
    /// ```
    /// use memvisor::machine::Range;
    /// assert_eq!(Range::new(0, 8).intersection(&Range::new(4, 12)), Range::new(4, 8));
    /// assert!(Range::new(0, 4).intersection(&Range::new(4, 8)).is_empty());
    /// ```
    pub fn intersection(&self, other: &Range) -> Range {
        Range::new(self.base.max(other.base), self.end().min(other.end()))
    }

    /// The whole frames inside.
    /// ```
    /// use memvisor::machine::Range;
    /// assert_eq!(Range::new(0, 0x9fc00).whole_frames(), Range::new(0, 0x9f000));
    /// ```
    pub const fn whole_frames(&self) -> Range {
        let mask = layout::PAGE_SIZE - 1;
        match self.base.checked_add(mask) {
            Some(up) => Range::new(up & !mask, self.end() & !mask),
            None => Range { base: self.base, len: 0 },
        }
    }
}

/// What the host backs RAM with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backing {
    /// Pages of 4 KiB only.
    Small,
    /// Transparent huge pages of 2 MiB, as far as the host allows and has them.
    Transparent,
    /// 2 MiB pages of the host's pool, reserved before the guest starts.
    Huge2M,
    /// 1 GiB pages of the host's pool, reserved before the guest starts.
    Huge1G,
}

impl Backing {
    /// Bytes of the largest page that may back RAM.
    pub const fn page_size(self) -> u64 {
        match self {
            Backing::Small => layout::PAGE_SIZE,
            Backing::Transparent | Backing::Huge2M => 2 << 20,
            Backing::Huge1G => 1 << 30,
        }
    }

    /// Whether pages come from the host's pool of huge pages (hugetlbfs).
    pub const fn is_pooled(self) -> bool {
        matches!(self, Backing::Huge2M | Backing::Huge1G)
    }
}

impl Serialize for Backing {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Addresses with one backing. With pages of a pool, both ends are multiples of the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Backed {
    /// The addresses; what of them is RAM the slots say.
    #[serde(flatten)]
    pub range: Range,
    /// Their backing.
    pub backing: Backing,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Number, also its proximity domain.
    pub id: u32,
    /// Its RAM, ascending, to the byte as in the effective E820 map.
    pub memory: Vec<Range>,
    /// Indices of its CPUs, ascending.
    pub cpus: Vec<u32>,
    /// What the host backs its RAM with, if the machine says so.
    pub backing: Option<Backing>,
}

/// A CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Index, also its ACPI processor UID.
    pub index: u32,
    /// Local APIC id.
    pub apic_id: u32,
    /// Node it belongs to.
    pub node: u32,
}

/// Figures of the heterogeneous memory attribute table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hmat {
    /// Nodes with CPUs: the rows of each matrix.
    pub initiators: Vec<u32>,
    /// Nodes with memory: the columns of each matrix.
    pub targets: Vec<u32>,
    /// One matrix a kind of figure.
    pub matrices: Vec<HmatMatrix>,
}

/// One matrix of figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HmatMatrix {
    /// What the figures are.
    pub kind: HmatKind,
    /// `figures[initiator][target]`: nanoseconds, or MB/s.
    pub figures: Vec<Vec<u32>>,
}

/// Kinds of figures (ACPI 6.5 table 5.146, "data type").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum HmatKind {
    /// Latency of reads and writes alike, nanoseconds.
    AccessLatency = 0,
    /// Latency of reads, nanoseconds.
    ReadLatency = 1,
    /// Latency of writes, nanoseconds.
    WriteLatency = 2,
    /// Bandwidth of reads and writes alike, MB/s.
    AccessBandwidth = 3,
    /// Bandwidth of reads, MB/s.
    ReadBandwidth = 4,
    /// Bandwidth of writes, MB/s.
    WriteBandwidth = 5,
}

/// Paging depth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Paging {
    /// The deepest that KVM accepts.
    #[default]
    Auto,
    /// 4 levels.
    Four,
    /// 5 levels; refused before start where KVM cannot.
    Five,
}

/// Boot protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// Linux 64-bit boot protocol.
    #[default]
    Linux,
    /// PVH: 32-bit entry with `hvm_start_info`.
    Pvh,
}

/// A memory slot: guest-physical memory that the VMM backs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// First byte, a multiple of 4 KiB.
    pub gpa: u64,
    /// Length in bytes, a multiple of 4 KiB and not 0.
    pub len: u64,
    /// What it holds.
    #[serde(flatten)]
    pub kind: SlotKind,
    /// What the host backs it with, if the machine says so.
    pub backing: Option<Backing>,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum SlotKind {
    /// RAM.
    Ram {
        /// The node it belongs to.
        node: u32,
    },
    /// ACPI tables and what else firmware leaves behind.
    Firmware,
}

impl Machine {
    /// The E820 map without overlaps: sorted, the higher type wins, neighbours of one type merged.
    pub fn effective_e820(&self) -> Vec<FactE820> {
        e820::resolve(&self.e820)
    }

    /// Memory slots, ascending and disjoint: the whole frames of each RAM range of each node, and the
    /// firmware area.
    pub fn slots(&self) -> Vec<Slot> {
        let mut slots: Vec<Slot> = self
            .nodes
            .iter()
            .flat_map(|node| node.memory.iter().map(move |range| (node, range.whole_frames())))
            .filter(|(_, frames)| !frames.is_empty())
            .map(|(node, frames)| Slot {
                gpa: frames.base,
                len: frames.len,
                kind: SlotKind::Ram { node: node.id },
                backing: node.backing,
            })
            .collect();
        let firmware = Range::new(layout::FIRMWARE_START, layout::FIRMWARE_END);
        let around = self.backed.iter().find(|backed| backed.range.intersection(&firmware) == firmware);
        slots.push(Slot {
            gpa: firmware.base,
            len: firmware.len,
            kind: SlotKind::Firmware,
            backing: around.map(|backed| backed.backing),
        });
        slots.sort_by_key(|slot| slot.gpa);
        slots
    }

    /// Pages that must be free in the host's pools before the guest starts, by backing.
    pub fn huge_pages(&self) -> BTreeMap<Backing, u64> {
        let mut pages = BTreeMap::new();
        for Backed { range, backing } in self.backed.iter().filter(|backed| backed.backing.is_pooled()) {
            *pages.entry(*backing).or_default() += range.len / backing.page_size();
        }
        pages
    }

    /// Bytes of RAM in slots: what the guest can use.
    pub fn ram_bytes(&self) -> u64 {
        self.nodes.iter().flat_map(|node| &node.memory).map(|range| range.whole_frames().len).sum()
    }

    /// What the checker may hold against the guest's claims. `levels` is the paging depth that the
    /// guest was really started with.
    pub fn facts(&self, levels: u32) -> Facts {
        let mut node_memory: Vec<FactNodeMemory> = self
            .nodes
            .iter()
            .flat_map(|node| {
                node.memory.iter().map(|range| FactNodeMemory {
                    node: node.id,
                    base: range.base,
                    len: range.len,
                })
            })
            .collect();
        node_memory.sort_by_key(|memory| memory.base);
        Facts {
            machine: self.name.clone(),
            e820: self.e820.clone(),
            node_memory,
            cpus: self.cpus.iter().map(|cpu| FactCpu { apic_id: cpu.apic_id, node: cpu.node }).collect(),
            distances: if self.nodes.len() > 1 { self.distances.clone() } else { Vec::new() },
            levels,
            cmdline: self.cmdline.clone(),
        }
    }
}

/// What the command line changes about a machine file. `Default` changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--kernel`.
    pub kernel: Option<PathBuf>,
    /// `--initrd`.
    pub initrd: Option<PathBuf>,
    /// `--cmdline`: appended to the file's.
    pub cmdline: Option<String>,
    /// `--boot`.
    pub boot: Option<Boot>,
    /// `--paging`.
    pub paging: Option<Paging>,
    /// `--memory`: every range of the machine is scaled so that the sizes add up to this.
    pub memory: Option<Size>,
    /// `--backing`: of all nodes.
    pub backing: Option<Backing>,
    /// `--cpus`: CPUs past this number go, further ones join the nodes that have CPUs in turn.
    pub cpus: Option<u32>,
    /// `--memory-zone id=ID,size=SIZE[,at=ADDRESS]`: replaces the file's memory.
    pub memory_zone: Vec<String>,
    /// `--numa guest_numa_id=N[,cpus=[0-1,3]][,distances=[1@20]][,memory_zones=[ID]]`: replaces the file's nodes.
    pub numa: Vec<String>,
    /// `--disk file=PATH|size=SIZE[,name=NAME][,readonly=on|off][,ro]` and what goes wrong with it: added to the file's.
    pub disk: Vec<String>,
    /// `--name`.
    pub name: Option<String>,
}

impl HmatKind {
    /// Whether figures are nanoseconds; else they are MB/s.
    pub const fn is_latency(self) -> bool {
        matches!(self, HmatKind::AccessLatency | HmatKind::ReadLatency | HmatKind::WriteLatency)
    }

    /// The largest figure. Linux computes entry * base unit in 32 bits, and the base unit of latencies is
    /// picoseconds (drivers/acpi/numa/hmat.c, `hmat_normalize`).
    pub(super) const fn largest_figure(self) -> u32 {
        if self.is_latency() { u32::MAX / 1000 } else { u32::MAX - 1 }
    }
}

impl HmatMatrix {
    /// An entry of 16 bits that says "unreachable"; figures stay below.
    pub(super) const UNREACHABLE: u16 = 0xffff;

    /// The largest unit, in the figures' own, of which every figure is a multiple.
    pub(super) fn unit(&self) -> u64 {
        let gcd = |mut a: u64, mut b: u64| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        self.figures.iter().flatten().fold(0, |unit, figure| gcd(unit, u64::from(*figure)))
    }
}
