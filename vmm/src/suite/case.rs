//! A case: one run on one bed, and what must come of it.
//!
//! Invariants of a loaded catalog:
//! C1  every case has a name `suite/case`, and no two share one;
//! C2  every case runs on exactly one bed;
//! C3  the suite's name is the name of the file that holds the stanza.

mod file;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

use super::images::Image;
use super::probes::Probe;

pub use file::{CaseError, load, parse};

/// Where a case runs.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Bed {
    /// memvisor on this machine's /dev/kvm.
    Kvm,
    /// The guest image under QEMU's software CPU.
    Qemu,
    /// memvisor on a KVM that pages guests in two dimensions (NPT, EPT): the cases of bed kvm, on
    /// what `make test-nested` boots.
    Nested,
}

impl Bed {
    /// The bed's name as written everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Bed::Kvm => "kvm",
            Bed::Qemu => "qemu",
            Bed::Nested => "nested",
        }
    }
}

/// One run and what must come of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// `suite/case`.
    pub name: String,
    /// Groups that its suite belongs to: names that mean several suites.
    pub groups: Vec<String>,
    /// One sentence: what passing shows.
    pub description: String,
    /// The guest's command line, in addition to what the bed appends.
    pub cmdline: String,
    /// Its initial file system: an archive's name ([`super::initrd`]).
    pub initrd: Option<String>,
    /// Longest time from start to end.
    pub timeout: Duration,
    /// How often it is worth its time.
    pub length: Length,
    /// Where it runs.
    pub bed: Bed,
    /// The machine.
    pub setup: Setup,
    /// Disks with a file system, after those of the machine; nothing else of them outlives the case.
    pub images: Vec<Image>,
    /// What is typed at the guest's serial line, in order.
    pub dialogue: Vec<Line>,
    /// What must come of it.
    pub expect: Expect,
}

impl Case {
    /// The part of the name before the slash.
    pub fn suite(&self) -> &str {
        self.name.split('/').next().unwrap_or(&self.name)
    }

    /// What it needs of its host.
    pub fn needs(&self) -> &[Need] {
        match &self.setup {
            Setup::Kvm(setup) => &setup.needs,
            Setup::Qemu(_) => &[],
        }
    }

    /// The same case on bed nested; `None` if it has no place there.
    pub fn nested(self) -> Option<Case> {
        let takes = matches!(&self.setup, Setup::Kvm(setup) if setup.nested);
        takes.then_some(Case { bed: Bed::Nested, ..self })
    }
}

/// How often a case is worth its time. A selection holds the cases of its length and the shorter ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// In every run, also on a slow bed.
    Short,
    /// In a complete run.
    #[default]
    Normal,
    /// When there is time.
    Long,
}

/// A line that is typed at the guest's serial line once it has said something.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// What the console must say first, after what the line before waited for.
    pub wait: String,
    /// What is typed then, and Enter. Empty to type nothing.
    #[serde(rename = "type", default)]
    pub text: String,
}

/// What a case needs of the host's KVM to mean anything.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// It runs guests at 5 levels.
    La57,
    /// It does not.
    NoLa57,
    /// Guests may use 1 GiB pages.
    #[serde(rename = "1g-pages")]
    #[value(name = "1g-pages")]
    Pages1g,
    /// It walks a second stage (NPT, EPT) instead of shadowing the guest's page tables.
    SecondStage,
    /// The host's pool has 64 free pages of 2 MiB.
    #[serde(rename = "hugetlb-2m")]
    #[value(name = "hugetlb-2m")]
    Hugetlb2m,
    /// The host's pool has 2 free pages of 1 GiB.
    #[serde(rename = "hugetlb-1g")]
    #[value(name = "hugetlb-1g")]
    Hugetlb1g,
    /// The host gives memory files transparent huge pages where they are asked for.
    Thp,
    /// A stock Linux is there to be booted, and this KVM runs it.
    Linux,
}

/// The machine of a case.
#[derive(Clone, Debug)]
pub enum Setup {
    /// Built by memvisor.
    Kvm(KvmSetup),
    /// Built by QEMU.
    Qemu(QemuSetup),
}

/// Flags of `memvisor run`; what is `None` the machine file decides.
#[derive(Clone, Debug)]
pub struct KvmSetup {
    /// Name of a machine file.
    pub machine: String,
    /// Boot protocol.
    pub boot: Option<String>,
    /// Paging depth.
    pub paging: Option<String>,
    /// Number of CPUs.
    pub cpus: Option<u32>,
    /// Size of all RAM together, as `--memory` takes it.
    pub memory: Option<String>,
    /// The same where KVM shadows the guest's page tables, and a page costs a hundred times as much.
    pub memory_shadowed: Option<String>,
    /// What is expected holds on this machine only: a matrix leaves the case on it.
    pub keeps_machine: bool,
    /// Backing, as `--backing` takes it.
    pub backing: Option<String>,
    /// Scale of RAM, as `--scale` takes it.
    pub scale: Option<String>,
    /// Image of a stock Linux to boot instead of memvisor's kernel: `bzImage` or `vmlinux`.
    pub linux: Option<String>,
    /// Disks beside the machine's and the case's images.
    pub disks: Vec<BlankDisk>,
    /// What the host must be able to do.
    pub needs: Vec<Need>,
    /// Whether bed nested has it, too.
    pub nested: bool,
}

