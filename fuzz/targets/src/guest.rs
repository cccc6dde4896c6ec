//! What a hostile guest publishes about itself.

use std::cell::RefCell;
use std::fmt::Display;
use std::mem::offset_of;

use memvisor_abi::{PFN_NONE, Root, TableRef};
use memvisor_check::{Evidence, Moment, audit};
use memvisor_inspect::testing::{Machine, SyntheticGuest, SyntheticProcess};
use memvisor_inspect::{
    Guest, GuestError, Levels, MemorySource, RamRegion, SparseMemory, Walker, find_root, ptdump, views,
};
use serde_json::to_string;

use crate::{Input, Watched, check_error};

/// What one reader may spend on a guest of 12 MiB: about ten times what a healthy one costs.
const BUDGET: u64 = 512 << 20;

/// Where the guest's process is: at the end of its RAM below 4 GiB.
const PROCESS: u64 = 0xb0_0000 - SyntheticProcess::LEN;

thread_local! {
    /// Building takes longer than reading: damage is undone instead.
    static GUESTS: RefCell<Option<[Healthy; 2]>> = const { RefCell::new(None) };
}

/// A guest, and where the descriptors of its RAM below 4 GiB begin.
struct Healthy {
    guest: SyntheticGuest,
    memmap: u64,
}

fn build(levels: Levels) -> Healthy {
    let memory = vec![
        (0, RamRegion { gpa: 0, len: 0xa_0000 }),
        (0, RamRegion { gpa: 0x10_0000, len: 0xa0_0000 }),
        (1, RamRegion { gpa: 5 << 30, len: 0x10_0000 }),
    ];
    let mut guest = SyntheticGuest::new(&Machine { memory, cpus: vec![0, 1], levels });
    SyntheticProcess::add(&mut guest, PROCESS);
    Healthy { memmap: guest.page_gpa(0), guest }
}

/// Edits of a healthy guest's memory (which place, where in it, what), then every reader there is.
pub fn guest_descriptors(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    GUESTS.with_borrow_mut(|guests| {
        let guests = guests.get_or_insert_with(|| [build(Levels::Four), build(Levels::Five)]);
        let healthy = &mut guests[usize::from(choice & 1)];
        let undo = damage(healthy, &mut input);
        let guest = &mut healthy.guest;
        read_all(guest, choice);
        for (gpa, old) in undo.into_iter().rev() {
            guest.memory.write_u64(gpa, old).expect("it was RAM before");
        }
    });
}

/// Writes words; gives back what was there.
fn damage(healthy: &mut Healthy, input: &mut Input<'_>) -> Vec<(u64, u64)> {
    let mut undo = Vec::new();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let place = input.u8();
        let (base, len) = place_of(healthy, place);
        let guest = &mut healthy.guest;
        let offset = input.number() % len.max(8);
        let gpa = base + offset / 8 * 8;
        let Ok(old) = guest.memory.read_u64(gpa) else { continue };
        let value = match input.u8() % 8 {
            0 => PFN_NONE,
            1 => old ^ 1 << (input.u8() & 63),
            2 => old.wrapping_add(input.number()),
            3 => old.wrapping_sub(input.number()),
            // Another word of the same structure: links that cross.
            4 => guest.memory.read_u64(base + input.number() % len.max(8) / 8 * 8).unwrap_or(0),
            // A frame's number, or an entry that maps a frame that exists.
            5 => input.number() % 0xb00,
            6 => (input.number() % 0xb00) << 12 | u64::from(input.u16() & 0xfff),
            _ => input.number(),
        };
        if guest.memory.write_u64(gpa, value).is_ok() {
            undo.push((gpa, old));
        }
    }
    undo
}

