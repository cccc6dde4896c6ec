//! Cases as stanzas of TOML files.
//!
//! A stanza describes one run and what must come of it. Fields that take "a value or a list" are axes: the
//! stanza stands for one case per combination, and its name says which by `{machine}`, `{boot}`,
//! `{paging}`, `{cpus}` and `{fault}`. docs/testing.md documents every field.
//!
//! Invariants of a loaded catalog:
//! C1  every case has a name `suite/case`, and no two share one;
//! C2  every case runs on exactly one bed;
//! C3  the suite's name is the name of the file that holds the stanza.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::probes::Probe;

/// The case files, embedded so that the installed program is complete: name of the suite, text.
const FILES: &[(&str, &str)] = &[
    ("boot", include_str!("../../../tests/cases/boot.toml")),
    ("topology", include_str!("../../../tests/cases/topology.toml")),
    ("pagetables", include_str!("../../../tests/cases/pagetables.toml")),
    ("tlb", include_str!("../../../tests/cases/tlb.toml")),
    ("audit", include_str!("../../../tests/cases/audit.toml")),
    ("alloc", include_str!("../../../tests/cases/alloc.toml")),
    ("explain", include_str!("../../../tests/cases/explain.toml")),
    ("slab", include_str!("../../../tests/cases/slab.toml")),
    ("slab-debug", include_str!("../../../tests/cases/slab-debug.toml")),
    ("vmalloc", include_str!("../../../tests/cases/vmalloc.toml")),
    ("fragmentation", include_str!("../../../tests/cases/fragmentation.toml")),
    ("highmem", include_str!("../../../tests/cases/highmem.toml")),
    ("watermark", include_str!("../../../tests/cases/watermark.toml")),
    ("cma", include_str!("../../../tests/cases/cma.toml")),
    ("space", include_str!("../../../tests/cases/space.toml")),
    ("process", include_str!("../../../tests/cases/process.toml")),
    ("signal", include_str!("../../../tests/cases/signal.toml")),
    ("shm", include_str!("../../../tests/cases/shm.toml")),
    ("stacks", include_str!("../../../tests/cases/stacks.toml")),
    ("trace", include_str!("../../../tests/cases/trace.toml")),
    ("real", include_str!("../../../tests/cases/real.toml")),
    ("linux", include_str!("../../../tests/cases/linux.toml")),
];

/// Why the case files cannot be used.
#[derive(Debug, Error)]
pub enum CaseError {
    /// Not TOML, an unknown field, or a wrong type. The source names the line.
    #[error("tests/cases/{file}.toml: {source}")]
    Parse {
        /// Suite the file holds.
        file: String,
        /// What the parser says, with line and column.
        source: Box<toml::de::Error>,
    },
    /// Well-formed, but it makes no sense.
    #[error("tests/cases/{file}.toml: case '{name}': {problem}")]
    Stanza {
        /// Suite the file holds.
        file: String,
        /// Name as written in the stanza.
        name: String,
        /// What is wrong and what to change.
        problem: String,
    },
}

