//! What the OOM killer is set to and did, and what was promised.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Settings (Linux: the files of /proc/sys/vm of these names), counts, and the last kill. One exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Oom {
    /// 0 to kill, 1 to panic unless the allocation is bound to nodes, 2 to panic.
    pub panic_on_oom: u32,
    /// Not 0: whoever allocates is killed.
    pub oom_kill_allocating_task: u32,
    /// Not 0: the report has the table of processes.
    pub oom_dump_tasks: u32,
    /// 0 to guess, 1 for always, 2 for never.
    pub overcommit_memory: u32,
    /// Percent of memory that may be promised in mode 2.
    pub overcommit_ratio: u32,
    /// Always 0.
    pub reserved: u32,
    /// In place of [`Self::overcommit_ratio`] unless 0.
    pub overcommit_kbytes: u64,
    /// Kept from those who are no administrators, in mode 2.
    pub admin_reserve_kbytes: u64,
    /// Kept from a process that is large itself, in mode 2.
    pub user_reserve_kbytes: u64,
    /// Address of the word that counts pages promised (`Committed_AS`).
    pub committed: u64,
    /// Address of the word that counts those of them that are promised for shared memory.
    pub committed_shmem: u64,
    /// Processes killed so far (`oom_kill` in /proc/vmstat).
    pub kills: u64,
    /// Address spaces that the reaper took memory from.
    pub reaped: u64,
    /// The last kill; all 0 before the first.
    pub last: OomKill,
}

/// A kill. Quantities are pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OomKill {
    /// The process that was killed.
    pub pid: u32,
    /// Its `oom_score_adj`.
    pub oom_score_adj: i32,
    /// Its name, padded with NUL.
    pub comm: [u8; 16],
    /// Its points (Linux: `oom_badness`).
    pub points: i64,
    /// What the points are measured by.
    pub totalpages: u64,
    /// Pages of its VMAs.
    pub total_vm: u64,
    /// Its resident pages: anonymous, of mappings.
    pub rss: [u64; 2],
    /// Its page tables.
    pub table_pages: u64,
    /// The process that allocated; 0 for the kernel.
    pub caller: u32,
    /// Order of the allocation.
    pub order: u32,
    /// Flags of the allocation.
    pub gfp: u32,
    /// 1 if the reaper took its memory, 0 if it gave it back itself or still has it.
    pub is_reaped: u32,
    /// When it was killed, nanoseconds since boot.
    pub at_ns: u64,
    /// Nanoseconds from there until its memory was free; 0 while it is not.
    pub freed_after_ns: u64,
}
const _: () = assert!(
    size_of::<OomKill>() == 104
        && offset_of!(OomKill, points) == 24
        && size_of::<Oom>() == 80 + 104
        && offset_of!(Oom, last) == 80
);
