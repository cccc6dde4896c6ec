//! Which inodes somebody uses: they stay when their last name goes (Linux: `i_count`), and copies of them are at hand (Linux: the inode
//! cache).

use alloc::vec::Vec;

use crate::inode::{Ino, Inode};
use crate::{Errno, no_memory};

/// Inodes in ascending order.
#[derive(Debug)]
pub struct Held(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    ino: Ino,
    holds: u32,
    /// What its place in the table has, once that was read or written.
    copy: Option<Inode>,
}

impl Held {
    pub const fn new() -> Held {
        Held(Vec::new())
    }

    fn find(&self, ino: Ino) -> Result<usize, usize> {
        self.0.binary_search_by_key(&ino, |entry| entry.ino)
    }

    pub fn is_held(&self, ino: Ino) -> bool {
        self.find(ino).is_ok()
    }

    pub fn any(&self) -> Option<Ino> {
        self.0.first().map(|entry| entry.ino)
    }

    /// The first one after `ino`.
    pub fn next(&self, ino: Ino) -> Option<Ino> {
        let at = self.0.partition_point(|entry| entry.ino <= ino);
        self.0.get(at).map(|entry| entry.ino)
    }

    pub fn add(&mut self, ino: Ino) -> Result<(), Errno> {
        match self.find(ino) {
            Ok(at) => {
                let entry = self.0.get_mut(at).ok_or(Errno::Eio)?;
                entry.holds = entry.holds.checked_add(1).ok_or(Errno::Eoverflow)?;
            }
            Err(at) => {
                self.0.try_reserve(1).map_err(no_memory)?;
                self.0.insert(at, Entry { ino, holds: 1, copy: None });
            }
        }
        Ok(())
    }

    /// True if it was the last.
    pub fn remove(&mut self, ino: Ino) -> bool {
        let Ok(at) = self.find(ino) else { return false };
        let Some(entry) = self.0.get_mut(at) else { return false };
        entry.holds -= 1;
        let last = entry.holds == 0;
        if last {
            self.0.remove(at);
        }
        last
    }

    /// The inode as the table has it, if that is known.
    pub fn copy(&self, ino: Ino) -> Option<Inode> {
        self.0.get(self.find(ino).ok()?)?.copy
    }

    /// The table has this inode now.
    pub fn keep(&mut self, inode: &Inode) {
        if let Ok(at) = self.find(inode.ino)
            && let Some(entry) = self.0.get_mut(at)
        {
            entry.copy = Some(*inode);
        }
    }
}
