//! The names of a directory.
//!
//! Invariants:
//! D1  `slots` ascend by number, a number is never used again: a reader that goes on from a number meets each entry that
//!     was there all the time exactly once;
//! D2  `by_name` has the numbers of the same slots, by ascending name; no name is there twice.
//!
//! Differs from Linux: entries are listed from the oldest to the newest. Linux 6.1 lists the newest first, and promises nothing.

use alloc::vec::Vec;

use crate::inode::InodeId;
use crate::{Errno, no_memory};

/// Number of the first entry: 0 and 1 are `.` and `..`.
pub const FIRST: u64 = 2;

/// An entry.
#[derive(Debug)]
pub struct Slot {
    /// Its number: an offset of getdents64.
    pub number: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// What it names.
    pub inode: InodeId,
}

/// The entries.
#[derive(Debug)]
pub struct Directory {
    slots: Vec<Slot>,
    by_name: Vec<u64>,
    next: u64,
}

/// A copy of bytes, or `ENOMEM`.
pub fn copy(bytes: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(no_memory)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

impl Directory {
    /// No entries.
    pub const fn new() -> Directory {
        Directory { slots: Vec::new(), by_name: Vec::new(), next: FIRST }
    }

    /// Number of entries, without `.` and `..`.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether rmdir may remove it.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn slot(&self, number: u64) -> Option<usize> {
        self.slots.binary_search_by_key(&number, |slot| slot.number).ok()
    }

    /// Where the name is or belongs in `by_name`.
    fn find(&self, name: &[u8]) -> Result<usize, usize> {
        self.by_name.binary_search_by(|&number| {
            let found = self.slot(number).map_or(&[][..], |at| &self.slots[at].name);
            found.cmp(name)
        })
    }

    /// What the name names.
    pub fn get(&self, name: &[u8]) -> Option<InodeId> {
        let at = self.find(name).ok()?;
        Some(self.slots[self.slot(self.by_name[at])?].inode)
    }

    /// A name of the inode.
    pub fn name_of(&self, inode: InodeId) -> Option<&[u8]> {
        self.slots.iter().find(|slot| slot.inode == inode).map(|slot| &slot.name[..])
    }

    /// Adds a name that is not there.
    ///
    /// # Errors
    /// `EEXIST`, `ENOMEM`.
    pub fn insert(&mut self, name: &[u8], inode: InodeId) -> Result<(), Errno> {
        let Err(at) = self.find(name) else { return Err(Errno::Eexist) };
        self.slots.try_reserve(1).map_err(no_memory)?;
        self.by_name.try_reserve(1).map_err(no_memory)?;
        let name = copy(name)?;
        self.slots.push(Slot { number: self.next, name, inode });
        self.by_name.insert(at, self.next);
        self.next += 1;
        Ok(())
    }

    /// Makes a name that is there name something else; returns what it named.
    pub fn replace(&mut self, name: &[u8], inode: InodeId) -> Option<InodeId> {
        let at = self.find(name).ok()?;
        let slot = self.slot(self.by_name[at])?;
        Some(core::mem::replace(&mut self.slots[slot].inode, inode))
    }

    /// Removes a name; returns what was there.
    pub fn remove(&mut self, name: &[u8]) -> Option<Slot> {
        let at = self.find(name).ok()?;
        let slot = self.slot(self.by_name[at])?;
        self.by_name.remove(at);
        Some(self.slots.remove(slot))
    }

    /// Removes some entry.
    pub fn pop(&mut self) -> Option<InodeId> {
        let slot = self.slots.pop()?;
        self.by_name.retain(|&number| number != slot.number);
        Some(slot.inode)
    }

    /// Entries from this number on.
    pub fn from(&self, number: u64) -> &[Slot] {
        let start = self.slots.partition_point(|slot| slot.number < number);
        &self.slots[start..]
    }
}
