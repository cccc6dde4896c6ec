//! What the guest made of the firmware's tables.
//!
//! T1  `e820.raw`: the raw map in the guest is the one it was given, entry by entry, in order.
//! T2  `e820.clean`: the sanitized map is what the raw map means: higher type wins, ascending,
//!     merged (own resolver; Linux: `e820__update_table`).
//! T3  `numa.nodes`: nodes are online exactly if they have memory or CPUs; start, spanned and
//!     present pages follow from the E820 map and the nodes' ranges.
//! T4  `numa.distances`: distances are the machine's; without a table, 10 to oneself and 20 to others
//!     (Linux: `LOCAL_DISTANCE`, `REMOTE_DISTANCE`).
//! T5  `cpu.list`: every CPU of the machine is there once with its APIC id and node, and online.
//! T6  `memblock.memory`: memblock's RAM is the whole frames of E820 RAM, with the right nodes.

use memvisor_abi::{BootStage, CpuState, E820Type};

use crate::Rule;
use crate::context::Context;
use crate::e820::resolve;
use crate::frames::{Frames, clip, count, gaps, normalize};
use crate::ledger::{Ledger, finding};
use crate::machine::Extent;

pub(crate) const RAW: Rule = Rule {
    name: "e820.raw",
    invariant: "the guest's raw E820 map is the one it was given",
    reads: "e820_raw; Facts.e820",
    seeded: &[],
    hint: "the boot protocol's memory map reader, E820_EXT setup_data",
};
pub(crate) const CLEAN: Rule = Rule {
    name: "e820.clean",
    invariant: "the sanitized E820 map follows from the raw one",
    reads: "e820, e820_raw",
    seeded: &["e820-clean"],
    hint: "the E820 sanitizer (memblock crate)",
};
pub(crate) const NODES: Rule = Rule {
    name: "numa.nodes",
    invariant: "nodes: online, start, spanned, present follow from E820 and SRAT",
    reads: "nodes; E820 map, Facts.node_memory, Facts.cpus",
    seeded: &[],
    hint: "SRAT parsing, node initialisation",
};
pub(crate) const DISTANCES: Rule = Rule {
    name: "numa.distances",
    invariant: "node distances are the machine's",
    reads: "distances; Facts.distances",
    seeded: &["numa-distance"],
    hint: "SLIT parsing",
};
pub(crate) const CPUS: Rule = Rule {
    name: "cpu.list",
    invariant: "every CPU is known once, on its node, and online",
    reads: "cpus; Facts.cpus",
    seeded: &[],
    hint: "MADT and SRAT parsing, start of application processors",
};
pub(crate) const MEMORY: Rule = Rule {
    name: "memblock.memory",
    invariant: "memblock's memory is E820 RAM, node by node",
    reads: "memblock_memory; E820 map, Facts.node_memory",
    seeded: &[],
    hint: "memblock_add, memblock_set_node",
};

/// Runs T1 to T6.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    let stage = context.root.stage;
    if stage < BootStage::Memblock as u32 {
        for rule in [&RAW, &CLEAN, &MEMORY] {
            ledger.skip(rule, "the guest has not read its memory map yet");
        }
    } else {
        raw(context, ledger);
        clean(context, ledger);
        memory(context, ledger);
    }
    if context.needs_zones(ledger, &[&NODES, &DISTANCES]) {
        nodes(context, ledger);
        distances(context, ledger);
    }
    if stage < BootStage::Smp as u32 {
        ledger.skip(&CPUS, "the guest has not started its CPUs yet");
    } else {
        cpus(context, ledger);
    }
}

fn raw(context: &Context<'_>, ledger: &mut Ledger) {
    let Some(facts) = context.needs_facts(ledger, &[&RAW]) else { return };
    let guest: Vec<_> = context.e820_raw.iter().map(|entry| (entry.addr, entry.size, entry.kind)).collect();
    let given: Vec<_> = facts.e820.iter().map(|entry| (entry.addr, entry.size, entry.kind)).collect();
    ledger.checked(&RAW, given.len() as u64);
    for (index, (guest, given)) in pairs(&guest, &given).enumerate() {
        if guest != given {
            ledger.report(
                &RAW,
                finding(&RAW, format_args!("entry {index}"), e820_text(guest), e820_text(given)),
            );
        }
    }
}

fn clean(context: &Context<'_>, ledger: &mut Ledger) {
    let raw = context.e820_raw.iter().map(|entry| (entry.addr, entry.size, entry.kind));
    let wanted: Vec<_> = resolve(raw, context.root.phys_bits)
        .iter()
        .map(|region| (region.start, region.end - region.start, region.kind))
        .collect();
    let guest: Vec<_> = context.e820.iter().map(|entry| (entry.addr, entry.size, entry.kind)).collect();
    ledger.checked(&CLEAN, wanted.len() as u64);
    // One wrong entry shifts all that follow, so the first difference is the finding.
    let first = pairs(&guest, &wanted).enumerate().find(|(_, (guest, wanted))| guest != wanted);
    if let Some((index, (guest, wanted))) = first {
        let what = format!("sanitized entry {index}, the first that differs");
        ledger.report(&CLEAN, finding(&CLEAN, what, e820_text(guest), e820_text(wanted)));
    }
}

type RawEntry = (u64, u64, u32);

/// Both lists side by side, as long as the longer one.
fn pairs<'l, T>(a: &'l [T], b: &'l [T]) -> impl Iterator<Item = (Option<&'l T>, Option<&'l T>)> {
    (0..a.len().max(b.len())).map(|index| (a.get(index), b.get(index)))
}

