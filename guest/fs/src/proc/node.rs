//! The tree of /proc (Linux: fs/proc/root.c, base.c, fd.c, generic.c).

use alloc::format;
use alloc::vec::Vec;

use crate::Errno;
use crate::flags::mode;
use crate::inode::Timespec;
use crate::stat::{Dirent, Stat, dirent_type};
use crate::vfs::Place;

/// A process or a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// Number of the process.
    pub pid: u32,
    /// Number of the thread in /proc/PID/task; `None` in /proc/PID.
    pub tid: Option<u32>,
}

/// Links in a process's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// Its working directory.
    Cwd,
    /// Its program.
    Exe,
    /// Its root.
    Root,
    /// An open file.
    Fd(u32),
}

/// How a file is open, for the permissions of /proc/PID/fd/N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// For reading.
    pub reads: bool,
    /// For writing.
    pub writes: bool,
}

/// Processes, as the tree needs them. Called under the file system's lock: nothing here may wait for that.
pub trait Processes {
    /// Number of the calling process and thread; `None` for the kernel's own.
    fn current(&self) -> Option<(u32, u32)>;
    /// Whether the process, or the thread of it, exists.
    fn exists(&self, who: Who) -> bool;
    /// The process with the lowest number from `from` on.
    fn next(&self, from: u32) -> Option<u32>;
    /// The thread of `pid` with the lowest number from `from` on.
    fn next_thread(&self, pid: u32, from: u32) -> Option<u32>;
    /// The lowest descriptor from `from` on.
    fn next_fd(&self, who: Who, from: u32) -> Option<u32>;
    /// How the descriptor is open.
    fn fd_access(&self, who: Who, fd: u32) -> Option<Access>;
    /// Where a link leads; `None` if it leads nowhere (kernel threads have no program).
    fn link(&self, who: Who, link: Link) -> Option<Place>;
}

/// No processes: before the first one, and in tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProcesses;

impl Processes for NoProcesses {
    fn current(&self) -> Option<(u32, u32)> {
        None
    }

    fn exists(&self, _: Who) -> bool {
        false
    }

    fn next(&self, _: u32) -> Option<u32> {
        None
    }

    fn next_thread(&self, _: u32, _: u32) -> Option<u32> {
        None
    }

    fn next_fd(&self, _: Who, _: u32) -> Option<u32> {
        None
    }

    fn fd_access(&self, _: Who, _: u32) -> Option<Access> {
        None
    }

    fn link(&self, _: Who, _: Link) -> Option<Place> {
        None
    }
}

macro_rules! files {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal, $mode:literal, $words:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[doc = $words] $variant,)*
        }

        impl $name {
            /// All, in the order in which they are listed.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }

            fn find(name: &[u8]) -> Option<$name> {
                $name::ALL.iter().copied().find(|file| file.name().as_bytes() == name)
            }

            const fn permissions(self) -> u32 {
                match self {
                    $($name::$variant => $mode,)*
                }
            }
        }
    };
}

files! {
    /// Files in /proc.
    SystemFile {
        Buddyinfo = "buddyinfo", 0o444, "Free blocks by zone and order.";
        Cmdline = "cmdline", 0o444, "The kernel's command line.";
        Cpuinfo = "cpuinfo", 0o444, "Processors.";
        Diskstats = "diskstats", 0o444, "What each disk did.";
        Filesystems = "filesystems", 0o444, "Kinds of file system.";
        Iomem = "iomem", 0o400, "Physical addresses and what is there.";
        Kallsyms = "kallsyms", 0o444, "The kernel's functions.";
        Loadavg = "loadavg", 0o444, "Load.";
        Meminfo = "meminfo", 0o444, "Memory.";
        Pagetypeinfo = "pagetypeinfo", 0o400, "Free blocks by migratetype.";
        Partitions = "partitions", 0o444, "Disks and their sizes.";
        Slabinfo = "slabinfo", 0o400, "Slab caches.";
        Stat = "stat", 0o444, "Time of the processors, and counts.";
        Swaps = "swaps", 0o444, "Swap areas.";
        Uptime = "uptime", 0o444, "Time since boot.";
        Version = "version", 0o444, "Release.";
        Vmallocinfo = "vmallocinfo", 0o400, "Areas of vmalloc.";
        Vmstat = "vmstat", 0o444, "Memory's events.";
        Zoneinfo = "zoneinfo", 0o444, "Zones.";
        Zswap = "zswap", 0o400, "What zswap did (Linux: the files of /sys/kernel/debug/zswap).";
    }
}

