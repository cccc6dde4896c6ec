//! Counts of pages by what they are used for, of each zone: what /proc/vmstat, zoneinfo and meminfo say.
//!
//! N1  `zones.stats`: the sum over CPUs of what a zone counts is what its descriptors say.

use memvisor_abi::{MAX_NR_ZONES, NodeStat};
use memvisor_inspect::DERIVED_STATS;

use crate::Rule;
use crate::context::Context;
use crate::ledger::Ledger;

pub(crate) const STATS: Rule = Rule {
    name: "zones.stats",
    invariant: "what zones count of mapped, cached, dirty and written pages, tables and stacks is what their descriptors say",
    reads: "NodeStats, Mapping, descriptors",
    seeded: &["stats-mapped", "stats-file-pages"],
    hint: "mod_page_state, page_add_anon_rmap, filemap_add_folio",
};

/// Runs N1.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &[&STATS]) {
        return;
    }
    let counts = context.guest.node_stats().unwrap_or_default();
    if counts.is_empty() {
        return ledger.skip(&STATS, "the guest publishes no counts of pages");
    }
    // Flags and counts change one after the other.
    let busy =
        context.guest.file_counts().is_ok_and(|counts| counts.first().is_some_and(|counts| counts.busy != 0));
    if busy {
        return ledger.skip(&STATS, "somebody is changing a flag just now");
    }
    let derived = match context.guest.derive_node_stats() {
        Ok(derived) => derived,
        Err(problem) => return ledger.skip(&STATS, &problem.to_string()),
    };
    for (index, (counts, derived)) in counts.iter().zip(&derived).enumerate() {
        for stat in DERIVED_STATS {
            let (node, zone) = (index / MAX_NR_ZONES, index % MAX_NR_ZONES);
            let what = format_args!("node {node}, zone {zone}: {}", name(stat));
            ledger.expect_eq(&STATS, what, counts[stat as usize], derived[stat as usize]);
        }
    }
}

fn name(stat: NodeStat) -> &'static str {
    NodeStat::NAMES.get(stat as usize).copied().unwrap_or("?")
}
