//! What is wrong with a tree whoever owns it.

use std::fmt;

use serde::Serialize;

use super::{Range, TreeProblem};
use crate::Levels;

/// Most physical runs kept for the search of aliases.
const RUNS_MAX: usize = 1 << 20;

/// Kinds of findings; each is a rule with a stable name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Kernel or user memory that is writable and executable.
    WritableExecutable,
    /// Ring 3 has access to the kernel's half.
    UserInKernel,
    /// Present entries with reserved bits: every use faults.
    ReservedBits,
    /// Tables that are not in RAM.
    TableNotRam,
    /// Tables that contain themselves.
    RecursiveTable,
    /// A frame mapped with different cache types.
    CacheAlias,
}

impl FindingKind {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            FindingKind::WritableExecutable => "writable-executable",
            FindingKind::UserInKernel => "user-in-kernel",
            FindingKind::ReservedBits => "reserved-bits",
            FindingKind::TableNotRam => "table-not-ram",
            FindingKind::RecursiveTable => "recursive-table",
            FindingKind::CacheAlias => "cache-alias",
        }
    }
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule.
    pub kind: FindingKind,
    /// First virtual address concerned.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// What is there.
    pub detail: String,
}

impl Finding {
    pub(super) fn of_problem(problem: &TreeProblem) -> Finding {
        let kind = match problem {
            TreeProblem::ReservedBits { .. } => FindingKind::ReservedBits,
            TreeProblem::TableNotRam { .. } => FindingKind::TableNotRam,
            TreeProblem::Recursive { .. } => FindingKind::RecursiveTable,
        };
        Finding { kind, start: problem.va(), detail: problem.to_string() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.detail)
    }
}

/// What is wrong with one range.
pub(super) fn findings_of_range(range: &Range, levels: Levels) -> impl Iterator<Item = Finding> {
    let upper_half = range.start >> (levels.va_bits() - 1) & 1 == 1;
    let wx = (range.access.write && range.access.execute).then_some(FindingKind::WritableExecutable);
    let user = (range.access.user && upper_half).then_some(FindingKind::UserInKernel);
    let (start, detail) = (range.start, format!("{:#x}-{:#x} {}", range.start, range.last, range.access));
    wx.into_iter().chain(user).map(move |kind| Finding { kind, start, detail: detail.clone() })
}

/// Finds frames that are mapped with different cache types.
#[derive(Debug, Default)]
pub(super) struct AliasFinder {
    runs: Vec<Run>,
    cut: bool,
}

/// Contiguous guest-physical memory mapped contiguously with one cache type.
#[derive(Clone, Copy, Debug)]
struct Run {
    gpa: u64,
    end: u64,
    pat: u8,
    va: u64,
}

impl AliasFinder {
    /// Takes a run: `gpa..end` mapped at `va` with PAT index `pat`.
    pub(super) fn run(&mut self, gpa: u64, end: u64, pat: u8, va: u64) {
        if self.runs.len() < RUNS_MAX {
            self.runs.push(Run { gpa, end, pat, va });
        } else {
            self.cut = true;
        }
    }

    /// The findings, and whether every page was taken into account.
    pub(super) fn finish(mut self, max: usize) -> (Vec<Finding>, bool) {
        self.runs.sort_by_key(|run| run.gpa);
        let mut findings = Vec::new();
        // Per cache type, the run that reaches furthest so far: an overlap with a later run of
        // another type is an overlap with one of these.
        let mut reach: [Option<Run>; 8] = [None; 8];
        for run in &self.runs {
            for other in reach.iter().flatten() {
                if other.pat != run.pat && other.end > run.gpa {
                    if findings.len() >= max {
                        return (findings, false);
                    }
                    findings.push(Finding {
                        kind: FindingKind::CacheAlias,
                        start: run.va,
                        detail: format!(
                            "guest-physical {:#x} is mapped at {:#x} with PAT index {} and at {:#x} with {}",
                            run.gpa,
                            run.va,
                            run.pat,
                            other.va.wrapping_add(run.gpa - other.gpa),
                            other.pat
                        ),
                    });
                }
            }
            if let Some(place) = reach.get_mut(usize::from(run.pat))
                && place.is_none_or(|best| best.end < run.end)
            {
                *place = Some(*run);
            }
        }
        (findings, !self.cut)
    }
}