files! {
    /// Files in /proc/PID and /proc/PID/task/TID.
    PidFile {
        Cmdline = "cmdline", 0o444, "Arguments.";
        Comm = "comm", 0o644, "Name.";
        Environ = "environ", 0o400, "Environment.";
        FailNth = "fail-nth", 0o644, "The how manieth request for memory is to fail.";
        Limits = "limits", 0o444, "Resource limits.";
        Maps = "maps", 0o444, "Mappings.";
        Mounts = "mounts", 0o444, "Mounts that it sees.";
        NumaMaps = "numa_maps", 0o444, "Mappings with their policies and nodes.";
        OomAdj = "oom_adj", 0o644, "What is added to it, in the numbers of old.";
        OomScore = "oom_score", 0o444, "Badness for the OOM killer.";
        OomScoreAdj = "oom_score_adj", 0o644, "What is added to it.";
        Pagemap = "pagemap", 0o400, "A word for each page of user space.";
        Smaps = "smaps", 0o444, "Mappings with their pages.";
        SmapsRollup = "smaps_rollup", 0o444, "The sum of all mappings' pages.";
        Stat = "stat", 0o444, "All in one line.";
        Statm = "statm", 0o444, "Memory in pages.";
        Status = "status", 0o444, "All, for people.";
    }
}

files! {
    /// Files in /proc/sys/vm.
    VmFile {
        AdminReserveKbytes = "admin_reserve_kbytes", 0o644, "Kept from those who are no administrators.";
        CompactMemory = "compact_memory", 0o200, "Moves the pages of all nodes together.";
        DirtyBackgroundBytes = "dirty_background_bytes", 0o644, "As the ratio, in bytes.";
        DirtyBackgroundRatio = "dirty_background_ratio", 0o644, "Percent of memory that may be dirty before it is written.";
        DirtyBytes = "dirty_bytes", 0o644, "As the ratio, in bytes.";
        DirtyExpireCentisecs = "dirty_expire_centisecs", 0o644, "How long something may be dirty.";
        DirtyRatio = "dirty_ratio", 0o644, "Percent of memory that may be dirty before writers wait.";
        DirtyWritebackCentisecs = "dirty_writeback_centisecs", 0o644, "How often somebody looks for it.";
        DropCaches = "drop_caches", 0o200, "Takes clean pages of files out of memory.";
        MaxMapCount = "max_map_count", 0o644, "Areas that a process may have.";
        MinFreeKbytes = "min_free_kbytes", 0o644, "What the minimum watermarks are shares of.";
        OomDumpTasks = "oom_dump_tasks", 0o644, "The OOM killer's report has the table of processes.";
        OomKillAllocatingTask = "oom_kill_allocating_task", 0o644, "Whoever allocates is killed.";
        OvercommitKbytes = "overcommit_kbytes", 0o644, "What may be promised.";
        OvercommitMemory = "overcommit_memory", 0o644, "How much may be promised: 0 to guess, 1 all, 2 the limit.";
        OvercommitRatio = "overcommit_ratio", 0o644, "What may be promised, in percent of memory.";
        PanicOnOom = "panic_on_oom", 0o644, "Panic in place of killing.";
        LowmemReserveRatio = "lowmem_reserve_ratio", 0o444, "What zones keep from those who could use higher ones.";
        PageCluster = "page-cluster", 0o444, "Slots that are read from swap at once, as a power of two.";
        Swappiness = "swappiness", 0o644, "How much reclaim prefers anonymous pages.";
        UserReserveKbytes = "user_reserve_kbytes", 0o644, "Kept from a process that is large itself.";
        WatermarkBoostFactor = "watermark_boost_factor", 0o644, "How far fragmentation raises the watermarks.";
        WatermarkScaleFactor = "watermark_scale_factor", 0o644, "Distance of the watermarks.";
    }
}

