//! What is kept, for whom, and how much of it (Linux: mm/zswap.c).

use memvisor_abi as abi;
use memvisor_abi::{MAX_SWAPFILES, TableRef, ZBUD_MAX, ZswapEntry};
use mm_core::{PAGE_SHIFT, Pfn, PhysAddr, PhysMem};
use mm_swap::SwapEntry;

use crate::spare::Spare;
use crate::tree;
use crate::zbud::{self, Zbud};

/// Memory that bytes can be copied to and from.
pub trait PoolMem: PhysMem {
    /// Writes bytes within a frame.
    fn write_bytes(&self, addr: PhysAddr, bytes: &[u8]);

    /// Reads bytes within a frame.
    fn read_bytes(&self, addr: PhysAddr, bytes: &mut [u8]);
}

/// What a page is reduced to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// This word throughout.
    SameFilled(u64),
    /// Compressed.
    Packed(&'a [u8]),
}

/// What there is of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// This word throughout.
    SameFilled(u64),
    /// So many bytes, compressed, which are in the caller's buffer.
    Packed(usize),
}

/// Whether a page may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Granted,
    /// The pool is full, and has to be made smaller.
    Full,
    /// It was full and has not come down far enough.
    NotYet,
}

/// Why a page is not stored. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// So many frames are needed, and more than were given.
    Lacks(Lacking),
    /// Compressed it has more bytes than a frame takes.
    Poor,
    /// Nothing is kept of its area.
    NoArea,
}

/// What a store needs frames for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// One for the pool.
    pub pool: bool,
    /// One for entries.
    pub leaf: bool,
}

/// What is set at boot (Linux: the parameters of the module zswap).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// See [`abi::Zswap::max_pool_percent`].
    pub max_pool_percent: u32,
    /// See [`abi::Zswap::accept_threshold_percent`].
    pub accept_threshold_percent: u32,
    /// See [`abi::Zswap::same_filled_pages_enabled`].
    pub same_filled_pages: bool,
    /// See [`abi::Zswap::totalram_pages`].
    pub totalram_pages: u64,
}

/// Frames that are nobody's any more: the caller frees them.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed(pub [Option<Pfn>; 2]);

/// All of it, behind one lock.
#[derive(Debug)]
#[repr(transparent)]
pub struct Zswap(abi::Zswap);

impl Default for Zswap {
    fn default() -> Zswap {
        Zswap::new()
    }
}

impl Zswap {
    /// One that is off.
    pub const fn new() -> Zswap {
        Zswap(abi::Zswap {
            enabled: 0,
            same_filled_pages_enabled: 0,
            max_pool_percent: 0,
            accept_threshold_percent: 0,
            reached_full: 0,
            reserved: 0,
            totalram_pages: 0,
            stored_pages: 0,
            same_filled_pages: 0,
            leaf_pages: 0,
            pool_limit_hit: 0,
            written_back_pages: 0,
            reject_reclaim_fail: 0,
            reject_alloc_fail: 0,
            reject_kmemcache_fail: 0,
            reject_compress_poor: 0,
            duplicate_entry: 0,
            pool: zbud::EMPTY,
            trees: [TableRef { gpa: 0, count: 0, stride: 0 }; MAX_SWAPFILES],
        })
    }

    /// What is published.
    pub const fn state(&self) -> &abi::Zswap {
        &self.0
    }

    /// Pages are taken from now on.
    pub fn enable(&mut self, parameters: Parameters) {
        self.0.enabled = 1;
        self.0.max_pool_percent = parameters.max_pool_percent;
        self.0.accept_threshold_percent = parameters.accept_threshold_percent;
        self.0.same_filled_pages_enabled = u32::from(parameters.same_filled_pages);
        self.0.totalram_pages = parameters.totalram_pages;
    }

    /// Pages of an area are taken from now on; `words` are [`tree::words_for`] its slots, all 0 (Linux: `zswap_frontswap_init`).
    pub fn add_area(&mut self, area: u32, words: PhysAddr, count: u64) {
        let place = usize::try_from(area).ok().and_then(|area| self.0.trees.get_mut(area));
        if let (Some(tree), Ok(count)) = (place, u32::try_from(count)) {
            *tree = TableRef { gpa: words.as_u64(), count, stride: 8 };
        }
    }

    /// An area of which no slot is in use goes; its words, which the caller frees (Linux: `zswap_frontswap_invalidate_area`).
    pub fn remove_area(&mut self, area: u32) -> Option<TableRef> {
        let tree = self.0.trees.get_mut(usize::try_from(area).ok()?)?;
        Some(core::mem::take(tree)).filter(|gone| gone.count > 0)
    }

    /// Most frames that the pool may have before a page is refused.
    fn max_pool_pages(&self) -> u64 {
        self.0.totalram_pages * u64::from(self.0.max_pool_percent) / 100
    }

    /// Whether the pool is over its limit (Linux: `zswap_is_full`).
    pub fn is_full(&self) -> bool {
        self.max_pool_pages() < self.0.pool.pages
    }

    /// Whether it has come down far enough (Linux: `zswap_can_accept`).
    pub fn can_accept(&self) -> bool {
        let most = u64::from(self.0.accept_threshold_percent) * self.max_pool_pages() / 100;
        self.0.pool.pages < most
    }

    /// Whether a page may come; counts if not.
    pub fn admit(&mut self) -> Admission {
        if self.is_full() {
            self.0.pool_limit_hit += 1;
            self.0.reached_full = 1;
            return Admission::Full;
        }
        if self.0.reached_full != 0 && !self.can_accept() {
            return Admission::NotYet;
        }
        self.0.reached_full = 0;
        Admission::Granted
    }

