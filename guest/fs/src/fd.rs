//! Descriptor tables (Linux: fs/file.c). A table does not know what an open file is: `F` is a counted reference to one.

use alloc::vec::Vec;

use crate::{Errno, no_memory};

/// An open file in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor<F> {
    /// The file.
    pub file: F,
    /// execve closes it.
    pub cloexec: bool,
}

/// The descriptors of a process, or of several (CLONE_FILES). Files that a call takes out are returned, so that they can be
/// closed outside of the table's lock.
#[derive(Debug)]
pub struct FdTable<F> {
    slots: Vec<Option<Descriptor<F>>>,
    /// No slot below is free.
    lowest: usize,
}

/// Descriptors that no table ever has (Linux: `sysctl_nr_open`).
const NR_OPEN: u64 = 1 << 20;

impl<F> FdTable<F> {
    /// No descriptors.
    pub const fn new() -> FdTable<F> {
        FdTable { slots: Vec::new(), lowest: 0 }
    }

    fn index(fd: u32) -> usize {
        usize::try_from(fd).unwrap_or(usize::MAX)
    }

    /// The descriptor.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get(&self, fd: u32) -> Result<&Descriptor<F>, Errno> {
        self.slots.get(Self::index(fd)).and_then(Option::as_ref).ok_or(Errno::Ebadf)
    }

    /// Marks the descriptor for execve (F_SETFD).
    ///
    /// # Errors
    /// `EBADF`.
    pub fn set_cloexec(&mut self, fd: u32, cloexec: bool) -> Result<(), Errno> {
        let slot = self.slots.get_mut(Self::index(fd)).and_then(Option::as_mut).ok_or(Errno::Ebadf)?;
        slot.cloexec = cloexec;
        Ok(())
    }

    /// Opens a slot at `fd` and says where it is.
    fn room(&mut self, fd: usize) -> Result<&mut Option<Descriptor<F>>, Errno> {
        if fd >= self.slots.len() {
            self.slots.try_reserve(fd + 1 - self.slots.len()).map_err(no_memory)?;
            self.slots.resize_with(fd + 1, || None);
        }
        self.slots.get_mut(fd).ok_or(Errno::Emfile)
    }

    /// Puts the file at the lowest free number from `from` on, below `limit` (RLIMIT_NOFILE).
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`; the file comes back.
    pub fn insert(&mut self, file: F, cloexec: bool, from: u32, limit: u64) -> Result<u32, (Errno, F)> {
        let start = Self::index(from).max(self.lowest);
        let free = self.slots.iter().skip(start).position(Option::is_none);
        let at = free.map_or(self.slots.len().max(start), |free| start + free);
        if at as u64 >= limit.min(NR_OPEN) {
            return Err((Errno::Emfile, file));
        }
        let Ok(fd) = u32::try_from(at) else { return Err((Errno::Emfile, file)) };
        match self.room(at) {
            Ok(slot) => *slot = Some(Descriptor { file, cloexec }),
            Err(error) => return Err((error, file)),
        }
        if start == self.lowest {
            self.lowest = at + 1;
        }
        Ok(fd)
    }

    /// Puts the file at `fd`; what was there comes back and is to be closed.
    ///
    /// # Errors
    /// `EBADF` from `limit` on, `ENOMEM`; the file comes back.
    pub fn replace(&mut self, fd: u32, file: F, cloexec: bool, limit: u64) -> Result<Option<F>, (Errno, F)> {
        if u64::from(fd) >= limit.min(NR_OPEN) {
            return Err((Errno::Ebadf, file));
        }
        match self.room(Self::index(fd)) {
            Ok(slot) => Ok(slot.replace(Descriptor { file, cloexec }).map(|old| old.file)),
            Err(error) => Err((error, file)),
        }
    }

    /// Takes the descriptor out.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn remove(&mut self, fd: u32) -> Result<F, Errno> {
        let at = Self::index(fd);
        let slot = self.slots.get_mut(at).and_then(Option::take).ok_or(Errno::Ebadf)?;
        self.lowest = self.lowest.min(at);
        Ok(slot.file)
    }

    /// Takes out some descriptor from `from` to `last` that `chosen` says: for close_range, execve and exit, one at a time.
    pub fn take_if(
        &mut self,
        from: u32,
        last: u32,
        chosen: impl Fn(&Descriptor<F>) -> bool,
    ) -> Option<(u32, F)> {
        let end = Self::index(last).saturating_add(1).min(self.slots.len());
        let start = Self::index(from).min(end);
        let slots = self.slots.get(start..end)?;
        let at = start + slots.iter().position(|slot| slot.as_ref().is_some_and(&chosen))?;
        let fd = u32::try_from(at).ok()?;
        self.remove(fd).ok().map(|file| (fd, file))
    }

    /// The lowest descriptor from `from` on, with its number.
    pub fn next(&self, from: u32) -> Option<(u32, &Descriptor<F>)> {
        let start = Self::index(from);
        let found =
            self.slots.iter().enumerate().skip(start).find_map(|(at, slot)| Some((at, slot.as_ref()?)));
        found.and_then(|(at, slot)| Some((u32::try_from(at).ok()?, slot)))
    }

    /// Numbers that the table has room for (`FDSize` of /proc).
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.slots.len().next_multiple_of(64).max(64)).unwrap_or(u32::MAX)
    }
}

impl<F: Clone> FdTable<F> {
    /// A copy for fork.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn try_clone(&self) -> Result<FdTable<F>, Errno> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(self.slots.len()).map_err(no_memory)?;
        slots.extend(self.slots.iter().cloned());
        Ok(FdTable { slots, lowest: self.lowest })
    }

    /// dup2 and dup3 of numbers that differ; what was at `to` comes back.
    ///
    /// # Errors
    /// `EBADF`, `ENOMEM`.
    pub fn dup_to(&mut self, from: u32, to: u32, cloexec: bool, limit: u64) -> Result<Option<F>, Errno> {
        if u64::from(to) >= limit.min(NR_OPEN) {
            return Err(Errno::Ebadf);
        }
        let file = self.get(from)?.file.clone();
        self.replace(to, file, cloexec, limit).map_err(|(error, _)| error)
    }

    /// dup and F_DUPFD.
    ///
    /// # Errors
    /// `EBADF`; `EINVAL` if `lowest` is no number that may be; `EMFILE`, `ENOMEM`.
    pub fn dup(&mut self, fd: u32, lowest: u32, cloexec: bool, limit: u64) -> Result<u32, Errno> {
        let file = self.get(fd)?.file.clone();
        if u64::from(lowest) >= limit.min(NR_OPEN) {
            return Err(Errno::Einval);
        }
        self.insert(file, cloexec, lowest, limit).map_err(|(error, _)| error)
    }
}

impl<F> Default for FdTable<F> {
    fn default() -> FdTable<F> {
        FdTable::new()
    }
}
