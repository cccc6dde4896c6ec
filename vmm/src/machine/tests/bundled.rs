//! The machines of images/machines are what their descriptions say.

use memvisor_inspect::FactE820;

use super::super::*;
use super::{audit, effective_ram, machine};

const MIB: u64 = 1 << 20;

#[test]
fn every_machine_resolves_and_keeps_the_promises() {
    for (name, description) in names() {
        let machine = machine(name);
        audit(&machine);
        assert_eq!(machine.name, name);
        assert_eq!(machine.description, description);
        let ram = machine.ram_bytes();
        // Real machines are as large as they are.
        if !name.starts_with("real-") {
            assert!((31 * MIB..=256 * MIB).contains(&ram), "{name}: {ram:#x} bytes of RAM");
        }
    }
}

#[test]
fn every_machine_describes_itself_in_words_and_json() {
    for (name, _) in names() {
        let machine = machine(name);
        let description = describe(&machine).unwrap_or_else(|error| panic!("{error}"));
        let text = description.to_string();
        assert!(text.starts_with(&format!("machine {name}: ")), "{text}");
        for heading in ["E820 map", "Nodes", "Memory slots", "ACPI tables", "command line"] {
            assert!(text.contains(heading), "{name}: {heading}");
        }
        let json = serde_json::to_value(&description).expect("serializes");
        assert_eq!(json["machine"], name);
        assert_eq!(json["e820"].as_array().expect("array").len(), machine.e820.len());
        assert_eq!(json["slots"].as_array().expect("array").len(), machine.slots().len());
        assert_eq!(json["acpi"]["revision"], 2);
    }
}

#[test]
fn the_default_machine_reads_like_a_pc() {
    let text = describe(&machine("default")).expect("describes").to_string();
    let expected = "\
E820 map as handed to the guest, 8 entries
    0  0x0000000000000000..0x000000000009fc00        639 KiB  type 1 usable
    1  0x000000000009fc00..0x00000000000a0000          1 KiB  type 2 reserved
    2  0x00000000000e0000..0x00000000000f0000         64 KiB  type 3 ACPI data
    3  0x00000000000f0000..0x0000000000100000         64 KiB  type 2 reserved
    4  0x0000000000100000..0x000000000c000000        191 MiB  type 1 usable
    5  0x00000000fec00000..0x00000000fec01000          4 KiB  type 2 reserved
    6  0x00000000fee00000..0x00000000fee01000          4 KiB  type 2 reserved
    7  0x0000000100000000..0x0000000104000000         64 MiB  type 1 usable

Nodes
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn the_default_machine_has_memory_in_each_zone() {
    let ram = effective_ram(&machine("default"));
    for zone in [Range::new(0, 16 * MIB), Range::new(16 * MIB, 1 << 32), Range::new(1 << 32, 1 << 46)] {
        assert!(ram.iter().any(|range| !range.intersection(&zone).is_empty()), "{zone:x?}");
    }
}

#[test]
fn numa4_has_every_odd_node() {
    let machine = machine("numa4");
    assert!(machine.nodes.iter().any(|node| node.cpus.is_empty()));
    assert!(machine.nodes.iter().any(|node| node.memory.is_empty()));
    let [first, second] = [&machine.nodes[0].memory, &machine.nodes[1].memory];
    assert!(first.iter().any(|range| range.base > second[0].base), "node 0 goes on past node 1");
    assert!((0..4).any(|from| (0..4).any(|to| machine.distances[from][to] != machine.distances[to][from])));
}

#[test]
fn sparse_has_ram_in_three_regions_with_odd_borders() {
    let ram = effective_ram(&machine("sparse"));
    for region in [Range::new(0, 3 << 30), Range::new(4 << 30, 1 << 40), Range::new(1 << 40, 1 << 46)] {
        assert!(ram.iter().any(|range| !range.intersection(&region).is_empty()));
    }
    for range in ram.iter().skip(1) {
        assert!(!range.end().is_multiple_of(2 * MIB), "{range:x?}");
    }
}

/// Every kind of malice the issue names, and RAM that only E820_EXT tells of.
#[test]
fn hostile_has_every_kind_of_bad_entry() {
    let machine = machine("hostile");
    let raw = &machine.e820;
    let wraps = |entry: &FactE820| entry.size != 0 && entry.addr.checked_add(entry.size - 1).is_none();
    let overlap = |a: &FactE820, b: &FactE820| {
        a != b && !wraps(a) && !wraps(b) && a.addr < b.addr + b.size && b.addr < a.addr + a.size
    };
    assert_eq!(raw.len(), 189, "the description names the count");
    assert!(raw.windows(2).any(|pair| pair[0].addr > pair[1].addr), "unsorted");
    assert!(raw.iter().enumerate().any(|(at, entry)| raw[..at].contains(entry)), "duplicate");
    assert!(raw.iter().any(|a| raw.iter().any(|b| overlap(a, b))), "overlapping");
    assert!(raw.iter().any(|entry| entry.size == 0), "empty");
    assert!(raw.iter().any(wraps), "wrapping");
    assert!(raw.iter().any(|entry| ![1, 2, 3, 4, 5, 7].contains(&entry.kind)), "unknown");
    let zero_page: Vec<FactE820> = raw[..layout::E820_ZERO_PAGE_ENTRIES].to_vec();
    assert!(
        raw[layout::E820_ZERO_PAGE_ENTRIES..]
            .iter()
            .any(|entry| entry.kind == 1 && !zero_page.contains(entry))
    );
    assert!(effective_ram(&machine).iter().any(|range| range.base % 4096 != 0), "half frames");
    let kernel = Range::new(layout::KERNEL_LOAD, layout::KERNEL_LOAD + 16 * MIB);
    assert!(effective_ram(&machine).iter().any(|range| range.intersection(&kernel) == kernel));
    assert!(machine.ram_bytes() >= 64 * MIB);
}

/// Linux stops appending at the first entry that wraps (`__append_e820_table`); the effective map
/// must not depend on whether a reader stops there or only skips it.
#[test]
fn hostile_has_its_wrapping_entries_last() {
    let raw = machine("hostile").e820;
    let wraps = |entry: &FactE820| entry.size != 0 && entry.addr.checked_add(entry.size - 1).is_none();
    let first = raw.iter().position(wraps).expect("wraps");
    assert!(first >= layout::E820_ZERO_PAGE_ENTRIES);
    assert!(raw[first..].iter().all(wraps));
}

#[test]
fn la57_asks_for_five_levels_and_its_sibling_does_not_insist() {
    assert_eq!(machine("la57").paging, Paging::Five);
    assert_eq!(machine("la57-optional").paging, Paging::Auto);
}

#[test]
fn facts_are_the_machine() {
    let machine = machine("numa4");
    let facts = machine.facts(5);
    assert_eq!(facts.levels, 5);
    assert_eq!(facts.e820, machine.e820);
    assert_eq!(facts.distances, machine.distances);
    assert!(facts.node_memory.windows(2).all(|pair| pair[0].base + pair[0].len <= pair[1].base));
    assert_eq!(
        facts.node_memory.iter().map(|memory| memory.len).sum::<u64>(),
        effective_ram(&machine).iter().map(|range| range.len).sum::<u64>()
    );
    assert_eq!(super::machine("tiny").facts(4).distances, Vec::<Vec<u8>>::new());
}
