//! A matrix: the selected cases again on each combination of machines, slab allocators, page-table depths and CPUs (`--matrix`).
//!
//! An axis that a matrix leaves out stays as the stanza has it. A stanza that lists machines or CPUs itself is taken once: what the matrix says
//! takes the place of its lists. A number of CPUs that a machine cannot have is left out; if it can have none of them, it keeps its own. A case on a
//! machine with disks or DMA engines is about these, and keeps its machine, and so does one that says `keeps_machine`; one that names its `lru=` is about that, and keeps it. Bed qemu builds its own machines: it has the axes `slabs`, `levels`,
//! and, on machines without nodes, `cpus`.
//!
//! Invariant: a variant's name tells it from all others: `suite/case` and a suffix for each axis.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::case::{Bed, Case, KvmSetup, Need, Setup};
use crate::machine::{self, Overrides};

/// Matrices that the program has by name.
const NAMED: &[(&str, &str)] = &[
    ("small", include_str!("../../../tests/matrices/small.toml")),
    ("full", include_str!("../../../tests/matrices/full.toml")),
];

/// Axes; an empty one changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Matrix {
    /// Machine files by name.
    pub machines: Vec<String>,
    /// Slab allocators: values of `slab=`.
    pub slabs: Vec<String>,
    /// Reclaim policies: values of `lru=`.
    pub lrus: Vec<String>,
    /// Paging levels: 4, 5.
    pub levels: Vec<u32>,
    /// Numbers of CPUs.
    pub cpus: Vec<u32>,
}

