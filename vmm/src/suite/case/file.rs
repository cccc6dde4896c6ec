//! Cases as stanzas of TOML files.
//!
//! A stanza describes one run and what must come of it. Fields that take "a value or a list" are axes: the
//! stanza stands for one case per combination, and its name says which by `{machine}`, `{boot}`,
//! `{paging}`, `{cpus}` and `{fault}`. docs/testing.md documents every field.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::{Bed, BlankDisk, Case, Ending, Expect, KvmSetup, Length, Line, Need, QemuSetup, Setup};
use crate::suite::images::Image;

/// The case files, embedded so that the installed program is complete: name of the suite, text.
const FILES: &[(&str, &str)] = &[
    ("boot", include_str!("../../../../tests/cases/boot.toml")),
    ("topology", include_str!("../../../../tests/cases/topology.toml")),
    ("pagetables", include_str!("../../../../tests/cases/pagetables.toml")),
    ("tlb", include_str!("../../../../tests/cases/tlb.toml")),
    ("audit", include_str!("../../../../tests/cases/audit.toml")),
    ("alloc", include_str!("../../../../tests/cases/alloc.toml")),
    ("explain", include_str!("../../../../tests/cases/explain.toml")),
    ("slab", include_str!("../../../../tests/cases/slab.toml")),
    ("slab-debug", include_str!("../../../../tests/cases/slab-debug.toml")),
    ("vmalloc", include_str!("../../../../tests/cases/vmalloc.toml")),
    ("failslab", include_str!("../../../../tests/cases/failslab.toml")),
    ("fragmentation", include_str!("../../../../tests/cases/fragmentation.toml")),
    ("highmem", include_str!("../../../../tests/cases/highmem.toml")),
    ("watermark", include_str!("../../../../tests/cases/watermark.toml")),
    ("reclaim", include_str!("../../../../tests/cases/reclaim.toml")),
    ("kswapd", include_str!("../../../../tests/cases/kswapd.toml")),
    ("direct-reclaim", include_str!("../../../../tests/cases/direct-reclaim.toml")),
    ("slab-pressure", include_str!("../../../../tests/cases/slab-pressure.toml")),
    ("lazyfree", include_str!("../../../../tests/cases/lazyfree.toml")),
    ("mlock-pressure", include_str!("../../../../tests/cases/mlock-pressure.toml")),
    ("max-map-count", include_str!("../../../../tests/cases/max-map-count.toml")),
    ("numa-pressure", include_str!("../../../../tests/cases/numa-pressure.toml")),
    ("mempolicy", include_str!("../../../../tests/cases/mempolicy.toml")),
    ("vm-patterns", include_str!("../../../../tests/cases/vm-patterns.toml")),
    ("everything-at-once", include_str!("../../../../tests/cases/everything-at-once.toml")),
    ("cma", include_str!("../../../../tests/cases/cma.toml")),
    ("space", include_str!("../../../../tests/cases/space.toml")),
    ("mmap", include_str!("../../../../tests/cases/mmap.toml")),
    ("fault", include_str!("../../../../tests/cases/fault.toml")),
    ("cow", include_str!("../../../../tests/cases/cow.toml")),
    ("rmap", include_str!("../../../../tests/cases/rmap.toml")),
    ("smp", include_str!("../../../../tests/cases/smp.toml")),
    ("process", include_str!("../../../../tests/cases/process.toml")),
    ("signal", include_str!("../../../../tests/cases/signal.toml")),
    ("shm", include_str!("../../../../tests/cases/shm.toml")),
    ("oom-basic", include_str!("../../../../tests/cases/oom-basic.toml")),
    ("oom-score", include_str!("../../../../tests/cases/oom-score.toml")),
    ("oom-nested-forks", include_str!("../../../../tests/cases/oom-nested-forks.toml")),
    ("oom-atomic", include_str!("../../../../tests/cases/oom-atomic.toml")),
    ("overcommit", include_str!("../../../../tests/cases/overcommit.toml")),
    ("min-free", include_str!("../../../../tests/cases/min-free.toml")),
    ("fork-bomb-limit", include_str!("../../../../tests/cases/fork-bomb-limit.toml")),
    ("live", include_str!("../../../../tests/cases/live.toml")),
    ("disk", include_str!("../../../../tests/cases/disk.toml")),
    ("dma", include_str!("../../../../tests/cases/dma.toml")),
    ("swapoff", include_str!("../../../../tests/cases/swapoff.toml")),
    ("swap-errors", include_str!("../../../../tests/cases/swap-errors.toml")),
    ("swap-thrash", include_str!("../../../../tests/cases/swap-thrash.toml")),
    ("zswap", include_str!("../../../../tests/cases/zswap.toml")),
    ("file-cache", include_str!("../../../../tests/cases/file-cache.toml")),
    ("mmap-shared-file", include_str!("../../../../tests/cases/mmap-shared-file.toml")),
    ("dirty-throttle", include_str!("../../../../tests/cases/dirty-throttle.toml")),
    ("busybox", include_str!("../../../../tests/cases/busybox.toml")),
    ("programs", include_str!("../../../../tests/cases/programs.toml")),
    ("differential", include_str!("../../../../tests/cases/differential.toml")),
    ("stacks", include_str!("../../../../tests/cases/stacks.toml")),
    ("trace", include_str!("../../../../tests/cases/trace.toml")),
    ("real", include_str!("../../../../tests/cases/real.toml")),
    ("linux", include_str!("../../../../tests/cases/linux.toml")),
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Groups that the suite belongs to.
    #[serde(default)]
    groups: Vec<String>,
    case: Vec<Stanza>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stanza {
    name: String,
    description: String,
    #[serde(default)]
    cmdline: String,
    initrd: Option<String>,
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
    #[serde(default)]
    images: Vec<Image>,
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
    memory_shadowed: Option<String>,
    #[serde(default)]
    keeps_machine: bool,
    backing: Option<String>,
    scale: Option<String>,
    linux: Option<String>,
    #[serde(default)]
    disks: Vec<BlankDisk>,
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
        for case in stanza.expand(&parsed.groups).map_err(error)? {
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
    fn expand(&self, groups: &[String]) -> Result<Vec<Case>, String> {
        if self.timeout_s == 0 {
            return Err("timeout_s = 0: give seconds".to_owned());
        }
        if let Some(problem) = self.images.iter().find_map(Image::problem) {
            return Err(problem);
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
                groups: groups.to_vec(),
                description: self.description.clone(),
                cmdline,
                initrd: self.initrd.clone(),
                timeout: Duration::from_secs(self.timeout_s),
                images: self.images.clone(),
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
        if is_linux && self.initrd.is_some() {
            return Err("initrd and kvm.linux exclude each other: a stock Linux has its own".to_owned());
        }
        let has_shell = is_linux || (self.kvm.is_some() && self.initrd.is_some());
        if !self.dialogue.is_empty() && !has_shell {
            return Err(
                "dialogue needs a shell: give kvm.linux, or the table kvm and an initrd that has one"
                    .to_owned(),
            );
        }
        if !self.dialogue.is_empty() && !is_linux && !self.expect.probes.is_empty() {
            return Err("memvisor's own kernel is not probed during a dialogue: leave one out".to_owned());
        }
        if self.expect.live > 0
            && (self.kvm.is_none() || is_linux || !self.dialogue.is_empty() || !self.expect.probes.is_empty())
        {
            return Err(
                "live needs the table kvm and memvisor's own kernel, without dialogue and probes".to_owned()
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
                            memory_shadowed: self.memory_shadowed.clone(),
                            keeps_machine: self.keeps_machine,
                            backing: self.backing.clone(),
                            scale: self.scale.clone(),
                            linux: self.linux.clone(),
                            disks: self.disks.clone(),
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
