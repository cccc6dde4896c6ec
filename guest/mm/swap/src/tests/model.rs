//! Areas against a map from slots to users.

use std::collections::BTreeMap;

use mm_core::{PageFlags, Pfn};
use proptest::prelude::*;

use super::machine::{Machine, header};
use crate::{
    Put, SlotError, Swap, SwapEntry, add_to_swap_cache, delete_from_swap_cache, folio_alloc_swap,
    folio_swap_entry, swap_cache_get_folio, swap_duplicate, swap_free, swap_write_failed,
};

const FRAMES: u64 = 40;

#[derive(Clone, Debug)]
enum Op {
    Alloc(u64),
    Duplicate(usize),
    Free(usize),
    Read(usize, u64),
    Drop(u64, u64),
    WriteError(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (frame, slot) = (1..FRAMES, 0..64usize);
    prop_oneof![
        4 => frame.clone().prop_map(Op::Alloc),
        3 => slot.clone().prop_map(Op::Duplicate),
        4 => slot.clone().prop_map(Op::Free),
        2 => (slot.clone(), frame.clone()).prop_map(|(slot, frame)| Op::Read(slot, frame)),
        4 => (frame, 0..1u64 << 40).prop_map(|(frame, shadow)| Op::Drop(frame, shadow)),
        1 => slot.prop_map(Op::WriteError),
    ]
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct User {
    count: u64,
    cache: Option<u64>,
    shadow: u64,
    failed: bool,
}

#[derive(Default)]
struct Model {
    slots: BTreeMap<SwapEntry, User>,
    lost: Vec<SwapEntry>,
}

impl Model {
    /// The used slot at a place, or one that nobody uses.
    fn nth(&self, place: usize) -> SwapEntry {
        let free = SwapEntry::new(0, 5).expect("an entry");
        self.slots.keys().nth(place % (self.slots.len() + 1)).copied().unwrap_or(free)
    }

    fn settle(&mut self, entry: SwapEntry) -> Put {
        let user = self.slots[&entry];
        match user.cache {
            _ if user.count > 0 => Put::Named,
            Some(frame) => Put::Cached(Pfn::new(frame)),
            None => {
                self.slots.remove(&entry);
                if user.failed {
                    self.lost.push(entry);
                }
                Put::Last
            }
        }
    }
}

fn apply(m: &Machine, model: &mut Model, op: &Op) -> Result<(), TestCaseError> {
    match *op {
        Op::Alloc(frame) => {
            if m.descriptor(frame).has(PageFlags::SWAPCACHE) {
                return Ok(());
            }
            let good = 15 + 29 - model.lost.len();
            match folio_alloc_swap(m, Pfn::new(frame)) {
                None => prop_assert_eq!(model.slots.len(), good),
                Some(entry) => {
                    prop_assert!(!model.lost.contains(&entry));
                    let user = User { cache: Some(frame), ..User::default() };
                    prop_assert_eq!(model.slots.insert(entry, user), None);
                }
            }
        }
        Op::Duplicate(place) => {
            let entry = model.nth(place);
            let used = model.slots.get_mut(&entry).map(|user| user.count += 1);
            prop_assert_eq!(swap_duplicate(m, entry).is_ok(), used.is_some());
        }
        Op::Free(place) => {
            let entry = model.nth(place);
            let result = swap_free(m, entry);
            match model.slots.get_mut(&entry) {
                Some(user) if user.count > 0 => {
                    user.count -= 1;
                    if user.cache.is_none() && user.count == 0 {
                        user.shadow = 0;
                    }
                    prop_assert_eq!(result, Ok(model.settle(entry)));
                }
                Some(_) => prop_assert_eq!(result, Err(SlotError::NotNamed)),
                None => prop_assert!(result.is_err()),
            }
        }
        Op::Read(place, frame) => {
            if m.descriptor(frame).has(PageFlags::SWAPCACHE) {
                return Ok(());
            }
            let entry = model.nth(place);
            let result = add_to_swap_cache(m, entry, Pfn::new(frame));
            match model.slots.get_mut(&entry) {
                Some(user) if user.cache.is_none() => {
                    prop_assert_eq!(result, Ok(user.shadow));
                    *user = User { cache: Some(frame), shadow: 0, ..*user };
                }
                Some(_) => prop_assert_eq!(result, Err(SlotError::Cached)),
                None => prop_assert!(result.is_err()),
            }
        }
        Op::Drop(frame, shadow) => {
            let entry = folio_swap_entry(m.descriptor(frame));
            let result = delete_from_swap_cache(m, Pfn::new(frame), shadow);
            let Some(entry) = entry else {
                prop_assert_eq!(result, Err(SlotError::NotCached));
                return Ok(());
            };
            let user = model.slots.get_mut(&entry).expect("the model knows it");
            *user = User { cache: None, shadow, ..*user };
            prop_assert_eq!(result, Ok(model.settle(entry)));
        }
        Op::WriteError(place) => {
            let entry = model.nth(place);
            swap_write_failed(m, entry);
            if let Some(user) = model.slots.get_mut(&entry) {
                user.failed = true;
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn areas_obey_a_map_of_users(ops in prop::collection::vec(op(), 1..300)) {
        let m = Machine::new(40, &[(header(16, &[]), Some(3)), (header(32, &[7, 9]), Some(3))]);
        let mut model = Model::default();
        for op in &ops {
            apply(&m, &mut model, op)?;
            for area in 0..2 {
                prop_assert_eq!(crate::audit(&m, area), Ok(()));
                let used = model.slots.keys().filter(|entry| entry.area() == area).count() as u64;
                prop_assert_eq!(m.inuse(area), used);
            }
            let good = (15 + 29 - model.lost.len()) as u64;
            prop_assert_eq!(m.totals().total_swap_pages(), good);
            prop_assert_eq!(m.totals().nr_swap_pages(), good - model.slots.len() as u64);
        }
        for (entry, user) in &model.slots {
            let expected = match user.cache {
                Some(frame) => crate::Lookup::Page(Pfn::new(frame)),
                None => crate::Lookup::Slot(user.shadow),
            };
            prop_assert_eq!(swap_cache_get_folio(&m, *entry), expected);
        }
    }
}
