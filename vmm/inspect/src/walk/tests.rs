use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::testing::Tables;
use crate::{MemorySource, RamRegion, SparseMemory};

const RAM: u64 = 64 << 20;
const RW: u64 = Entry::PRESENT | Entry::WRITE;

fn memory() -> SparseMemory {
    SparseMemory::new(&[RamRegion { gpa: 0, len: RAM }]).unwrap()
}

fn one_page(levels: Levels, va: u64, size: PageSize, flags: u64) -> (SparseMemory, Tables) {
    let mut memory = memory();
    let mut tables = Tables::new(levels, 0x10_0000..0x20_0000);
    tables.map(&mut memory, va, 3 << 30, size, flags);
    (memory, tables)
}

#[test]
fn every_page_size_translates_at_both_depths() {
    for (levels, va) in [(Levels::Four, 0xffff_8880_4000_0000), (Levels::Five, 0xff11_0000_4000_0000)] {
        for size in PageSize::ALL {
            let (memory, tables) = one_page(levels, va, size, RW | Entry::NX);
            let walker = Walker::new(tables.root(), levels);
            let offset = size.bytes() - 1;
            let mapped = walker.lookup(&memory, va + offset).unwrap();
            assert_eq!((mapped.gpa, mapped.page_size), ((3 << 30) + offset, size));
            assert_eq!(mapped.access, Access { write: true, user: false, execute: false });
            let steps = walker.translate(&memory, va).steps;
            assert_eq!(steps.len(), (levels.count() - size.level() + 1) as usize);
            assert_eq!(steps[0].level_name, "pgd");
        }
    }
}

#[test]
fn the_folded_level_has_no_name_with_four_levels() {
    let names = |levels: Levels| (1..=levels.count()).map(|level| levels.name(level)).collect::<Vec<_>>();
    assert_eq!(names(Levels::Four), ["pte", "pmd", "pud", "pgd"]);
    assert_eq!(names(Levels::Five), ["pte", "pmd", "pud", "p4d", "pgd"]);
}

#[test]
fn canonical_form_depends_on_the_depth() {
    let (memory, tables) = one_page(Levels::Four, 0, PageSize::Size4K, RW);
    for (levels, va, canonical) in [
        (Levels::Four, 0x0000_7fff_ffff_ffff, true),
        (Levels::Four, 0x0000_8000_0000_0000, false),
        (Levels::Four, 0xffff_8000_0000_0000, true),
        (Levels::Four, 0xff11_0000_0000_0000, false),
        (Levels::Five, 0xff11_0000_0000_0000, true),
        (Levels::Five, 0x0100_0000_0000_0000, false),
    ] {
        let result = Walker::new(tables.root(), levels).lookup(&memory, va);
        assert_eq!(result != Err(Fault::NotCanonical), canonical, "{va:#x}");
    }
}

#[test]
fn cr3_flags_and_pcid_are_not_part_of_the_root() {
    let (memory, tables) = one_page(Levels::Four, 0x1000, PageSize::Size4K, RW);
    let cr3 = tables.root() | 0xabc | 1 << 61 | 1 << 63;
    assert!(Walker::new(cr3, Levels::Four).lookup(&memory, 0x1000).is_ok());
}

