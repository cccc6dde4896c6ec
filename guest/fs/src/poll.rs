//! What poll and select say, and the sets of select (Linux: fs/select.c, include/uapi/asm-generic/poll.h).

use alloc::vec::Vec;

use bitflags::bitflags;

use crate::{Errno, no_memory};

bitflags! {
    /// Conditions of an open file.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PollFlags: u16 {
        /// Something to read.
        const IN = 0x1;
        /// Something urgent.
        const PRI = 0x2;
        /// Room to write.
        const OUT = 0x4;
        /// An error; always reported.
        const ERR = 0x8;
        /// The other end is gone; always reported.
        const HUP = 0x10;
        /// Not an open descriptor.
        const NVAL = 0x20;
        /// As IN.
        const RDNORM = 0x40;
        /// Never set here.
        const RDBAND = 0x80;
        /// As OUT.
        const WRNORM = 0x100;
        /// Never set here.
        const WRBAND = 0x200;
        /// Never set here.
        const RDHUP = 0x2000;
    }
}

impl PollFlags {
    /// Reading and writing never wait: regular files, directories, most devices (Linux: `DEFAULT_POLLMASK`).
    pub const ALWAYS: PollFlags =
        PollFlags::IN.union(PollFlags::OUT).union(PollFlags::RDNORM).union(PollFlags::WRNORM);

    /// What `revents` gets of this if `events` were asked for.
    pub const fn reported(self, events: PollFlags) -> PollFlags {
        self.intersection(events.union(PollFlags::ERR).union(PollFlags::HUP).union(PollFlags::NVAL))
    }
}

/// What makes a descriptor readable for select (Linux: `POLLIN_SET`).
pub const SELECT_READ: PollFlags = PollFlags::RDNORM
    .union(PollFlags::RDBAND)
    .union(PollFlags::IN)
    .union(PollFlags::HUP)
    .union(PollFlags::ERR);
/// What makes it writable.
pub const SELECT_WRITE: PollFlags =
    PollFlags::WRBAND.union(PollFlags::WRNORM).union(PollFlags::OUT).union(PollFlags::ERR);
/// What makes it exceptional.
pub const SELECT_EXCEPT: PollFlags = PollFlags::PRI;

/// A set of descriptors as select takes it: bit N of 64-bit words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdSet {
    bytes: Vec<u8>,
}

impl FdSet {
    /// Bytes of a set of `count` descriptors in a program's memory.
    pub const fn len_of(count: usize) -> usize {
        count.div_ceil(64) * 8
    }

    /// An empty set for `count` descriptors.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(count: usize) -> Result<FdSet, Errno> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(FdSet::len_of(count)).map_err(no_memory)?;
        bytes.resize(FdSet::len_of(count), 0);
        Ok(FdSet { bytes })
    }

    /// The bytes, to be read from and written to a program's memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Whether the descriptor is in it.
    pub fn contains(&self, fd: usize) -> bool {
        self.bytes.get(fd / 8).is_some_and(|byte| byte >> (fd % 8) & 1 != 0)
    }

    /// Adds a descriptor for which there is room.
    pub fn insert(&mut self, fd: usize) {
        if let Some(byte) = self.bytes.get_mut(fd / 8) {
            *byte |= 1 << (fd % 8);
        }
    }
}