files! {
    /// Files in /proc/sys/kernel.
    KernelFile {
        Hostname = "hostname", 0o444, "Name of the machine.";
        Osrelease = "osrelease", 0o444, "Release of the kernel.";
        Ostype = "ostype", 0o444, "Name of the kernel.";
        PidMax = "pid_max", 0o444, "Numbers of processes are below it.";
        Printk = "printk", 0o644, "Levels of messages.";
        ThreadsMax = "threads-max", 0o644, "Threads that there may be.";
        Version = "version", 0o444, "Which build of the release it is.";
    }
}

/// A file of /proc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// /proc.
    Root,
    /// A file in it.
    System(SystemFile),
    /// /proc/self.
    Own,
    /// /proc/thread-self.
    OwnThread,
    /// /proc/mounts.
    Mounts,
    /// The directory of a process or thread.
    Process(Who),
    /// A file in it.
    File(Who, PidFile),
    /// A link in it or in its fd.
    Link(Who, Link),
    /// Its directory of open files.
    Fds(Who),
    /// Its directory of threads.
    Threads(u32),
    /// /proc/sysvipc.
    Sysvipc,
    /// System V shared memory, in it.
    SysvShm,
    /// /proc/sys.
    Sys,
    /// /proc/sys/vm.
    SysVm,
    /// A file in it.
    Vm(VmFile),
    /// /proc/sys/kernel.
    SysKernel,
    /// A file in it.
    Kernel(KernelFile),
}

/// Where a link leads.
#[derive(Debug)]
pub enum Target {
    /// By a path.
    Text(Vec<u8>),
    /// To this place, whatever its path.
    Place(Place),
}

/// A decimal number without signs or zeroes in front.
fn number(name: &[u8]) -> Option<u32> {
    let plain = name.first()? != &b'0' || name.len() == 1;
    let text = core::str::from_utf8(name).ok().filter(|_| plain && name.iter().all(u8::is_ascii_digit))?;
    text.parse().ok()
}

const LINKS: [(&str, Link); 3] = [("cwd", Link::Cwd), ("exe", Link::Exe), ("root", Link::Root)];
const PLACES: [(&str, Node); 5] = [
    ("mounts", Node::Mounts),
    ("self", Node::Own),
    ("sys", Node::Sys),
    ("sysvipc", Node::Sysvipc),
    ("thread-self", Node::OwnThread),
];
/// First position of a process in /proc, as in Linux (`FIRST_PROCESS_ENTRY`).
const FIRST_PROCESS: u64 = 256;
/// Positions 0 and 1 are `.` and `..`.
const FIRST: u64 = 2;