/// Where a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
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
    /// One sentence: what passing shows.
    pub description: String,
    /// The guest's command line, in addition to what the bed appends.
    pub cmdline: String,
    /// Longest time from start to end.
    pub timeout: Duration,
    /// How often it is worth its time.
    pub length: Length,
    /// Where it runs.
    pub bed: Bed,
    /// The machine.
    pub setup: Setup,
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
    /// Backing, as `--backing` takes it.
    pub backing: Option<String>,
    /// Scale of RAM, as `--scale` takes it.
    pub scale: Option<String>,
    /// Image of a stock Linux to boot instead of memvisor's kernel: `bzImage` or `vmlinux`.
    pub linux: Option<String>,
    /// What the host must be able to do.
    pub needs: Vec<Need>,
    /// Whether bed nested has it, too.
    pub nested: bool,
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

    fn problem(&self) -> Option<String> {
        let total = self.total_mib();
        if !(16..=2048).contains(&total) {
            return Some(format!(
                "{total} MiB of RAM: give 16 to 2048, which q35 keeps in one piece from address 0"
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Stanza>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stanza {
    name: String,
    description: String,
    #[serde(default)]
    cmdline: String,
    #[serde(default = "Stanza::default_timeout_s")]
    timeout_s: u64,
    #[serde(default)]
    short: Short,
    #[serde(default)]
    long: bool,
    #[serde(default)]
    dialogue: Vec<Line>,
    kvm: Option<KvmStanza>,
    qemu: Option<QemuSetup>,
    /// Seeded fault, and the rule that must report it.
    #[serde(default)]
    faults: BTreeMap<String, String>,
    #[serde(default)]
    expect: Expect,
}

impl Stanza {
    const fn default_timeout_s() -> u64 {
        180
    }
}

/// Which of a stanza's cases are short: all or none, or those named.
#[derive(Deserialize)]
#[serde(untagged)]
enum Short {
    All(bool),
    Named(BTreeSet<String>),
}

impl Default for Short {
    fn default() -> Self {
        Short::All(false)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KvmStanza {
    machine: Axis<String>,
    boot: Option<Axis<String>>,
    paging: Option<Axis<String>>,
    cpus: Option<Axis<u32>>,
    memory: Option<String>,
    backing: Option<String>,
    scale: Option<String>,
    linux: Option<String>,
    #[serde(default)]
    needs: Vec<Need>,
    #[serde(default = "KvmStanza::default_nested")]
    nested: bool,
}

/// A value or a list of values.
#[derive(Deserialize)]
#[serde(untagged)]
enum Axis<T> {
    One(T),
    Many(Vec<T>),
}

impl<T: Clone> Axis<T> {
    fn values(&self) -> Vec<T> {
        match self {
            Axis::One(value) => vec![value.clone()],
            Axis::Many(values) => values.clone(),
        }
    }

    fn choices(axis: Option<&Axis<T>>) -> Vec<Option<T>> {
        axis.map_or_else(|| vec![None], |axis| axis.values().into_iter().map(Some).collect())
    }
}

/// Every case, in the order of the files.
///
/// # Errors
/// The first stanza that breaks the format or an invariant.
pub fn load() -> Result<Vec<Case>, CaseError> {
    let mut cases = Vec::new();
    for (file, text) in FILES {
        cases.extend(parse(file, text)?);
    }
    Ok(cases)
}

/// The cases of one file, whose suite is `file`.
///
/// # Errors
/// The first stanza that breaks the format or an invariant.
pub fn parse(file: &str, text: &str) -> Result<Vec<Case>, CaseError> {
    let parsed: File = toml::from_str(text)
        .map_err(|source| CaseError::Parse { file: file.to_owned(), source: Box::new(source) })?;
    let mut cases = Vec::new();
    let mut names = BTreeSet::new();
    for stanza in &parsed.case {
        let error =
            |problem: String| CaseError::Stanza { file: file.to_owned(), name: stanza.name.clone(), problem };
        for case in stanza.expand().map_err(error)? {
            let plain = |part: &str| {
                !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            };
            match case.name.split_once('/') {
                Some((suite, rest)) if suite == file && plain(rest) => {}
                _ => return Err(error(format!("name it '{file}/case', letters, digits and '-' only"))),
            }
            if !names.insert(case.name.clone()) {
                return Err(error(format!(
                    "two cases are called '{}': put each list's {{placeholder}} into the name",
                    case.name
                )));
            }
            cases.push(case);
        }
    }
    Ok(cases)
}

impl Stanza {
    fn expand(&self) -> Result<Vec<Case>, String> {
        if self.timeout_s == 0 {
            return Err("timeout_s = 0: give seconds".to_owned());
        }
        let setups = match (&self.kvm, &self.qemu) {
            (Some(kvm), None) => kvm.expand(&self.name),
            (None, Some(qemu)) => {
                if let Some(problem) = qemu.problem() {
                    return Err(problem);
                }
                vec![(self.name.clone(), Setup::Qemu(qemu.clone()))]
            }
            _ => return Err("give it exactly one of the tables kvm and qemu".to_owned()),
        };
        let mut cases = Vec::new();
        for (name, setup) in setups {
            let case = |name: String, cmdline: String, expect: Expect| Case {
                length: self.length(&name),
                name,
                description: self.description.clone(),
                cmdline,
                timeout: Duration::from_secs(self.timeout_s),
                dialogue: self.dialogue.clone(),
                bed: match setup {
                    Setup::Kvm(_) => Bed::Kvm,
                    Setup::Qemu(_) => Bed::Qemu,
                },
                setup: setup.clone(),
                expect,
            };
            if self.faults.is_empty() {
                cases.push(case(name, self.cmdline.clone(), self.expect.clone()));
                continue;
            }
            for (fault, rule) in &self.faults {
                let mut expect = self.expect.clone();
                expect.exit = Ending::Findings;
                expect.findings.insert(rule.clone());
                let cmdline = format!("{} seeded={fault}", self.cmdline);
                cases.push(case(name.replace("{fault}", fault), cmdline.trim().to_owned(), expect));
            }
        }
        self.check(&cases)?;
        Ok(cases)
    }

    fn length(&self, name: &str) -> Length {
        let short = match &self.short {
            Short::All(short) => *short,
            Short::Named(names) => names.contains(name),
        };
        match (short, self.long) {
            (true, _) => Length::Short,
            (false, true) => Length::Long,
            (false, false) => Length::Normal,
        }
    }

    /// What can be told only when the names are known.
    fn check(&self, cases: &[Case]) -> Result<(), String> {
        if let Short::Named(names) = &self.short
            && let Some(name) = names.iter().find(|name| !cases.iter().any(|case| case.name == **name))
        {
            return Err(format!("short names '{name}', which is no case of this stanza"));
        }
        if self.long && matches!(self.short, Short::All(true)) {
            return Err("short and long exclude each other".to_owned());
        }
        let is_linux = self.kvm.as_ref().is_some_and(|kvm| kvm.linux.is_some());
        if !self.dialogue.is_empty() && !is_linux {
            return Err(
                "dialogue is for a stock Linux (kvm.linux): no other guest reads its console".to_owned()
            );
        }
        for probe in &self.expect.probes {
            if probe.is_for_linux() != is_linux {
                return Err(format!(
                    "probe {} is for {} only",
                    probe.name(),
                    if is_linux { "memvisor's own kernel" } else { "a stock Linux (kvm.linux)" }
                ));
            }
        }
        if is_linux && !self.expect.probes.is_empty() && self.dialogue.is_empty() {
            return Err("a stock Linux is examined during its dialogue: give it one".to_owned());
        }
        Ok(())
    }
}

impl KvmStanza {
    const fn default_nested() -> bool {
        true
    }

    fn expand(&self, name: &str) -> Vec<(String, Setup)> {
        let mut setups = Vec::new();
        for machine in self.machine.values() {
            for boot in Axis::choices(self.boot.as_ref()) {
                for paging in Axis::choices(self.paging.as_ref()) {
                    for cpus in Axis::choices(self.cpus.as_ref()) {
                        let mut name = name.replace("{machine}", &machine);
                        if let Some(boot) = &boot {
                            name = name.replace("{boot}", boot);
                        }
                        if let Some(paging) = &paging {
                            name = name.replace("{paging}", paging);
                        }
                        if let Some(cpus) = cpus {
                            name = name.replace("{cpus}", &cpus.to_string());
                        }
                        let setup = KvmSetup {
                            machine: machine.clone(),
                            boot: boot.clone(),
                            paging: paging.clone(),
                            cpus,
                            memory: self.memory.clone(),
                            backing: self.backing.clone(),
                            scale: self.scale.clone(),
                            linux: self.linux.clone(),
                            needs: self.needs.clone(),
                            nested: self.nested,
                        };
                        setups.push((name, Setup::Kvm(setup)));
                    }
                }
            }
        }
        setups
    }
}

#[cfg(test)]
mod tests;
