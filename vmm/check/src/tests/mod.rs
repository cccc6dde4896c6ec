//! Every rule both ways: silent on a healthy guest, and the one that names its fault.

mod build;
mod cma;
mod compaction;
mod faults;
mod guest;
mod hostile;
mod log;
mod pcp;
mod pti;
mod slab;
mod spaces;
mod swiotlb;
mod vmalloc;

use guest::{healthy, healthy_with_five_levels};
use memvisor_inspect::CpuRegisters;

use crate::RULES;

/// Rules about what the model of a guest does not publish: their seeded faults are found in real guests only (tests/cases/audit.toml).
const UNPUBLISHED: [&str; 6] = ["cache.shadows", "lru.", "oom.", "swap.", "zones.stats", "zswap."];

/// Rules that were skipped and need not have been.
fn skipped(report: &crate::AuditReport) -> Vec<&'static str> {
    let names = report.skipped().map(|(name, _)| name);
    names.filter(|name| !UNPUBLISHED.iter().any(|prefix| name.starts_with(prefix))).collect()
}

#[test]
fn a_healthy_guest_has_no_findings_and_every_rule_checked_something() {
    let report = healthy().audit();
    assert_eq!(report.findings, [], "{report}");
    assert_eq!(report.rules.len(), RULES.len());
    for rule in &report.rules {
        if UNPUBLISHED.iter().any(|prefix| rule.name.starts_with(prefix)) {
            assert!(rule.skipped.is_some() || rule.checked == 0, "{}: take it out of UNPUBLISHED", rule.name);
            continue;
        }
        assert_eq!(rule.skipped, None, "{}", rule.name);
        assert!(rule.checked > 0, "{} checked nothing", rule.name);
    }
    assert_eq!(report.frames_audited, 0x9f + 0x9ee0 + 0x1000);
    assert_eq!(report.owners.values().sum::<u64>(), report.frames_audited);
    assert_eq!(report.owners["deferred free"], 0x1fe0);
    assert_eq!(report.owners["user"], 4);
    assert_eq!(report.owners["firmware"], 16);
    assert_eq!(report.owners["kernel image"], 512);
    // Two online sections, and the reserved memmap of a deferred one.
    assert_eq!(report.owners["memmap"], 1536);
}

#[test]
fn a_healthy_guest_with_five_levels_has_no_findings() {
    let report = healthy_with_five_levels().audit();
    assert_eq!(report.findings, [], "{report}");
}

#[test]
fn rules_have_unique_names_of_two_words_and_stand_in_the_documentation() {
    let documentation = include_str!("../../../../docs/audit.md");
    let mut names: Vec<_> = RULES.iter().map(|rule| rule.name).collect();
    for rule in RULES {
        assert_eq!(rule.name.split('.').count(), 2, "{}", rule.name);
        let row = documentation.lines().find(|line| line.starts_with(&format!("| `{}` |", rule.name)));
        let row = row.unwrap_or_else(|| panic!("docs/audit.md has no row for {}", rule.name));
        for fault in rule.seeded {
            assert!(row.contains(&format!("`{fault}`")), "{row}");
        }
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), RULES.len());
}

#[test]
fn without_facts_the_guests_own_map_stands_in_and_comparisons_are_skipped() {
    let guest = healthy();
    let report = crate::audit(&crate::Evidence { facts: None, ..guest.evidence() });
    assert_eq!(report.findings, [], "{report}");
    assert_eq!(skipped(&report), ["e820.raw", "numa.distances"]);
    assert!(report.to_string().contains("no facts"), "{report}");
}

#[test]
fn cpus_that_were_never_started_say_nothing_of_tables() {
    let mut guest = healthy();
    // As after INIT: no paging, no EFER.
    guest.registers.push(CpuRegisters { index: 2, cr0: 0x6000_0010, ..CpuRegisters::default() });
    let report = guest.audit();
    assert_eq!(report.findings, [], "{report}");
}

#[test]
fn without_registers_cr3_is_skipped() {
    let guest = healthy();
    let report = crate::audit(&crate::Evidence { registers: &[], ..guest.evidence() });
    assert_eq!(report.findings, [], "{report}");
    assert_eq!(skipped(&report), ["pgtable.cr3"]);
}

#[test]
fn the_root_is_found_without_its_address() {
    let guest = healthy();
    let report = crate::audit(&crate::Evidence { root_gpa: None, ..guest.evidence() });
    assert_eq!(report.findings, [], "{report}");
}

#[test]
fn another_kernel_gets_the_page_table_rules_and_one_finding_for_the_missing_root() {
    let mut guest = healthy();
    guest.edit_root(|root| root.magic = [0; 16]);
    let report = crate::audit(&crate::Evidence { root_gpa: None, ..guest.evidence() });
    assert_eq!(report.findings.iter().map(|finding| finding.rule).collect::<Vec<_>>(), ["attach.root"]);
    let ran: Vec<_> =
        report.rules.iter().filter(|rule| rule.skipped.is_none()).map(|rule| rule.name).collect();
    assert_eq!(
        ran,
        [
            "attach.root",
            "pgtable.wx",
            "pgtable.user",
            "pgtable.reserved-bits",
            "pgtable.table-in-ram",
            "pgtable.leaf-in-ram",
            "pgtable.cache-alias",
            "pgtable.exec-alias"
        ]
    );
}

#[test]
fn early_stages_skip_what_does_not_exist_yet() {
    let mut guest = healthy();
    guest.edit_root(|root| root.stage = memvisor_abi::BootStage::Memblock as u32);
    let report = guest.audit();
    assert_eq!(report.findings, [], "{report}");
    let ran: Vec<_> =
        report.rules.iter().filter(|rule| rule.skipped.is_none()).map(|rule| rule.name).collect();
    assert_eq!(
        ran,
        ["attach.root", "attach.tables", "e820.raw", "e820.clean", "memblock.memory", "log.records"]
    );
    assert_eq!(report.frames_audited, 0);
}