/// Puts an entry; `false` if there was no room.
pub(crate) type Put<'a> = &'a mut dyn FnMut(&Dirent<'_>) -> Result<bool, Errno>;

impl Node {
    /// Whether names can be looked up in it.
    pub const fn is_dir(self) -> bool {
        matches!(
            self,
            Node::Root
                | Node::Process(_)
                | Node::Fds(_)
                | Node::Threads(_)
                | Node::Sysvipc
                | Node::Sys
                | Node::SysVm
                | Node::SysKernel
        )
    }

    const fn is_link(self) -> bool {
        matches!(self, Node::Own | Node::OwnThread | Node::Mounts | Node::Link(..))
    }

    /// `st_mode`.
    pub const fn mode(self) -> u32 {
        match self {
            Node::Root
            | Node::Process(_)
            | Node::Threads(_)
            | Node::Sysvipc
            | Node::Sys
            | Node::SysVm
            | Node::SysKernel => mode::S_IFDIR | 0o555,
            Node::Vm(file) => mode::S_IFREG | file.permissions(),
            Node::Kernel(file) => mode::S_IFREG | file.permissions(),
            Node::SysvShm => mode::S_IFREG | 0o444,
            Node::Fds(_) => mode::S_IFDIR | 0o500,
            Node::System(file) => mode::S_IFREG | file.permissions(),
            Node::File(_, file) => mode::S_IFREG | file.permissions(),
            Node::Own | Node::OwnThread | Node::Mounts | Node::Link(..) => mode::S_IFLNK | 0o777,
        }
    }

    /// The directory that it is in.
    pub(crate) const fn parent(self) -> Node {
        match self {
            Node::Root
            | Node::System(_)
            | Node::Own
            | Node::OwnThread
            | Node::Mounts
            | Node::Sysvipc
            | Node::Sys => Node::Root,
            Node::SysVm | Node::SysKernel => Node::Sys,
            Node::Vm(_) => Node::SysVm,
            Node::Kernel(_) => Node::SysKernel,
            Node::SysvShm => Node::Sysvipc,
            Node::Process(Who { pid, tid: Some(_) }) => Node::Threads(pid),
            Node::Process(_) => Node::Root,
            Node::Link(who, Link::Fd(_)) => Node::Fds(who),
            Node::File(who, _) | Node::Link(who, _) | Node::Fds(who) => Node::Process(who),
            Node::Threads(pid) => Node::Process(Who { pid, tid: None }),
        }
    }

    /// Its name in that directory.
    ///
    /// # Errors
    /// None today; `ENOMEM` once names are built without infallible allocation.
    pub(crate) fn name(self) -> Result<Vec<u8>, Errno> {
        let text = match self {
            Node::Root => "",
            Node::System(file) => file.name(),
            Node::File(_, file) => file.name(),
            Node::Own => "self",
            Node::OwnThread => "thread-self",
            Node::Mounts => "mounts",
            Node::Sysvipc => "sysvipc",
            Node::SysvShm => "shm",
            Node::Sys => "sys",
            Node::SysVm => "vm",
            Node::SysKernel => "kernel",
            Node::Kernel(file) => file.name(),
            Node::Vm(file) => file.name(),
            Node::Fds(_) => "fd",
            Node::Threads(_) => "task",
            Node::Link(_, Link::Cwd) => "cwd",
            Node::Link(_, Link::Exe) => "exe",
            Node::Link(_, Link::Root) => "root",
            Node::Process(Who { pid, tid }) => return Ok(format!("{}", tid.unwrap_or(pid)).into_bytes()),
            Node::Link(_, Link::Fd(fd)) => return Ok(format!("{fd}").into_bytes()),
        };
        crate::dir::copy(text.as_bytes())
    }

    /// `st_ino`: the same for as long as the file is there.
    pub(crate) fn number(self) -> u64 {
        // Beyond the numbers of processes and their files.
        const SYSTEM: u64 = 0xf000_0000;
        let of = |who: Who| u64::from(who.tid.unwrap_or(who.pid)) << 24 | u64::from(who.tid.is_some()) << 20;
        match self {
            Node::Root => 1,
            Node::System(file) => SYSTEM + file as u64,
            Node::Own => SYSTEM + 0x100,
            Node::OwnThread => SYSTEM + 0x101,
            Node::Mounts => SYSTEM + 0x102,
            Node::Sysvipc => SYSTEM + 0x103,
            Node::SysvShm => SYSTEM + 0x104,
            Node::Sys => SYSTEM + 0x105,
            Node::SysVm => SYSTEM + 0x106,
            Node::SysKernel => SYSTEM + 0x107,
            Node::Vm(file) => SYSTEM + 0x200 + file as u64,
            Node::Kernel(file) => SYSTEM + 0x300 + file as u64,
            Node::Process(who) => of(who) + 0x8_0000,
            Node::File(who, file) => of(who) + 0x8_0001 + file as u64,
            Node::Link(who, Link::Cwd) => of(who) + 0x8_0101,
            Node::Link(who, Link::Exe) => of(who) + 0x8_0102,
            Node::Link(who, Link::Root) => of(who) + 0x8_0103,
            Node::Fds(who) => of(who) + 0x8_0104,
            Node::Threads(pid) => of(Who { pid, tid: None }) + 0x8_0105,
            Node::Link(who, Link::Fd(fd)) => of(who) + u64::from(fd) % 0x8_0000,
        }
    }

    /// What stat tells.
    pub(crate) fn stat(self, dev: u64, processes: &impl Processes) -> Stat {
        let nlink = match self {
            Node::Root | Node::Sysvipc | Node::Sys | Node::SysVm | Node::SysKernel => 2,
            Node::Process(_) => 4,
            Node::Fds(_) | Node::Threads(_) => 2,
            _ => 1,
        };
        let mut bits = self.mode();
        if let Node::Link(who, Link::Fd(fd)) = self
            && let Some(access) = processes.fd_access(who, fd)
        {
            // Linux: `tid_fd_update_inode`.
            let rights = if access.reads { 0o500 } else { 0 } | if access.writes { 0o300 } else { 0 };
            bits = mode::S_IFLNK | rights;
        }
        let size = if matches!(self, Node::Link(_, Link::Fd(_))) { 64 } else { 0 };
        let (zero, nobody) = (Timespec::default(), 0);
        Stat {
            dev,
            ino: self.number(),
            nlink,
            mode: bits,
            uid: nobody,
            gid: nobody,
            size,
            atime: zero,
            mtime: zero,
            ctime: zero,
            ..Stat::default()
        }
    }

    /// Where it leads; `None` if it is no link.
    ///
    /// # Errors
    /// `ENOENT` if it leads nowhere.
    pub(crate) fn follow(self, processes: &impl Processes) -> Result<Option<Target>, Errno> {
        if !self.is_link() {
            return Ok(None);
        }
        let text = match self {
            Node::Own => format!("{}", processes.current().ok_or(Errno::Enoent)?.0),
            Node::OwnThread => {
                let (pid, tid) = processes.current().ok_or(Errno::Enoent)?;
                format!("{pid}/task/{tid}")
            }
            Node::Mounts => "self/mounts".into(),
            Node::Link(who, link) => {
                return Ok(Some(Target::Place(processes.link(who, link).ok_or(Errno::Enoent)?)));
            }
            _ => return Ok(None),
        };
        Ok(Some(Target::Text(text.into_bytes())))
    }

    /// An entry of the directory.
    pub(crate) fn child(self, name: &[u8], processes: &impl Processes) -> Option<Node> {
        match self {
            Node::Root => {
                let named = |(text, _): &&(&str, Node)| text.as_bytes() == name;
                if let Some((_, node)) = PLACES.iter().find(named) {
                    let own = matches!(node, Node::Own | Node::OwnThread);
                    return (!own || processes.current().is_some()).then_some(*node);
                }
                SystemFile::find(name).map(Node::System).or_else(|| {
                    let who = Who { pid: number(name)?, tid: None };
                    processes.exists(who).then_some(Node::Process(who))
                })
            }
            Node::Process(who) => {
                if !processes.exists(who) {
                    return None;
                }
                match name {
                    b"fd" => return Some(Node::Fds(who)),
                    b"task" if who.tid.is_none() => return Some(Node::Threads(who.pid)),
                    _ => {}
                }
                let link = LINKS.iter().find(|(text, _)| text.as_bytes() == name);
                let file = PidFile::find(name);
                link.map(|(_, link)| Node::Link(who, *link)).or(file.map(|file| Node::File(who, file)))
            }
            Node::Sysvipc => (name == b"shm").then_some(Node::SysvShm),
            Node::Sys => match name {
                b"kernel" => Some(Node::SysKernel),
                b"vm" => Some(Node::SysVm),
                _ => None,
            },
            Node::SysKernel => KernelFile::find(name).map(Node::Kernel),
            Node::SysVm => VmFile::find(name).map(Node::Vm),
            Node::Fds(who) => {
                let fd = number(name)?;
                processes.fd_access(who, fd).map(|_| Node::Link(who, Link::Fd(fd)))
            }
            Node::Threads(pid) => {
                let who = Who { pid, tid: Some(number(name)?) };
                processes.exists(who).then_some(Node::Process(who))
            }
            _ => None,
        }
    }

    /// Lists the directory from `pos` on, after `.` and `..`; whether there was no room for all.
    pub(crate) fn list(self, processes: &impl Processes, pos: &mut u64, put: Put<'_>) -> Result<bool, Errno> {
        match self {
            Node::Root => {
                let files = SystemFile::ALL.iter().map(|file| Node::System(*file));
                let fixed = PLACES.iter().map(|(_, node)| *node).chain(files);
                if list_fixed(fixed, pos, put)? {
                    return Ok(true);
                }
                *pos = (*pos).max(FIRST_PROCESS);
                let next = |from| processes.next(from);
                list_numbers(FIRST_PROCESS, pos, next, |pid| Node::Process(Who { pid, tid: None }), put)
            }
            Node::Process(who) => {
                if !processes.exists(who) {
                    return Err(Errno::Enoent);
                }
                let threads = who.tid.is_none().then_some(Node::Threads(who.pid));
                let links = LINKS.iter().map(|(_, link)| Node::Link(who, *link));
                let files = PidFile::ALL.iter().map(|file| Node::File(who, *file));
                list_fixed([Node::Fds(who)].into_iter().chain(threads).chain(links).chain(files), pos, put)
            }
            Node::Sysvipc => list_fixed([Node::SysvShm].into_iter(), pos, put),
            Node::Sys => list_fixed([Node::SysKernel, Node::SysVm].into_iter(), pos, put),
            Node::SysKernel => list_fixed(KernelFile::ALL.iter().map(|file| Node::Kernel(*file)), pos, put),
            Node::SysVm => list_fixed(VmFile::ALL.iter().map(|file| Node::Vm(*file)), pos, put),
            Node::Fds(who) => {
                let next = |from| processes.next_fd(who, from);
                list_numbers(FIRST, pos, next, |fd| Node::Link(who, Link::Fd(fd)), put)
            }
            Node::Threads(pid) => {
                let next = |from| processes.next_thread(pid, from);
                list_numbers(FIRST, pos, next, |tid| Node::Process(Who { pid, tid: Some(tid) }), put)
            }
            _ => Err(Errno::Enotdir),
        }
    }
}

fn put_node(node: Node, next: u64, put: Put<'_>) -> Result<bool, Errno> {
    let name = node.name()?;
    put(&Dirent { ino: node.number(), next, kind: dirent_type(node.mode()), name: &name })
}

fn list_fixed(nodes: impl Iterator<Item = Node>, pos: &mut u64, put: Put<'_>) -> Result<bool, Errno> {
    for (at, node) in (FIRST..).zip(nodes) {
        if at < *pos {
            continue;
        }
        if !put_node(node, at + 1, put)? {
            return Ok(true);
        }
        *pos = at + 1;
    }
    Ok(false)
}

/// Entries that are numbers: number N is at position `first` + N.
fn list_numbers(
    first: u64,
    pos: &mut u64,
    next: impl Fn(u32) -> Option<u32>,
    node: impl Fn(u32) -> Node,
    put: Put<'_>,
) -> Result<bool, Errno> {
    while let Some(found) = u32::try_from(pos.saturating_sub(first)).ok().and_then(&next) {
        let after = first + u64::from(found) + 1;
        if !put_node(node(found), after, put)? {
            return Ok(true);
        }
        *pos = after;
    }
    Ok(false)
}
