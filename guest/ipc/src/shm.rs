//! Segments (Linux: ipc/shm.c).

use bitflags::bitflags;

use crate::Errno;
use crate::bytes::Bytes;
use crate::ids::Ids;
use crate::perm::{Caller, Perm, mode};

const PAGE_SIZE: u64 = 4096;

bitflags! {
    /// Flags of shmget and shmat.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ShmFlags: u32 {
        /// Make it if the key leads to none.
        const IPC_CREAT = 0o1000;
        /// With IPC_CREAT: fail if it is there.
        const IPC_EXCL = 0o2000;
        /// Of huge pages.
        const SHM_HUGETLB = 0o4000;
        /// Counts against no limit.
        const SHM_NORESERVE = 0o1_0000;
        /// Of shmat: not writable.
        const SHM_RDONLY = 0o1_0000;
        /// Of shmat: the address is rounded down.
        const SHM_RND = 0o2_0000;
        /// Of shmat: what is there goes.
        const SHM_REMAP = 0o4_0000;
        /// Of shmat: executable.
        const SHM_EXEC = 0o10_0000;
        const _ = !0;
    }
}

/// The system's limits (Linux: kernel.shmmax, kernel.shmall, kernel.shmmni).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a segment.
    pub max: u64,
    /// Pages of all.
    pub all: u64,
    /// Segments.
    pub mni: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        const MOST: u64 = u64::MAX - (1 << 24);
        Limits { max: MOST, all: MOST, mni: 4096 }
    }
}

/// How a segment is used, which the kernel knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// VMAs that map it.
    pub nattch: u64,
    /// Last attachment, seconds since 1970; 0 for never.
    pub atime: i64,
    /// Last detachment.
    pub dtime: i64,
    /// The process that did either last.
    pub lpid: u32,
    /// Pages in memory.
    pub rss: u64,
}

/// A segment (Linux: `struct shmid_kernel`).
#[derive(Clone, Copy, Debug)]
pub struct Segment<H> {
    /// Owner and rights.
    pub perm: Perm,
    /// Bytes.
    pub size: u64,
    /// Last change.
    pub ctime: i64,
    /// The process that made it.
    pub cpid: u32,
    /// The key that it was made with, which its name shows for ever.
    pub first_key: i32,
    /// Its bytes.
    pub handle: H,
}

impl<H> Segment<H> {
    /// `struct shmid64_ds`.
    pub fn to_bytes(&self, usage: &Usage) -> [u8; 112] {
        let mut out = Bytes::new();
        self.perm.put(&mut out);
        out.u64(self.size).u64(usage.atime.cast_unsigned()).u64(usage.dtime.cast_unsigned());
        out.u64(self.ctime.cast_unsigned()).u32(self.cpid).u32(usage.lpid).u64(usage.nattch);
        out.bytes
    }

    const fn pages(&self) -> u64 {
        self.size.div_ceil(PAGE_SIZE)
    }
}

/// What IPC_SET takes of `struct shmid64_ds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetRequest {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Rights; other bits do not matter.
    pub mode: u32,
}

impl SetRequest {
    /// From the first 24 bytes of `struct shmid64_ds`.
    pub fn from_bytes(bytes: &[u8; 24]) -> SetRequest {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(bytes.get(at..at + 4).unwrap_or(&[0; 4]));
            u32::from_le_bytes(word)
        };
        SetRequest { uid: word(4), gid: word(8), mode: word(20) }
    }
}

/// What a removal comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed<H> {
    /// The segment is gone; the caller gives its bytes up.
    Gone(H),
    /// It goes with the last detachment.
    Later,
}

/// What SHM_INFO tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segments.
    pub used_ids: u32,
    /// Pages of all.
    pub total: u64,
    /// Of those, in memory.
    pub rss: u64,
}

impl Summary {
    /// `struct shm_info`.
    pub fn to_bytes(&self) -> [u8; 48] {
        let mut out = Bytes::new();
        out.u32(self.used_ids).skip(4).u64(self.total).u64(self.rss);
        out.bytes
    }
}

/// All segments (Linux: `struct ipc_namespace`).
#[derive(Debug)]
pub struct Shm<H> {
    ids: Ids<Segment<H>>,
    total_pages: u64,
    limits: Limits,
}

