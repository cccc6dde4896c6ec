//! A machine in words and in JSON: what `--dry-run` prints.
//!
//! The ACPI part is read back from the bytes that the guest will see, not from the machine.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use memvisor_abi::E820Type;
use memvisor_inspect::FactE820;
use serde::Serialize;

use super::acpi::decode::{self, Affinity, Content, Controller, Decoded, HmatStructure};
use super::{
    Backing, Boot, Cpu, Disk, DiskSource, Dma, Machine, MachineError, Node, Paging, Size, Slot, SlotKind,
    acpi,
};

/// Everything about a machine, for `--dry-run`. Addresses and lengths are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Description {
    /// Name of the machine.
    pub machine: String,
    /// One line about it.
    pub description: String,
    /// Boot protocol.
    pub boot: Boot,
    /// Paging depth asked for.
    pub paging: Paging,
    /// Kernel image; `None` is the bundled one.
    pub kernel: Option<String>,
    /// Initial ramdisk.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Bytes of RAM that the guest can use.
    pub ram: u64,
    /// The E820 map as handed to the guest.
    pub e820: Vec<E820Line>,
    /// The same with overlaps resolved.
    pub effective_e820: Vec<E820Line>,
    /// Pages that the host must have free in its pools, by backing.
    pub huge_pages: BTreeMap<Backing, u64>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// CPUs.
    pub cpus: Vec<Cpu>,
    /// Distances, from rows to columns.
    pub distances: Vec<Vec<u8>>,
    /// Memory slots.
    pub slots: Vec<Slot>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// DMA engines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dma: Vec<Dma>,
    /// ACPI tables, decoded.
    pub acpi: Decoded,
}

/// An E820 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct E820Line {
    /// First byte.
    pub addr: u64,
    /// Length.
    pub size: u64,
    /// Type.
    pub kind: u32,
    /// Linux's word for the type.
    pub name: &'static str,
}

impl From<&FactE820> for E820Line {
    fn from(fact: &FactE820) -> E820Line {
        E820Line { addr: fact.addr, size: fact.size, kind: fact.kind, name: E820Type::name(fact.kind) }
    }
}

/// Works out what `machine` will look like to a guest.
///
/// # Errors
/// Those of [`acpi::build`], and [`MachineError::Acpi`] if the tables cannot be read back.
pub fn describe(machine: &Machine) -> Result<Description, MachineError> {
    let shown = |path: &std::path::PathBuf| path.display().to_string();
    Ok(Description {
        machine: machine.name.clone(),
        description: machine.description.clone(),
        boot: machine.boot,
        paging: machine.paging,
        kernel: machine.kernel.as_ref().map(shown),
        initrd: machine.initrd.as_ref().map(shown),
        cmdline: machine.cmdline.clone(),
        ram: machine.ram_bytes(),
        e820: machine.e820.iter().map(E820Line::from).collect(),
        effective_e820: machine.effective_e820().iter().map(E820Line::from).collect(),
        huge_pages: machine.huge_pages(),
        nodes: machine.nodes.clone(),
        cpus: machine.cpus.clone(),
        distances: machine.distances.clone(),
        slots: machine.slots(),
        disks: machine.disks.clone(),
        dma: machine.dma.clone(),
        acpi: decode::decode(&acpi::build(machine)?)?,
    })
}

impl Display for Description {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "machine {}: {}", self.machine, self.description)?;
        let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        writeln!(
            f,
            "  {}, {}, {} of RAM, boot protocol {}, paging {}",
            count(self.nodes.len(), "node"),
            count(self.cpus.len(), "CPU"),
            human(self.ram),
            self.boot,
            self.paging
        )?;
        writeln!(f, "  kernel {}", self.kernel.as_deref().unwrap_or("(bundled)"))?;
        if let Some(initrd) = &self.initrd {
            writeln!(f, "  initrd {initrd}")?;
        }
        writeln!(f, "  command line \"{}\"", self.cmdline)?;
        writeln!(f, "\nE820 map as handed to the guest, {}", entries(self.e820.len()))?;
        write_e820(f, &self.e820)?;
        if self.e820 != self.effective_e820 {
            let len = entries(self.effective_e820.len());
            writeln!(f, "\nE820 map with overlaps resolved (the higher type wins), {len}")?;
            write_e820(f, &self.effective_e820)?;
        }
        self.write_nodes(f)?;
        self.write_slots(f)?;
        self.write_disks(f)?;
        self.write_dma(f)?;
        self.write_acpi(f)
    }
}

impl Description {
    fn write_dma(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.dma.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nDMA engines on PCI bus 0")?;
        for (slot, engine) in (self.disks.len() + 1..).zip(&self.dma) {
            writeln!(f, "  00:{slot:02x}.0 {} address bits", engine.address_bits)?;
        }
        Ok(())
    }

