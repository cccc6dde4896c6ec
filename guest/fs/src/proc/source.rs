//! What the texts of /proc are printed from.

use alloc::vec::Vec;
use core::fmt;

use super::node::{SystemFile, VmFile, Who};
use super::numa_maps::NumaMap;
use crate::Errno;

/// A resource limit; all ones is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rlimit {
    /// What holds.
    pub soft: u64,
    /// How far a process may raise it.
    pub hard: u64,
}

/// A process's address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmInfo {
    /// Pages of all mappings.
    pub total: u64,
    /// The most there ever were.
    pub peak: u64,
    /// Locked pages.
    pub locked: u64,
    /// Most pages ever present.
    pub rss_peak: u64,
    /// Anonymous pages present.
    pub anon: u64,
    /// Pages of files present.
    pub file: u64,
    /// Pages of shared memory present.
    pub shmem: u64,
    /// Pages of private writable mappings.
    pub data: u64,
    /// Pages of the stack.
    pub stack: u64,
    /// Bytes of page tables.
    pub tables: u64,
    /// First and last address of code.
    pub code: (u64, u64),
    /// First and last address of data.
    pub data_range: (u64, u64),
    /// Start of the heap.
    pub start_brk: u64,
    /// Start of the stack.
    pub start_stack: u64,
    /// Addresses of the arguments.
    pub args: (u64, u64),
    /// Addresses of the environment.
    pub env: (u64, u64),
    /// Pages of executable mappings that are not the program (shared libraries).
    pub lib: u64,
    /// Pages in swap areas.
    pub swap: u64,
}

/// A process or thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its own number.
    pub pid: u32,
    /// That of its process.
    pub tgid: u32,
    /// Name, up to a zero.
    pub comm: [u8; 16],
    /// `R`, `S`, `D`, `T`, `Z` and so on.
    pub state: char,
    /// Number of the parent.
    pub ppid: u32,
    /// Process group.
    pub pgrp: u32,
    /// Session.
    pub session: u32,
    /// Number of the controlling terminal, or 0.
    pub tty: u32,
    /// The terminal's foreground process group, or -1.
    pub tpgid: i32,
    /// `PF_` flags.
    pub flags: u32,
    /// Minor and major faults.
    pub faults: (u64, u64),
    /// Those of children that were waited for.
    pub child_faults: (u64, u64),
    /// Time in user and kernel mode, in hundredths of a second.
    pub time: (u64, u64),
    /// That of children that were waited for.
    pub child_time: (u64, u64),
    /// As ps shows it: 20 plus nice.
    pub priority: i32,
    /// -20 to 19.
    pub nice: i32,
    /// Threads of the process.
    pub threads: u32,
    /// Start, in hundredths of a second since boot.
    pub start: u64,
    /// Its address space; `None` for kernel threads and zombies.
    pub vm: Option<VmInfo>,
    /// Limits, in the order of Linux's numbers.
    pub limits: [Rlimit; 16],
    /// Pending for the thread.
    pub pending: u64,
    /// Pending for the process.
    pub shared_pending: u64,
    /// Blocked.
    pub blocked: u64,
    /// Ignored.
    pub ignored: u64,
    /// With handlers.
    pub caught: u64,
    /// The signal that its parent gets.
    pub exit_signal: u32,
    /// Where it ran last.
    pub cpu: u32,
    /// Status for wait, of a zombie.
    pub exit_code: u32,
    /// File mode mask.
    pub umask: u32,
    /// Length of the table of descriptors.
    pub fd_size: u32,
    /// Real, effective, saved, file system's user.
    pub uids: [u32; 4],
    /// The same of groups.
    pub gids: [u32; 4],
    /// CPUs where it may run.
    pub cpus_allowed: u64,
    /// Nodes where it may allocate.
    pub mems_allowed: u64,
    /// Voluntary and other switches.
    pub switches: (u64, u64),
    /// Badness for the OOM killer, 0 to about 2000.
    pub oom_score: u64,
    /// What is added to it, -1000 to 1000.
    pub oom_score_adj: i16,
    /// The how manieth of the task's requests for memory is to fail; 0 for none.
    pub fail_nth: u32,
}

/// A mapping.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapInfo<'a> {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be run.
    pub exec: bool,
    /// Shared.
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Number of the file system.
    pub dev: u64,
    /// Number of the inode.
    pub ino: u64,
    /// Path, `[heap]`, `[stack]`, or empty.
    pub name: &'a [u8],
    /// Maps pages of files or shared memory.
    pub has_mapping: bool,
    /// Of them, shared memory or a file in memory.
    pub is_shmem: bool,
    /// Present pages: of its own or of others; what smaps adds.
    pub pages: MapPages,
}

