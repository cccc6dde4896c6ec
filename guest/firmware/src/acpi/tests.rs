//! Tables right, damaged and hostile.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::testing::{Ram, heard};

const MADT: usize = 0x3000;
const SRAT: usize = 0x4000;
const SLIT: usize = 0x5000;

fn madt_body(cpus: &[(u8, u32)]) -> Vec<u8> {
    let mut body = Vec::from(0xfee0_0000_u32.to_le_bytes());
    body.extend([1, 0, 0, 0]);
    for (index, (id, flags)) in (0..).zip(cpus) {
        body.extend([0, 8, index, *id]);
        body.extend(flags.to_le_bytes());
    }
    body
}

fn srat_memory(node: u32, base: u64, len: u64, flags: u32) -> Vec<u8> {
    let mut entry = Vec::from([1, 40]);
    entry.extend(node.to_le_bytes());
    entry.extend([0; 2]);
    entry.extend(base.to_le_bytes());
    entry.extend(len.to_le_bytes());
    entry.extend([0; 4]);
    entry.extend(flags.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

fn srat_cpu(id: u8, node: u32) -> Vec<u8> {
    let [low, a, b, c] = node.to_le_bytes();
    Vec::from([0, 16, low, id, 1, 0, 0, 0, 0, a, b, c, 0, 0, 0, 0])
}

fn srat_body(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut body = std::vec![0; 12];
    body.extend(entries.concat());
    body
}

fn machine() -> Ram {
    let mut ram = Ram::new();
    ram.root(0xe_0000, &[MADT as u64, SRAT as u64, SLIT as u64]);
    ram.table(MADT, b"APIC", &madt_body(&[(0, 1), (1, 1), (7, 0)]));
    let entries =
        [srat_cpu(0, 0), srat_cpu(1, 1), srat_memory(0, 0, 0x1000, 1), srat_memory(1, 0x1000, 0x1000, 1)];
    ram.table(SRAT, b"SRAT", &srat_body(&entries));
    let mut slit = Vec::from(2_u64.to_le_bytes());
    slit.extend([10, 21, 31, 10]);
    ram.table(SLIT, b"SLIT", &slit);
    ram
}

fn read_srat(ram: &Ram) -> (Srat, std::string::String) {
    heard(|say| {
        let tables = Tables::find(ram, 0xe_0000, say);
        let mut srat = Srat::new();
        if let Some(table) = &tables.srat {
            srat.read(table, say);
        }
        srat
    })
}

#[test]
fn a_machine_is_read_as_it_is_described() {
    let ram = machine();
    let ((tables, madt), _) = heard(|say| {
        let tables = Tables::find(&ram, 0, say);
        let madt = Madt::read(tables.madt.as_ref(), say);
        (tables, madt)
    });
    assert_eq!(madt.apic_ids(), [0, 1]);
    let (srat, _) = read_srat(&ram);
    assert_eq!(srat.nodes(), 2);
    assert_eq!(srat.memory(), [(0, 0x1000, 0), (0x1000, 0x1000, 1)]);
    assert_eq!((srat.node_of_cpu(1), srat.node_of_cpu(9)), (Some(1), None));
    let mut slit = Slit::new();
    heard(|say| slit.read(tables.slit.as_ref(), 2, say));
    assert_eq!(slit.distances(), [10, 21, 31, 10]);
}

#[test]
fn a_wrong_checksum_loses_one_table_and_is_named() {
    let mut ram = machine();
    ram.0[SRAT + 40] ^= 1;
    let (tables, said) = heard(|say| Tables::find(&ram, 0, say));
    assert!(tables.srat.is_none() && tables.madt.is_some() && tables.slit.is_some());
    assert!(said.contains("SRAT 0x0000000000004000: checksum is wrong; ignored"), "{said}");
}

#[test]
fn a_length_out_of_memory_loses_one_table_and_is_named() {
    let mut ram = machine();
    ram.put(MADT + 4, &0x00f0_0000_u32.to_le_bytes());
    let (tables, said) = heard(|say| Tables::find(&ram, 0, say));
    assert!(tables.madt.is_none() && tables.srat.is_some());
    assert!(said.contains("length 0xf00000 is wrong"), "{said}");
}

#[test]
fn a_root_table_that_names_one_large_table_for_ever_is_given_up() {
    let mut ram = machine();
    let large = std::vec![0; 0x8_0000 - 36];
    ram.table(0x1_0000, b"SSDT", &large);
    ram.root(0xe_0000, &[0x1_0000; 300]);
    let (tables, said) = heard(|say| Tables::find(&ram, 0, say));
    assert!(tables.madt.is_none());
    assert!(said.contains("more than 256 tables; rest ignored"), "{said}");
    assert!(said.contains("past 0x400000 bytes of tables; ignored"), "{said}");
    assert_eq!(said.matches("SSDT 0x0000000000010000 080000").count(), 7, "{said}");
}

#[test]
fn a_damaged_root_pointer_means_no_tables() {
    let mut ram = machine();
    ram.0[0xe_0009] ^= 1;
    let (tables, said) = heard(|say| Tables::find(&ram, 0, say));
    assert!(tables.madt.is_none());
    assert!(said.contains("RSDP 0xe0000: checksum is wrong"), "{said}");
}

#[test]
fn entries_of_length_zero_end_a_table_instead_of_a_loop() {
    let mut ram = machine();
    let mut body = srat_body(&[srat_cpu(0, 0)]);
    body.extend([1, 0, 0, 0]);
    ram.table(SRAT, b"SRAT", &body);
    let (srat, said) = read_srat(&ram);
    assert_eq!(srat.node_of_cpu(0), Some(0));
    assert!(said.contains("entry at 0x40 has length 0"), "{said}");
}

#[test]
fn wrapping_disabled_and_far_ranges_are_not_memory() {
    let mut ram = machine();
    let entries = [
        srat_memory(0, u64::MAX - 10, 0x1000, 1),
        srat_memory(0, 0, 0x1000, 0),
        srat_memory(1000, 0, 0x1000, 1),
        srat_memory(3, 0, 0, 1),
    ];
    ram.table(SRAT, b"SRAT", &srat_body(&entries));
    let (srat, said) = read_srat(&ram);
    assert!(srat.memory().is_empty());
    assert_eq!(srat.nodes(), 4, "an empty enabled entry still names its node");
    assert!(said.contains("wraps") && said.contains("proximity domain 1000"), "{said}");
}

#[test]
fn distances_that_break_the_rules_are_replaced() {
    let mut ram = machine();
    let mut body = Vec::from(2_u64.to_le_bytes());
    body.extend([10, 9, 21, 10]);
    ram.table(SLIT, b"SLIT", &body);
    let (tables, _) = heard(|say| Tables::find(&ram, 0, say));
    let mut slit = Slit::new();
    let (_, said) = heard(|say| slit.read(tables.slit.as_ref(), 2, say));
    assert_eq!(slit.distances(), [10, 20, 20, 10]);
    assert!(said.contains("table ignored"), "{said}");
}

#[test]
fn power_off_comes_from_the_fadt_and_the_dsdt() {
    let mut ram = machine();
    let mut fadt = std::vec![0; 208];
    fadt[4..8].copy_from_slice(&0x7000_u32.to_le_bytes());
    fadt[28..32].copy_from_slice(&0x604_u32.to_le_bytes());
    ram.table(0x6000, b"FACP", &fadt);
    ram.table(0x7000, b"DSDT", b"\x08_S5_\x12\x07\x02\x0a\x05\x0a\x05");
    ram.root(0xe_0000, &[0x6000]);
    let (tables, _) = heard(|say| Tables::find(&ram, 0, say));
    assert_eq!(tables.power_off, Some(PowerOff { pm1a_control: 0x604, slp_typ: 5 }));
}

proptest! {
    /// Damage anywhere in the tables, lengths and pointers included: nothing panics or hangs.
    #[test]
    fn damage_never_panics(damage in proptest::collection::vec((0_usize..0x7000, any::<u8>()), 1..40), fix: bool) {
        let mut ram = machine();
        for (at, byte) in damage {
            ram.0[at] = byte;
        }
        if fix {
            // Right checksums let the damage reach the readers of entries.
            for at in [MADT, SRAT, SLIT] {
                let len = usize::from(ram.0[at + 4]) | usize::from(ram.0[at + 5]) << 8;
                let sum = ram.0[at..at + len].iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte));
                ram.0[at + 9] = ram.0[at + 9].wrapping_sub(sum);
            }
        }
        heard(|say| {
            let tables = Tables::find(&ram, 0, say);
            Madt::read(tables.madt.as_ref(), say);
            let mut srat = Srat::new();
            if let Some(table) = &tables.srat {
                srat.read(table, say);
            }
            Slit::new().read(tables.slit.as_ref(), srat.nodes() as usize, say);
        });
    }
}
