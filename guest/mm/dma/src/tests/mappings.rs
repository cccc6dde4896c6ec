//! Mappings on a simulated machine: contents arrive whichever side of the mask a buffer lies on.

use std::cell::RefCell;

use memvisor_abi::{IO_TLB_SIZE, SwiotlbArea, SwiotlbPool, SwiotlbSlot};
use mm_core::PhysAddr;
use proptest::prelude::*;

use crate::{
    Area, Direction, DmaDevice, DmaError, DmaMask, Machine, Mapping, MappingKind, map, max_mapping_size,
    sync_for_cpu, sync_for_device, unmap,
};

/// RAM of 1 MiB at three places: where 24 bits reach, where 32 do, beyond.
const PLACES: [u64; 3] = [0x80_0000, 0x4000_0000, 0x1_4000_0000];
const SIZE: u64 = 1 << 20;
/// Pools: of two areas at the second place, of one at the first.
const POOLS: [(u64, u32, u32); 2] = [(0x4008_0000, 256, 2), (0x88_0000, 128, 1)];

struct Sim {
    ram: RefCell<[Vec<u8>; 3]>,
    areas: RefCell<Vec<(usize, u32, Area<'static>)>>,
    pools: [Option<SwiotlbPool>; 2],
}

impl Sim {
    fn new(pools: usize, force: bool) -> Sim {
        let mut areas = Vec::new();
        let mut published = [None; 2];
        for (number, (start, nslabs, nareas)) in POOLS.into_iter().enumerate().take(pools) {
            let slots: &'static mut [SwiotlbSlot] = vec![SwiotlbSlot::free(0); nslabs as usize].leak();
            for (index, slots) in (0..).zip(slots.chunks_mut((nslabs / nareas) as usize)) {
                let info = Box::leak(Box::new(SwiotlbArea::default()));
                let first = index * (nslabs / nareas);
                let at = PhysAddr::new(start + u64::from(first) * IO_TLB_SIZE);
                areas.push((number, index, Area::new(slots, info, first, at)));
            }
            let pool = SwiotlbPool { start, nslabs, nareas, force: force.into(), ..SwiotlbPool::default() };
            published[number] = Some(pool);
        }
        let fill = |seed: usize| (0..SIZE as usize).map(|at| (at * 7 + seed * 31 + at / 251) as u8).collect();
        Sim { ram: RefCell::new([fill(1), fill(2), fill(3)]), areas: RefCell::new(areas), pools: published }
    }

    fn place(addr: u64, len: u64) -> (usize, usize) {
        (0..3)
            .find_map(|place| {
                let at = addr.checked_sub(PLACES[place])?;
                (at + len <= SIZE).then_some((place, at as usize))
            })
            .unwrap_or_else(|| panic!("{addr:#x} (+{len:#x}) is not RAM"))
    }

    fn read(&self, addr: PhysAddr, len: u64) -> Vec<u8> {
        let (place, at) = Sim::place(addr.as_u64(), len);
        self.ram.borrow()[place][at..at + len as usize].to_vec()
    }

