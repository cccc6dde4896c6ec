//! Resource limits (Linux: kernel/sys.c, `do_prlimit`; include/asm-generic/resource.h).

#[cfg(test)]
mod tests;

use crate::Errno;
use crate::bytes::{put, u64_at};

/// No limit.
pub const INFINITY: u64 = u64::MAX;
/// Most that RLIMIT_NOFILE can be (`fs.nr_open`).
pub const NR_OPEN: u64 = 1 << 20;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Resource {
    /// CPU time, seconds.
    Cpu = 0,
    /// Size of a file, bytes.
    Fsize = 1,
    /// Data, bytes.
    Data = 2,
    /// Stack, bytes.
    Stack = 3,
    /// Size of a file with a program's memory, bytes.
    Core = 4,
    /// Memory in RAM, bytes: without effect, as on Linux.
    Rss = 5,
    /// Processes of a user.
    Nproc = 6,
    /// Descriptors: one more than the highest number.
    Nofile = 7,
    /// Locked memory, bytes.
    Memlock = 8,
    /// Address space, bytes.
    AddressSpace = 9,
    /// File locks: without effect, as on Linux.
    Locks = 10,
    /// Queued signals.
    Sigpending = 11,
    /// Bytes in message queues.
    Msgqueue = 12,
    /// 20 minus the least nice value.
    Nice = 13,
    /// Highest realtime priority.
    Rtprio = 14,
    /// CPU time of a realtime thread without a system call, microseconds.
    Rttime = 15,
}

impl Resource {
    /// Number of resources (`RLIM_NLIMITS`).
    pub const COUNT: usize = 16;

    /// # Errors
    /// EINVAL for a number that is none.
    pub fn new(number: u32) -> Result<Resource, Errno> {
        use Resource::{
            AddressSpace, Core, Cpu, Data, Fsize, Locks, Memlock, Msgqueue, Nice, Nofile, Nproc, Rss, Rtprio,
            Rttime, Sigpending, Stack,
        };
        const ALL: [Resource; Resource::COUNT] = [
            Cpu,
            Fsize,
            Data,
            Stack,
            Core,
            Rss,
            Nproc,
            Nofile,
            Memlock,
            AddressSpace,
            Locks,
            Sigpending,
            Msgqueue,
            Nice,
            Rtprio,
            Rttime,
        ];
        usize::try_from(number).ok().and_then(|number| ALL.get(number).copied()).ok_or(Errno::Einval)
    }
}

/// A limit: the one that holds, and how far a program may raise that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// What holds (`rlim_cur`).
    pub soft: u64,
    /// How far it may be raised (`rlim_max`).
    pub hard: u64,
}

impl Rlimit {
    /// Size of `struct rlimit64`.
    pub const LEN: usize = 16;

    /// Reads it.
    pub fn from_bytes(bytes: &[u8; Rlimit::LEN]) -> Rlimit {
        Rlimit { soft: u64_at(bytes, 0), hard: u64_at(bytes, 8) }
    }

    /// Writes it.
    pub fn to_bytes(self) -> [u8; Rlimit::LEN] {
        let mut bytes = [0; Rlimit::LEN];
        put(&mut bytes, 0, &self.soft.to_le_bytes());
        put(&mut bytes, 8, &self.hard.to_le_bytes());
        bytes
    }
}

/// Fewest threads that a machine may have (Linux: `MIN_THREADS`).
const MIN_THREADS: u64 = 20;

/// How many threads a machine may have whose memory is `totalram` bytes: their stacks of `stack` bytes shall take an eighth of it at most. Never
/// more than `slots`, for which there is room (Linux: `set_max_threads`).
///
/// ```
/// use guest_process::limits::max_threads;
///
/// assert_eq!(max_threads(32 << 20, 16 << 10, 1024), 256);
/// assert_eq!(max_threads(1 << 40, 16 << 10, 1024), 1024);
/// assert_eq!(max_threads(1 << 20, 16 << 10, 1024), 20);
/// ```
pub fn max_threads(totalram: u64, stack: u64, slots: u64) -> u64 {
    (totalram / stack / 8).max(MIN_THREADS).min(slots)
}

/// All limits of a process. A child has its parent's, a new program those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    all: [Rlimit; Resource::COUNT],
}

impl Limits {
    /// Those of the first process (Linux: `INIT_RLIMITS`). `threads` is how many the machine can have at most; half of it is the
    /// limit of processes and of queued signals.
    pub fn init(threads: u64) -> Limits {
        let both = |value| Rlimit { soft: value, hard: value };
        let mut all = [both(INFINITY); Resource::COUNT];
        for (resource, limit) in [
            (Resource::Stack, Rlimit { soft: 8 << 20, hard: INFINITY }),
            (Resource::Core, Rlimit { soft: 0, hard: INFINITY }),
            (Resource::Nproc, both(threads / 2)),
            (Resource::Nofile, Rlimit { soft: 1024, hard: 4096 }),
            (Resource::Memlock, both(8 << 20)),
            (Resource::Sigpending, both(threads / 2)),
            (Resource::Msgqueue, both(819_200)),
            (Resource::Nice, both(0)),
            (Resource::Rtprio, both(0)),
        ] {
            all[resource as usize] = limit;
        }
        Limits { all }
    }

    /// A limit.
    pub const fn limit(&self, resource: Resource) -> Rlimit {
        self.all[resource as usize]
    }

    /// What holds.
    pub const fn soft(&self, resource: Resource) -> u64 {
        self.all[resource as usize].soft
    }

    /// Changes a limit. `privileged`: the caller may raise hard limits (CAP_SYS_RESOURCE).
    ///
    /// # Errors
    /// EINVAL for a soft limit above the hard one; EPERM for a hard one that is raised, or more descriptors than there can be.
    pub fn set(&mut self, resource: Resource, new: Rlimit, privileged: bool) -> Result<Rlimit, Errno> {
        if new.soft > new.hard {
            return Err(Errno::Einval);
        }
        if resource == Resource::Nofile && new.hard > NR_OPEN {
            return Err(Errno::Eperm);
        }
        let old = self.limit(resource);
        if new.hard > old.hard && !privileged {
            return Err(Errno::Eperm);
        }
        self.all[resource as usize] = new;
        Ok(old)
    }
}