impl<H> Default for Shm<H> {
    fn default() -> Shm<H> {
        Shm::new(Limits::default())
    }
}

impl<H> Shm<H> {
    /// No segments.
    pub fn new(limits: Limits) -> Shm<H> {
        Shm { ids: Ids::default(), total_pages: 0, limits }
    }

    /// All, with their identifiers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Segment<H>)> {
        self.ids.iter()
    }

    /// The highest index in use: what IPC_INFO and SHM_INFO return.
    pub fn highest(&self) -> u32 {
        self.ids.highest()
    }

    /// IPC_INFO: `struct shminfo64`.
    pub fn info(&self) -> [u8; 72] {
        let Limits { max, all, mni } = self.limits;
        let mut out = Bytes::new();
        out.u64(max).u64(1).u64(mni as u64).u64(mni as u64).u64(all);
        out.bytes
    }

    /// shmget: the identifier. `make(bytes)` gives a new segment its bytes.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `EINVAL` for a size that is too small or too large, `EACCES`, `ENOSPC`, those of `make`.
    pub fn get(
        &mut self,
        caller: &Caller,
        key: i32,
        size: u64,
        flags: ShmFlags,
        make: impl FnOnce(u64) -> Result<H, Errno>,
    ) -> Result<u32, Errno> {
        let found = if key == 0 { None } else { self.ids.iter().find(|(_, it)| it.perm.key == key) };
        let Some((id, segment)) = found else {
            if key != 0 && !flags.contains(ShmFlags::IPC_CREAT) {
                return Err(Errno::Enoent);
            }
            return self.create(Perm::new(caller, key, flags.bits()), caller, size, flags, make);
        };
        if flags.contains(ShmFlags::IPC_CREAT | ShmFlags::IPC_EXCL) {
            return Err(Errno::Eexist);
        }
        if segment.size < size {
            return Err(Errno::Einval);
        }
        segment.perm.check(caller, flags.bits())?;
        Ok(id)
    }

    /// Linux: `newseg`.
    fn create(
        &mut self,
        mut perm: Perm,
        caller: &Caller,
        size: u64,
        flags: ShmFlags,
        make: impl FnOnce(u64) -> Result<H, Errno>,
    ) -> Result<u32, Errno> {
        if size == 0 || size > self.limits.max {
            return Err(Errno::Einval);
        }
        let pages = size.checked_add(PAGE_SIZE - 1).ok_or(Errno::Enospc)? / PAGE_SIZE;
        let total = self.total_pages.checked_add(pages).filter(|total| *total <= self.limits.all);
        let total = total.ok_or(Errno::Enospc)?;
        if flags.contains(ShmFlags::SHM_HUGETLB) {
            // No pool has huge pages; SHM_HUGE_SHIFT says of which size, if not of the default (Linux: `newseg`).
            let known = matches!(flags.bits() >> 26 & 0x3f, 0 | 21 | 30);
            return Err(if known { Errno::Enomem } else { Errno::Einval });
        }
        let slot = self.ids.reserve(self.limits.mni)?;
        let handle = make(size)?;
        (perm.seq, self.total_pages) = (slot.1, total);
        let (ctime, cpid, first_key) = (caller.now, caller.pid, perm.key);
        Ok(self.ids.insert(slot, Segment { perm, size, ctime, cpid, first_key, handle }))
    }

    /// The segment for shmat, with these rights wanted (`0o444`, `0o666`, `0o777`).
    ///
    /// # Errors
    /// `EINVAL`, `EACCES`.
    pub fn attach(&self, caller: &Caller, id: u32, wanted: u32) -> Result<&Segment<H>, Errno> {
        let segment = self.ids.get(id).ok_or(Errno::Einval)?;
        segment.perm.check(caller, wanted)?;
        Ok(segment)
    }

    /// The segment for IPC_STAT.
    ///
    /// # Errors
    /// `EINVAL`, `EACCES`.
    pub fn stat(&self, caller: &Caller, id: u32) -> Result<&Segment<H>, Errno> {
        self.attach(caller, id, 0o444)
    }

    /// Identifier and segment at an index, for SHM_STAT; without a look at rights for SHM_STAT_ANY.
    ///
    /// # Errors
    /// `EINVAL`, `EACCES`.
    pub fn stat_index(&self, caller: Option<&Caller>, index: u32) -> Result<(u32, &Segment<H>), Errno> {
        let id = self.ids.at_index(index).ok_or(Errno::Einval)?;
        let segment = self.ids.get(id).ok_or(Errno::Einval)?;
        caller.map_or(Ok(()), |caller| segment.perm.check(caller, 0o444))?;
        Ok((id, segment))
    }

    /// IPC_SET.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM`.
    pub fn set(&mut self, caller: &Caller, id: u32, request: &SetRequest) -> Result<(), Errno> {
        let segment = self.ids.get_mut(id).ok_or(Errno::Einval)?;
        segment.perm.check_owner(caller)?;
        (segment.perm.uid, segment.perm.gid) = (request.uid, request.gid);
        segment.perm.mode = segment.perm.mode & !mode::RIGHTS | request.mode & mode::RIGHTS;
        segment.ctime = caller.now;
        Ok(())
    }

    /// SHM_LOCK, SHM_UNLOCK.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM`.
    pub fn lock(&mut self, caller: &Caller, id: u32, lock: bool) -> Result<(), Errno> {
        let segment = self.ids.get_mut(id).ok_or(Errno::Einval)?;
        segment.perm.check_owner(caller)?;
        segment.perm.mode &= !mode::SHM_LOCKED;
        segment.perm.mode |= if lock { mode::SHM_LOCKED } else { 0 };
        Ok(())
    }

    /// IPC_RMID. `is_attached` is asked about its bytes.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM`.
    pub fn remove(
        &mut self,
        caller: &Caller,
        id: u32,
        is_attached: impl FnOnce(&H) -> bool,
    ) -> Result<Removed<H>, Errno> {
        let segment = self.ids.get_mut(id).ok_or(Errno::Einval)?;
        segment.perm.check_owner(caller)?;
        if is_attached(&segment.handle) {
            segment.perm.mode |= mode::SHM_DEST;
            segment.perm.key = 0;
            return Ok(Removed::Later);
        }
        self.destroy(id).map(Removed::Gone).ok_or(Errno::Einval)
    }

    /// The last attachment of these bytes is gone: the segment, if it was removed before (Linux: `shm_close`). Asks `is_attached`
    /// again, because somebody may have been faster.
    pub fn last_detach(&mut self, is_it: impl Fn(&H) -> bool, is_attached: impl Fn(&H) -> bool) -> Option<H> {
        let doomed = |it: &Segment<H>| it.perm.mode & mode::SHM_DEST != 0 && is_it(&it.handle);
        let id = self.ids.iter().find(|(_, it)| doomed(it) && !is_attached(&it.handle))?.0;
        self.destroy(id)
    }

    fn destroy(&mut self, id: u32) -> Option<H> {
        let segment = self.ids.remove(id)?;
        self.total_pages = self.total_pages.saturating_sub(segment.pages());
        Some(segment.handle)
    }

    /// SHM_INFO.
    pub fn summary(&self, usage: impl Fn(&H) -> Usage) -> Summary {
        Summary {
            used_ids: u32::try_from(self.ids.len()).unwrap_or(u32::MAX),
            total: self.total_pages,
            rss: self.ids.iter().map(|(_, it)| usage(&it.handle).rss).sum(),
        }
    }

    /// Checks I1 to I3.
    ///
    /// # Errors
    /// What is broken.
    pub fn audit(&self, usage: impl Fn(&H) -> Usage) -> Result<(), &'static str> {
        let mut total = 0;
        for (id, segment) in self.ids.iter() {
            total += segment.pages();
            let twin = |(other, it): (u32, &Segment<H>)| other != id && it.perm.key == segment.perm.key;
            if segment.perm.key != 0 && self.ids.iter().any(twin) {
                return Err("I1: a key leads to two segments");
            }
            let doomed = segment.perm.mode & mode::SHM_DEST != 0;
            if doomed && (segment.perm.key != 0 || usage(&segment.handle).nattch == 0) {
                return Err("I3: a removed segment has a key, or is attached by nobody");
            }
        }
        if total == self.total_pages { Ok(()) } else { Err("I2: pages of all segments") }
    }
}