/// A disk that reads as zero at first and is gone at the end.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlankDisk {
    /// Its name, which the guest sees as the serial number.
    pub name: String,
    /// Bytes in MiB.
    pub size_mib: u64,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// Sectors whose reads fail.
    #[serde(default)]
    pub read_errors: Vec<u64>,
    /// Sectors whose writes fail.
    #[serde(default)]
    pub write_errors: Vec<u64>,
}

/// A QEMU command line in words.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuSetup {
    /// Value of `-cpu`.
    #[serde(default = "QemuSetup::default_cpu")]
    pub cpu: String,
    /// Number of CPUs; when nodes are given, as many as they name.
    #[serde(default = "QemuSetup::default_cpus")]
    pub cpus: u32,
    /// Bytes of RAM in MiB, for a machine without nodes.
    #[serde(default)]
    pub memory_mib: u64,
    /// NUMA nodes, in order. Empty for a machine without SRAT.
    #[serde(default)]
    pub nodes: Vec<QemuNode>,
    /// Distances, row by row; empty for QEMU's default of 10 and 20.
    #[serde(default)]
    pub distances: Vec<Vec<u8>>,
    /// Paging levels that the guest must come up with.
    pub levels: u32,
    /// Disks: virtio-blk on the root bus, with temporary files of zeroes.
    #[serde(default)]
    pub disks: Vec<BlankDisk>,
}

/// A node of a QEMU machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuNode {
    /// Bytes of RAM in MiB; 0 for a node of CPUs only.
    pub memory_mib: u64,
    /// CPUs by index.
    #[serde(default)]
    pub cpus: Vec<u32>,
}

impl QemuSetup {
    fn default_cpu() -> String {
        "max".to_owned()
    }

    const fn default_cpus() -> u32 {
        1
    }

    /// Bytes of RAM in MiB.
    pub fn total_mib(&self) -> u64 {
        if self.nodes.is_empty() {
            self.memory_mib
        } else {
            self.nodes.iter().map(|node| node.memory_mib).sum()
        }
    }

    /// What makes no sense.
    fn problem(&self) -> Option<String> {
        let total = self.total_mib();
        if !(16..=2048).contains(&total) {
            return Some(format!(
                "{total} MiB of RAM: give 16 to 2048, which q35 keeps in one piece from address 0"
            ));
        }
        // SeaBIOS moves itself to the end of RAM less 16 MiB after QEMU has put the kernel to 16 MiB.
        if (33..40).contains(&total) {
            return Some(format!(
                "{total} MiB of RAM: with 33 to 39 QEMU's firmware writes over the kernel; give others"
            ));
        }
        if !self.nodes.is_empty() && self.memory_mib != 0 {
            return Some("memory_mib and nodes exclude each other: give each node its memory_mib".to_owned());
        }
        let mut assigned: Vec<u32> = self.nodes.iter().flat_map(|node| node.cpus.iter().copied()).collect();
        assigned.sort_unstable();
        if !self.nodes.is_empty() && !assigned.iter().copied().eq(0..self.cpus) {
            return Some(format!(
                "nodes must name each of CPUs 0..{} once, they name {assigned:?}",
                self.cpus
            ));
        }
        let nodes = self.nodes.len();
        if !self.distances.is_empty()
            && (self.distances.len() != nodes || self.distances.iter().any(|row| row.len() != nodes))
        {
            return Some(format!("distances must be {nodes} rows of {nodes}"));
        }
        (!matches!(self.levels, 4 | 5)).then(|| format!("levels = {}: give 4 or 5", self.levels))
    }
}

/// How a run must end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The guest powered off cleanly, and the audits found nothing.
    #[default]
    Clean,
    /// The guest powered off cleanly, and an audit found something.
    Findings,
    /// The guest panicked or took an unexpected trap, and said so.
    Panic,
    /// The VMM refused to start the machine.
    Refused,
}

/// What must come of a run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// How it ends; with faults given, [`Ending::Findings`].
    pub exit: Ending,
    /// Texts that the guest's console must hold.
    pub console: Vec<String>,
    /// Texts that it must not hold.
    pub not_console: Vec<String>,
    /// Texts that the VMM's error output must hold.
    pub message: Vec<String>,
    /// Rules that the audits must report. What else they report does not matter.
    pub findings: BTreeSet<String>,
    /// Examinations of the guest while it stands at its last checkpoint.
    pub probes: Vec<Probe>,
    /// The guest is stopped, audited and let go on again and again while it runs; so many of these looks at least must be where nothing is
    /// half done.
    pub live: u32,
}
