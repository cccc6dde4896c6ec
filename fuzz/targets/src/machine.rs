//! A machine file with flags.

use memvisor::machine::{Machine, MachineFile, Overrides, Range, Size, acpi, describe, layout, resolve};

use crate::check_error;

/// Text of a machine file; lines after a line `---` are flags (`--numa ...`).
pub fn machine_file(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (file, flags) = text.split_once("\n---\n").unwrap_or((text, ""));
    let result = MachineFile::from_text("fuzz.toml", file)
        .and_then(|file| resolve(file, &overrides(flags)))
        .and_then(|machine| {
            let description = describe(&machine)?;
            let tables = acpi::build(&machine)?;
            Ok((machine, description, tables))
        });
    match result {
        Ok((machine, description, tables)) => {
            check_machine(&machine);
            assert!(!description.to_string().is_empty());
            serde_json::to_string(&description).expect("a description is JSON");
            for table in &tables.tables {
                let end = table.gpa + table.bytes.len() as u64;
                assert!(
                    table.gpa >= layout::FIRMWARE_START && end <= layout::FIRMWARE_END,
                    "a table at {:#x} is outside of the firmware's area",
                    table.gpa
                );
            }
        }
        Err(error) => {
            check_error(&error);
            let text = error.to_string();
            assert!(
                text.contains("fuzz.toml") || text.contains("--"),
                "an error that names neither file nor flag: {text}"
            );
        }
    }
}

fn overrides(flags: &str) -> Overrides {
    let mut overrides = Overrides::default();
    for line in flags.lines() {
        let (flag, value) = line.split_once(' ').unwrap_or((line, ""));
        let size = || value.parse::<Size>().ok();
        match flag {
            "--memory" => overrides.memory = size(),
            "--cpus" => overrides.cpus = value.parse().ok(),
            "--backing" => overrides.backing = value.parse().ok(),
            "--memory-zone" => overrides.memory_zone.push(value.to_owned()),
            "--numa" => overrides.numa.push(value.to_owned()),
            "--name" => overrides.name = Some(value.to_owned()),
            "--cmdline" => overrides.cmdline = Some(value.to_owned()),
            _ => {}
        }
    }
    overrides
}

/// What [`Machine`] promises.
pub(crate) fn check_machine(machine: &Machine) {
    let count = machine.nodes.len();
    assert!(count > 0 && !machine.cpus.is_empty());
    assert!(machine.nodes.iter().zip(0..).all(|(node, id)| node.id == id), "M1");
    assert!(machine.cpus.iter().zip(0..).all(|(cpu, index)| cpu.index == index), "M1");
    let mut ranges: Vec<(u64, u64)> =
        machine.nodes.iter().flat_map(|node| &node.memory).map(|range| (range.base, range.end())).collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "M2: {ranges:x?}");
    let ram: u64 =
        machine.effective_e820().iter().filter(|entry| entry.kind == 1).map(|entry| entry.size).sum();
    assert_eq!(ranges.iter().map(|(base, end)| end - base).sum::<u64>(), ram, "M2");
    assert!(ranges.iter().all(|(_, end)| *end <= 1 << memvisor_abi::MAX_PHYSMEM_BITS), "M3: {ranges:x?}");
    let slots = machine.slots();
    assert!(slots.windows(2).all(|pair| pair[0].gpa + pair[0].len <= pair[1].gpa), "M3: {slots:x?}");
    assert!(slots.iter().any(|slot| slot.gpa == 0 && slot.len >= layout::BOOT_DATA_END), "M4: {slots:x?}");
    assert_eq!(machine.distances.len(), count, "M5");
    for (from, row) in machine.distances.iter().enumerate() {
        assert_eq!(row.len(), count, "M5");
        assert!(
            row.iter().enumerate().all(|(to, distance)| (*distance == 10) == (from == to)),
            "M5: {row:?}"
        );
    }
    for slot in slots.iter().filter(|slot| slot.backing.is_some()) {
        let inside = |range: &Range| range.base <= slot.gpa && slot.gpa + slot.len <= range.end();
        let holders = machine.backed.iter().filter(|backed| inside(&backed.range));
        assert!(holders.map(|backed| backed.backing).eq(slot.backing), "{slot:x?}");
    }
    assert!(machine.cmdline.len() as u64 <= layout::CMDLINE_MAX);
}
