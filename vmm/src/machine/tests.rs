//! Every bundled machine, every mistake, and random topologies.

mod bad_input;
mod bundled;
mod disks;
mod overrides;
mod random;

use super::*;

/// A bundled machine without overrides.
fn machine(name: &str) -> Machine {
    resolve(load(name).expect(name), &Overrides::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// A machine from text.
fn parsed(text: &str) -> Machine {
    let file = MachineFile::from_text("m.toml", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    resolve(file, &Overrides::default()).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// RAM of the effective map.
fn effective_ram(machine: &Machine) -> Vec<Range> {
    let ram = machine.effective_e820().into_iter().filter(|entry| entry.kind == 1);
    ram.map(|entry| Range { base: entry.addr, len: entry.size }).collect()
}

/// Ascending ranges with touching ones joined, whatever node they are of.
fn joined(ranges: impl IntoIterator<Item = Range>) -> Vec<Range> {
    let mut ranges: Vec<Range> = ranges.into_iter().collect();
    ranges.sort();
    let mut joined: Vec<Range> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end() == range.base => last.len += range.len,
            _ => joined.push(range),
        }
    }
    joined
}

/// What every machine promises (M1 to M5 of [`Machine`]), its slots, and its SRAT.
fn audit(machine: &Machine) {
    for (index, node) in (0..).zip(&machine.nodes) {
        assert_eq!(node.id, index, "M1");
    }
    for (index, cpu) in (0..).zip(&machine.cpus) {
        assert_eq!(cpu.index, index, "M1");
        let node = &machine.nodes[usize::try_from(cpu.node).expect("small")];
        assert!(node.cpus.contains(&index), "M1");
    }
    let ram = effective_ram(machine);
    let of_nodes = || machine.nodes.iter().flat_map(|node| node.memory.iter().copied());
    assert_eq!(joined(of_nodes()), ram, "M2");
    for range in &ram {
        for hole in [
            Range::new(layout::FIRMWARE_START, layout::FIRMWARE_END),
            Range::new(layout::MMIO_HOLE_START, layout::MMIO_HOLE_END),
            Range::new(1 << layout::PHYS_BITS_5_LEVEL, u64::MAX),
        ] {
            assert!(range.intersection(&hole).is_empty(), "M3: {range:x?}");
        }
    }
    assert!(ram[0].base == 0 && ram[0].end() >= layout::BOOT_DATA_END, "M4");
    assert_eq!(machine.distances.len(), machine.nodes.len(), "M5");
    for (from, row) in machine.distances.iter().enumerate() {
        assert_eq!(row.len(), machine.nodes.len(), "M5");
        for (to, distance) in row.iter().enumerate() {
            assert_eq!(from == to, *distance == 10, "M5");
            assert!(*distance >= 10, "M5");
        }
    }
    audit_slots(machine, &ram);
    audit_srat(machine, &ram);
}

fn audit_slots(machine: &Machine, ram: &[Range]) {
    let slots = machine.slots();
    for pair in slots.windows(2) {
        assert!(pair[0].gpa + pair[0].len <= pair[1].gpa, "slots overlap or are not sorted: {pair:x?}");
    }
    let mut frames = Vec::new();
    for slot in &slots {
        assert!(slot.gpa.is_multiple_of(4096) && slot.len.is_multiple_of(4096) && slot.len > 0, "{slot:x?}");
        let range = Range { base: slot.gpa, len: slot.len };
        match slot.kind {
            SlotKind::Firmware => assert_eq!(range, Range::new(0xe_0000, 0x10_0000)),
            SlotKind::Ram { node } => {
                let memory = &machine.nodes[usize::try_from(node).expect("small")].memory;
                assert!(memory.iter().any(|memory| memory.intersection(&range) == range), "{slot:x?}");
                frames.push(range);
            }
        }
    }
    let whole: Vec<Range> = ram.iter().map(Range::whole_frames).filter(|range| !range.is_empty()).collect();
    assert_eq!(joined(frames.iter().copied()), joined(whole), "slots are exactly the whole frames of RAM");
    assert_eq!(frames.iter().map(|range| range.len).sum::<u64>(), machine.ram_bytes());
}

fn audit_srat(machine: &Machine, ram: &[Range]) {
    use acpi::decode::{Affinity, Content, Controller, decode};

    let tables = acpi::build(machine).unwrap_or_else(|error| panic!("{error}"));
    let decoded = decode(&tables).unwrap_or_else(|error| panic!("{error}"));
    let (mut memory, mut cpus, mut apics, mut slit) = (Vec::new(), Vec::new(), Vec::new(), None);
    for table in &decoded.tables {
        match &table.content {
            Content::Srat(entries) => {
                for entry in entries {
                    match *entry {
                        Affinity::Memory { range, node, enabled: true } => memory.push((node, range)),
                        Affinity::Cpu { apic_id, node, enabled: true } => cpus.push((apic_id, node)),
                        _ => panic!("{entry:?}"),
                    }
                }
            }
            Content::Madt(entries) => apics.extend(entries.iter().filter_map(|entry| match *entry {
                Controller::LocalApic { uid, apic_id, enabled: true, .. } => Some((uid, apic_id)),
                _ => None,
            })),
            Content::Slit(rows) => slit = Some(rows.clone()),
            _ => {}
        }
    }
    assert_eq!(joined(memory.iter().map(|(_, range)| *range)), ram, "the SRAT covers RAM exactly");
    let expected: Vec<(u32, Range)> =
        machine.nodes.iter().flat_map(|node| node.memory.iter().map(|range| (node.id, *range))).collect();
    memory.sort();
    assert_eq!(memory, expected);
    assert_eq!(cpus, machine.cpus.iter().map(|cpu| (cpu.apic_id, cpu.node)).collect::<Vec<_>>());
    assert_eq!(apics, machine.cpus.iter().map(|cpu| (cpu.index, cpu.apic_id)).collect::<Vec<_>>());
    let expected = (machine.nodes.len() > 1).then(|| machine.distances.clone());
    assert_eq!(slit, expected);
}