    /// Keeps a page for a slot that has none kept (Linux: the end of `zswap_frontswap_store`).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn store<M: PoolMem>(
        &mut self,
        m: &M,
        slot: SwapEntry,
        content: Content<'_>,
        spare: &mut Spare,
    ) -> Result<(), StoreError> {
        debug_assert!(!tree::get(m, &self.0.trees, slot).is_present(), "{slot} was invalidated before");
        let leaf = tree::is_leaf_needed(m, &self.0.trees, slot).ok_or(StoreError::NoArea)?;
        let mut zbud = Zbud { m, pool: &mut self.0.pool };
        let pool = match content {
            Content::SameFilled(_) => false,
            Content::Packed(bytes) if bytes.len() as u64 > ZBUD_MAX => return Err(StoreError::Poor),
            Content::Packed(bytes) => zbud.is_frame_needed(bytes.len() as u64),
        };
        let lacks = StoreError::Lacks(Lacking { pool, leaf });
        if usize::from(leaf) + usize::from(pool) > spare.count() {
            return Err(lacks);
        }
        let entry = match content {
            Content::SameFilled(value) => {
                ZswapEntry { place: ZswapEntry::PRESENT | ZswapEntry::SAME_FILLED, value }
            }
            Content::Packed(bytes) => {
                let len = bytes.len() as u64;
                let at = zbud.alloc(len, slot.as_value(), spare).ok_or(lacks)?;
                m.write_bytes(at, bytes);
                let place = at.as_u64() | len << ZswapEntry::LEN_SHIFT | ZswapEntry::PRESENT;
                ZswapEntry { place, value: 0 }
            }
        };
        let is_new = tree::insert(m, &self.0.trees, slot, entry, spare).ok_or(lacks)?;
        self.0.leaf_pages += u64::from(is_new);
        self.0.stored_pages += 1;
        self.0.same_filled_pages += u64::from(entry.is_same_filled());
        Ok(())
    }

    /// What is kept of a slot's page; its compressed bytes come into `packed`, which has room for [`ZBUD_MAX`].
    pub fn load<M: PoolMem>(&self, m: &M, slot: SwapEntry, packed: &mut [u8]) -> Option<Loaded> {
        let entry = tree::get(m, &self.0.trees, slot);
        if !entry.is_present() {
            return None;
        }
        if entry.is_same_filled() {
            return Some(Loaded::SameFilled(entry.value));
        }
        let len = usize::try_from(entry.len_bytes()).ok()?;
        m.read_bytes(PhysAddr::new(entry.gpa()), packed.get_mut(..len)?);
        Some(Loaded::Packed(len))
    }

    /// Nothing is kept for a slot any more; `None` if nothing was (Linux: `zswap_frontswap_invalidate_page`).
    pub fn invalidate<M: PhysMem>(&mut self, m: &M, slot: SwapEntry) -> Option<Freed> {
        let entry = tree::get(m, &self.0.trees, slot);
        if !entry.is_present() {
            return None;
        }
        let leaf = tree::remove(m, &self.0.trees, slot);
        self.0.leaf_pages -= u64::from(leaf.is_some());
        self.0.stored_pages -= 1;
        if entry.is_same_filled() {
            self.0.same_filled_pages -= 1;
            return Some(Freed([leaf, None]));
        }
        let frame = Zbud { m, pool: &mut self.0.pool }.free(PhysAddr::new(entry.gpa()));
        Some(Freed([leaf, frame]))
    }

    /// The slots of the frame of the pool that is to be emptied first, which comes last from now on; `None` of an empty pool.
    pub fn oldest<M: PhysMem>(&mut self, m: &M) -> Option<[Option<SwapEntry>; 2]> {
        let slots = Zbud { m, pool: &mut self.0.pool }.oldest()?;
        Some(slots.map(|slot| slot.and_then(SwapEntry::of_value)))
    }

    /// What happened to a page or to the pool, for those who look.
    pub fn count(&mut self, what: Count) {
        *match what {
            Count::WrittenBack => &mut self.0.written_back_pages,
            Count::ReclaimFail => &mut self.0.reject_reclaim_fail,
            Count::AllocFail => &mut self.0.reject_alloc_fail,
            Count::KmemcacheFail => &mut self.0.reject_kmemcache_fail,
            Count::CompressPoor => &mut self.0.reject_compress_poor,
            Count::Duplicate => &mut self.0.duplicate_entry,
        } += 1;
    }

    /// Bytes of the pool (Linux: `zswap_pool_total_size`).
    pub const fn pool_total_size(&self) -> u64 {
        self.0.pool.pages << PAGE_SHIFT
    }
}

/// What is counted; the field of [`abi::Zswap`] says what of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// `written_back_pages`.
    WrittenBack,
    /// `reject_reclaim_fail`.
    ReclaimFail,
    /// `reject_alloc_fail`.
    AllocFail,
    /// `reject_kmemcache_fail`.
    KmemcacheFail,
    /// `reject_compress_poor`.
    CompressPoor,
    /// `duplicate_entry`.
    Duplicate,
}

/// The word that all of a page is filled with, if it is (Linux: `zswap_is_page_same_filled`).
pub fn same_filled(page: &[u8]) -> Option<u64> {
    let (words, _) = page.as_chunks::<8>();
    let (first, rest) = words.split_first()?;
    // Most pages that differ do so at the end.
    let is_same = rest.last() == Some(first) && rest.iter().all(|word| word == first);
    is_same.then(|| u64::from_le_bytes(*first))
}

/// Fills a page with a word.
pub fn fill(page: &mut [u8], word: u64) {
    for place in page.as_chunks_mut::<8>().0 {
        *place = word.to_le_bytes();
    }
}