/// Address and length of the structures that a guest publishes.
fn place_of(healthy: &Healthy, place: u8) -> (u64, u64) {
    let Healthy { guest, memmap } = healthy;
    let root = &guest.root;
    let table = |table: TableRef| (table.gpa, u64::from(table.count) * u64::from(table.stride));
    match place % 18 {
        16 => (PROCESS, 4096),
        // Its page tables.
        17 => (PROCESS + 4096, 13 * 4096),
        // Not what identifies it: that is one choice of many below.
        0 => (
            guest.root_gpa + offset_of!(Root, stage) as u64,
            (size_of::<Root>() - offset_of!(Root, stage)) as u64,
        ),
        1 => table(root.zones),
        2 => table(root.sections),
        3 => table(root.nodes),
        4 => table(root.cpus),
        5 => table(root.layout),
        6 => table(root.e820_raw),
        7 => table(root.e820),
        8 => table(root.memblock_memory),
        9 => table(root.memblock_reserved),
        10 => table(root.mm_list),
        11 => (memmap + 0x100 * 64, 0xa00 * 64),
        12 => (root.pgd_pfn << 12, 16 * 4096),
        13 => (memmap + u64::from(place) * 64, 64),
        14 => (guest.root_gpa, 4096),
        _ => (guest.root_gpa, 16 * 4096),
    }
}

fn read_all(guest: &SyntheticGuest, choice: u8) {
    let source = Watched::new(&guest.memory, BUDGET);
    if let Some(root) = find_root(&source) {
        assert!(source.is_ram(root, 4096));
    }
    for registers in &guest.registers {
        let Some(walker) = Walker::from_registers(registers) else { continue };
        for va in [0, 0x40_0000, guest.root.kernel_va, guest.root.vmemmap, u64::MAX] {
            let answer = walker.translate(&source, va);
            assert!(!views::TranslateView::new(answer, None).to_string().is_empty());
        }
        let dump = ptdump::PtDump::new(&walker, &source, ptdump::Span::ALL, &[]);
        assert!(!dump.to_string().is_empty());
    }
    match Guest::attach(&source, guest.root_gpa) {
        Ok(reader) => read_views(&reader, guest),
        Err(error) => check_error(&error),
    }
    let source = Watched::new(&guest.memory, BUDGET);
    let report = audit(&Evidence {
        source: &source,
        root_gpa: (choice & 2 == 0).then_some(guest.root_gpa),
        facts: (choice & 4 == 0).then_some(&guest.facts),
        registers: if choice & 8 == 0 { &guest.registers } else { &[] },
        moment: Moment::Chosen,
    });
    let text = report.to_string();
    assert_eq!(text.lines().last(), Some(report.summary().as_str()));
    to_string(&report).expect("a report is JSON");
}

fn read_views(reader: &Guest<'_, Watched<&SparseMemory>>, guest: &SyntheticGuest) {
    let facts = Some(&guest.facts);
    show(views::E820View::new(reader, facts));
    show(views::MemblockView::new(reader));
    show(views::NumaView::new(reader, facts));
    show(views::ZonesView::new(reader));
    show(views::BuddyView::new(reader));
    show(views::CpusView::new(reader, facts));
    show(views::LayoutView::new(reader));
    for pfn in [0, 0x100, 0x50_0000 / 4096, (5 << 30) >> 12, u64::MAX] {
        show(views::PageView::new(reader, pfn));
        show(views::RmapView::new(reader, pfn));
    }
    for pfn in PROCESS >> 12..(PROCESS + SyntheticProcess::LEN) >> 12 {
        show(views::RmapView::new(reader, pfn));
    }
    show(views::PsView::new(reader));
    show(views::TlbView::new(reader, &guest.registers));
    for smaps in [false, true] {
        if let Some(view) = views::MapsView::new(reader, SyntheticProcess::PID, smaps).transpose() {
            // A process whose VMAs are lost has no line.
            view.map_or_else(
                |error| check_error(&error),
                |view| drop(to_string(&view).expect("a view is JSON")),
            );
        }
    }
    let layout = reader.layout().unwrap_or_default();
    let dump = ptdump::PtDump::new(&reader.kernel_walker(), reader.source(), ptdump::Span::ALL, &layout);
    to_string(&dump).expect("a view is JSON");
}

fn show<T: Display + serde::Serialize>(view: Result<T, GuestError>) {
    match view {
        Ok(view) => {
            assert!(!view.to_string().is_empty());
            to_string(&view).expect("a view is JSON");
        }
        Err(error) => check_error(&error),
    }
}