    fn write(&self, addr: PhysAddr, bytes: &[u8]) {
        let (place, at) = Sim::place(addr.as_u64(), bytes.len() as u64);
        self.ram.borrow_mut()[place][at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn used(&self) -> u32 {
        self.areas.borrow().iter().map(|(_, _, area)| area.info().used).sum()
    }

    fn audit(&self) {
        for (pool, number, area) in self.areas.borrow().iter() {
            assert_eq!(area.audit(), Ok(()), "area {number} of pool {pool}");
        }
    }
}

impl Machine for Sim {
    fn pool(&self, number: usize) -> Option<SwiotlbPool> {
        self.pools[number]
    }

    fn with_area<R>(&self, pool: usize, area: u32, f: impl FnOnce(&mut Area<'_>) -> R) -> Option<R> {
        let mut areas = self.areas.borrow_mut();
        let (_, _, area) = areas.iter_mut().find(|(of, number, _)| (*of, *number) == (pool, area))?;
        Some(f(area))
    }

    fn copy(&self, from: PhysAddr, to: PhysAddr, len: u64) {
        let bytes = self.read(from, len);
        self.write(to, &bytes);
    }

    fn cpu(&self) -> u32 {
        1
    }
}

const LOW: PhysAddr = PhysAddr::new(PLACES[0] + 0x123);
const MIDDLE: PhysAddr = PhysAddr::new(PLACES[1] + 0x123);
const HIGH: PhysAddr = PhysAddr::new(PLACES[2] + 0x123);

fn device(bits: u32) -> DmaDevice {
    DmaDevice::new(DmaMask::from_bits(bits).unwrap())
}

#[test]
fn a_buffer_bounces_only_if_the_device_does_not_reach_it() {
    let sim = Sim::new(2, false);
    let kinds = [
        (24, LOW, MappingKind::Direct),
        (24, MIDDLE, MappingKind::Bounced { pool: 1 }),
        (24, HIGH, MappingKind::Bounced { pool: 1 }),
        (32, LOW, MappingKind::Direct),
        (32, MIDDLE, MappingKind::Direct),
        (32, HIGH, MappingKind::Bounced { pool: 0 }),
        (64, HIGH, MappingKind::Direct),
    ];
    for (bits, buffer, kind) in kinds {
        let mapping = map(&sim, &device(bits), buffer, 100, Direction::ToDevice).unwrap();
        assert_eq!(mapping.kind(), kind, "{bits} bits, {buffer}");
        assert!(device(bits).mask.reaches(mapping.addr(), mapping.len()));
        assert_eq!(sim.read(mapping.addr(), 100), sim.read(buffer, 100));
        unmap(&sim, mapping).unwrap();
    }
    assert_eq!(sim.used(), 0);
}

#[test]
fn force_bounces_what_the_device_reaches_too() {
    let sim = Sim::new(1, true);
    let mapping = map(&sim, &device(64), LOW, 10, Direction::ToDevice).unwrap();
    assert_eq!(mapping.kind(), MappingKind::Bounced { pool: 0 });
    unmap(&sim, mapping).unwrap();
}

#[test]
fn each_error_takes_nothing() {
    let sim = Sim::new(1, false);
    let map = |bits, buffer, len| map(&sim, &device(bits), buffer, len, Direction::Bidirectional);
    assert_eq!(map(32, HIGH, 0), Err(DmaError::Empty));
    assert_eq!(map(24, HIGH, 10), Err(DmaError::Unreachable));
    assert_eq!(map(32, HIGH, 128 * IO_TLB_SIZE + 1), Err(DmaError::TooLarge));
    assert_eq!(sim.used(), 0);
    // Two areas of one segment each: two of these fill them, whatever the CPU.
    let both = [map(32, HIGH, 128 * IO_TLB_SIZE).unwrap(), map(32, HIGH, 128 * IO_TLB_SIZE).unwrap()];
    assert_eq!(map(32, HIGH, 1), Err(DmaError::Full));
    both.into_iter().for_each(|mapping| unmap(&sim, mapping).unwrap());
    assert_eq!(sim.used(), 0);
    let none = Sim::new(0, false);
    assert_eq!(
        super::super::map(&none, &device(32), HIGH, 1, Direction::ToDevice),
        Err(DmaError::Unreachable)
    );
}

#[test]
fn an_alignment_costs_slots_of_the_largest_mapping() {
    let aligned = DmaDevice { min_align_mask: 0xfff, ..device(32) };
    assert_eq!(max_mapping_size(&device(32)), 256 << 10);
    assert_eq!(max_mapping_size(&aligned), 252 << 10);
    assert_eq!(max_mapping_size(&DmaDevice { min_align_mask: 0x1ff, ..device(32) }), 254 << 10);
    assert_eq!(max_mapping_size(&DmaDevice { min_align_mask: u64::MAX, ..device(32) }), 0);
    let sim = Sim::new(1, false);
    let largest = max_mapping_size(&aligned);
    for offset in [0x7ff, 0xa47, 0xfff] {
        let buffer = PhysAddr::new(PLACES[2] + offset);
        let mapping = map(&sim, &aligned, buffer, largest, Direction::FromDevice).unwrap();
        assert_eq!(mapping.addr().as_u64() & 0xfff, offset);
        sim.audit();
        unmap(&sim, mapping).unwrap();
        // More would find no place, even in a pool that is empty.
        assert_eq!(map(&sim, &aligned, buffer, largest + 1, Direction::FromDevice), Err(DmaError::TooLarge));
    }
}

#[test]
fn contents_cross_only_in_the_mappings_direction_and_when_they_are_synced() {
    let sim = Sim::new(1, false);
    let before = sim.read(HIGH, 8);
    for (direction, cpu_sees, device_sees) in [
        (Direction::ToDevice, false, true),
        (Direction::FromDevice, true, false),
        (Direction::Bidirectional, true, true),
    ] {
        let mapping = map(&sim, &device(32), HIGH, 8, direction).unwrap();
        sim.write(mapping.addr(), b"deviceXX");
        assert_eq!(sim.read(HIGH, 8), before);
        sync_for_cpu(&sim, &mapping, 2, 3);
        let seen = [&before[..2], b"vic", &before[5..]].concat();
        assert_eq!(sim.read(HIGH, 8), if cpu_sees { seen } else { before.clone() });
        sim.write(HIGH, b"cpu says");
        sync_for_device(&sim, &mapping, 6, 100);
        let seen: &[u8] = if device_sees { b"deviceys" } else { b"deviceXX" };
        assert_eq!(sim.read(mapping.addr(), 8), seen);
        sync_for_cpu(&sim, &mapping, 9, 1);
        sync_for_device(&sim, &mapping, u64::MAX, u64::MAX);
        sim.write(HIGH, &before);
        unmap(&sim, mapping).unwrap();
        assert_eq!(sim.read(HIGH, 8), if cpu_sees { seen.to_vec() } else { before.clone() });
        sim.write(HIGH, &before);
    }
}

#[derive(Clone, Debug)]
struct Op {
    map: bool,
    bits: usize,
    place: usize,
    offset: u64,
    len: u64,
    direction: u8,
    align: bool,
    pick: usize,
}

fn op() -> impl Strategy<Value = Op> {
    let what = (any::<bool>(), 0..3_usize, 0..3_usize, any::<bool>());
    (what, 0..0x7_0000_u64, prop_oneof![1..5000_u64, 1..0x4_2000_u64], 0..3_u8, any::<usize>()).prop_map(
        |((map, bits, place, align), offset, len, direction, pick)| Op {
            map,
            bits,
            place,
            offset: offset.min(0x8_0000 - len),
            len,
            direction,
            align,
            pick,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn contents_arrive_and_no_slot_is_lost(ops in prop::collection::vec(op(), 1..60)) {
        let sim = Sim::new(2, false);
        let mut live: Vec<(Mapping, PhysAddr, Direction)> = Vec::new();
        let end = |sim: &Sim, (mapping, buffer, direction): (Mapping, PhysAddr, Direction)| {
            let len = mapping.len();
            let bounced = mapping.kind() != MappingKind::Direct;
            let written: Vec<u8> = (0..len).map(|at| (at % 239) as u8 ^ 0x5a).collect();
            let before = sim.read(buffer, len);
            if direction.is_from_device() {
                sim.write(mapping.addr(), &written);
            } else if bounced {
                // What a device does wrongly to its slots is not the buffer's.
                sim.write(mapping.addr(), &written);
            }
            unmap(sim, mapping).unwrap();
            let expected = if direction.is_from_device() { written } else { before };
            assert_eq!(sim.read(buffer, len), expected);
        };
        for op in ops {
            if op.map || live.is_empty() {
                let bits = [24, 32, 64][op.bits];
                let device = DmaDevice { min_align_mask: if op.align { 0xfff } else { 0 }, ..device(bits) };
                let buffer = PhysAddr::new(PLACES[op.place] + op.offset);
                let direction =
                    [Direction::Bidirectional, Direction::ToDevice, Direction::FromDevice][op.direction as usize];
                match map(&sim, &device, buffer, op.len, direction) {
                    Ok(mapping) => {
                        prop_assert!(device.mask.reaches(mapping.addr(), op.len));
                        prop_assert_eq!(
                            mapping.kind() == MappingKind::Direct,
                            device.mask.reaches(buffer, op.len)
                        );
                        prop_assert!(sim.read(mapping.addr(), op.len) == sim.read(buffer, op.len));
                        live.push((mapping, buffer, direction));
                    }
                    Err(DmaError::TooLarge) => prop_assert!(op.len > max_mapping_size(&device)),
                    Err(error) => {
                        prop_assert_eq!(error, DmaError::Full);
                        prop_assert!(sim.used() > 0);
                    }
                }
            } else {
                let index = op.pick % live.len();
                end(&sim, live.swap_remove(index));
            }
            sim.audit();
            let slots = |mapping: &Mapping| match mapping.kind() {
                MappingKind::Direct => 0,
                MappingKind::Bounced { .. } => {
                    let offset = mapping.addr().as_u64() % IO_TLB_SIZE;
                    (offset + mapping.len()).div_ceil(IO_TLB_SIZE)
                }
            };
            let used: u64 = live.iter().map(|(mapping, ..)| slots(mapping)).sum();
            prop_assert_eq!(u64::from(sim.used()), used);
        }
        live.into_iter().for_each(|mapping| end(&sim, mapping));
        prop_assert_eq!(sim.used(), 0);
    }
}
