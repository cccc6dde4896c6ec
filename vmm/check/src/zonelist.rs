//! The order in which zones are tried, and what allocations say about it.
//!
//! L1  `zonelist.order`: each node's list names every zone with present pages once. In node order its nodes are sorted by
//!     distance, the node itself first if it has memory, and each node's zones from the highest down; in zone order
//!     the zones are sorted from the highest down, and each kind's nodes by distance.
//! L2  `zonelist.own`: the list for this node only is the node's own zones, from the highest down.
//! L3  `numa.events`: in every zone hits and misses are as many as local and other; all misses are as many as all foreign.

use std::cmp::Reverse;

use memvisor_abi::{MAX_NR_ZONES, NR_NUMA_EVENTS, NumaEvent, Zonelist, ZonelistOrder};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::zones::zone_name;

pub(crate) const ORDER: Rule = Rule {
    name: "zonelist.order",
    invariant: "every populated zone once, by distance and kind",
    reads: "zonelists, zones, distances",
    seeded: &["zonelist-order"],
    hint: "build_zonelists: find_next_best_node, build_zonerefs_node",
};
pub(crate) const OWN: Rule = Rule {
    name: "zonelist.own",
    invariant: "the list for one node is its own zones",
    reads: "zonelists, zones",
    seeded: &["zonelist-own"],
    hint: "build_thisnode_zonelists",
};
pub(crate) const EVENTS: Rule = Rule {
    name: "numa.events",
    invariant: "hit + miss = local + other; sum of miss = sum of foreign",
    reads: "pcps",
    seeded: &["numa-event"],
    hint: "zone_statistics: one pair of events an allocation",
};

/// Runs L1 to L3.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &[&ORDER, &OWN, &EVENTS]) {
        return;
    }
    if context.zonelists.is_empty() {
        ledger.skip(&ORDER, "the guest publishes no zonelists");
        ledger.skip(&OWN, "the guest publishes no zonelists");
    }
    for list in &context.zonelists {
        order(context, list, ledger);
        let expected = expected_own(context, list.node);
        compare(&OWN, list, list.zones(true), &expected, ledger);
    }
    if context.pcps.is_empty() {
        ledger.skip(&EVENTS, "the guest publishes no per-CPU lists");
    } else {
        events(context, ledger);
    }
}

fn populated(context: &Context<'_>) -> impl Iterator<Item = u16> {
    let zones = context.zones.iter().zip(0_u16..).filter(|(zone, _)| zone.present_pages > 0);
    zones.map(|(_, index)| index)
}

fn node_of(zone: u16) -> usize {
    usize::from(zone) / MAX_NR_ZONES
}

fn kind_of(zone: u16) -> usize {
    usize::from(zone) % MAX_NR_ZONES
}

fn expected_own(context: &Context<'_>, node: u32) -> Vec<u16> {
    let mut own: Vec<u16> = populated(context).filter(|zone| node_of(*zone) == node as usize).collect();
    own.sort_unstable_by_key(|zone| Reverse(kind_of(*zone)));
    own
}

/// Equally near nodes may come in any order, so the guest's list is sorted by what must be sorted, and compared with
/// itself.
fn order(context: &Context<'_>, list: &Zonelist, ledger: &mut Ledger) {
    let zones = list.zones(false);
    let mut expected: Vec<u16> = zones.to_vec();
    let from = list.node as usize;
    let near = |zone: u16| {
        let to = node_of(zone);
        let row = context.distances.get(from).and_then(|row| row.get(to)).copied();
        (to != from, row.unwrap_or(if to == from { 10 } else { 20 }))
    };
    match ZonelistOrder::from_raw(list.order) {
        Some(ZonelistOrder::Zone) => expected.sort_by_key(|zone| (Reverse(kind_of(*zone)), near(*zone))),
        _ => {
            // A node's zones must be neighbours: sort nodes by where they first come.
            let first = |zone: u16| zones.iter().position(|other| node_of(*other) == node_of(zone));
            expected.sort_by_key(|zone| (near(*zone), first(*zone), Reverse(kind_of(*zone))));
        }
    }
    let mut missing: Vec<u16> = populated(context).filter(|zone| !zones.contains(zone)).collect();
    expected.append(&mut missing);
    expected.dedup();
    expected.retain(|zone| context.zones.get(usize::from(*zone)).is_some_and(|zone| zone.present_pages > 0));
    compare(&ORDER, list, zones, &expected, ledger);
}

fn compare(rule: &'static Rule, list: &Zonelist, guest: &[u16], expected: &[u16], ledger: &mut Ledger) {
    ledger.checked(rule, 1);
    if guest != expected {
        let names = |zones: &[u16]| {
            let names: Vec<String> =
                zones.iter().map(|zone| zone_name(usize::from(*zone)).to_string()).collect();
            names.join(", ")
        };
        let what = finding(rule, format!("node {}", list.node), names(guest), names(expected));
        ledger.report(rule, what);
    }
}

fn events(context: &Context<'_>, ledger: &mut Ledger) {
    let zones = context.zones.len().max(1);
    let mut sums = vec![[0_u64; NR_NUMA_EVENTS]; zones];
    for (index, pcp) in context.pcps.iter().enumerate() {
        if let Some(sum) = sums.get_mut(index % zones) {
            for (sum, count) in sum.iter_mut().zip(pcp.numa) {
                *sum = sum.wrapping_add(count);
            }
        }
    }
    let of = |sum: &[u64; NR_NUMA_EVENTS], event: NumaEvent| sum.get(event as usize).copied().unwrap_or(0);
    for (index, sum) in sums.iter().enumerate() {
        let served = of(sum, NumaEvent::Hit).wrapping_add(of(sum, NumaEvent::Miss));
        let asked = of(sum, NumaEvent::Local).wrapping_add(of(sum, NumaEvent::Other));
        ledger.expect_eq(&EVENTS, format_args!("{}: hit + miss", zone_name(index)), served, asked);
    }
    let all = |event| sums.iter().fold(0_u64, |all, sum| all.wrapping_add(of(sum, event)));
    ledger.expect_eq(&EVENTS, "all zones: miss", all(NumaEvent::Miss), all(NumaEvent::Foreign));
}
