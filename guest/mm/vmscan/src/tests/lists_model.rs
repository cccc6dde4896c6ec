//! Pages are in one place whatever happens to them.

use memvisor_abi::LruKind;
use mm_core::{Gfp, Order, PageFlags, ZoneKind};
use proptest::prelude::*;

use super::machine::{Kind, Machine};
use crate::{lru_add_drain, set_unevictable, try_to_free_pages};

#[derive(Clone, Debug)]
enum Op {
    Touch(u64),
    Free(u64),
    Lock(u64, bool),
    Reclaim,
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (0..400u64).prop_map(Op::Touch),
        3 => (0..400u64).prop_map(Op::Free),
        2 => (0..400u64, any::<bool>()).prop_map(|(id, lock)| Op::Lock(id, lock)),
        1 => Just(Op::Reclaim),
        1 => Just(Op::Drain),
    ]
}

/// A page's kind never changes.
fn kind(id: u64) -> Kind {
    [Kind::Anon, Kind::Mapped, Kind::Cached, Kind::Code][usize::try_from(id % 4).expect("small")]
}

fn apply(m: &Machine, op: &Op) {
    match *op {
        Op::Touch(id) => m.touch_on(u32::from(id % 3 == 0), id, kind(id)),
        // What is in swap stays there, or its slot would be lost.
        Op::Free(id) => {
            if m.present(id..id + 1) == 1 {
                m.drop_page(id);
            }
        }
        Op::Lock(id, lock) => {
            if id < 40 && m.present(id..id + 1) == 1 {
                m.edit(id, |page| page.locked = lock);
                set_unevictable(m, m.frame(id), m.descriptor(m.frame(id)), lock);
            }
        }
        Op::Reclaim => {
            let zones = [(0, ZoneKind::Normal), (1, ZoneKind::Normal)];
            try_to_free_pages(m, &|| zones.into_iter(), (Gfp::KERNEL, Order::ZERO, ZoneKind::Normal));
        }
        Op::Drain => lru_add_drain(m),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_page_is_on_one_list_or_in_a_batch(
        ops in prop::collection::vec(op(), 1..600),
        generations in any::<bool>(),
    ) {
        let new = if generations { Machine::with_generations } else { Machine::new };
        let m = new(2, 128, 1000);
        for op in &ops {
            apply(&m, op);
            m.audit();
        }
        let is_marked = |id: &u64| m.descriptor(m.frame(*id)).has_any(PageFlags::LRU | PageFlags::LRU_ADD);
        let here: Vec<u64> = (0..400).filter(|id| m.present(*id..*id + 1) == 1).collect();
        prop_assert!(here.iter().all(is_marked));
        lru_add_drain(&m);
        m.audit();
        let listed: u64 = LruKind::ALL.map(|kind| m.list(kind)).iter().sum();
        prop_assert_eq!(listed, here.len() as u64);
        prop_assert_eq!(m.free_on(0) + m.free_on(1) + listed, 256);
    }
}
