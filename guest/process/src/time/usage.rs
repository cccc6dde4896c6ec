//! What a process used, and what the machine has: `rusage`, `tms`, `sysinfo`.

use super::{NSEC_PER_SEC, Timeval, ticks};
use crate::bytes::put;

/// What a thread, a process or its children used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time in the program, nanoseconds.
    pub user_ns: u64,
    /// Time in the kernel, nanoseconds.
    pub system_ns: u64,
    /// Most memory at a time, KiB.
    pub max_rss_kib: u64,
    /// Faults that read nothing.
    pub minor_faults: u64,
    /// Faults that read something.
    pub major_faults: u64,
    /// Times it gave the CPU away.
    pub voluntary_switches: u64,
    /// Times the CPU was taken away.
    pub involuntary_switches: u64,
}

impl Usage {
    /// Size of `struct rusage`.
    pub const LEN: usize = 144;

    /// `struct rusage`.
    pub fn to_bytes(&self) -> [u8; Usage::LEN] {
        let mut bytes = [0; Usage::LEN];
        put(&mut bytes, 0, &Timeval::from_ns(self.user_ns).to_bytes());
        put(&mut bytes, 16, &Timeval::from_ns(self.system_ns).to_bytes());
        for (at, word) in [
            (32, self.max_rss_kib),
            (64, self.minor_faults),
            (72, self.major_faults),
            (128, self.voluntary_switches),
            (136, self.involuntary_switches),
        ] {
            put(&mut bytes, at, &word.to_le_bytes());
        }
        bytes
    }

    /// `struct tms` of a process that used this and whose children used `children`.
    pub fn tms(&self, children: &Usage) -> [u8; 32] {
        let mut bytes = [0; 32];
        let words = [self.user_ns, self.system_ns, children.user_ns, children.system_ns];
        for (index, ns) in words.into_iter().enumerate() {
            put(&mut bytes, 8 * index, &ticks(ns).to_le_bytes());
        }
        bytes
    }

    /// With another's: sums, and the larger of the largest.
    #[must_use]
    pub fn plus(&self, other: &Usage) -> Usage {
        Usage {
            user_ns: self.user_ns.saturating_add(other.user_ns),
            system_ns: self.system_ns.saturating_add(other.system_ns),
            max_rss_kib: self.max_rss_kib.max(other.max_rss_kib),
            minor_faults: self.minor_faults.saturating_add(other.minor_faults),
            major_faults: self.major_faults.saturating_add(other.major_faults),
            voluntary_switches: self.voluntary_switches.saturating_add(other.voluntary_switches),
            involuntary_switches: self.involuntary_switches.saturating_add(other.involuntary_switches),
        }
    }
}

/// What `sysinfo` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryFacts {
    /// Time since boot, nanoseconds.
    pub uptime_ns: u64,
    /// Loads of 1, 5 and 15 minutes, 65536 for one thread.
    pub loads: [u64; 3],
    /// RAM, bytes: all, free, shared, of buffers.
    pub ram: [u64; 4],
    /// Swap, bytes: all, free.
    pub swap: [u64; 2],
    /// Threads.
    pub threads: u16,
}

impl MemoryFacts {
    /// Size of `struct sysinfo`.
    pub const LEN: usize = 112;

    /// `struct sysinfo`, in bytes (`mem_unit` 1).
    pub fn to_bytes(&self) -> [u8; MemoryFacts::LEN] {
        let mut bytes = [0; MemoryFacts::LEN];
        // A second that has begun counts.
        let uptime = self.uptime_ns.div_ceil(NSEC_PER_SEC);
        let words = [uptime].into_iter().chain(self.loads).chain(self.ram).chain(self.swap);
        for (index, word) in words.enumerate() {
            put(&mut bytes, 8 * index, &word.to_le_bytes());
        }
        put(&mut bytes, 80, &self.threads.to_le_bytes());
        put(&mut bytes, 104, &1_u32.to_le_bytes());
        bytes
    }
}
