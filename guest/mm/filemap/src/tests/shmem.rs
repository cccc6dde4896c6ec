//! Shared memory against a map of bytes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use mm_core::{Arena, Id, PAGE_SIZE, PolicyAt};
use proptest::prelude::*;

use super::machine::Machine;
use crate::shmem::{self, FallocFlags, MAX_BYTES};
use crate::{CacheError, Cows, MappedError, Mapping, put_page};

#[derive(Clone, Copy, Debug)]
enum Op {
    Write { at: u64, len: u64 },
    Resize(u64),
    Punch { at: u64, len: u64 },
    Allocate { at: u64, len: u64, keep: bool },
    Fault(u64),
}

const SPAN: u64 = 12 * PAGE_SIZE;

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![1..64_u64, 1..3 * PAGE_SIZE];
    prop_oneof![
        5 => (0..SPAN, len.clone()).prop_map(|(at, len)| Op::Write { at, len }),
        2 => (0..SPAN).prop_map(Op::Resize),
        2 => (0..SPAN, len.clone()).prop_map(|(at, len)| Op::Punch { at, len }),
        1 => (0..SPAN, len, any::<bool>()).prop_map(|(at, len, keep)| Op::Allocate { at, len, keep }),
        3 => (0..SPAN / PAGE_SIZE + 4).prop_map(Op::Fault),
    ]
}

/// As a file system writes: page by page.
fn write(machine: &Machine, id: Id<Mapping>, at: u64, len: u64, value: u8) -> Result<(), CacheError> {
    let (mut at, end) = (at, at + len);
    while at < end {
        let stop = (at / PAGE_SIZE + 1) * PAGE_SIZE;
        let stop = stop.min(end);
        let pfn = shmem::write_begin(machine, id, at / PAGE_SIZE)?;
        (at..stop).for_each(|byte| machine.set_byte(pfn, byte % PAGE_SIZE, value));
        shmem::write_end(machine, id, stop, pfn);
        at = stop;
    }
    Ok(())
}

fn read(machine: &Machine, id: Id<Mapping>, at: u64) -> u8 {
    let Some(pfn) = shmem::read_page(machine, id, at / PAGE_SIZE).unwrap() else { return 0 };
    let byte = machine.byte(pfn, at % PAGE_SIZE);
    put_page(machine, pfn);
    byte
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn shared_memory_is_a_file_also_while_its_pages_are_swapped_out(
        ops in proptest::collection::vec((op(), any::<u16>(), 0..8_u32), 1..60),
    ) {
        let machine = Machine::new();
        machine.has_shmem.store(true, Relaxed);
        machine.swapon();
        let id = machine.mapping(0);
        let mapping: &Mapping = machine.at(id);
        let (mut bytes, mut size) = (BTreeMap::new(), 0);
        for (number, (op, picks, comes_back)) in ops.into_iter().enumerate() {
            for index in (0..16).filter(|index| picks >> index & 1 == 1) {
                machine.swap_out(id, index);
            }
            prop_assert_eq!(mm_swap::audit(&machine, 0), Ok(()));
            if comes_back == 0 {
                prop_assert_eq!(shmem::unuse(&machine, id, 0), Ok(()));
                prop_assert_eq!(machine.swap.inuse(), 0);
            }
            let value = u8::try_from(number % 250 + 1).unwrap();
            match op {
                Op::Write { at, len } => {
                    write(&machine, id, at, len, value).unwrap();
                    (at..at + len).for_each(|byte| { bytes.insert(byte, value); });
                    size = size.max(at + len);
                }
                Op::Resize(to) => {
                    shmem::set_size(&machine, id, to).unwrap();
                    bytes.retain(|&byte, _| byte < to);
                    size = to;
                }
                Op::Punch { at, len } => {
                    let mode = FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE;
                    shmem::fallocate(&machine, id, mode, at, len).unwrap();
                    bytes.retain(|byte, _| !(at..at + len).contains(byte));
                    let whole = at.div_ceil(PAGE_SIZE)..(at + len) / PAGE_SIZE;
                    for index in whole.clone() {
                        prop_assert_eq!(shmem::read_page(&machine, id, index), Ok(None));
                    }
                    let unmapped = machine.unmapped.lock().unwrap().pop();
                    prop_assert_eq!(unmapped, (!whole.is_empty()).then_some((whole, Cows::Keep)));
                }
                Op::Allocate { at, len, keep } => {
                    let mode = if keep { FallocFlags::KEEP_SIZE } else { FallocFlags::empty() };
                    shmem::fallocate(&machine, id, mode, at, len).unwrap();
                    for index in at / PAGE_SIZE..(at + len).div_ceil(PAGE_SIZE) {
                        prop_assert!(crate::has_page(&machine, id, index));
                    }
                    if !keep {
                        size = size.max(at + len);
                    }
                }
                Op::Fault(index) => {
                    let got = shmem::fault(&machine, id, PolicyAt::of_task(index));
                    if index * PAGE_SIZE < size {
                        put_page(&machine, got.unwrap().pfn);
                    } else {
                        prop_assert_eq!(got, Err(MappedError::Sigbus));
                    }
                }
            }
            machine.unmapped.lock().unwrap().clear();
            prop_assert_eq!(mapping.size(), size);
            let swapped = machine.swapped.load(Relaxed).cast_unsigned();
            prop_assert_eq!(machine.shmem.load(Relaxed), mapping.nrpages() + swapped);
            prop_assert_eq!(machine.swap.inuse(), swapped);
            prop_assert_eq!(machine.file_pages.load(Relaxed).cast_unsigned(), mapping.nrpages());
            prop_assert!(Mapping::audit(&machine, id).is_ok());
            for page in 0..SPAN / PAGE_SIZE {
                for at in [0, 1, 63, 64, 2048, PAGE_SIZE - 1].map(|offset| page * PAGE_SIZE + offset) {
                    let expected = bytes.get(&at).copied().unwrap_or(0);
                    prop_assert_eq!(read(&machine, id, at), expected, "byte {:#x}", at);
                }
            }
        }
        for index in 0..16 {
            machine.swap_out(id, index);
        }
        shmem::evict(&machine, id);
        prop_assert_eq!((machine.used(), machine.nodes.live(), machine.shmem.load(Relaxed)), (0, 0, 0));
        prop_assert_eq!(machine.swap.inuse(), 0);
    }
}

