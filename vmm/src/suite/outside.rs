//! Audits of memory that a bed reads itself, and of what `memvisor run --json` reports.

use std::path::{Path, PathBuf};

use anyhow::Context;
use memvisor_check::{Evidence, Moment};
use memvisor_inspect::{CpuRegisters, Facts, MemorySource};
use serde::Deserialize;

use super::bed::{Audit, EXAMPLES};
use crate::loader;

/// Audits a guest that stands still.
pub fn audit(source: &dyn MemorySource, root_gpa: u64, facts: &Facts, registers: &[CpuRegisters]) -> Audit {
    let evidence =
        Evidence { source, root_gpa: Some(root_gpa), facts: Some(facts), registers, moment: Moment::Chosen };
    let report = memvisor_check::audit(&evidence);
    Audit {
        rules: report.ran(),
        frames: report.frames_audited,
        findings: report.count(),
        found: report
            .rules
            .iter()
            .filter(|rule| rule.findings > 0)
            .map(|rule| rule.name.to_owned())
            .collect(),
        examples: report.findings.iter().take(EXAMPLES).map(|finding| finding.to_string()).collect(),
    }
}

/// The parts of a report's JSON that a judgement needs.
#[derive(Deserialize)]
struct Report {
    rules: Vec<Rule>,
    frames_audited: u64,
    findings: Vec<Finding>,
}

#[derive(Deserialize)]
struct Rule {
    name: String,
    findings: usize,
    skipped: Option<String>,
}

#[derive(Deserialize)]
struct Finding {
    rule: String,
    what: String,
}

/// Reads a report as `--json` prints it.
///
/// # Errors
/// If it is no report.
pub fn read_report(json: serde_json::Value) -> anyhow::Result<Audit> {
    let report: Report = serde_json::from_value(json).context("an audit report that cannot be read")?;
    Ok(Audit {
        rules: report.rules.iter().filter(|rule| rule.skipped.is_none()).count(),
        frames: report.frames_audited,
        findings: report.rules.iter().map(|rule| rule.findings).sum(),
        found: report.rules.into_iter().filter(|rule| rule.findings > 0).map(|rule| rule.name).collect(),
        examples: report
            .findings
            .iter()
            .take(EXAMPLES)
            .map(|finding| format!("{}: {}", finding.rule, finding.what))
            .collect(),
    })
}

/// Writes the guest kernel that is built into this program into `folder`; `None` if there is none.
///
/// # Errors
/// If the file cannot be written.
pub fn bundled_kernel(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    if !loader::has_bundled_kernel() {
        return Ok(None);
    }
    let (_, image) = loader::read_kernel(None)?;
    let path = folder.join("memvisor-guest.elf");
    std::fs::write(&path, image).with_context(|| format!("write {}", path.display()))?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::suite::case::Bed;
    use memvisor_report::{AuditReport, Finding, RuleResult};

    #[test]
    fn a_printed_report_reads_back() {
        let rule = |name, findings, skipped: Option<&str>| RuleResult {
            name,
            invariant: "i",
            checked: 7,
            findings,
            skipped: skipped.map(str::to_owned),
        };
        let report = AuditReport {
            rules: vec![
                rule("buddy.merge", 2, None),
                rule("owner.none", 0, None),
                rule("cpu.list", 0, Some("no facts")),
            ],
            frames_audited: 8192,
            findings: vec![Finding::new("buddy.merge", "two free buddies", "free", "mergeable")],
            ..AuditReport::default()
        };
        let audit = read_report(serde_json::from_str(&report.to_json().unwrap()).unwrap()).unwrap();
        assert_eq!((audit.rules, audit.frames, audit.findings), (2, 8192, 2));
        assert_eq!(audit.found.into_iter().collect::<Vec<_>>(), ["buddy.merge"]);
        assert_eq!(
            audit.examples,
            ["buddy.merge: two free buddies: the guest says free, outside says mergeable"]
        );
        assert!(read_report(serde_json::json!({ "rules": 3 })).is_err());
    }

    /// The rules declare the fault that is meant for each; the cases must seed exactly those.
    #[test]
    fn the_cases_seed_the_faults_that_the_rules_declare() {
        let declared: BTreeSet<(String, String)> = memvisor_check::RULES
            .iter()
            .flat_map(|rule| rule.seeded.iter().map(|fault| ((*fault).to_owned(), rule.name.to_owned())))
            .collect();
        for bed in [Bed::Kvm, Bed::Qemu] {
            let seeded: BTreeSet<(String, String)> = crate::suite::case::load()
                .unwrap()
                .iter()
                .filter(|case| case.bed == bed)
                .filter_map(|case| {
                    let fault = case.cmdline.split("seeded=").nth(1)?;
                    Some((fault.to_owned(), case.expect.findings.first()?.clone()))
                })
                .collect();
            assert_eq!(seeded, declared, "{bed:?}");
        }
    }
}
