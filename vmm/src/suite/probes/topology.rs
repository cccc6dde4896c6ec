//! `topology-equals-machine`: what the guest believes about its nodes, their memory, distances and CPUs is
//! what was built.

use memvisor_abi::{CpuState, E820Entry, E820Type, MemblockRegion, PAGE_SIZE};
use memvisor_inspect::{Facts, Guest};

use super::{Held, Outcome};

/// Distance of a node to itself (ACPI 6.5, 5.2.17).
const LOCAL: u8 = 10;

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let guest = Guest::attach(held.memory, held.root_gpa)?;
    let facts = held.facts;
    let mut problems = Vec::new();
    compare_e820(facts, &guest.e820_raw()?, &mut problems);

    let believed = guest.memblock_memory()?;
    let believed = merged(believed.iter().filter_map(whole_frames).collect());
    let expected = memory_by_node(facts, &guest.e820()?);
    if believed != expected {
        problems.push(format!(
            "memory by node: built {}, the guest says {}",
            list(&expected),
            list(&believed)
        ));
    }

    let nodes = guest.nodes()?;
    let online: Vec<u32> = nodes.iter().filter(|node| node.online == 1).map(|node| node.id).collect();
    let mut built: Vec<u32> = facts.node_memory.iter().map(|range| range.node).collect();
    built.extend(facts.cpus.iter().map(|cpu| cpu.node));
    built.sort_unstable();
    built.dedup();
    if online != built {
        problems.push(format!("online nodes: built {built:?}, the guest says {online:?}"));
    }

    let distances = guest.distances()?;
    let wanted = if facts.distances.is_empty() { vec![vec![LOCAL]] } else { facts.distances.clone() };
    if distances != wanted {
        problems.push(format!("distances: built {wanted:?}, the guest says {distances:?}"));
    }

    let cpus = guest.cpus()?;
    let seen: Vec<(u32, u32)> = cpus.iter().map(|cpu| (cpu.apic_id, cpu.node)).collect();
    let wanted: Vec<(u32, u32)> = facts.cpus.iter().map(|cpu| (cpu.apic_id, cpu.node)).collect();
    if seen != wanted {
        problems.push(format!("CPUs as (APIC id, node): built {wanted:?}, the guest says {seen:?}"));
    }
    for (number, cpu) in cpus.iter().enumerate().filter(|(_, cpu)| cpu.state != CpuState::Online as u32) {
        problems.push(format!("CPU {number} is not online but in state {}", cpu.state));
    }
    Ok(Outcome::from_problems(problems))
}

/// Where firmware makes the map there are no facts about it.
fn compare_e820(facts: &Facts, raw: &[E820Entry], problems: &mut Vec<String>) {
    if facts.e820.is_empty() {
        return;
    }
    if facts.e820.len() != raw.len() {
        problems.push(format!("raw E820: built {} entries, the guest read {}", facts.e820.len(), raw.len()));
        return;
    }
    for (number, (built, read)) in facts.e820.iter().zip(raw).enumerate() {
        if (built.addr, built.size, built.kind) != (read.addr, read.size, read.kind) {
            problems.push(format!("raw E820 entry {number}: built {built:x?}, the guest read {read:x?}"));
            return;
        }
    }
}

/// A range of bytes and its node.
type Part = (u64, u64, u32);

/// A region without the parts of frames at its ends; `None` if nothing remains.
fn whole_frames(region: &MemblockRegion) -> Option<Part> {
    let first = region.base.checked_next_multiple_of(PAGE_SIZE)?;
    let last = region.base.saturating_add(region.size) / PAGE_SIZE * PAGE_SIZE;
    (first < last).then_some((first, last, region.node))
}

/// The built ranges of each node, as far as they are whole frames of RAM. Which addresses are RAM the audit
/// derives on its own from the raw map (rule e820.clean), so the guest's map may be used here.
fn memory_by_node(facts: &Facts, e820: &[E820Entry]) -> Vec<Part> {
    let mut parts = Vec::new();
    for range in &facts.node_memory {
        let range_end = range.base.saturating_add(range.len);
        for entry in e820.iter().filter(|entry| entry.kind == E820Type::Ram as u32) {
            let first = entry.addr.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
            let last = entry.addr.saturating_add(entry.size) / PAGE_SIZE * PAGE_SIZE;
            let (start, end) = (first.max(range.base), last.min(range_end));
            if start < end {
                parts.push((start, end, range.node));
            }
        }
    }
    merged(parts)
}

/// Ascending, adjacent parts of a node as one.
fn merged(mut parts: Vec<Part>) -> Vec<Part> {
    parts.sort_unstable();
    let mut out: Vec<Part> = Vec::new();
    for (start, end, node) in parts {
        match out.last_mut() {
            Some((_, last_end, last_node)) if *last_end == start && *last_node == node => *last_end = end,
            _ => out.push((start, end, node)),
        }
    }
    out
}

fn list(parts: &[Part]) -> String {
    let words = parts.iter().map(|(start, end, node)| format!("{start:#x}..{end:#x} on node {node}"));
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvisor_inspect::FactNodeMemory;

    fn ram(addr: u64, size: u64) -> E820Entry {
        E820Entry { addr, size, kind: E820Type::Ram as u32, reserved: 0 }
    }

    #[test]
    fn node_memory_is_cut_to_whole_frames_of_ram() {
        let facts = Facts {
            node_memory: vec![
                FactNodeMemory { node: 0, base: 0, len: 0x10_0000 },
                FactNodeMemory { node: 1, base: 0x10_0000, len: 0x10_0000 },
            ],
            ..Facts::default()
        };
        let e820 = [ram(0, 0x9_fc00), ram(0x10_0000, 0x10_0000)];
        assert_eq!(memory_by_node(&facts, &e820), [(0, 0x9_f000, 0), (0x10_0000, 0x20_0000, 1)]);
    }

    #[test]
    fn adjacent_parts_of_a_node_are_one() {
        let parts = vec![(0x2000, 0x3000, 0), (0x1000, 0x2000, 0), (0x3000, 0x4000, 1)];
        assert_eq!(merged(parts), [(0x1000, 0x3000, 0), (0x3000, 0x4000, 1)]);
    }

    #[test]
    fn a_changed_entry_of_the_raw_map_is_named() {
        let facts = Facts {
            e820: vec![memvisor_inspect::FactE820 { addr: 0, size: 0x1000, kind: 1 }],
            ..Facts::default()
        };
        let mut problems = Vec::new();
        compare_e820(&facts, &[ram(0, 0x1000)], &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        compare_e820(&facts, &[ram(0, 0x2000)], &mut problems);
        compare_e820(&facts, &[], &mut problems);
        assert!(problems[0].contains("entry 0") && problems[1].contains("1 entries"), "{problems:?}");
    }
}