#[test]
fn reserved_bits_fault_as_on_hardware() {
    let va = 0x4000_0000;
    let base = |walker: Walker| walker.with_phys_bits(46);
    type Case = (&'static str, PageSize, u64, fn(Walker) -> Walker, u64);
    let cases: [Case; 9] = [
        ("address bit past the width", PageSize::Size4K, 1 << 46, |w| w, 1 << 46),
        ("last address bit", PageSize::Size4K, 1 << 51, |w| w, 1 << 51),
        ("bits for software", PageSize::Size4K, 0x7ff << 52 | 0x7 << 9, |w| w, 0),
        ("PAT of a pte", PageSize::Size4K, Entry::PS, |w| w, 0),
        ("PAT of a pmd", PageSize::Size2M, Entry::PAT_LARGE, |w| w, 0),
        ("low address bit of a pmd", PageSize::Size2M, 1 << 13, |w| w, 1 << 13),
        ("low address bit of a pud", PageSize::Size1G, 1 << 29, |w| w, 1 << 29),
        ("NX without EFER.NXE", PageSize::Size4K, Entry::NX, |w| w.with_nx(false), Entry::NX),
        ("1 GiB page without support", PageSize::Size1G, 0, |w| w.with_gib_pages(false), Entry::PS),
    ];
    for (what, size, flags, shape, want) in cases {
        let (memory, tables) = one_page(Levels::Five, va, size, RW | flags);
        let walker = shape(base(Walker::new(tables.root(), Levels::Five)));
        match walker.lookup(&memory, va) {
            Ok(_) => assert_eq!(want, 0, "{what}"),
            Err(Fault::ReservedBits { level, bits, .. }) => {
                assert_eq!((level, bits), (size.level(), want), "{what}");
            }
            Err(other) => panic!("{what}: {other}"),
        }
    }
}

#[test]
fn a_large_page_bit_in_the_upper_levels_is_reserved() {
    for (levels, level) in [(Levels::Four, 4), (Levels::Five, 4), (Levels::Five, 5)] {
        let (mut memory, mut tables) = one_page(levels, 0, PageSize::Size4K, RW);
        let at = tables.entry(&mut memory, 0, level);
        let entry = memory.read_u64(at).unwrap();
        memory.write_u64(at, entry | Entry::PS).unwrap();
        let fault = Walker::new(tables.root(), levels).lookup(&memory, 0).unwrap_err();
        assert!(
            matches!(fault, Fault::ReservedBits { level: at, bits: Entry::PS, .. } if at == level),
            "{fault}"
        );
    }
}

#[test]
fn access_is_what_all_levels_allow() {
    let (mut memory, mut tables) = one_page(Levels::Four, 0, PageSize::Size4K, RW | Entry::USER);
    let at = tables.entry(&mut memory, 0, 3);
    let pud = memory.read_u64(at).unwrap();
    let walker = Walker::new(tables.root(), Levels::Four);
    let with = |memory: &mut SparseMemory, entry| {
        memory.write_u64(at, entry).unwrap();
        walker.lookup(memory, 0).unwrap().access
    };
    assert_eq!(with(&mut memory, pud), Access { write: true, user: true, execute: true });
    assert_eq!(with(&mut memory, pud & !Entry::WRITE), Access { write: false, user: true, execute: true });
    assert_eq!(with(&mut memory, pud & !Entry::USER), Access { write: true, user: false, execute: true });
    assert_eq!(with(&mut memory, pud | Entry::NX), Access { write: true, user: true, execute: false });
}

#[test]
fn a_table_outside_ram_is_named() {
    let (mut memory, mut tables) = one_page(Levels::Four, 0, PageSize::Size4K, RW);
    let at = tables.entry(&mut memory, 0, 3);
    memory.write_u64(at, RAM | RW).unwrap();
    let walker = Walker::new(tables.root(), Levels::Four);
    assert_eq!(walker.lookup(&memory, 0), Err(Fault::TableNotRam { level: 2, gpa: RAM }));
    let nowhere = Walker::new(1 << 40, Levels::Four);
    assert_eq!(nowhere.lookup(&memory, 0), Err(Fault::TableNotRam { level: 4, gpa: 1 << 40 }));
}

#[test]
fn a_two_dimensional_walk_makes_so_many_references() {
    assert_eq!(hardware_references(4, 4), 24);
    assert_eq!(hardware_references(5, 4), 29);
    assert_eq!(hardware_references(5, 5), 35);
    assert_eq!(hardware_references(3, 4), 19, "a 2 MiB page saves a level");
    assert_eq!(hardware_references(4, 0), 4, "shadow paging walks one tree");
}

struct Slots;
impl Stage2 for Slots {
    fn lookup(&self, gpa: u64) -> Option<Stage2Info> {
        (gpa < RAM).then(|| Stage2Info {
            slot: 1,
            slot_gpa: 0,
            hva: 0x7f00_0000_0000 + gpa,
            host_frame: None,
            backing: "thp".to_owned(),
            page_size: Some(4096),
            note: "frame not readable".into(),
        })
    }
}

#[test]
fn the_second_stage_is_added_to_every_table_and_the_result() {
    let (memory, tables) = one_page(Levels::Four, 0x1000, PageSize::Size4K, RW);
    let walker = Walker::new(tables.root(), Levels::Four);
    let both = TwoStage::new(walker.translate(&memory, 0x1008), &Slots);
    assert_eq!(both.tables.len(), 4);
    assert_eq!(both.tables[0].host.as_ref().unwrap().hva, 0x7f00_0000_0000 + tables.root());
    assert_eq!(both.result.as_ref().unwrap().gpa, (3 << 30) + 8);
    assert_eq!(both.result.unwrap().host, None, "3 GiB is in no slot");
    assert_eq!(both.hardware_references, 24);

    let missing = TwoStage::new(walker.translate(&memory, 1 << 39), &Slots);
    assert_eq!((missing.result, missing.hardware_references), (None, 5));
}

/// What is mapped where, without tables.
type Model = BTreeMap<u64, (PageSize, u64, u64)>;

fn model_lookup(model: &Model, va: u64) -> Option<(u64, PageSize, bool)> {
    let (start, (size, gpa, flags)) = model.range(..=va).next_back()?;
    (va - start < size.bytes()).then(|| (gpa + (va - start), *size, flags & Entry::WRITE != 0))
}

fn mappings() -> impl Strategy<Value = Vec<(u64, PageSize, u64, bool)>> {
    // Few distinct high parts, so that pages share tables and neighbour each other.
    let va = (0u64..4, 0u64..3, 0u64..3, 0u64..4, 0u64..4)
        .prop_map(|(p4d, pgd, pud, pmd, pte)| pgd << 39 | p4d << 48 | pud << 30 | pmd << 21 | pte << 12);
    let size = prop_oneof![Just(PageSize::Size4K), Just(PageSize::Size2M), Just(PageSize::Size1G)];
    prop::collection::vec((va, size, 0u64..1 << 16, any::<bool>()), 1..40)
}

proptest! {
    #[test]
    fn the_walker_agrees_with_a_map(
        five in any::<bool>(),
        mappings in mappings(),
        probes in prop::collection::vec((0usize..40, 0u64..1 << 31), 1..60),
    ) {
        let levels = if five { Levels::Five } else { Levels::Four };
        let mut memory = memory();
        let mut tables = Tables::new(levels, 0x10_0000..RAM);
        let mut model = Model::new();
        for (raw, size, frame, write) in mappings {
            let va = levels.canonical(raw << (levels.va_bits() - 48) & !(size.bytes() - 1));
            let free = model.range(..va + size.bytes()).next_back()
                .is_none_or(|(start, (other, ..))| start + other.bytes() <= va);
            if !free {
                continue;
            }
            let gpa = (frame << 12) & !(size.bytes() - 1);
            let flags = if write { RW } else { Entry::PRESENT };
            tables.map(&mut memory, va, gpa, size, flags);
            model.insert(va, (size, gpa, flags));
        }
        let walker = Walker::new(tables.root(), levels);
        let starts: Vec<_> = model.keys().copied().collect();
        for (index, offset) in probes {
            let va = starts[index % starts.len()].wrapping_add(offset);
            prop_assume!(levels.is_canonical(va));
            let found = walker.lookup(&memory, va);
            let seen = found.ok().map(|mapped| (mapped.gpa, mapped.page_size, mapped.access.write));
            prop_assert_eq!(seen, model_lookup(&model, va), "{:#x}", va);
            let translation = walker.translate(&memory, va);
            prop_assert_eq!(translation.outcome, Outcome::from(found));
        }
    }

    #[test]
    fn no_table_makes_the_walker_panic(
        words in prop::collection::vec(any::<u64>(), 512),
        va in any::<u64>(),
        bits in 0u32..70,
    ) {
        let mut memory = SparseMemory::new(&[RamRegion { gpa: 0, len: 0x2000 }]).unwrap();
        for (index, word) in (0u64..).zip(&words) {
            // Every table is one of the two frames, so that walks go deep.
            memory.write_u64(index * 8, word & !(Entry::ADDRESS & !0x1000)).unwrap();
        }
        for levels in [Levels::Four, Levels::Five] {
            let walker = Walker::new(0, levels).with_phys_bits(bits);
            let steps = walker.translate(&memory, levels.canonical(va)).steps.len();
            prop_assert!((1..=levels.count() as usize).contains(&steps));
        }
    }
}
