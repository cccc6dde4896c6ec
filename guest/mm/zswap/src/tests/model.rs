//! All of it against a map from slots to pages.

use std::collections::BTreeMap;

use mm_swap::SwapEntry;
use proptest::prelude::*;

use super::machine::{Bytes, Machine, PAGE, slot};
use crate::{Admission, StoreError, fill};

const SLOTS: u64 = 700;

#[derive(Clone, Debug)]
enum Op {
    Store(SwapEntry, Page),
    Invalidate(SwapEntry),
    WriteBack,
    Frames(usize),
}

/// So many bytes of noise before zeroes, or a page of one word.
#[derive(Clone, Debug)]
enum Page {
    Noise(usize, u64),
    Same(u64),
}

impl Page {
    fn bytes(&self) -> Bytes {
        let mut page = vec![0; PAGE];
        match *self {
            Page::Same(word) => fill(&mut page, word),
            Page::Noise(len, seed) => {
                let mut state = seed | 1;
                for byte in page.iter_mut().take(len) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = state.to_le_bytes()[5];
                }
            }
        }
        page
    }
}

fn op() -> impl Strategy<Value = Op> {
    // Few slots, so that they meet, in more than one leaf.
    let slot = (0..2_u32, prop_oneof![0..12_u64, 250..262_u64, Just(SLOTS - 1)])
        .prop_map(|(area, offset)| slot(area, offset));
    let page = prop_oneof![
        6 => (0..PAGE, any::<u64>()).prop_map(|(len, seed)| Page::Noise(len, seed)),
        2 => any::<u64>().prop_map(Page::Same),
    ];
    prop_oneof![
        8 => (slot.clone(), page).prop_map(|(slot, page)| Op::Store(slot, page)),
        4 => slot.prop_map(Op::Invalidate),
        2 => Just(Op::WriteBack),
        1 => (0..40_usize).prop_map(Op::Frames),
    ]
}

proptest! {
    #[test]
    fn zswap_obeys_a_map_of_pages(ops in prop::collection::vec(op(), 1..80)) {
        let mut m = Machine::new(SLOTS, 60);
        let mut model: BTreeMap<SwapEntry, Bytes> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Store(slot, page) => {
                    let page = page.bytes();
                    prop_assert_eq!(m.invalidate(slot), model.remove(&slot).is_some());
                    let (full, down) = (m.zswap.is_full(), m.zswap.can_accept());
                    let admission = m.zswap.admit();
                    prop_assert!(admission != Admission::Granted || !full);
                    prop_assert!(admission == Admission::Granted || !down);
                    if admission == Admission::Granted {
                        match m.store_page(slot, &page) {
                            Ok(()) => prop_assert_eq!(model.insert(slot, page), None),
                            Err(error) => prop_assert!(error == StoreError::Poor || m.left == 0),
                        }
                    }
                }
                Op::Invalidate(slot) => prop_assert_eq!(m.invalidate(slot), model.remove(&slot).is_some()),
                Op::WriteBack => {
                    let oldest = m.zswap.oldest(&m.ram);
                    for slot in oldest.into_iter().flatten().flatten() {
                        prop_assert_eq!(m.load_page(slot), model.remove(&slot));
                        prop_assert!(m.invalidate(slot), "the pool has nothing that nobody knows");
                    }
                }
                Op::Frames(frames) => m.left = frames,
            }
            m.audit();
            for (slot, page) in &model {
                let kept = m.load_page(*slot);
                prop_assert_eq!(kept.as_ref(), Some(page));
            }
            prop_assert_eq!(m.zswap.state().stored_pages, model.len() as u64);
        }
        for slot in model.keys() {
            m.invalidate(*slot);
        }
        prop_assert_eq!(m.frames(), 0);
    }
}