fn e820_text(entry: Option<&RawEntry>) -> String {
    match entry {
        None => "no entry".to_owned(),
        Some(&(addr, size, kind)) => format!("{addr:#x} +{size:#x} type {kind} ({})", E820Type::name(kind)),
    }
}

fn extent_text(extent: Extent) -> String {
    format!("start {:#x} spanned {} present {}", extent.start, extent.spanned, extent.present)
}

fn nodes(context: &Context<'_>, ledger: &mut Ledger) {
    let known = context.nodes.len() as u64;
    let needed = u64::from(context.machine.node_count());
    if known < needed {
        let what = finding(&NODES, "nodes", format!("{known} nodes"), format!("{needed} nodes"));
        ledger.report(&NODES, what);
    }
    for (number, node) in (0_u32..).zip(&context.nodes) {
        ledger.checked(&NODES, 1);
        let wanted = context.machine.node(number);
        let guest =
            Extent { start: node.start_pfn, spanned: node.spanned_pages, present: node.present_pages };
        // Without facts nobody but the guest knows of nodes that have CPUs only.
        let online = context.machine.nodes.contains(&number)
            || (context.facts.is_none() && context.cpus.iter().any(|cpu| cpu.node == number));
        if node.id != number || (node.online == 1) != online || guest != wanted {
            let state = |online: bool| if online { "online" } else { "offline" };
            ledger.report(
                &NODES,
                finding(
                    &NODES,
                    format_args!("node {number}"),
                    format!("id {} {} {}", node.id, state(node.online == 1), extent_text(guest)),
                    format!("id {number} {} {}", state(online), extent_text(wanted)),
                ),
            );
        }
    }
}

fn distances(context: &Context<'_>, ledger: &mut Ledger) {
    let Some(facts) = context.needs_facts(ledger, &[&DISTANCES]) else { return };
    if facts.distances.is_empty() && context.distances.is_empty() {
        return;
    }
    let count = context.nodes.len();
    if context.distances.len() != count {
        let (guest, wanted) = (context.distances.len(), count);
        let what = finding(&DISTANCES, "table", format!("{guest} rows"), format!("{wanted} rows"));
        ledger.report(&DISTANCES, what);
        return;
    }
    for (from, row) in context.distances.iter().enumerate() {
        for (to, &guest) in row.iter().enumerate() {
            let built = facts.distances.get(from).and_then(|row| row.get(to)).copied();
            let wanted = built.unwrap_or(if from == to { 10 } else { 20 });
            ledger.expect_eq(&DISTANCES, format_args!("node {from} to node {to}"), guest, wanted);
        }
    }
}

fn cpus(context: &Context<'_>, ledger: &mut Ledger) {
    for (index, cpu) in context.cpus.iter().enumerate() {
        ledger.checked(&CPUS, 1);
        if cpu.state != CpuState::Online as u32 {
            let state = match cpu.state {
                0 => "present, not started",
                1 => "starting",
                3 => "failed",
                _ => "an undefined state",
            };
            let what = format!("CPU {index} (APIC id {})", cpu.apic_id);
            ledger.report(&CPUS, finding(&CPUS, what, state, "it should be online by now"));
        }
    }
    let Some(facts) = context.facts else { return };
    let mut guest: Vec<_> = context.cpus.iter().map(|cpu| (cpu.apic_id, cpu.node)).collect();
    let mut built: Vec<_> = facts.cpus.iter().map(|cpu| (cpu.apic_id, cpu.node)).collect();
    // The order of the list is the guest's choice: the boot CPU comes first.
    guest.sort_unstable();
    built.sort_unstable();
    ledger.checked(&CPUS, built.len() as u64);
    let text = |cpu: &(u32, u32)| format!("APIC id {} on node {}", cpu.0, cpu.1.cast_signed());
    for cpu in guest.iter().filter(|cpu| !built.contains(cpu)) {
        ledger.report(&CPUS, finding(&CPUS, "a CPU", text(cpu), "no such CPU"));
    }
    for cpu in built.iter().filter(|cpu| !guest.contains(cpu)) {
        // A CPU with a wrong node was reported above.
        if !guest.iter().any(|known| known.0 == cpu.0) {
            ledger.report(&CPUS, finding(&CPUS, "a CPU", "no such CPU", text(cpu)));
        }
    }
    for pair in guest.windows(2).filter(|pair| pair.first().map(|a| a.0) == pair.get(1).map(|b| b.0)) {
        let Some(cpu) = pair.first() else { continue };
        ledger.report(&CPUS, finding(&CPUS, format_args!("APIC id {}", cpu.0), "two CPUs", "one CPU"));
    }
}

fn memory(context: &Context<'_>, ledger: &mut Ledger) {
    let machine = &context.machine;
    let region_frames = |base: u64, size: u64| Frames::inside(base, base.saturating_add(size));
    let known =
        normalize(context.memory.iter().map(|region| region_frames(region.base, region.size)).collect());
    ledger.checked(&MEMORY, count(&machine.ram));
    for &ram in &machine.ram {
        for gap in gaps(&known, ram) {
            ledger.report(&MEMORY, finding(&MEMORY, gap, "not memory", "E820 RAM").frame(gap.start));
        }
    }
    for region in &context.memory {
        let frames = region_frames(region.base, region.size);
        for gap in gaps(&machine.ram, frames) {
            ledger.report(&MEMORY, finding(&MEMORY, gap, "memory", "not E820 RAM").frame(gap.start));
        }
        for &node in machine.nodes.iter().filter(|&&node| node != region.node) {
            for wrong in clip(&machine.node_ram(node), frames) {
                let guest = format!("node {}", region.node.cast_signed());
                let what = finding(&MEMORY, wrong, guest, format!("node {node}"));
                ledger.report(&MEMORY, what.frame(wrong.start));
            }
        }
    }
}