#[test]
fn a_page_that_is_held_does_not_go_to_swap() {
    let machine = Machine::new();
    machine.has_shmem.store(true, Relaxed);
    machine.swapon();
    let id = machine.mapping(PAGE_SIZE);
    write(&machine, id, 0, 8, 5).unwrap();
    let held = shmem::fault(&machine, id, PolicyAt::of_task(0)).unwrap().pfn;
    assert!(!machine.swap_out(id, 0));
    assert_eq!((machine.swap.inuse(), machine.swapped.load(Relaxed)), (0, 0));
    put_page(&machine, held);
    assert!(machine.swap_out(id, 0));
    assert_eq!((machine.swap.inuse(), read(&machine, id, 3)), (1, 5));
    shmem::evict(&machine, id);
}

#[test]
fn a_page_that_is_swapped_while_its_mapping_is_freed_leaves_nothing_behind() {
    let machine = Machine::new();
    machine.has_shmem.store(true, Relaxed);
    machine.swapon();
    let id = machine.mapping(2 * PAGE_SIZE);
    write(&machine, id, 0, 2 * PAGE_SIZE, 5).unwrap();
    *machine.reclaims.lock().unwrap() = Some(1);
    shmem::evict(&machine, id);
    assert_eq!(*machine.reclaims.lock().unwrap(), None);
    assert!(!machine.has_swapped.load(Relaxed), "a mapping that is gone is on the list");
    assert_eq!((machine.used(), machine.swap.inuse(), machine.swapped.load(Relaxed)), (0, 0, 0));
}

#[test]
fn a_full_file_system_refuses_pages_and_counts_none() {
    let machine = Machine::new();
    let id = machine.mapping(8 * PAGE_SIZE);
    machine.max_shmem.store(2, Relaxed);
    write(&machine, id, 0, 2 * PAGE_SIZE, 1).unwrap();
    assert_eq!(write(&machine, id, 3 * PAGE_SIZE, 1, 1), Err(CacheError::NoSpace));
    assert_eq!(shmem::fault(&machine, id, PolicyAt::of_task(3)), Err(MappedError::Sigbus));
    assert_eq!((machine.shmem.load(Relaxed), machine.used()), (2, 2));
    write(&machine, id, PAGE_SIZE, 1, 2).unwrap();
    machine.max_shmem.store(u64::MAX, Relaxed);
    machine.budget.store(0, Relaxed);
    assert_eq!(shmem::fault(&machine, id, PolicyAt::of_task(3)), Err(MappedError::NoMemory));
    // The page, and no node for it.
    machine.budget.store(1, Relaxed);
    assert_eq!(shmem::fault(&machine, id, PolicyAt::of_task(64)), Err(MappedError::Sigbus));
    shmem::set_size(&machine, id, 100 * PAGE_SIZE).unwrap();
    assert_eq!(shmem::fault(&machine, id, PolicyAt::of_task(64)), Err(MappedError::NoMemory));
    assert_eq!((machine.shmem.load(Relaxed), machine.used()), (2, 2));
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    let machine = Machine::new();
    let id = machine.mapping(0);
    let call =
        |mode, offset, len| shmem::fallocate(&machine, id, FallocFlags::from_bits_retain(mode), offset, len);
    assert_eq!(call(0, 0, 0), Err(CacheError::Invalid));
    assert_eq!(call(0, u64::MAX, 1), Err(CacheError::Invalid));
    assert_eq!(call(0, 1, u64::MAX), Err(CacheError::Invalid));
    assert_eq!(call(0, MAX_BYTES, 1), Err(CacheError::TooBig));
    assert_eq!(call(2, 0, 1), Err(CacheError::NotSupported));
    assert_eq!(call(8, 0, 1), Err(CacheError::NotSupported));
    assert_eq!(shmem::set_size(&machine, id, MAX_BYTES + 1), Err(CacheError::TooBig));
    assert_eq!(shmem::write_begin(&machine, id, MAX_BYTES / PAGE_SIZE + 1), Err(CacheError::TooBig));
    assert_eq!(machine.used(), 0);
}