impl MapInfo<'_> {
    /// Whether nothing but anonymous memory is there.
    pub const fn is_anonymous(&self) -> bool {
        !self.has_mapping
    }
}

/// What is wanted of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What maps shows.
    Maps,
    /// Their pages, too.
    Pages,
}

/// Pages of a mapping, in bytes (Linux: `struct mem_size_stats`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapPages {
    /// Present.
    pub rss: u64,
    /// Present, each divided by those who map it.
    pub pss: u64,
    /// The part of `pss` that was written.
    pub pss_dirty: u64,
    /// Clean, mapped by others too.
    pub shared_clean: u64,
    /// Dirty, mapped by others too.
    pub shared_dirty: u64,
    /// Clean, mapped here only.
    pub private_clean: u64,
    /// Dirty, mapped here only.
    pub private_dirty: u64,
    /// Used since the marks were cleared.
    pub referenced: u64,
    /// Anonymous.
    pub anonymous: u64,
    /// Of those, given away by MADV_FREE, and not written to since.
    pub lazyfree: u64,
    /// Locked.
    pub locked: u64,
    /// In swap areas.
    pub swap: u64,
    /// The same, each page divided by those who share it.
    pub swap_pss: u64,
    /// `vm_flags`, with Linux's bits.
    pub vm_flags: u64,
}

impl MapPages {
    /// Adds those of another mapping.
    pub const fn add(&mut self, other: &MapPages) {
        self.rss += other.rss;
        self.pss += other.pss;
        self.pss_dirty += other.pss_dirty;
        self.shared_clean += other.shared_clean;
        self.shared_dirty += other.shared_dirty;
        self.private_clean += other.private_clean;
        self.private_dirty += other.private_dirty;
        self.referenced += other.referenced;
        self.anonymous += other.anonymous;
        self.lazyfree += other.lazyfree;
        self.locked += other.locked;
        self.swap += other.swap;
        self.swap_pss += other.swap_pss;
    }
}

/// Memory, in KiB (Linux: fs/proc/meminfo.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of /proc/meminfo")]
pub struct MemInfo {
    pub total: u64,
    pub free: u64,
    pub available: u64,
    pub buffers: u64,
    pub cached: u64,
    pub active_anon: u64,
    pub inactive_anon: u64,
    pub active_file: u64,
    pub inactive_file: u64,
    pub unevictable: u64,
    pub mlocked: u64,
    pub swap_cached: u64,
    pub swap_total: u64,
    pub swap_free: u64,
    pub zswap: u64,
    pub zswapped: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub anon_pages: u64,
    pub mapped: u64,
    pub shmem: u64,
    pub slab_reclaimable: u64,
    pub slab_unreclaimable: u64,
    pub kernel_stack: u64,
    pub page_tables: u64,
    pub commit_limit: u64,
    pub committed: u64,
    pub vmalloc_total: u64,
    pub vmalloc_used: u64,
    pub percpu: u64,
    pub cma_total: u64,
    pub cma_free: u64,
}

/// Time of a CPU, in hundredths of a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// In user mode.
    pub user: u64,
    /// In user mode with a raised nice.
    pub nice: u64,
    /// In the kernel.
    pub system: u64,
    /// Idle.
    pub idle: u64,
}

/// A CPU, for /proc/cpuinfo.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuInfo<'a> {
    /// Twelve letters.
    pub vendor: &'a str,
    /// Family, model, stepping.
    pub signature: (u32, u32, u32),
    /// Name.
    pub model_name: &'a str,
    /// Frequency.
    pub khz: u64,
    /// Size of the cache.
    pub cache_kib: u32,
    /// Number of its APIC.
    pub apic: u32,
    /// CPUs in all.
    pub siblings: u32,
    /// Highest basic leaf.
    pub cpuid_level: u32,
    /// Names of features, with blanks between.
    pub flags: &'a str,
    /// Bits of physical and virtual addresses.
    pub address_bits: (u32, u32),
    /// Bytes of a cache line.
    pub clflush: u32,
}

/// What the kernel and the machine are called (Linux: `struct new_utsname`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// The kernel.
    pub sysname: &'static str,
    /// The machine.
    pub nodename: &'static str,
    /// The kernel's release.
    pub release: &'static str,
    /// Which build of it.
    pub version: &'static str,
    /// The architecture.
    pub machine: &'static str,
    /// The domain.
    pub domainname: &'static str,
}

