//! Descriptor tables against a map.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use proptest::prelude::*;

use crate::{Errno, FdTable};

const LIMIT: u64 = 12;

#[derive(Clone, Debug)]
enum Op {
    Insert(bool, u32),
    Remove(u32),
    Dup(u32, u32),
    DupTo(u32, u32),
    Exec,
    Fork,
}

fn op() -> impl Strategy<Value = Op> {
    let fd = || 0..15_u32;
    prop_oneof![
        3 => (any::<bool>(), fd()).prop_map(|(cloexec, from)| Op::Insert(cloexec, from % 4)),
        2 => fd().prop_map(Op::Remove),
        1 => (fd(), fd()).prop_map(|(fd, from)| Op::Dup(fd, from)),
        1 => (fd(), fd()).prop_map(|(from, to)| Op::DupTo(from, to)),
        1 => Just(Op::Exec),
        1 => Just(Op::Fork),
    ]
}

proptest! {
    #[test]
    fn a_table_is_a_map_with_the_lowest_free_number(ops in prop::collection::vec(op(), 1..60)) {
        let mut table: FdTable<Rc<usize>> = FdTable::new();
        let mut model: BTreeMap<u32, (usize, bool)> = BTreeMap::new();
        for (number, op) in ops.into_iter().enumerate() {
            let lowest = |model: &BTreeMap<u32, (usize, bool)>, from: u32| {
                (from..).find(|fd| !model.contains_key(fd)).filter(|fd| u64::from(*fd) < LIMIT)
            };
            match op {
                Op::Insert(cloexec, from) => {
                    let got = table.insert(Rc::new(number), cloexec, from, LIMIT).map_err(|(error, _)| error);
                    let fd = lowest(&model, from);
                    prop_assert_eq!(got, fd.ok_or(Errno::Emfile));
                    fd.map(|fd| model.insert(fd, (number, cloexec)));
                }
                Op::Remove(fd) => {
                    let got = table.remove(fd).map(|file| *file);
                    prop_assert_eq!(got, model.remove(&fd).map(|(file, _)| file).ok_or(Errno::Ebadf));
                }
                Op::Dup(fd, from) => {
                    let got = table.dup(fd, from, true, LIMIT);
                    let want = match model.get(&fd) {
                        None => Err(Errno::Ebadf),
                        Some(_) if u64::from(from) >= LIMIT => Err(Errno::Einval),
                        Some(_) => lowest(&model, from).ok_or(Errno::Emfile),
                    };
                    prop_assert_eq!(got, want);
                    if let (Ok(new), Some((file, _))) = (want, model.get(&fd).copied()) {
                        model.insert(new, (file, true));
                    }
                }
                Op::DupTo(from, to) if from != to => {
                    let got = table.dup_to(from, to, false, LIMIT).map(|old| old.map(|file| *file));
                    let want = match model.get(&from).copied() {
                        _ if u64::from(to) >= LIMIT => Err(Errno::Ebadf),
                        None => Err(Errno::Ebadf),
                        Some((file, _)) => Ok(model.insert(to, (file, false)).map(|(old, _)| old)),
                    };
                    prop_assert_eq!(got, want);
                }
                Op::DupTo(..) => {}
                Op::Exec => {
                    while table.take_if(0, u32::MAX, |fd| fd.cloexec).is_some() {}
                    model.retain(|_, (_, cloexec)| !*cloexec);
                }
                Op::Fork => table = table.try_clone().expect("memory"),
            }
            let mut all = Vec::new();
            let mut from = 0;
            while let Some((fd, slot)) = table.next(from) {
                all.push((fd, (*slot.file, slot.cloexec)));
                from = fd + 1;
            }
            prop_assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_closed_file_is_dropped_with_its_last_descriptor() {
    let mut table = FdTable::new();
    let file = Rc::new(());
    assert_eq!(table.insert(file.clone(), false, 0, LIMIT), Ok(0));
    assert_eq!(table.dup(0, 0, false, LIMIT), Ok(1));
    let copy = table.try_clone().expect("memory");
    assert_eq!(Rc::strong_count(&file), 5);
    drop(copy);
    drop(table.remove(0));
    assert_eq!(Rc::strong_count(&file), 2);
}
