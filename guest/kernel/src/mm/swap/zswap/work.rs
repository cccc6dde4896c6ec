//! Memory to compress and decompress in, allocated before it is needed (Linux: `zswap_dstmem`, `acomp_ctx`).
//!
//! Every CPU has its own: a page, what it is compressed to, and the compressor's table. That is 16 KiB, which no stack of the kernel has. It is taken
//! out of its place while somebody works with it, so that no lock is held meanwhile.

use alloc::vec::Vec;

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::ZBUD_MAX;
use mm_core::{PAGE_SIZE, Pfn};
use mm_swap::SwapEntry;
use mm_zswap::lz4::{TABLE_LEN, compress, decompress};
use mm_zswap::{Content, Loaded, fill, same_filled};

use crate::arch::percpu;
use crate::mm::kmap;
use crate::sync::Lock;
use crate::topology;

struct Memory {
    page: Vec<u8>,
    packed: Vec<u8>,
    table: Vec<u16>,
}

static MEMORY: [Lock<Option<Memory>>; MAX_CPUS] = [const { Lock::new(None) }; MAX_CPUS];

/// Allocates for every CPU; false without memory.
pub(super) fn init() -> bool {
    let cpus = topology::CPUS.lock().count;
    MEMORY.iter().take(cpus).all(|place| {
        let Some(memory) = Memory::new() else { return false };
        let old = place.lock().replace(memory);
        drop(old);
        true
    })
}

/// `None` without memory.
fn zeroes<T: Copy + Default>(len: usize) -> Option<Vec<T>> {
    let mut all = Vec::new();
    all.try_reserve_exact(len).ok()?;
    all.resize(len, T::default());
    Some(all)
}

impl Memory {
    fn new() -> Option<Memory> {
        let page = usize::try_from(PAGE_SIZE).ok()?;
        Some(Memory { page: zeroes(page)?, packed: zeroes(page)?, table: zeroes(TABLE_LEN)? })
    }
}

/// The memory of a CPU, which has it back when this goes.
pub(super) struct Work {
    place: &'static Lock<Option<Memory>>,
    memory: Option<Memory>,
}

impl Work {
    /// Takes this CPU's. Nobody sleeps with it, so it is there; an interrupt does not come here.
    pub fn take() -> Work {
        let cpu = usize::try_from(percpu::cpu()).unwrap_or(0);
        let place = &MEMORY[cpu];
        let memory = place.lock().take();
        assert!(memory.is_some(), "BUG: somebody sleeps with the memory of zswap of CPU {cpu}");
        Work { place, memory }
    }

    fn memory(&mut self) -> &mut Memory {
        self.memory.as_mut().expect("it is here until this goes")
    }

    /// What a page comes to; `None` if it is hardly less than the page.
    pub fn reduce(&mut self, pfn: Pfn, is_same_filled_told: bool) -> Option<Content<'_>> {
        let Memory { page, packed, table } = self.memory();
        kmap::copy_from_page(pfn, 0, page);
        if let Some(word) = same_filled(page).filter(|_| is_same_filled_told) {
            return Some(Content::SameFilled(word));
        }
        let most = usize::try_from(ZBUD_MAX).ok()?;
        let table = table.as_mut_slice().try_into().ok()?;
        let len = compress(page, packed.get_mut(..most)?, table)?;
        packed.get(..len).map(Content::Packed)
    }

    /// Where compressed bytes are put for [`Work::restore`].
    pub fn packed(&mut self) -> &mut [u8] {
        &mut self.memory().packed
    }

    /// Fills a frame with what a page was reduced to.
    pub fn restore(&mut self, loaded: Loaded, slot: SwapEntry, pfn: Pfn) {
        let Memory { page, packed, .. } = self.memory();
        match loaded {
            Loaded::SameFilled(word) => fill(page, word),
            Loaded::Packed(len) => {
                let restored = packed.get(..len).map(|packed| decompress(packed, page));
                // Linux: BUG_ON. The page is nowhere else.
                assert!(restored == Some(Ok(page.len())), "BUG: what zswap keeps of {slot} is damaged");
            }
        }
        kmap::copy_to_page(pfn, 0, page);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        *self.place.lock() = self.memory.take();
    }
}
