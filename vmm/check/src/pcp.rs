//! Per-CPU page lists.
//!
//! P1  `pcp.count`: the counter is the sum of the pages on the CPU's lists of the zone.
//! P2  `pcp.state`: a block on a list is headed by a frame that says so, with the list's order and no reference.
//! P3  `pcp.list`: links lead from head to tail and back without a cycle.
//! P4  `pcp.zone`: a block lies in the list's zone. That it is on no other list is `owner.single`.
//! P5  `pcp.limits`: batch and high are what Linux's formulas give, and a CPU keeps less than high plus a block.

use memvisor_abi::{PCP_HUGE_ORDER, PageKind, Watermark, Zone};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::zones::{zone_kind, zone_name, zone_node};

pub(crate) const COUNT: Rule = Rule {
    name: "pcp.count",
    invariant: "count = pages on the CPU's lists of the zone",
    reads: "pcps, descriptors",
    seeded: &["pcp-count"],
    hint: "the counter's update beside insertion and removal",
};
pub(crate) const STATE: Rule = Rule {
    name: "pcp.state",
    invariant: "blocks on a list are free per-CPU blocks of its order",
    reads: "pcps, descriptors",
    seeded: &["pcp-state"],
    hint: "free_unref_page; a write to a free frame's descriptor",
};
pub(crate) const LIST: Rule = Rule {
    name: "pcp.list",
    invariant: "lists are doubly linked without a cycle",
    reads: "pcps, descriptors",
    seeded: &["pcp-cycle"],
    hint: "list insertion and removal; a free on the wrong CPU",
};
pub(crate) const ZONE: Rule = Rule {
    name: "pcp.zone",
    invariant: "a block lies in the zone of its list",
    reads: "pcps, descriptors",
    seeded: &["pcp-wrong-zone"],
    hint: "page_zone() of the freed page",
};
pub(crate) const LIMITS: Rule = Rule {
    name: "pcp.limits",
    invariant: "batch and high by zone_batchsize, zone_highsize",
    reads: "pcps, zones, cpus",
    seeded: &["pcp-high"],
    hint: "zone_set_pageset_high_and_batch",
};

const RULES: [&Rule; 5] = [&COUNT, &STATE, &LIST, &ZONE, &LIMITS];

/// Runs P1 to P5.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &RULES) {
        return;
    }
    if context.pcps.is_empty() {
        for rule in RULES {
            ledger.skip(rule, "the guest publishes no per-CPU lists");
        }
        return;
    }
    let zones = context.zones.len().max(1);
    for (index, pcp) in context.pcps.iter().enumerate() {
        let (cpu, zone) = (index / zones, index % zones);
        let lists = || context.pcp_lists.iter().filter(|list| (list.cpu, list.zone_index) == (cpu, zone));
        if lists().all(|list| list.problem.is_none()) {
            let pages: u64 = lists().map(|list| (list.blocks.len() as u64) << list.order).sum();
            let what = format_args!("CPU {cpu}, {}: count", zone_name(zone));
            ledger.expect_eq(&COUNT, what, u64::from(pcp.count), pages);
        }
        let Some(of) = context.zones.get(zone) else { continue };
        if of.managed_pages > 0 {
            limits(context, (cpu, zone), of, (pcp.batch, pcp.high), ledger);
        }
    }
    blocks(context, ledger);
}

fn blocks(context: &Context<'_>, ledger: &mut Ledger) {
    for list in &context.pcp_lists {
        let name = format!("CPU {}, {} order {}", list.cpu, zone_name(list.zone_index), list.order);
        ledger.checked(&LIST, 1);
        if let Some(problem) = &list.problem {
            let what = finding(&LIST, &name, "well linked", problem.to_string());
            ledger.report(&LIST, what);
        }
        let (node, kind) = (zone_node(list.zone_index), zone_kind(list.zone_index));
        for &pfn in &list.blocks {
            let Some(page) = context.page(pfn) else { continue };
            ledger.checked(&STATE, 1);
            ledger.checked(&ZONE, 1);
            let huge = list.order == PCP_HUGE_ORDER;
            let is_free = page.kind == PageKind::Pcp as u8 && page.refcount == 0;
            if !is_free || usize::from(page.order) != list.order {
                let kind = PageKind::from_raw(page.kind).map_or("undefined", PageKind::name);
                let claim = format!("{kind}, order {}, refcount {}", page.order, page.refcount);
                let outside = if huge { "a free huge block" } else { "a free block of the list's order" };
                ledger.report(&STATE, finding(&STATE, &name, claim, outside).frame(pfn));
            }
            if page.node() != node || page.zone() != kind as u32 {
                let claim = format!("the block belongs to node {} zone {}", page.node(), page.zone());
                let outside = format!("it is on a list of {}", zone_name(list.zone_index));
                ledger.report(&ZONE, finding(&ZONE, &name, claim, outside).frame(pfn));
            }
        }
    }
}

/// Linux 6.1: a thousandth of the zone, at most 1 MiB, over 4; then one less than the power of two at or below 1.5 times
/// that. The node's CPUs share the low watermark, with at least four batches each.
fn limits(
    context: &Context<'_>,
    (cpu, index): (usize, usize),
    zone: &Zone,
    (batch, high): (u32, u32),
    ledger: &mut Ledger,
) {
    let quarter = ((zone.managed_pages / 1024).min(256) / 4).max(1);
    let mut power = 1;
    while power * 2 <= quarter + quarter / 2 {
        power *= 2;
    }
    let expected_batch = (power - 1).max(1);
    // The nodes of the CPUs as the machine has them, where that is known.
    let nodes: Vec<u32> = match context.facts {
        Some(facts) => facts.cpus.iter().map(|cpu| cpu.node).collect(),
        None => context.cpus.iter().map(|cpu| cpu.node).collect(),
    };
    let near = nodes.iter().filter(|node| **node == zone.node).count();
    let sharers = if near == 0 { nodes.len() } else { near }.max(1) as u64;
    let low = zone.watermark.get(Watermark::Low as usize).copied().unwrap_or(0);
    let expected_high = (low / sharers).max(expected_batch * 4);
    let name = zone_name(index);
    ledger.expect_eq(&LIMITS, format_args!("CPU {cpu}, {name}: batch"), u64::from(batch), expected_batch);
    ledger.expect_eq(&LIMITS, format_args!("CPU {cpu}, {name}: high"), u64::from(high), expected_high);
}
