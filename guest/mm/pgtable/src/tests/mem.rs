//! Tables on the host.

use core::cell::Cell;
use std::boxed::Box;
use std::vec::Vec;

use mm_core::Pfn;

use crate::{TABLE_ENTRIES, TableMem};

type Table = Box<[Cell<u64>; TABLE_ENTRIES]>;

/// Frame number of the first table; large, so that links need all of their bits.
const FIRST: u64 = 0xab_cdef_0000;

/// Refuses access to frames that are free, and takes back only what is zero. A freed frame is
/// the next to be handed out.
#[derive(Debug, Default)]
pub(super) struct TestMem {
    frames: Vec<Option<Table>>,
    free: Vec<usize>,
    /// Tables that may still be allocated; `None` for any number.
    pub budget: Option<usize>,
    pub writes: Cell<u64>,
}

impl TestMem {
    pub(super) fn live(&self) -> usize {
        self.frames.len() - self.free.len()
    }

    pub(super) fn is_zero(&self, table: Pfn) -> bool {
        self.table(table).iter().all(|entry| entry.get() == 0)
    }

    fn number(table: Pfn) -> usize {
        usize::try_from(table.as_u64() - FIRST).unwrap()
    }

    fn table(&self, table: Pfn) -> &Table {
        self.frames[Self::number(table)].as_ref().unwrap_or_else(|| panic!("{table} is not a table"))
    }
}

impl TableMem for TestMem {
    fn read(&self, table: Pfn, index: usize) -> u64 {
        self.table(table)[index].get()
    }

    fn write(&self, table: Pfn, index: usize, value: u64) {
        self.writes.set(self.writes.get() + 1);
        self.table(table)[index].set(value);
    }

    fn alloc_table(&mut self) -> Option<Pfn> {
        match &mut self.budget {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => {}
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.frames.push(None);
            self.frames.len() - 1
        });
        self.frames[number] = Some(Box::new([const { Cell::new(0) }; TABLE_ENTRIES]));
        Some(Pfn::new(FIRST + number as u64))
    }

    fn free_table(&mut self, table: Pfn) {
        assert!(self.is_zero(table), "{table} was freed with entries in it");
        self.frames[Self::number(table)] = None;
        self.free.push(Self::number(table));
    }
}
