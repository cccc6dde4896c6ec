//! Objects by number. Nothing here is linked by pointer: the kernel's numbers are physical addresses, so that a reader
//! outside the guest can follow them.

use core::fmt;
use core::marker::PhantomData;
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU64, Ordering};

/// Names an object of an [`Arena`].
pub struct Id<T> {
    raw: NonZeroU64,
    of: PhantomData<fn() -> T>,
}

impl<T> Id<T> {
    /// The object with this number, which the arena gave out; `None` for 0.
    pub const fn new(raw: u64) -> Option<Id<T>> {
        match NonZeroU64::new(raw) {
            Some(raw) => Some(Id { raw, of: PhantomData }),
            None => None,
        }
    }

    /// The number.
    pub const fn as_u64(self) -> u64 {
        self.raw.get()
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Id<T> {}

impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl<T> Eq for Id<T> {}

impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:#x}", self.raw)
    }
}

/// A field that names an object or nothing. All zero is nothing.
#[repr(transparent)]
pub struct Link<T>(AtomicU64, PhantomData<fn() -> T>);

impl<T> Link<T> {
    /// Names nothing.
    #[expect(clippy::declare_interior_mutable_const, reason = "each use is one of its own")]
    pub const NONE: Link<T> = Link(AtomicU64::new(0), PhantomData);

    /// What it names.
    #[inline]
    pub fn load(&self) -> Option<Id<T>> {
        Id::new(self.0.load(Ordering::Acquire))
    }

    /// Names something else. What `id` names is complete for whoever loads it.
    #[inline]
    pub fn store(&self, id: Option<Id<T>>) {
        self.0.store(id.map_or(0, Id::as_u64), Ordering::Release);
    }
}

impl<T> Default for Link<T> {
    fn default() -> Self {
        Link(AtomicU64::new(0), PhantomData)
    }
}

impl<T> fmt::Debug for Link<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.load())
    }
}

/// Readers without locks, and those who must not take away what they look at (Linux: RCU).
pub trait Rcu {
    /// Calls `f`, which may look at freed objects of an [`Arena`]: none of them becomes something else meanwhile. `f` is short, and does
    /// not sleep or wait (Linux: `rcu_read_lock`).
    fn rcu_read<R>(&self, f: impl FnOnce() -> R) -> R;
}

/// Objects of one type, by number. An object that was freed stays an object of its type (Linux:
/// `SLAB_TYPESAFE_BY_RCU`): readers inside [`Rcu::rcu_read`] may still look at it.
pub trait Arena<T> {
    /// The object. Panics for a number that never came from [`Arena::alloc`].
    fn at(&self, id: Id<T>) -> &T;

    /// An object in whatever state its last user left it; all zero the first time. `None` without memory.
    fn alloc(&self) -> Option<Id<T>>;

    /// Takes an object back.
    fn free(&self, id: Id<T>);
}
