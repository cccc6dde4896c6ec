//! Futexes: queues of threads by the address of a word (Linux: kernel/futex).
//!
//! [`Futexes`] keeps who waits where. The kernel holds one behind a lock, and reads the word with that lock held before a thread
//! is put in, so that no wake-up falls between the look and the wait.
//!
//! Differs from Linux: there are no futexes with priority inheritance (ENOSYS), and no numbers of threads in them.

mod op;
pub mod robust;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::Errno;

pub use op::{Command, Op, WakeOp};

/// Every waiter has one of these bits in common (`FUTEX_BITSET_MATCH_ANY`).
pub const ANY: u32 = !0;
const BUCKETS: usize = 256;

/// What word a futex is (Linux: `union futex_key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A word of private memory: address space and address.
    Private {
        /// Number of the address space.
        mm: u64,
        /// Address.
        address: u64,
    },
    /// A word of shared memory, wherever it is mapped.
    Shared {
        /// Number of what is mapped.
        mapping: u64,
        /// Offset in it, bytes.
        offset: u64,
    },
}

impl Key {
    /// Spreads neighbours: the golden ratio of 64 bits.
    fn bucket(self) -> usize {
        const RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
        let (place, offset) = match self {
            Key::Private { mm, address } => (mm, address),
            Key::Shared { mapping, offset } => (!mapping, offset),
        };
        let mixed = (place.wrapping_mul(RATIO) ^ (offset >> 2)).wrapping_mul(RATIO);
        usize::try_from(mixed >> 56).unwrap_or(0) % BUCKETS
    }
}

#[derive(Clone, Debug)]
struct Waiter<W> {
    key: Key,
    bitset: u32,
    who: W,
}

/// Who waits where. `W` is what the kernel knows a waiter by.
#[derive(Debug)]
pub struct Futexes<W> {
    buckets: [Vec<Waiter<W>>; BUCKETS],
}

impl<W: Clone + PartialEq> Futexes<W> {
    /// Nobody waits.
    pub const fn new() -> Futexes<W> {
        Futexes { buckets: [const { Vec::new() }; BUCKETS] }
    }

    fn bucket(&mut self, key: Key) -> &mut Vec<Waiter<W>> {
        &mut self.buckets[key.bucket()]
    }

    /// `who` waits at `key`, behind those who do already, for wake-ups that have a bit of `bitset`.
    ///
    /// # Errors
    /// EINVAL for no bit; ENOMEM.
    pub fn wait(&mut self, key: Key, bitset: u32, who: W) -> Result<(), Errno> {
        if bitset == 0 {
            return Err(Errno::Einval);
        }
        let bucket = self.bucket(key);
        bucket.try_reserve(1).map_err(|_| Errno::Enomem)?;
        bucket.push(Waiter { key, bitset, who });
        Ok(())
    }

    /// `who`, who began to wait at `key`, does not wait any more; false if it was woken before.
    pub fn cancel(&mut self, key: Key, who: &W) -> bool {
        // It may have been moved since.
        let first = key.bucket();
        (first..BUCKETS).chain(0..first).any(|index| {
            let bucket = &mut self.buckets[index];
            let found = bucket.iter().position(|waiter| waiter.who == *who);
            found.map(|at| bucket.remove(at)).is_some()
        })
    }

    /// Wakes up to `count` waiters at `key`, at least one, in their order; says how many (Linux: `futex_wake`).
    ///
    /// # Errors
    /// EINVAL for no bit.
    pub fn wake(&mut self, key: Key, count: u32, bitset: u32, mut wake: impl FnMut(W)) -> Result<u32, Errno> {
        if bitset == 0 {
            return Err(Errno::Einval);
        }
        let mut woken = 0;
        self.bucket(key).retain(|waiter| {
            let stays = waiter.key != key || waiter.bitset & bitset == 0 || woken >= count.max(1);
            if !stays {
                woken += 1;
                wake(waiter.who.clone());
            }
            stays
        });
        Ok(woken)
    }

    /// Wakes up to `wakes` waiters at `from` and moves up to `moves` others to wait at `to`; says how many of both (Linux:
    /// `futex_requeue`). The caller has compared the word if that was asked for.
    ///
    /// # Errors
    /// ENOMEM: nothing has happened.
    pub fn requeue(
        &mut self,
        (from, to): (Key, Key),
        (wakes, moves): (u32, u32),
        mut wake: impl FnMut(W),
    ) -> Result<u32, Errno> {
        let waiting = self.bucket(from).iter().filter(|waiter| waiter.key == from).count();
        let moving = waiting.min(usize::try_from(moves).unwrap_or(usize::MAX));
        self.bucket(to).try_reserve(moving).map_err(|_| Errno::Enomem)?;
        let (mut woken, mut moved) = (0, 0);
        let same_bucket = from.bucket() == to.bucket();
        let mut taken = Vec::new();
        if !same_bucket {
            taken.try_reserve(moving).map_err(|_| Errno::Enomem)?;
        }
        self.bucket(from).retain_mut(|waiter| {
            if waiter.key != from {
                return true;
            }
            if woken < wakes {
                woken += 1;
                wake(waiter.who.clone());
                return false;
            }
            if moved >= moves {
                return true;
            }
            moved += 1;
            waiter.key = to;
            if same_bucket {
                return true;
            }
            taken.push(waiter.clone());
            false
        });
        self.bucket(to).append(&mut taken);
        Ok(woken + moved)
    }

    /// How many wait at `key`.
    pub fn waiters(&self, key: Key) -> usize {
        self.buckets[key.bucket()].iter().filter(|waiter| waiter.key == key).count()
    }
}

impl<W: Clone + PartialEq> Default for Futexes<W> {
    fn default() -> Self {
        Futexes::new()
    }
}
