//! Frames in ordinary memory, given out and taken back.

use std::cell::RefCell;
use std::collections::HashMap;

use memvisor_abi::ZBUD_MAX;
use mm_core::{PAGE_SIZE, Pfn, PhysAddr, PhysMem};
use mm_swap::SwapEntry;

use crate::{
    Content, Freed, Lacking, Loaded, Parameters, PoolMem, Spare, StoreError, Zswap, audit, fill, lz4,
    words_for,
};

pub(super) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);
/// Where the words of areas are: a frame each.
const WORDS: u64 = 0x10_0000;
/// The frames that are given out.
const FIRST: u64 = 0x1000;

pub(super) type Bytes = Vec<u8>;

/// RAM that knows only frames that were given out.
#[derive(Default)]
pub(super) struct Ram {
    frames: RefCell<HashMap<u64, Vec<u8>>>,
}

impl Ram {
    fn with<R>(&self, addr: PhysAddr, f: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut frames = self.frames.borrow_mut();
        let frame = frames.get_mut(&addr.pfn().as_u64()).expect("a frame that was given out");
        f(&mut frame[usize::try_from(addr.page_offset()).expect("below a page")..])
    }

    fn give(&self, pfn: u64) {
        let old = self.frames.borrow_mut().insert(pfn, vec![0xa5; PAGE]);
        assert!(old.is_none(), "frame {pfn:#x} is given out twice");
    }

    fn take_back(&self, pfn: Pfn) {
        let had = self.frames.borrow_mut().remove(&pfn.as_u64());
        assert!(had.is_some(), "frame {pfn} comes back twice");
    }
}

impl PhysMem for Ram {
    fn read_u64(&self, addr: PhysAddr) -> u64 {
        self.with(addr, |bytes| u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")))
    }

    fn write_u64(&self, addr: PhysAddr, value: u64) {
        self.with(addr, |bytes| bytes[..8].copy_from_slice(&value.to_le_bytes()));
    }

    fn zero_frame(&self, pfn: Pfn) {
        self.with(pfn.phys(), |bytes| bytes.fill(0));
    }
}

impl PoolMem for Ram {
    fn write_bytes(&self, addr: PhysAddr, from: &[u8]) {
        self.with(addr, |bytes| bytes[..from.len()].copy_from_slice(from));
    }

    fn read_bytes(&self, addr: PhysAddr, to: &mut [u8]) {
        self.with(addr, |bytes| to.copy_from_slice(&bytes[..to.len()]));
    }
}

pub(super) struct Machine {
    pub ram: Ram,
    pub zswap: Zswap,
    next: u64,
    /// Frames that can still be given out.
    pub left: usize,
}

pub(super) fn slot(area: u32, offset: u64) -> SwapEntry {
    SwapEntry::new(area, offset).expect("a slot")
}

impl Machine {
    /// Two areas of so many slots, and a pool of a fifth of so many pages.
    pub fn new(slots: u64, totalram_pages: u64) -> Machine {
        let mut m = Machine { ram: Ram::default(), zswap: Zswap::new(), next: FIRST, left: usize::MAX };
        m.zswap.enable(Parameters {
            max_pool_percent: 20,
            accept_threshold_percent: 90,
            same_filled_pages: true,
            totalram_pages,
        });
        for area in 0..2 {
            let frame = Pfn::new(WORDS + u64::from(area));
            m.ram.give(frame.as_u64());
            m.ram.zero_frame(frame);
            m.zswap.add_area(area, frame.phys(), words_for(slots));
        }
        m
    }

    fn free(&self, freed: Freed) {
        freed.0.into_iter().flatten().for_each(|frame| self.ram.take_back(frame));
    }

    /// Stores bytes as they are, with as many frames as that needs.
    pub fn store(&mut self, slot: SwapEntry, content: Content<'_>) -> Result<(), StoreError> {
        let mut spare = Spare::new();
        let stored = loop {
            match self.zswap.store(&self.ram, slot, content, &mut spare) {
                Err(StoreError::Lacks(Lacking { pool, leaf })) if self.left > 0 => {
                    assert!(usize::from(pool) + usize::from(leaf) > spare.count(), "it has what it lacks");
                    self.left -= 1;
                    self.ram.give(self.next);
                    spare.add(Pfn::new(self.next)).expect("room for what it lacks");
                    self.next += 1;
                }
                other => break other,
            }
        };
        while let Some(frame) = spare.take() {
            assert!(stored.is_err(), "no more is asked for than used");
            self.ram.take_back(frame);
        }
        stored
    }

    /// Stores a page as a kernel would.
    pub fn store_page(&mut self, slot: SwapEntry, page: &[u8]) -> Result<(), StoreError> {
        if let Some(word) = crate::same_filled(page) {
            return self.store(slot, Content::SameFilled(word));
        }
        let mut packed = vec![0; usize::try_from(ZBUD_MAX).expect("below a page")];
        match lz4::compress(page, &mut packed, &mut [0; lz4::TABLE_LEN]) {
            Some(len) => self.store(slot, Content::Packed(&packed[..len])),
            None => Err(StoreError::Poor),
        }
    }

    pub fn load_page(&self, slot: SwapEntry) -> Option<Bytes> {
        let (mut packed, mut page) = (vec![0; PAGE], vec![0; PAGE]);
        match self.zswap.load(&self.ram, slot, &mut packed)? {
            Loaded::SameFilled(word) => fill(&mut page, word),
            Loaded::Packed(len) => {
                assert_eq!(lz4::decompress(&packed[..len], &mut page), Ok(PAGE));
            }
        }
        Some(page)
    }

    pub fn invalidate(&mut self, slot: SwapEntry) -> bool {
        let freed = self.zswap.invalidate(&self.ram, slot);
        freed.map(|freed| self.free(freed)).is_some()
    }

    /// Frames that are out, those of words apart.
    pub fn frames(&self) -> usize {
        self.ram.frames.borrow().len() - 2
    }

    pub fn audit(&self) {
        assert_eq!(audit(&self.ram, &self.zswap), Ok(()));
        let state = self.zswap.state();
        assert_eq!(self.frames() as u64, state.pool.pages + state.leaf_pages, "no frame is lost");
    }
}