/// The machine as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemInfo {
    /// Since boot, in hundredths of a second.
    pub uptime: u64,
    /// Boot, in seconds since 1970.
    pub boot: u64,
    /// Load over 1, 5 and 15 minutes, in hundredths.
    pub load: [u64; 3],
    /// Tasks that are ready or run.
    pub running: u32,
    /// Tasks that wait for a device.
    pub blocked: u32,
    /// Tasks.
    pub tasks: u32,
    /// Number of the newest process.
    pub last_pid: u32,
    /// Switches since boot.
    pub switches: u64,
    /// Forks since boot.
    pub forks: u64,
    /// Interrupts since boot.
    pub interrupts: u64,
    /// CPUs.
    pub cpus: u32,
}

/// Where the texts come from. Called outside of the file system's lock.
pub trait Source {
    /// A process or thread; `None` if it is gone.
    fn process(&self, who: Who) -> Option<ProcessInfo>;

    /// Calls `f` for each mapping, ascending.
    ///
    /// # Errors
    /// Those of `f`; an error of its own if the process is gone.
    fn maps(&self, who: Who, detail: Detail, f: &mut dyn FnMut(&MapInfo<'_>) -> fmt::Result) -> fmt::Result;

    /// Calls `f` for each mapping, ascending, with its policy and its pages by node.
    ///
    /// # Errors
    /// As [`Source::maps`].
    fn numa_maps(&self, _who: Who, _f: &mut dyn FnMut(&NumaMap<'_>) -> fmt::Result) -> fmt::Result {
        Ok(())
    }

    /// Calls `f` with the word of each page from page number `first` on, as /proc/PID/pagemap has it, until it says no or user space ends.
    ///
    /// # Errors
    /// `ESRCH` if the process is gone.
    fn pagemap(&self, _who: Who, _first: u64, _f: &mut dyn FnMut(u64) -> bool) -> Result<(), Errno> {
        Ok(())
    }

    /// Arguments, a zero behind each.
    ///
    /// # Errors
    /// `ESRCH`, `ENOMEM`.
    fn cmdline_of(&self, who: Who) -> Result<Vec<u8>, Errno>;

    /// Environment, a zero behind each.
    ///
    /// # Errors
    /// `ESRCH`, `ENOMEM`.
    fn environ_of(&self, who: Who) -> Result<Vec<u8>, Errno>;

    /// /proc/PID/mounts.
    ///
    /// # Errors
    /// Those of `out`.
    fn mounts(&self, who: Who, out: &mut dyn fmt::Write) -> fmt::Result;

    /// The machine.
    fn system(&self) -> SystemInfo;

    /// A CPU's time.
    fn cpu_time(&self, cpu: u32) -> CpuTime;

    /// Calls `f` with a CPU.
    ///
    /// # Errors
    /// Those of `f`.
    fn cpu_info(&self, cpu: u32, f: &mut dyn FnMut(&CpuInfo<'_>) -> fmt::Result) -> fmt::Result;

    /// Memory.
    fn memory(&self) -> MemInfo;

    /// The files of which only the kernel knows the text: cmdline, version, diskstats, partitions, iomem, kallsyms, zoneinfo, buddyinfo, pagetypeinfo, slabinfo,
    /// vmstat, vmallocinfo.
    ///
    /// # Errors
    /// Those of `out`.
    fn text(&self, file: SystemFile, out: &mut dyn fmt::Write) -> fmt::Result;

    /// /proc/sysvipc/shm.
    ///
    /// # Errors
    /// Those of `out`.
    fn sysvipc_shm(&self, out: &mut dyn fmt::Write) -> fmt::Result;

    /// A file of /proc/sys/vm.
    ///
    /// # Errors
    /// Those of `out`.
    fn vm(&self, file: VmFile, out: &mut dyn fmt::Write) -> fmt::Result;

    /// Writes to it.
    ///
    /// # Errors
    /// `EINVAL` for a number that it cannot have.
    fn set_vm(&self, file: VmFile, number: i64) -> Result<(), Errno>;

    /// What the kernel and the machine are called.
    fn names(&self) -> &Names;

    /// Numbers of processes are below it.
    fn pid_max(&self) -> u32;

    /// Threads that there may be.
    fn threads_max(&self) -> u32;

    /// Changes it.
    fn set_threads_max(&self, threads: u32);

    /// /proc/sys/kernel/printk: the console's level, that of messages without one, the least, the console's default.
    fn printk(&self) -> [u8; 4];

    /// Changes them.
    fn set_printk(&self, levels: [u8; 4]);

    /// Says what is added to a process's badness.
    ///
    /// # Errors
    /// `ESRCH`.
    fn set_oom_score_adj(&self, who: Who, adj: i16) -> Result<(), Errno>;

    /// Says which of a task's requests for memory is to fail.
    ///
    /// # Errors
    /// `ESRCH`.
    fn set_fail_nth(&self, who: Who, nth: u32) -> Result<(), Errno>;
}
