//! Who owns a SLUB slab, and what others freed in it: `private` of its head, the one word of a slab that several CPUs change at
//! once without a common lock.
//!
//! The owner is a CPU, which alone changes the slab's list and counters; or the list lock of its node; or, of a full slab, nobody.
//!
//! O1  a full slab becomes that of exactly one of the CPUs that free into it;
//! O2  an object that another CPU frees is gathered once and collected once;
//! O3  a slab changes hands only while nothing is gathered in it, and whoever gave it away touches it no more, unless he holds
//!     the lock and gave it to the node;
//! O4  a new owner sees all that the one before did, and what it collects with its links.
//!
//! The transitions are generic over the word so that the same lines run on [`Page`] and in a model checker.

use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};

use memvisor_abi::{CacheCpu, SLAB_FULL, SLAB_OWNER_SHIFT};
use mm_core::Page;

/// Bits of the word that hold the first object that others freed.
const FREED: u64 = (1 << SLAB_OWNER_SHIFT) - 1;

/// The atomic word of a slab.
pub(crate) trait Word {
    /// The value.
    fn load(&self, order: Ordering) -> u64;
    /// Sets the value.
    fn store(&self, value: u64, order: Ordering);
    /// Sets the value and returns the one before.
    fn swap(&self, value: u64, order: Ordering) -> u64;
    /// Replaces `current`; the value found otherwise.
    ///
    /// # Errors
    /// The value found.
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64>;
}

impl Word for Page {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.private_word().load(order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.private_word().store(value, order);
    }

    #[inline]
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.private_word().swap(value, order)
    }

    #[inline]
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.private_word().compare_exchange(current, new, success, failure)
    }
}

/// Where an object that a CPU frees has to go, or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// On the list of the slab, which is the CPU's.
    Own,
    /// On the list of the slab, which was full and is the CPU's from now on.
    Adopted,
    /// On the list of the slab, which is the list lock's.
    Node,
    /// It was added to what others freed in the owner's slab.
    Gathered,
    /// Nowhere: it is the last that others freed, so it is free already.
    Twice,
}

/// Who owns a SLUB slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(u64);

impl Owner {
    /// The list lock of its node: a slab on the node's list.
    pub(crate) const NODE: Owner = Owner(0);
    /// Nobody, because it is full.
    pub(crate) const FULL: Owner = Owner(SLAB_FULL);

    #[inline]
    pub(crate) fn of(cpu: u32) -> Owner {
        Owner(u64::from(cpu) + 1)
    }

    /// The CPU whose part of a cache this is.
    #[inline]
    pub(crate) fn in_cpu(cpu: &CacheCpu) -> Owner {
        Owner(cpu.owner.into())
    }

    #[inline]
    pub(crate) fn in_page<W: Word>(slab: &W) -> Owner {
        Owner(slab.load(Relaxed) >> SLAB_OWNER_SHIFT)
    }

    /// The first object that other CPUs freed; 0 for none.
    #[inline]
    pub(crate) fn freed_by_others<W: Word>(slab: &W) -> u64 {
        slab.load(Relaxed) & FREED
    }

    /// Makes a slab of the node's this owner's, under the list lock.
    #[inline]
    pub(crate) fn take<W: Word>(self, slab: &W) {
        slab.store(self.word(0), Release);
    }

    /// Makes a full slab this CPU's; `false` if it is another's, or the node's, by now.
    #[inline]
    pub(crate) fn take_full<W: Word>(self, slab: &W) -> bool {
        Owner::FULL.hand_over(slab, self)
    }

    /// Finds the way home of an object that this CPU frees, under the list lock. If that leads to another CPU, links the object to
    /// the one that follows on the list of what others freed, with `link`, and adds it there.
    #[inline]
    pub(crate) fn send_home<W: Word>(self, slab: &W, object: u64, mut link: impl FnMut(u64)) -> Home {
        loop {
            match Owner::in_page(slab) {
                owner if owner == self => return Home::Own,
                Owner::FULL => {
                    if self.take_full(slab) {
                        return Home::Adopted;
                    }
                }
                Owner::NODE => return Home::Node,
                owner => {
                    let first = Owner::freed_by_others(slab);
                    if first == object {
                        return Home::Twice;
                    }
                    link(first);
                    if owner.gather(slab, first, object) {
                        return Home::Gathered;
                    }
                }
            }
        }
    }

    /// Takes what others freed off the owner's slab: the first object, to which the others are linked, or 0.
    #[inline]
    pub(crate) fn take_freed_by_others<W: Word>(self, slab: &W) -> u64 {
        if Owner::freed_by_others(slab) == 0 {
            return 0;
        }
        slab.swap(self.word(0), AcqRel) & FREED
    }

    /// Gives the owner's slab to whom `settle` names, which collects what others freed and leaves list and counters
    /// as the next owner must find them; once more if others freed something meanwhile. Naming the owner itself keeps the slab.
    ///
    /// A full slab can be another CPU's already when this returns, with the lock or without: nothing of it may be read then.
    #[inline]
    pub(crate) fn give_up<W: Word>(self, slab: &W, mut settle: impl FnMut() -> Owner) -> Owner {
        loop {
            let next = settle();
            if next == self || self.hand_over(slab, next) {
                return next;
            }
        }
    }

    /// Hands a slab of which others freed nothing to `next`; `false` if it is not this owner's, or they did.
    #[inline]
    fn hand_over<W: Word>(self, slab: &W, next: Owner) -> bool {
        slab.compare_exchange(self.word(0), next.word(0), AcqRel, Acquire).is_ok()
    }

    /// Adds an object to what others freed, behind which `first` follows; `false` if that is not so any more.
    #[inline]
    fn gather<W: Word>(self, slab: &W, first: u64, object: u64) -> bool {
        slab.compare_exchange(self.word(first), self.word(object), AcqRel, Acquire).is_ok()
    }

    /// The word of this owner's slab, in which others freed `first` last.
    #[inline]
    const fn word(self, first: u64) -> u64 {
        self.0 << SLAB_OWNER_SHIFT | first
    }
}
