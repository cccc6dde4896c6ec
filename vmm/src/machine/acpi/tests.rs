//! The tables as an OS and `iasl` read them.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use super::decode::{Content, Controller, DecodeError, HmatStructure, decode};
use super::*;
use crate::machine::{MachineFile, Overrides, load, names, resolve};

fn tables(name: &str) -> AcpiTables {
    let machine = resolve(load(name).expect(name), &Overrides::default()).expect(name);
    build(&machine).expect(name)
}

/// More CPUs than xAPIC ids, on one node of many.
fn huge() -> AcpiTables {
    let cpus: Vec<String> = (0..300).map(|cpu| cpu.to_string()).collect();
    let text =
        format!("[[node]]\nmemory = [\"64M\"]\ncpus = [{}]\n[[node]]\nmemory = [\"64M\"]", cpus.join(", "));
    let file = MachineFile::from_text("huge.toml", &text).expect("reads");
    build(&resolve(file, &Overrides::default()).expect("resolves")).expect("fits")
}

#[test]
fn tables_lie_in_firmware_memory_apart_from_each_other() {
    for tables in names().map(|(name, _)| tables(name)).chain([huge()]) {
        let mut end = layout::FIRMWARE_START;
        for table in &tables.tables {
            assert!(table.gpa >= end, "A1: {:x}", table.gpa);
            end = table.gpa + table.bytes.len() as u64;
        }
        assert!(end <= layout::FIRMWARE_END, "A1");
        let rsdp = tables.tables.iter().find(|table| table.gpa == tables.rsdp_gpa).expect("RSDP");
        assert_eq!((rsdp.signature, &rsdp.bytes[..8]), (*b"RSDP", b"RSD PTR ".as_slice()));
    }
}

