//! The guest's E820 sanitizer and early allocator.

use memvisor_abi::{E820Entry, E820Type, MemblockRegion};
use mm_core::PhysAddr;
use mm_memblock::{AllocRange, Direction, E820Table, Memblock};

use crate::Input;

/// Entries of a map, then operations on a memblock that starts with the map's RAM.
pub fn e820_memblock(data: &[u8]) {
    let mut input = Input::new(data);
    let phys_bits = u32::from(input.u8() % 70);
    let mut raw = E820Table::new();
    for _ in 0..input.u8() {
        let entry =
            E820Entry { addr: input.number(), size: input.number(), kind: kind(&mut input), reserved: 0 };
        if raw.push(entry).is_err() {
            break;
        }
    }
    let map = raw.sanitize(phys_bits);
    check_map(&raw, &map, phys_bits);
    let small = input.u8() & 1 != 0;
    if small { operate::<8>(&map, input) } else { operate::<128>(&map, input) }
}

fn kind(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        byte @ 0..200 => u32::from(byte % 10),
        200..220 => 0xefff_ffff,
        _ => input.u32(),
    }
}

/// The rules of [`E820Table::sanitize`], by asking the raw map about every border.
fn check_map(raw: &E820Table, map: &E820Table, phys_bits: u32) {
    let entries = map.entries();
    for pair in entries.windows(2) {
        assert!(pair[0].addr + pair[0].size <= pair[1].addr, "{pair:x?} overlap");
        let touch = pair[0].addr + pair[0].size == pair[1].addr;
        assert!(!touch || pair[0].kind != pair[1].kind || pair[0].kind == 0xefff_ffff, "{pair:x?} are one");
    }
    assert!(entries.iter().all(|entry| entry.size != 0 && entry.kind != 0));
    let limit = 1_u64.checked_shl(phys_bits).unwrap_or(u64::MAX);
    let ram = E820Type::Ram as u32;
    // A table that is full is cut off at its end.
    let known = if entries.len() < raw.entries().len() { u64::MAX } else { end(entries.last()) };
    let usable = |entry: &&E820Entry| entry.size != 0 && entry.addr.checked_add(entry.size).is_some();
    let borders = raw.entries().iter().filter(usable).flat_map(|entry| [entry.addr, entry.addr + entry.size]);
    for at in borders.flat_map(|border| [border, border.wrapping_sub(1)]) {
        let covers = |entry: &&E820Entry| at >= entry.addr && at - entry.addr < entry.size;
        let want = raw.entries().iter().filter(usable).filter(covers).map(|entry| entry.kind).max();
        let want = want.filter(|kind| *kind != 0 && (*kind != ram || at < limit));
        let have = entries.iter().find(covers).map(|entry| entry.kind);
        assert!(at >= known || have == want, "{at:#x} is {have:?}, should be {want:?}");
    }
    assert_eq!(map.sanitize(phys_bits).entries(), entries, "a sanitized map changes no more");
    assert!(map.end_of_ram_pfn(u64::MAX) <= u64::MAX >> 12);
}

fn end(entry: Option<&E820Entry>) -> u64 {
    entry.map_or(0, |entry| entry.addr + entry.size)
}

fn operate<const N: usize>(map: &E820Table, mut input: Input<'_>) {
    let mut memblock = Memblock::<N>::new();
    for entry in map.entries().iter().filter(|entry| entry.kind == E820Type::Ram as u32) {
        let _ = memblock.add(PhysAddr::new(entry.addr), entry.size, 0);
    }
    while !input.is_empty() {
        let op = input.u8();
        let (base, size) = (PhysAddr::new(input.number()), input.number());
        let node = u32::from(op >> 4);
        match op & 7 {
            0 => drop(memblock.add(base, size, node)),
            1 => drop(memblock.remove(base, size)),
            2 => drop(memblock.reserve(base, size)),
            3 => drop(memblock.free(base, size)),
            4 => drop(memblock.set_node(base, size, node)),
            5 => memblock.trim_memory(1 << (size % 40)),
            _ => allocate(&mut memblock, op, base, size, input.number(), input.number()),
        }
        assert_eq!(memblock.audit(), Ok(()));
    }
    let free: u64 = memblock.free_ranges().map(|(start, end, _)| end.as_u64() - start.as_u64()).sum();
    let total: u64 = memblock.memory().iter().map(|region| region.size).sum();
    assert!(free <= total);
    memblock.mem_pfn_ranges(None).for_each(|(start, end, _)| assert!(start < end));
}

fn allocate<const N: usize>(
    memblock: &mut Memblock<N>,
    op: u8,
    min: PhysAddr,
    size: u64,
    max: u64,
    align: u64,
) {
    let holds = |regions: &[MemblockRegion], at: u64| {
        regions.iter().any(|region| at >= region.base && at - region.base < region.size)
    };
    let before = memblock.reserved().to_vec();
    let range = AllocRange { min, max: PhysAddr::new(max) };
    let direction = if op & 8 == 0 { Direction::TopDown } else { Direction::BottomUp };
    let node = (op & 16 != 0).then_some(u32::from(op >> 5));
    let align = if op & 1 == 0 { 1 << (align % 64) } else { align };
    let Some(base) = memblock.alloc(size, align, range, node, direction) else { return };
    let base = base.as_u64();
    assert!(size > 0 && base.is_multiple_of(align) && base >= min.as_u64() && max - base >= size);
    for at in [base, base + (size - 1)] {
        assert!(holds(memblock.memory(), at), "{at:#x} is not memory");
        assert!(!holds(&before, at), "{at:#x} was reserved");
        assert!(holds(memblock.reserved(), at), "{at:#x} is not reserved now");
    }
}
