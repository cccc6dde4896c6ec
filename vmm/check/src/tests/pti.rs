//! Tables for ring 3, and what they must not have.

use std::mem::offset_of;

use memvisor_abi::*;
use memvisor_inspect::MemorySource;

use super::guest::*;
use super::spaces::MM;

/// Top-level table of the entry area, and the three below it.
const AREA: u64 = 0x3400;
/// Top-level table of the process for ring 3.
const USER: u64 = 0x3410;
const TEXT: u64 = KERNEL_VA + 0x1000;
const IDT: u64 = KERNEL_VA + MIB + MIB / 2 + 0x3000;
const NX: u64 = 1 << 63;

/// Maps a page of the image's 2 MiB in the entry area.
fn map(guest: &mut TestGuest, va: u64, flags: u64) {
    for level in (1..=4).rev() {
        let slot = (AREA + 4 - level) * 4096 + (va >> (12 + 9 * (level - 1)) & 511) * 8;
        let next = if level == 1 {
            (KERNEL_GPA + (va - KERNEL_VA)) | flags
        } else {
            (AREA + 5 - level) << 12 | 0x23
        };
        guest.memory.write_u64(slot, next).unwrap();
    }
}

/// The healthy guest with page-table isolation.
fn isolated() -> TestGuest {
    let mut guest = healthy();
    map(&mut guest, TEXT, 0x21);
    map(&mut guest, IDT, 0x21 | NX);
    guest.edit_root(|root| {
        root.entry_pgd_pfn = AREA;
        (root.entry_text, root.entry_idt) = ([TEXT, TEXT + 0x1000], [IDT, IDT + 0x1000]);
    });
    for slot in 0..512 {
        let from = if slot < 256 { guest.user_pgd } else { AREA };
        let entry = guest.memory.read_u64((from << 12) + slot * 8).unwrap();
        guest.memory.write_u64((USER << 12) + slot * 8, entry).unwrap();
    }
    guest.memory.write_u64(MM + offset_of!(Mm, user_pgd_pfn) as u64, USER).unwrap();
    guest
}

/// Findings of the family; who owns the tables of this test is nobody's concern.
fn found(guest: &TestGuest) -> Vec<(&'static str, String)> {
    let findings = guest.audit().findings;
    let ours = findings.iter().filter(|finding| finding.rule.starts_with("pti."));
    ours.map(|finding| (finding.rule, finding.outside_says.clone())).collect()
}

#[track_caller]
fn one(guest: &TestGuest, rule: &str, words: &str) {
    let found = found(guest);
    assert!(matches!(&found[..], [(name, outside)] if *name == rule && outside.contains(words)), "{found:?}");
}

#[test]
fn the_entry_area_is_allowed() {
    assert_eq!(found(&isolated()), []);
}

#[test]
fn a_top_level_entry_more_is_seen() {
    let mut guest = isolated();
    let direct_map = PAGE_OFFSET >> 39 & 511;
    let entry = guest.memory.read_u64((guest.kernel_pgd << 12) + direct_map * 8).unwrap();
    guest.memory.write_u64((USER << 12) + direct_map * 8, entry).unwrap();
    one(&guest, "pti.entry-area", "the entry area has 0x0");
}

#[test]
fn pages_that_are_no_part_of_the_entry_area_are_seen() {
    for (va, flags, words) in [
        (TEXT, 0x23, "not the kernel's text, or writable"),
        (TEXT, 0x121, "global"),
        (IDT, 0x23 | NX, "not the image's, or writable"),
        (IDT, 0x21, "executable"),
        (TEXT + 0x1000, 0x21, "executable"),
        (TEXT + 0x1000, 0x21 | NX, "no part of the entry area"),
    ] {
        let mut guest = isolated();
        map(&mut guest, va, flags);
        one(&guest, "pti.entry-area", words);
    }
    let mut guest = isolated();
    guest.edit_root(|root| root.entry_text[1] = TEXT + 0x10_0000);
    one(&guest, "pti.entry-area", "no more than");
}

#[test]
fn user_halves_that_differ_are_seen() {
    let mut guest = isolated();
    let slot = USER << 12;
    let entry = guest.memory.read_u64(slot).unwrap();
    guest.memory.write_u64(slot, entry ^ 1 << 9).unwrap();
    one(&guest, "pti.user-half", "in the kernel's table");
    // The CPU marks what it uses in one of them.
    guest.memory.write_u64(slot, entry ^ 1 << 5).unwrap();
    assert_eq!(found(&guest), []);
}

#[test]
fn without_isolation_nobody_has_a_second_table() {
    let mut guest = healthy();
    guest.memory.write_u64(MM + offset_of!(Mm, user_pgd_pfn) as u64, PFN_NONE).unwrap();
    assert_eq!(found(&guest), []);
    guest.memory.write_u64(MM + offset_of!(Mm, user_pgd_pfn) as u64, USER).unwrap();
    one(&guest, "pti.entry-area", "no entry area");
}