#[test]
fn every_table_is_reached_from_the_rsdp() {
    for (name, _) in names() {
        let tables = tables(name);
        let decoded = decode(&tables).expect(name);
        assert_eq!(decoded.tables.len() + 2, tables.tables.len(), "A2: all but RSDP and XSDT");
        let Some(fadt) = decoded.tables.iter().find_map(|table| match &table.content {
            Content::Fadt(fadt) => Some(fadt),
            _ => None,
        }) else {
            panic!("no FADT")
        };
        assert!(!fadt.hw_reduced);
        assert_eq!((fadt.pm1a_evt, fadt.pm1a_cnt), (0x600, 0x604));
        assert_eq!((fadt.reset_port, fadt.reset_value, fadt.sci), (0x64, 0xfe, 9));
        assert_eq!(fadt.boot_arch & 0b11, 0b01, "ISA devices, and no i8042 that an OS should probe");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let good = tables("numa4");
    for index in 0..good.tables.len() {
        // The FACS has no checksum.
        for at in (0..good.tables[index].bytes.len()).filter(|_| good.tables[index].signature != *b"FACS") {
            let mut bad = good.clone();
            bad.tables[index].bytes[at] ^= 0x10;
            assert!(decode(&bad).is_err(), "table {index}, byte {at}");
        }
    }
}

#[test]
fn a_cut_table_is_an_error_and_not_a_panic() {
    let good = tables("numa4");
    for index in 0..good.tables.len() {
        for len in 0..good.tables[index].bytes.len() {
            let mut bad = good.clone();
            let bytes = &mut bad.tables[index].bytes;
            bytes.truncate(len);
            // Make length and checksum right again, so that the structures inside are what fails.
            if len >= 36 && bad.tables[index].signature != *b"RSDP" {
                let bytes = &mut bad.tables[index].bytes;
                bytes[4..8].copy_from_slice(&u32::try_from(len).expect("small").to_le_bytes());
                bytes[9] = 0;
                let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                bytes[9] = sum.wrapping_neg();
            }
            let _ = decode(&bad);
        }
    }
    let mut none = good;
    none.tables.clear();
    assert_eq!(decode(&none), Err(DecodeError::Missing { gpa: 0xf_0000, referrer: "the boot protocol" }));
}

#[test]
fn apic_ids_past_254_take_x2apic_structures() {
    let decoded = decode(&huge()).expect("decodes");
    let kinds: Vec<(u32, bool)> = decoded
        .tables
        .iter()
        .filter_map(|table| match &table.content {
            Content::Madt(entries) => Some(entries),
            _ => None,
        })
        .flatten()
        .filter_map(|entry| match entry {
            Controller::LocalApic { apic_id, x2apic, .. } => Some((*apic_id, *x2apic)),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, (0..300).map(|id| (id, id >= 255)).collect::<Vec<_>>());
}

#[test]
fn hmat_figures_come_back_in_base_units() {
    let decoded = decode(&tables("numa4")).expect("decodes");
    let Some(Content::Hmat(structures)) =
        decoded.tables.iter().map(|table| &table.content).find(|content| matches!(content, Content::Hmat(_)))
    else {
        panic!("no HMAT")
    };
    let attached: Vec<(u32, u32)> = structures
        .iter()
        .filter_map(|structure| match structure {
            HmatStructure::Proximity { memory, initiator } => Some((*memory, *initiator)),
            _ => None,
        })
        .collect();
    assert_eq!(attached, [(0, 0), (1, 1), (2, 1)], "node 2 has no CPUs; node 1 is nearest");
    let latency = structures.iter().find_map(|structure| match structure {
        HmatStructure::Locality { data_type: 0, initiators, targets, figures } => {
            Some((initiators, targets, figures))
        }
        _ => None,
    });
    let (initiators, targets, figures) = latency.expect("latencies");
    assert_eq!((initiators.as_slice(), targets.as_slice()), ([0, 1, 3].as_slice(), [0, 1, 2].as_slice()));
    assert_eq!(figures[2], [220_000, 390_000, 560_000]);
}

/// Rows and columns may differ in number.
#[test]
fn an_hmat_need_not_be_square() {
    let text = "[[node]]\nmemory = [\"64M\"]\ncpus = [0]\n[[node]]\nmemory = [\"64M\"]\n[[node]]\nmemory = [\"64M\"]\n[[node]]\ncpus = [1]\n[hmat]\nbandwidth_mbps = [[5, 10, 15], [20, 25, 30]]";
    let file = MachineFile::from_text("m.toml", text).expect("reads");
    let machine = resolve(file, &Overrides::default()).expect("resolves");
    let decoded = decode(&build(&machine).expect("fits")).expect("decodes");
    let figures = decoded.tables.iter().find_map(|table| match &table.content {
        Content::Hmat(structures) => structures.iter().find_map(|structure| match structure {
            HmatStructure::Locality { figures, .. } => Some(figures),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(figures.expect("figures"), &[vec![5, 10, 15], vec![20, 25, 30]]);
}

/// Disassembles each table, and compiles the DSDT again: neither may complain.
#[test]
fn iasl_reads_every_table_without_a_complaint() {
    if Command::new("iasl").arg("-v").output().is_err() {
        // Not `eprintln!`: the test harness would swallow it.
        let skipped = "SKIPPED: iasl is not installed (Debian: acpica-tools); nothing but memvisor checked the ACPI tables";
        writeln!(std::io::stderr(), "{skipped}").expect("writes");
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    for (name, tables) in names().map(|(name, _)| (name, tables(name))).chain([("huge", huge())]) {
        // Of the RSDP iasl only says "not a valid ACPI table", on any machine; `decode` checks it.
        for table in tables.tables.iter().filter(|table| table.signature != *b"RSDP") {
            let signature = table.signature.escape_ascii().to_string();
            let file = directory.path().join(format!("{name}-{signature}.dat"));
            std::fs::write(&file, &table.bytes).expect("writes");
            run_iasl(&["-d"], &file);
            if signature == "DSDT" {
                run_iasl(&["-we"], &file.with_extension("dsl"));
            }
        }
    }
}

fn run_iasl(flags: &[&str], file: &Path) {
    let output = Command::new("iasl").args(flags).arg(file).output().expect("iasl runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}", file.display());
    let listing = match flags {
        ["-d"] => std::fs::read_to_string(file.with_extension("dsl")).expect("iasl wrote a listing"),
        _ => String::new(),
    };
    let text = said + &listing;
    let complaint = text.lines().find(|line| {
        let line = line.to_ascii_lowercase();
        let clean = line.contains("0 errors, 0 warnings") || line.contains("no errors");
        !clean
            && ["error", "warning", "invalid", "unknown", "incorrect"].iter().any(|word| line.contains(word))
    });
    assert_eq!(complaint, None, "{}\n{text}", file.display());
}
