//! One area against a set of slots.

use std::collections::BTreeMap;

use memvisor_abi::{IO_TLB_SIZE, SwiotlbArea, SwiotlbSlot};
use mm_core::PhysAddr;
use proptest::prelude::*;

use crate::{Area, AreaError, SlotRequest};

const START: u64 = 0x10_0000;

fn with_area<R>(slots: usize, f: impl FnOnce(Area<'_>) -> R) -> R {
    let mut table = vec![SwiotlbSlot::free(9); slots];
    let mut info = SwiotlbArea::default();
    f(Area::new(&mut table, &mut info, 1000, PhysAddr::new(START)))
}

fn request(original: u64, len: u64) -> SlotRequest {
    SlotRequest { original: PhysAddr::new(original), len, min_align_mask: 0, alloc_align_mask: 0 }
}

#[test]
fn slots_come_in_a_row_and_wrap_around() {
    with_area(128, |mut area| {
        let (first, a) = area.map(&request(5, 100)).unwrap();
        let (second, b) = area.map(&request(5, 2049)).unwrap();
        // Buffers of a page or more begin at a page.
        let (third, c) = area.map(&request(5, 4096)).unwrap();
        assert_eq!([first, second, third].map(|addr| addr.as_u64() - START), [0, 0x800, 0x2000]);
        assert_eq!((a, b, c), (0, 1, 4));
        let (_, rest) = area.map(&request(5, 122 * IO_TLB_SIZE)).unwrap();
        assert_eq!(rest, 6);
        assert_eq!(area.map(&request(5, 2049)), Err(AreaError::Full));
        let (last, _) = area.map(&request(5, 1)).unwrap();
        assert_eq!(last.as_u64() - START, 3 * IO_TLB_SIZE);
        area.audit().unwrap();
        assert_eq!(area.info().used, 128);
        for index in [1, 4, 0, 6, 3] {
            area.unmap(index).unwrap();
            area.audit().unwrap();
        }
        assert_eq!(area.slots()[0].list, 128);
        assert_eq!((area.info().used, area.info().used_hiwater), (0, 128));
    });
}

#[test]
fn no_mapping_crosses_a_segment() {
    with_area(256, |mut area| {
        let (_, first) = area.map(&request(0, 100 * IO_TLB_SIZE)).unwrap();
        let (_, second) = area.map(&request(0, 100 * IO_TLB_SIZE)).unwrap();
        assert_eq!((first, second), (0, 128));
        assert_eq!(area.map(&request(0, 29 * IO_TLB_SIZE)), Err(AreaError::Full));
        assert_eq!(area.map(&request(0, 129 * IO_TLB_SIZE)), Err(AreaError::Full));
        area.map(&request(0, 28 * IO_TLB_SIZE)).unwrap();
        area.audit().unwrap();
    });
}

#[test]
fn an_aligned_buffer_keeps_its_low_bits() {
    with_area(256, |mut area| {
        area.map(&request(0, 1)).unwrap();
        let aligned = SlotRequest { min_align_mask: 0xfff, ..request(0x5_1a34, 3000) };
        let (addr, _) = area.map(&aligned).unwrap();
        assert_eq!(addr.as_u64() & 0xfff, 0xa34);
        let slot = area.slots()[usize::try_from((addr.as_u64() - START) / IO_TLB_SIZE).unwrap()];
        assert_eq!((slot.offset, slot.alloc_size, slot.orig_addr), (0x234, 3000, 0x5_1a34));
        let pages = SlotRequest { alloc_align_mask: 0x3fff, ..request(7, 1) };
        assert_eq!(area.map(&pages).unwrap().0.as_u64() & 0x3fff, 0);
        area.audit().unwrap();
    });
}

#[test]
fn what_is_not_mapped_is_not_unmapped() {
    with_area(128, |mut area| {
        assert_eq!(area.unmap(0), Err(AreaError::NotMapped));
        area.map(&request(0, 5000)).unwrap();
        for index in [1, 2, 3, 127, 128, usize::MAX] {
            assert_eq!(area.unmap(index), Err(AreaError::NotMapped), "{index}");
        }
        area.unmap(0).unwrap();
        assert_eq!(area.unmap(0), Err(AreaError::NotMapped));
        area.audit().unwrap();
    });
}

#[test]
fn audit_sees_what_is_wrong() {
    let changes: [fn(&mut Area<'_>); 4] = [
        |area| area.parts_mut().0[7].list = 3,
        |area| area.parts_mut().0[1].head = 1,
        |area| area.parts_mut().0[0].alloc_size = 0x10_0000,
        |area| area.parts_mut().1.used += 1,
    ];
    for change in changes {
        with_area(128, |mut area| {
            area.map(&request(0, 5000)).unwrap();
            area.audit().unwrap();
            change(&mut area);
            assert!(area.audit().is_err());
        });
    }
}

proptest! {
    /// A set of used slots agrees: none is given twice, none is lost, and a request that fails found no room.
    #[test]
    fn an_area_obeys_a_set_of_slots(
        ops in prop::collection::vec((any::<bool>(), 0..0x10_0000_u64, 1..0x1_4000_u64, 0..4_usize, any::<usize>()), 1..200)
    ) {
        const MASKS: [u64; 4] = [0, 0, 0xfff, 0x3fff];
        with_area(384, |mut area| {
            let mut live: BTreeMap<usize, (u64, usize)> = BTreeMap::new();
            for (take, original, len, mask, pick) in ops {
                if take || live.is_empty() {
                    let request = SlotRequest { min_align_mask: MASKS[mask], ..request(original, len) };
                    let offset = original & MASKS[mask] & (IO_TLB_SIZE - 1);
                    let slots = (len + offset).div_ceil(IO_TLB_SIZE) as usize;
                    match area.map(&request) {
                        Ok((addr, index)) => {
                            let at = addr.as_u64() - START;
                            prop_assert_eq!(at / IO_TLB_SIZE, index as u64);
                            prop_assert_eq!(addr.as_u64() & MASKS[mask], original & MASKS[mask]);
                            prop_assert_eq!(index / 128, (index + slots - 1) / 128);
                            let overlaps = live.iter().any(|(first, (_, count))| {
                                *first < index + slots && index < first + count
                            });
                            prop_assert!(!overlaps, "slots given twice");
                            live.insert(index, (original, slots));
                        }
                        Err(error) => {
                            prop_assert_eq!(error, AreaError::Full);
                            // A whole free segment has room for anything that fits one.
                            let whole = (0..3).any(|segment| {
                                live.iter().all(|(first, (_, count))| {
                                    first + count <= segment * 128 || *first >= (segment + 1) * 128
                                })
                            });
                            prop_assert!(!whole || slots > 120, "{slots} slots were refused");
                        }
                    }
                } else {
                    let index = *live.keys().nth(pick % live.len()).unwrap();
                    live.remove(&index);
                    prop_assert_eq!(area.unmap(index), Ok(()));
                }
                prop_assert_eq!(area.audit(), Ok(()));
                let used: usize = live.values().map(|(_, count)| count).sum();
                prop_assert_eq!(area.info().used as usize, used);
            }
            for index in live.keys() {
                prop_assert_eq!(area.unmap(*index), Ok(()));
            }
            prop_assert_eq!(area.slots()[256].list, 128);
            Ok(())
        })?;
    }
}
