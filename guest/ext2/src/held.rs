//! Which inodes somebody uses: they stay when their last name goes (Linux: `i_count`).

use alloc::vec::Vec;

use crate::inode::Ino;
use crate::{Errno, no_memory};

/// Inodes in ascending order, and how many hold each.
#[derive(Debug)]
pub struct Held(Vec<(Ino, u32)>);

impl Held {
    pub const fn new() -> Held {
        Held(Vec::new())
    }

    fn find(&self, ino: Ino) -> Result<usize, usize> {
        self.0.binary_search_by_key(&ino, |(held, _)| *held)
    }

    pub fn is_held(&self, ino: Ino) -> bool {
        self.find(ino).is_ok()
    }

    pub fn any(&self) -> Option<Ino> {
        self.0.first().map(|(ino, _)| *ino)
    }

    /// The first one after `ino`.
    pub fn next(&self, ino: Ino) -> Option<Ino> {
        let at = self.0.partition_point(|(held, _)| *held <= ino);
        self.0.get(at).map(|(held, _)| *held)
    }

    pub fn add(&mut self, ino: Ino) -> Result<(), Errno> {
        match self.find(ino) {
            Ok(at) => {
                let count = self.0.get_mut(at).map(|(_, count)| count).ok_or(Errno::Eio)?;
                *count = count.checked_add(1).ok_or(Errno::Eoverflow)?;
            }
            Err(at) => {
                self.0.try_reserve(1).map_err(no_memory)?;
                self.0.insert(at, (ino, 1));
            }
        }
        Ok(())
    }

    /// True if it was the last.
    pub fn remove(&mut self, ino: Ino) -> bool {
        let Ok(at) = self.find(ino) else { return false };
        let Some((_, count)) = self.0.get_mut(at) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.0.remove(at);
        }
        last
    }
}
