//! The word of a slot, and every way it changes (Linux: `__swap_duplicate`, `__swap_entry_free_locked`, `swapcache_prepare`).
//!
//! ```text
//!            allocate             duplicate / put              drop_cache
//! free  ──────────────▶ cached ──────────────────▶ named+cached ──────────▶ named ──┐
//!   ▲                     │ drop_cache                                         put  │
//!   └──── finish_free ── freeing ◀──────────────────────────────────────────────────┘
//! ```
//!
//! Each arrow is one exchange of the word. Who makes the last name or the cache entry go sees [`Put::Last`], and nobody else does:
//! that one gives the slot back under the area's lock. So nobody finds a slot free that its cluster still counts.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire};

use memvisor_abi::swap_slot as bits;
use mm_core::Pfn;

/// An atomic word; the same lines run on it and in a model checker.
pub trait Word {
    /// The word; what was written before it was stored is seen.
    fn load(&self) -> u64;

    /// Replaces `current`.
    ///
    /// # Errors
    /// The word found.
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64>;
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self) -> u64 {
        self.load(Acquire)
    }

    #[inline]
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        self.compare_exchange(current, new, AcqRel, Acquire)
    }
}

/// What a word says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot(u64);

/// Why a slot cannot be changed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// It is free, or about to be (Linux: `-ENOENT`).
    Free,
    /// It is bad, or there is no such slot (Linux: `-EINVAL`).
    Bad,
    /// As many name it as can be counted (Linux: `-ENOMEM`).
    Overflow,
    /// It has a page in memory already (Linux: `-EEXIST`).
    Cached,
    /// It has no page in memory, or another.
    NotCached,
    /// Nobody names it.
    NotNamed,
}

/// What became of a slot that one who used it let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Others still name it.
    Named,
    /// Nobody names it, but its page is in memory.
    Cached(Pfn),
    /// Nobody uses it: the caller gives it back.
    Last,
}

const FLAGS: u64 = bits::HAS_CACHE | bits::BAD | bits::FREEING | bits::WRITE_ERROR;

impl Slot {
    /// Free.
    pub const FREE: Slot = Slot(0);
    /// Never given out.
    pub const BAD: Slot = Slot(bits::BAD);

    /// What the word says.
    pub fn of(word: &impl Word) -> Slot {
        Slot(word.load())
    }

    /// The word.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Who names it (Linux: `swap_count`).
    pub const fn count(self) -> u64 {
        self.0 & bits::COUNT
    }

    /// The frame that has its page too.
    pub const fn cache(self) -> Option<Pfn> {
        if self.0 & bits::HAS_CACHE != 0 { Some(Pfn::new(self.0 >> bits::VALUE_SHIFT)) } else { None }
    }

    /// What is remembered of the eviction of its page; 0 for nothing (Linux: `get_shadow_from_swap_cache`).
    pub const fn shadow(self) -> u64 {
        if self.0 & FLAGS & !bits::WRITE_ERROR == 0 { self.0 >> bits::VALUE_SHIFT } else { 0 }
    }

    /// Whether it may be given out.
    pub const fn is_free(self) -> bool {
        self.0 == 0
    }

    /// Whether it is never given out.
    pub const fn is_bad(self) -> bool {
        self.0 & bits::BAD != 0
    }

    /// Whether somebody is about to give it back.
    pub const fn is_freeing(self) -> bool {
        self.0 & bits::FREEING != 0
    }

    /// Whether a write to it failed.
    pub const fn has_write_error(self) -> bool {
        self.0 & bits::WRITE_ERROR != 0
    }

    const fn is_used(self) -> bool {
        self.count() > 0 || self.0 & bits::HAS_CACHE != 0
    }

    const fn with_value(self, flags: u64, value: u64) -> Slot {
        Slot(self.0 & (bits::COUNT | bits::WRITE_ERROR) | flags | value << bits::VALUE_SHIFT)
    }

    /// The slot after one who used it has gone, and what that means.
    const fn settled(self) -> (Slot, Put) {
        match self.cache() {
            _ if self.count() > 0 => (self, Put::Named),
            Some(pfn) => (self, Put::Cached(pfn)),
            None => (Slot(self.0 & bits::WRITE_ERROR | bits::FREEING), Put::Last),
        }
    }

