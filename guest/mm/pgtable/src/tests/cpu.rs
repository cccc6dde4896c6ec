//! A CPU that caches as much as the SDM allows: every leaf and every table pointer that it ever
//! read, until it is told to drop them. Its walk is written apart from the one under test.

use std::collections::BTreeMap;

use mm_core::{Pfn, VirtAddr};

use super::mem::TestMem;
use crate::{FlushRange, PageTable, TableMem};

const PRESENT: u64 = 1;
const PSE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What the tables above grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    pub write: bool,
    pub user: bool,
    pub exec: bool,
}

impl Rights {
    fn and(self, raw: u64) -> Rights {
        Rights {
            write: self.write && raw & 2 != 0,
            user: self.user && raw & 4 != 0,
            exec: self.exec && raw >> 63 == 0,
        }
    }
}

/// A cached translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cached {
    pub start: u64,
    pub size: u64,
    pub phys: u64,
    pub rights: Rights,
    pub global: bool,
}

#[derive(Debug, Default)]
pub(super) struct Cpu {
    tlb: Vec<Cached>,
    /// Pointers to tables, by level of the table and address bits above it.
    tables: BTreeMap<(u32, u64), (Pfn, Rights)>,
}

use std::vec::Vec;

impl Cpu {
    /// Translates like the hardware, from caches where possible, and caches what it reads.
    pub(super) fn access(&mut self, mem: &TestMem, table: PageTable, va: VirtAddr) {
        let va = va.as_u64();
        if self.tlb.iter().any(|cached| va & !(cached.size - 1) == cached.start) {
            return;
        }
        let top = u32::from(table.levels.count());
        let (mut level, (mut pfn, mut rights)) = (1..top)
            .find_map(|level| Some((level, *self.tables.get(&(level, va >> (12 + 9 * level)))?)))
            .unwrap_or((top, (table.root, Rights { write: true, user: true, exec: true })));
        loop {
            let shift = 12 + 9 * (level - 1);
            let index = usize::try_from(va >> shift & 511).unwrap();
            let raw = mem.read(pfn, index);
            if raw & PRESENT == 0 {
                return;
            }
            rights = rights.and(raw);
            if level == 1 || raw & PSE != 0 {
                let size = 1 << shift;
                let phys = raw & FRAME & !(size - 1);
                let global = raw & 1 << 8 != 0;
                self.tlb.push(Cached { start: va & !(size - 1), size, phys, rights, global });
                return;
            }
            level -= 1;
            pfn = Pfn::new((raw & FRAME) >> 12);
            self.tables.insert((level, va >> (12 + 9 * level)), (pfn, rights));
        }
    }

    /// Does what a kernel does with a flush.
    pub(super) fn flush(&mut self, range: FlushRange) {
        self.tables.clear();
        match range {
            FlushRange::Pages(pages) => {
                for page in pages.as_slice() {
                    self.invlpg(page.as_u64());
                }
            }
            FlushRange::Range { start, last, stride } => {
                let steps = (last.as_u64() - start.as_u64()) / stride;
                for step in 0..=steps {
                    self.invlpg(start.as_u64() + step * stride);
                }
            }
            FlushRange::All { global } => self.tlb.retain(|cached| cached.global && !global),
        }
    }

    fn invlpg(&mut self, va: u64) {
        self.tlb.retain(|cached| va & !(cached.size - 1) != cached.start);
    }

    pub(super) fn cached(&self) -> &[Cached] {
        &self.tlb
    }

    /// Panics if a cached pointer leads to a frame that is not a table any more.
    pub(super) fn assert_tables_live(&self, mem: &TestMem) {
        for (pfn, _) in self.tables.values() {
            mem.read(*pfn, 0);
        }
    }
}