    fn write_disks(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.disks.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nDisks, virtio-blk on PCI bus 0")?;
        for (slot, disk) in (1..).zip(&self.disks) {
            let mode = if disk.read_only { ", read-only" } else { "" };
            write!(f, "  00:{slot:02x}.0 {}: ", disk.name)?;
            match &disk.source {
                DiskSource::File(path) => write!(f, "{}{mode}", path.display())?,
                DiskSource::Temporary(len) => write!(f, "{}, temporary{mode}", human(*len))?,
            }
            let faults = &disk.faults;
            for (what, bad) in [("read", &faults.read_errors), ("write", &faults.write_errors)] {
                for bad in bad {
                    let end = bad.sector.saturating_add(bad.count);
                    write!(f, ", {what} errors in sectors {}..{end}", bad.sector)?;
                }
            }
            if faults.delay_us > 0 {
                write!(f, ", {} us a request", faults.delay_us)?;
            }
            if let Some(number) = faults.torn_writes {
                write!(f, ", write {number} is torn")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn write_nodes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nNodes")?;
        for node in &self.nodes {
            let total: u64 = node.memory.iter().map(|range| range.len).sum();
            let memory = if total == 0 { "no memory".to_owned() } else { human(total) };
            let cpus = if node.cpus.is_empty() {
                "no CPUs".to_owned()
            } else {
                format!("CPUs {}", list(&node.cpus))
            };
            writeln!(f, "  node {:<3} {memory:>14}  {cpus}", node.id)?;
            for range in &node.memory {
                writeln!(f, "           {} {:>14}", span(range.base, range.len), human(range.len))?;
            }
        }
        if self.nodes.len() > 1 {
            writeln!(f, "\nDistances (from row to column)")?;
            write_matrix(f, &ids(self.nodes.len()), &ids(self.nodes.len()), &self.distances)?;
        }
        Ok(())
    }

    fn write_slots(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nMemory slots")?;
        for (index, slot) in self.slots.iter().enumerate() {
            let kind = match slot.kind {
                SlotKind::Ram { node } => format!("RAM, node {node}"),
                SlotKind::Firmware => "firmware tables".to_owned(),
            };
            let backing = slot.backing.map(|backing| format!(", {backing}")).unwrap_or_default();
            writeln!(
                f,
                "  {index:>3}  {} {:>14}  {kind}{backing}",
                span(slot.gpa, slot.len),
                human(slot.len)
            )?;
        }
        for (backing, pages) in &self.huge_pages {
            writeln!(
                f,
                "  {backing} takes {pages} pages of {} from the host's pool",
                human(backing.page_size())
            )?;
        }
        Ok(())
    }

    fn write_acpi(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Decoded { rsdp, revision, xsdt, tables } = &self.acpi;
        writeln!(f, "\nACPI tables, read back from their bytes")?;
        writeln!(f, "  RSDP  {rsdp:#x}  revision {revision}, XSDT at {xsdt:#x}")?;
        for table in tables {
            let Content::Opaque(bytes) = &table.content else {
                writeln!(f, "  {}  {:#x}  {} bytes", table.signature, table.gpa, table.len)?;
                write_content(f, &table.content)?;
                continue;
            };
            writeln!(
                f,
                "  {}  {:#x}  {} bytes, {bytes} after the header",
                table.signature, table.gpa, table.len
            )?;
        }
        Ok(())
    }
}

fn write_content(f: &mut Formatter<'_>, content: &Content) -> fmt::Result {
    match content {
        Content::Fadt(fadt) => writeln!(
            f,
            "          DSDT at {:#x}, FACS at {:#x}, SCI {}, PM1a event port {:#x}, PM1a control port {:#x}, reset {:#x} to port {:#x}",
            fadt.dsdt, fadt.facs, fadt.sci, fadt.pm1a_evt, fadt.pm1a_cnt, fadt.reset_value, fadt.reset_port
        ),
        Content::Madt(entries) => entries.iter().try_for_each(|entry| write_controller(f, entry)),
        Content::Srat(entries) => entries.iter().try_for_each(|entry| write_affinity(f, entry)),
        Content::Slit(rows) => write_matrix(f, &ids(rows.len()), &ids(rows.len()), rows),
        Content::Hmat(entries) => entries.iter().try_for_each(|entry| write_hmat(f, entry)),
        Content::Opaque(_) => Ok(()),
    }
}

fn disabled(enabled: bool) -> &'static str {
    if enabled { "" } else { ", disabled" }
}

fn write_controller(f: &mut Formatter<'_>, controller: &Controller) -> fmt::Result {
    f.write_str("          ")?;
    match controller {
        Controller::LocalApic { uid, apic_id, x2apic, enabled } => {
            let kind = if *x2apic { "x2APIC" } else { "local APIC" };
            writeln!(f, "{kind} {apic_id}, CPU {uid}{}", disabled(*enabled))
        }
        Controller::IoApic { id, gpa, gsi_base } => {
            writeln!(f, "I/O APIC {id} at {gpa:#x}, interrupts from {gsi_base}")
        }
        Controller::SourceOverride { irq, gsi, flags } => {
            writeln!(f, "ISA interrupt {irq} at input {gsi}, flags {flags:#x}")
        }
        Controller::Nmi { uid, lint } => match *uid {
            0xff | u32::MAX => writeln!(f, "NMI of all CPUs at LINT{lint}"),
            uid => writeln!(f, "NMI of CPU {uid} at LINT{lint}"),
        },
        Controller::Other { kind } => writeln!(f, "structure of type {kind}"),
    }
}

fn write_affinity(f: &mut Formatter<'_>, affinity: &Affinity) -> fmt::Result {
    f.write_str("          ")?;
    match affinity {
        Affinity::Cpu { apic_id, node, enabled } => {
            writeln!(f, "node {node:<3} APIC {apic_id}{}", disabled(*enabled))
        }
        Affinity::Memory { range, node, enabled } => {
            let len = human(range.len);
            writeln!(f, "node {node:<3} {} {len:>14}{}", span(range.base, range.len), disabled(*enabled))
        }
        Affinity::Other { kind } => writeln!(f, "structure of type {kind}"),
    }
}

fn write_hmat(f: &mut Formatter<'_>, structure: &HmatStructure) -> fmt::Result {
    const KINDS: [&str; 6] =
        ["latency", "read latency", "write latency", "bandwidth", "read bandwidth", "write bandwidth"];
    match structure {
        HmatStructure::Proximity { memory, initiator } => {
            writeln!(f, "          memory of node {memory} is attached to node {initiator}")
        }
        HmatStructure::Locality { data_type, initiators, targets, figures } => {
            let kind = KINDS.get(usize::from(*data_type)).copied().unwrap_or("unknown figures");
            let unit = if *data_type < 3 { "picoseconds" } else { "MB/s" };
            writeln!(f, "          {kind}, {unit} (from row to column)")?;
            write_matrix(f, initiators, targets, figures)
        }
        HmatStructure::Other { kind } => writeln!(f, "          structure of type {kind}"),
    }
}

fn entries(count: usize) -> String {
    if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") }
}

fn write_e820(f: &mut Formatter<'_>, lines: &[E820Line]) -> fmt::Result {
    for (index, line) in lines.iter().enumerate() {
        let E820Line { addr, size, kind, name } = *line;
        let note = match (size, addr.checked_add(size - u64::from(size > 0))) {
            (0, _) => ", empty",
            (_, None) => ", wraps",
            _ => "",
        };
        let kind = if kind < 256 { kind.to_string() } else { format!("{kind:#x}") };
        writeln!(f, "  {index:>3}  {} {:>14}  type {kind} {name}{note}", span(addr, size), human(size))?;
    }
    Ok(())
}

/// A matrix with numbered rows and columns.
fn write_matrix<T: Display>(
    f: &mut Formatter<'_>,
    rows: &[u32],
    columns: &[u32],
    matrix: &[Vec<T>],
) -> fmt::Result {
    write!(f, "          node")?;
    columns.iter().try_for_each(|column| write!(f, "{column:>8}"))?;
    writeln!(f)?;
    for (id, row) in rows.iter().zip(matrix) {
        write!(f, "          {id:>4}")?;
        row.iter().try_for_each(|cell| write!(f, "{cell:>8}"))?;
        writeln!(f)?;
    }
    Ok(())
}

fn ids(count: usize) -> Vec<u32> {
    (0..).take(count).collect()
}

/// A half-open range in columns; the end wraps as it does for the guest.
fn span(base: u64, len: u64) -> String {
    format!("{base:#018x}..{:#018x}", base.wrapping_add(len))
}

/// A length in a unit that people compare, exact where it can be.
fn human(bytes: u64) -> String {
    let exact = Size::new(bytes).to_string();
    if exact.len() <= 8 {
        return exact;
    }
    let (unit, shift) = match bytes {
        0..0x10_0000 => ("KiB", 10),
        0x10_0000..0x4000_0000 => ("MiB", 20),
        0x4000_0000..0x100_0000_0000 => ("GiB", 30),
        _ => ("TiB", 40),
    };
    let hundredths = (u128::from(bytes) * 100) >> shift;
    format!("~{}.{:02} {unit}", hundredths / 100, hundredths % 100)
}

/// Numbers as ranges: `0-2,5`.
fn list(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let text = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_short_and_exact_where_they_can_be() {
        assert_eq!(human(128 << 20), "128 MiB");
        assert_eq!(human(0x9fc00), "639 KiB");
        assert_eq!(human((64 << 20) + 4096), "~64.00 MiB");
        assert_eq!(human((256 << 20) - 0x60400), "~255.62 MiB");
        assert_eq!(human(u64::MAX), "~16777215.99 TiB");
    }

    #[test]
    fn consecutive_numbers_become_ranges() {
        assert_eq!(list(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(list(&[]), "");
    }
}