    fn check(self) -> Result<(), SlotError> {
        match self {
            _ if self.is_bad() => Err(SlotError::Bad),
            _ if !self.is_used() => Err(SlotError::Free),
            _ => Ok(()),
        }
    }
}

/// Replaces what `word` says by what `f` makes of it.
fn update<W: Word, T>(word: &W, f: impl Fn(Slot) -> Result<(Slot, T), SlotError>) -> Result<T, SlotError> {
    let mut seen = word.load();
    loop {
        let (new, result) = f(Slot(seen))?;
        if new.0 == seen {
            return Ok(result);
        }
        match word.compare_exchange(seen, new.0) {
            Ok(_) => return Ok(result),
            Err(now) => seen = now,
        }
    }
}

/// A free slot becomes that of the page in `pfn`; the area's lock is held.
pub(crate) fn allocate<W: Word>(word: &W, pfn: Pfn) -> bool {
    word.compare_exchange(0, Slot::FREE.with_value(bits::HAS_CACHE, pfn.as_u64()).0).is_ok()
}

/// One more names it.
pub(crate) fn duplicate<W: Word>(word: &W) -> Result<(), SlotError> {
    update(word, |slot| {
        slot.check()?;
        if slot.count() == bits::COUNT {
            return Err(SlotError::Overflow);
        }
        Ok((Slot(slot.0 + 1), ()))
    })
}

/// One fewer names it.
pub(crate) fn put<W: Word>(word: &W) -> Result<Put, SlotError> {
    update(word, |slot| {
        slot.check()?;
        if slot.count() == 0 {
            return Err(SlotError::NotNamed);
        }
        Ok(Slot(slot.0 - 1).settled())
    })
}

/// Its page is in `pfn` from now on; what was remembered of the eviction.
pub(crate) fn add_cache<W: Word>(word: &W, pfn: Pfn) -> Result<u64, SlotError> {
    update(word, |slot| {
        slot.check()?;
        if slot.cache().is_some() {
            return Err(SlotError::Cached);
        }
        Ok((slot.with_value(bits::HAS_CACHE, pfn.as_u64()), slot.shadow()))
    })
}

/// Its page is no longer in `pfn`; `shadow` stays if somebody names it.
pub(crate) fn drop_cache<W: Word>(word: &W, pfn: Pfn, shadow: u64) -> Result<Put, SlotError> {
    update(word, |slot| {
        slot.check()?;
        if slot.cache() != Some(pfn) {
            return Err(SlotError::NotCached);
        }
        Ok(slot.with_value(0, shadow).settled())
    })
}

/// Its page went from `from` to `to`.
pub(crate) fn move_cache<W: Word>(word: &W, from: Pfn, to: Pfn) -> Result<(), SlotError> {
    update(word, |slot| {
        if slot.cache() != Some(from) {
            return Err(SlotError::NotCached);
        }
        Ok((slot.with_value(bits::HAS_CACHE, to.as_u64()), ()))
    })
}

/// A write to it failed: it will be bad once nobody uses it.
pub(crate) fn set_write_error<W: Word>(word: &W) -> Result<(), SlotError> {
    update(word, |slot| {
        slot.check()?;
        Ok((Slot(slot.0 | bits::WRITE_ERROR), ()))
    })
}

/// What [`Put::Last`] left becomes free, or bad; whether it may be given out again. The area's lock is held.
pub(crate) fn finish_free<W: Word>(word: &W) -> Result<bool, SlotError> {
    update(word, |slot| match slot {
        _ if !slot.is_freeing() => Err(SlotError::Bad),
        _ if slot.has_write_error() => Ok((Slot::BAD, false)),
        _ => Ok((Slot::FREE, true)),
    })
}

/// A slot of a new area, which nobody else sees yet, is free or bad.
pub(crate) fn init<W: Word>(word: &W, bad: bool) {
    let new = if bad { Slot::BAD } else { Slot::FREE };
    // Nobody changes it meanwhile, so one exchange with what is there does it.
    let _ = word.compare_exchange(word.load(), new.0);
}
