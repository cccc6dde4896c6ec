//! The windows against models: counts by frame, and a stack.

use std::collections::BTreeMap;
use std::vec::Vec;

use memvisor_abi::{KM_MAX_IDX, LAST_PKMAP};
use mm_core::Pfn;
use proptest::prelude::*;

use crate::{KmapError, LocalStack, Pkmap, PkmapHit};

fn no_flush(_: &[usize]) {}

#[test]
fn a_frame_is_mapped_once_and_counted() {
    let mut window = Pkmap::new();
    let PkmapHit::New(slot) = window.kmap(Pfn::new(7), no_flush).unwrap() else { panic!("not new") };
    assert_eq!(window.kmap(Pfn::new(7), no_flush), Ok(PkmapHit::Mapped(slot)));
    assert_eq!(window.slots()[slot].count, 3);
    assert_eq!(window.kunmap(Pfn::new(7)), Ok(false));
    assert_eq!(window.kunmap(Pfn::new(7)), Ok(true));
    assert_eq!(window.kunmap(Pfn::new(7)), Err(KmapError::NotMapped));
    assert_eq!(window.find(Pfn::new(7)), Some(slot), "the mapping stays until the next flush");
}

#[test]
fn a_full_window_is_flushed_once_and_then_refuses() {
    let mut window = Pkmap::new();
    let all = LAST_PKMAP as u64;
    for frame in 0..all {
        window.kmap(Pfn::new(frame), no_flush).unwrap();
    }
    assert_eq!(window.kmap(Pfn::new(all), no_flush), Err(KmapError::Full));
    assert_eq!(window.kunmap(Pfn::new(3)), Ok(true));
    assert_eq!(window.kunmap(Pfn::new(5)), Ok(true));
    let mut flushed = Vec::new();
    let hit = window.kmap(Pfn::new(all), |slots| flushed.push(slots.to_vec())).unwrap();
    assert_eq!(flushed.len(), 1, "one flush for all unused slots");
    assert_eq!(flushed[0].len(), 2);
    assert!(matches!(hit, PkmapHit::New(slot) if flushed[0].contains(&slot)));
    assert_eq!(window.find(Pfn::new(5)), None);
}

proptest! {
    #[test]
    fn the_window_obeys_counts_by_frame(ops in proptest::collection::vec((0..700_u64, any::<bool>()), 1..3000)) {
        let mut window = Pkmap::new();
        let mut users: BTreeMap<u64, u32> = BTreeMap::new();
        let mut mapped: BTreeMap<usize, u64> = BTreeMap::new();
        for (frame, map) in ops {
            if map {
                let mut gone = Vec::new();
                match window.kmap(Pfn::new(frame), |slots| gone.extend_from_slice(slots)) {
                    Ok(hit) => {
                        for slot in &gone {
                            let frame = mapped.remove(slot);
                            prop_assert!(frame.is_some_and(|frame| users.get(&frame).is_none_or(|&n| n == 0)));
                        }
                        match hit {
                            PkmapHit::New(slot) => prop_assert_eq!(mapped.insert(slot, frame), None),
                            PkmapHit::Mapped(slot) => prop_assert_eq!(mapped.get(&slot), Some(&frame)),
                        }
                        *users.entry(frame).or_default() += 1;
                    }
                    Err(error) => {
                        prop_assert_eq!(error, KmapError::Full);
                        prop_assert_eq!(users.values().filter(|&&n| n > 0).count(), LAST_PKMAP);
                    }
                }
            } else {
                let had = users.get(&frame).copied().unwrap_or(0);
                let expect = if had == 0 { Err(KmapError::NotMapped) } else { Ok(had == 1) };
                prop_assert_eq!(window.kunmap(Pfn::new(frame)), expect);
                if had > 0 {
                    users.insert(frame, had - 1);
                }
            }
        }
        for (index, slot) in window.slots().iter().enumerate() {
            let frame = mapped.get(&index);
            let expect = frame.map_or(0, |frame| users.get(frame).copied().unwrap_or(0) + 1);
            prop_assert_eq!(slot.count, expect);
            if let Some(&frame) = frame {
                prop_assert_eq!(window.find(Pfn::new(frame)), Some(index));
            }
        }
    }
}

#[test]
fn short_mappings_go_in_the_opposite_order() {
    let mut stack = LocalStack::new();
    assert_eq!(stack.pop(0), Err(KmapError::NotMapped));
    assert_eq!(stack.push(Pfn::new(1)), Ok(0));
    assert_eq!(stack.push(Pfn::new(2)), Ok(1));
    assert_eq!(stack.pop(0), Err(KmapError::OutOfOrder { top: 1, slot: 0 }));
    assert_eq!(stack.pop(2), Err(KmapError::NotMapped));
    assert_eq!(stack.frames().collect::<Vec<_>>(), [Pfn::new(1), Pfn::new(2)]);
    assert_eq!(stack.pop(1), Ok(Pfn::new(2)));
    assert_eq!(stack.pop(0), Ok(Pfn::new(1)));
    for slot in 0..KM_MAX_IDX {
        assert_eq!(stack.push(Pfn::new(9)), Ok(slot));
    }
    assert_eq!(stack.push(Pfn::new(9)), Err(KmapError::Full));
}