/// Why a matrix cannot be used.
#[derive(Debug, Error)]
pub enum MatrixError {
    /// Neither a name nor a file.
    #[error("no matrix named '{name}' ({names}), and no file of that name: {source}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that there are.
        names: String,
        /// What opening the file came to.
        source: std::io::Error,
    },
    /// Not TOML, an unknown axis, or a wrong type.
    #[error("matrix {}: {source}", path.display())]
    Parse {
        /// Name or file.
        path: PathBuf,
        /// What the parser says, with line and column.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("matrix {}: {problem}", path.display())]
    Value {
        /// Name or file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Matrix {
    /// The matrix of that name, or in that file.
    ///
    /// # Errors
    /// [`MatrixError`].
    pub fn load(name: &str) -> Result<Matrix, MatrixError> {
        if let Some((_, text)) = NAMED.iter().find(|(known, _)| *known == name) {
            return Matrix::parse(Path::new(name), text);
        }
        let text = std::fs::read_to_string(name).map_err(|source| {
            let names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
            MatrixError::Unknown { name: name.to_owned(), names: names.join(", "), source }
        })?;
        Matrix::parse(Path::new(name), &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Matrix, MatrixError> {
        let matrix: Matrix = toml::from_str(text)
            .map_err(|source| MatrixError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let problem = if let Some(levels) = matrix.levels.iter().find(|levels| !matches!(levels, 4 | 5)) {
            Some(format!("levels has {levels}: give 4 or 5"))
        } else {
            matrix.cpus.contains(&0).then(|| "cpus has 0: give at least 1".to_owned())
        };
        match problem {
            Some(problem) => Err(MatrixError::Value { path: path.to_owned(), problem }),
            None => Ok(matrix),
        }
    }

    /// The variants of `cases`, in their order.
    pub fn expand(&self, cases: &[Case]) -> Vec<Case> {
        let mut seen = BTreeSet::new();
        let mut variants = Vec::new();
        let mut names = BTreeSet::new();
        for case in cases {
            // A stanza's list of machines or CPUs makes cases that differ in nothing else.
            if !seen.insert((case.bed, self.stem(case), case.cmdline.clone())) {
                continue;
            }
            for variant in self.variants(case) {
                if names.insert((variant.bed, variant.name.clone())) {
                    variants.push(variant);
                }
            }
        }
        variants
    }

    /// The name without what the matrix decides.
    fn stem(&self, case: &Case) -> String {
        let Setup::Kvm(setup) = &case.setup else { return case.name.clone() };
        let mut name = case.name.clone();
        if !self.machines.is_empty() && !setup.keeps_machine() {
            let (first, later) = (format!("/{}-", setup.machine), format!("-{}", setup.machine));
            name = if name.contains(&first) {
                name.replacen(&first, "/", 1)
            } else {
                name.replacen(&later, "", 1)
            };
        }
        if let Some(cpus) = setup.cpus.filter(|_| !self.cpus.is_empty()) {
            name = name.strip_suffix(&format!("-{cpus}")).map_or(name.clone(), str::to_owned);
        }
        name
    }

    fn variants(&self, case: &Case) -> Vec<Case> {
        let machines = if case.bed == Bed::Qemu { Vec::new() } else { self.machines.clone() };
        let mut variants = vec![Case { name: self.stem(case), ..case.clone() }];
        along(&mut variants, &machines, |case, machine| case.on_machine(machine));
        along(&mut variants, &self.slabs, |case, slab| case.with_word("slab", slab));
        along(&mut variants, &self.lrus, |case, lru| case.with_lru(lru));
        along(&mut variants, &self.levels, |case, levels| case.at_levels(*levels));
        along(&mut variants, &self.cpus, |case, cpus| case.with_cpus(*cpus));
        variants
    }
}

/// Puts each variant at each value of an axis, and the suffix behind its name that `put` says. Without values, and where the axis means nothing to
/// a case, it stays.
fn along<T>(variants: &mut Vec<Case>, values: &[T], put: impl Fn(&mut Case, &T) -> Option<String>) {
    if values.is_empty() {
        return;
    }
    let mut next = Vec::new();
    for variant in variants.drain(..) {
        let len = next.len();
        for value in values {
            let mut case = variant.clone();
            if let Some(suffix) = put(&mut case, value) {
                case.name = format!("{}-{suffix}", case.name);
                next.push(case);
            }
        }
        if next.len() == len {
            next.push(variant);
        }
    }
    *variants = next;
}

impl Case {
    fn on_machine(&mut self, machine: &str) -> Option<String> {
        let Setup::Kvm(setup) = &mut self.setup else { return None };
        if setup.keeps_machine() {
            return None;
        }
        machine.clone_into(&mut setup.machine);
        // So many were meant for the stanza's machine.
        setup.cpus = setup.cpus.filter(|cpus| takes_cpus(machine, *cpus));
        Some(machine.to_owned())
    }

    /// Puts `key=value` in the place of what the command line says of it.
    /// A case that names its policy is about it, and keeps it.
    fn with_lru(&mut self, lru: &str) -> Option<String> {
        let is_named = self.cmdline.split_ascii_whitespace().any(|word| word.starts_with("lru="));
        if is_named { None } else { self.with_word("lru", lru) }
    }

    fn with_word(&mut self, key: &str, value: &str) -> Option<String> {
        let is_other = |word: &&str| word.split_once('=').is_none_or(|(name, _)| name != key);
        let words: Vec<&str> = self.cmdline.split_ascii_whitespace().filter(is_other).collect();
        self.cmdline = format!("{} {key}={value}", words.join(" ")).trim().to_owned();
        Some(value.to_owned())
    }

    fn at_levels(&mut self, levels: u32) -> Option<String> {
        match &mut self.setup {
            Setup::Kvm(setup) => {
                setup.paging = Some(levels.to_string());
                setup.needs.retain(|need| !matches!(need, Need::La57 | Need::NoLa57));
                setup.needs.extend((levels == 5).then_some(Need::La57));
            }
            Setup::Qemu(setup) => {
                setup.levels = levels;
                let mut words: Vec<&str> = setup.cpu.split(',').filter(|word| *word != "-la57").collect();
                if levels == 4 {
                    words.push("-la57");
                }
                setup.cpu = words.join(",");
            }
        }
        Some(format!("la{}", if levels == 5 { 57 } else { 48 }))
    }

    fn with_cpus(&mut self, cpus: u32) -> Option<String> {
        match &mut self.setup {
            Setup::Kvm(setup) => {
                if !takes_cpus(&setup.machine, cpus) {
                    return None;
                }
                setup.cpus = Some(cpus);
            }
            Setup::Qemu(setup) if setup.nodes.is_empty() => setup.cpus = cpus,
            // Its nodes name their CPUs.
            Setup::Qemu(_) => return None,
        }
        Some(format!("{cpus}cpu"))
    }
}

impl KvmSetup {
    /// Whether a case is about its machine: because it says so, or because that has disks or engines.
    fn keeps_machine(&self) -> bool {
        self.keeps_machine || has_devices(&self.machine)
    }
}

/// Whether a machine has disks or engines.
fn has_devices(machine: &str) -> bool {
    let built = machine::load(machine).and_then(|file| machine::resolve(file, &Overrides::default()));
    built.is_ok_and(|built| !built.disks.is_empty() || !built.dma.is_empty())
}

/// Whether a machine can be built with so many CPUs: some nodes have nothing else.
fn takes_cpus(machine: &str, cpus: u32) -> bool {
    let overrides = Overrides { cpus: Some(cpus), ..Overrides::default() };
    machine::load(machine).is_ok_and(|file| machine::resolve(file, &overrides).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::case::{load, parse};

    fn matrix(text: &str) -> Matrix {
        Matrix::parse(Path::new("test"), text).unwrap()
    }

    fn cases(text: &str) -> Vec<Case> {
        parse("boot", text).unwrap()
    }

    fn names(cases: &[Case]) -> Vec<&str> {
        cases.iter().map(|case| case.name.as_str()).collect()
    }

    const KVM: &str = "[[case]]\nname = \"boot/a-{machine}-{cpus}\"\ndescription = \"d\"\ncmdline = \"slab=slob x\"\n\
                       kvm = { machine = [\"default\", \"tiny\"], cpus = [1, 3] }\n";
    const QEMU: &str = "[[case]]\nname = \"boot/q\"\ndescription = \"d\"\n\
                        qemu = { cpu = \"max,-la57,-pdpe1gb\", memory_mib = 128, cpus = 1, levels = 4 }\n";

    #[test]
    fn axes_take_the_place_of_a_stanzas_own_lists() {
        let matrix = matrix("machines = [\"default\", \"sparse\"]\nslabs = [\"slub\"]\ncpus = [2]\n");
        let variants = matrix.expand(&cases(KVM));
        assert_eq!(names(&variants), ["boot/a-default-slub-2cpu", "boot/a-sparse-slub-2cpu"]);
        assert_eq!(variants[0].cmdline, "x slab=slub");
        let Setup::Kvm(setup) = &variants[1].setup else { panic!("not memvisor's") };
        assert_eq!((setup.machine.as_str(), setup.cpus), ("sparse", Some(2)));
    }

    #[test]
    fn a_machine_has_only_cpus_that_it_can_have() {
        let matrix = matrix("machines = [\"numa4\", \"tiny\"]\ncpus = [1, 2, 4]\n");
        let variants = matrix.expand(&cases(KVM));
        assert_eq!(
            names(&variants),
            ["boot/a-numa4-4cpu", "boot/a-tiny-1cpu", "boot/a-tiny-2cpu", "boot/a-tiny-4cpu"]
        );
    }

    #[test]
    fn a_machine_keeps_its_cpus_where_it_cannot_have_the_cases() {
        let variants = matrix("machines = [\"numa4\", \"tiny\"]\ncpus = [1, 2]\n").expand(&cases(KVM));
        assert_eq!(names(&variants), ["boot/a-numa4", "boot/a-tiny-1cpu", "boot/a-tiny-2cpu"]);
        let cpus = |case: &Case| if let Setup::Kvm(setup) = &case.setup { setup.cpus } else { None };
        assert_eq!(variants.iter().map(cpus).collect::<Vec<_>>(), [None, Some(1), Some(2)]);
    }

    #[test]
    fn a_machine_at_the_begin_of_a_name_gives_way_too() {
        let text = KVM.replace("a-{machine}-{cpus}", "{machine}-b-{cpus}");
        let variants = matrix("machines = [\"tiny\"]\ncpus = [1]\n").expand(&cases(&text));
        assert_eq!(names(&variants), ["boot/b-tiny-1cpu"]);
    }

    #[test]
    fn a_case_about_disks_keeps_its_machine() {
        let text = KVM.replace("\"default\", \"tiny\"", "\"disks\"");
        let variants = matrix("machines = [\"default\", \"numa4\"]\nslabs = [\"slab\"]\ncpus = [2]\n")
            .expand(&cases(&text));
        assert_eq!(names(&variants), ["boot/a-disks-slab-2cpu"]);
        let Setup::Kvm(setup) = &variants[0].setup else { panic!("not memvisor's") };
        assert_eq!(setup.machine, "disks");
    }

    #[test]
    fn a_case_that_says_so_keeps_its_machine() {
        let text =
            KVM.replace("machine = [\"default\", \"tiny\"]", "machine = \"tiny\", keeps_machine = true");
        let variants = matrix("machines = [\"default\"]\ncpus = [2]\n").expand(&cases(&text));
        assert_eq!(names(&variants), ["boot/a-tiny-2cpu"]);
    }

    #[test]
    fn an_axis_that_is_left_out_changes_nothing() {
        let variants = matrix("slabs = [\"slab\"]").expand(&cases(KVM));
        assert_eq!(names(&variants).len(), 4);
        assert_eq!(names(&variants)[0], "boot/a-default-1-slab");
        assert_eq!(matrix("").expand(&cases(KVM)).len(), 4);
    }

    #[test]
    fn qemu_has_no_machine_files_but_depths() {
        let variants = matrix("machines = [\"tiny\"]\nlevels = [4, 5]\n").expand(&cases(QEMU));
        assert_eq!(names(&variants), ["boot/q-la48", "boot/q-la57"]);
        let cpu = |case: &Case| {
            let Setup::Qemu(setup) = &case.setup else { panic!("not QEMU's") };
            (setup.cpu.clone(), setup.levels)
        };
        assert_eq!(cpu(&variants[0]), ("max,-pdpe1gb,-la57".to_owned(), 4));
        assert_eq!(cpu(&variants[1]), ("max,-pdpe1gb".to_owned(), 5));
    }

    #[test]
    fn five_levels_need_a_host_that_has_them() {
        let variants = matrix("levels = [4, 5]").expand(&cases(KVM));
        let needs = |case: &Case| case.needs().contains(&Need::La57);
        assert_eq!(variants.iter().filter(|case| needs(case)).count(), 4);
        assert_eq!(variants.len(), 8);
    }

    #[test]
    fn named_matrices_give_every_case_a_name_of_its_own() {
        let all = load().unwrap();
        for (name, _) in NAMED {
            let variants = Matrix::load(name).unwrap().expand(&all);
            let names: BTreeSet<_> = variants.iter().map(|case| (case.bed, &case.name)).collect();
            assert_eq!(names.len(), variants.len());
            assert!(variants.len() > all.len(), "{name}");
        }
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        for wrong in ["levels = [6]", "cpus = [0]", "cpu = [1]", "slabs = 3"] {
            assert!(Matrix::parse(Path::new("test"), wrong).is_err(), "{wrong}");
        }
        let error = Matrix::load("no-such-matrix").unwrap_err().to_string();
        assert!(error.contains("small, full"), "{error}");
    }
}
