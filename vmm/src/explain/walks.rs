//! The operations that a guest can show, and what they need.

use serde::Serialize;

/// An operation that the guest can show.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Walk {
    /// Name, on the guest's command line too.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Events that belong to it.
    pub events: &'static str,
    /// What it is shown on, if not on any machine.
    #[serde(skip)]
    pub stage: Option<&'static Stage>,
}

/// A machine for a walkthrough that many steps belong to: it ends soon, and steps that come again are summed up.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Machine and options, as for `memvisor run`, where the user names none.
    pub machine: &'static [&'static str],
    /// Disks that it needs, added to a machine without disks.
    pub disks: &'static [&'static str],
    /// Bytes of each CPU's ring.
    pub ring: u64,
    /// It takes so many steps that emulated ring 0 needs a minute or more.
    pub is_long: bool,
}

impl Walk {
    /// Whether emulated ring 0 needs a minute or more for it.
    pub fn is_long(&self) -> bool {
        self.stage.is_some_and(|stage| stage.is_long)
    }

    /// The guest's command line for it.
    pub fn cmdline(&self) -> String {
        let Walk { name, events, .. } = self;
        let ring = self.stage.map_or_else(String::new, |stage| format!(" trace_buf_size={}", stage.ring));
        format!("explain={name} trace={events}{ring}")
    }
}

/// Little memory, one CPU: so little that a guest whose ring 0 is emulated comes to its end in seconds.
const SHORT_OF_MEMORY: Stage = Stage {
    machine: &["tiny", "--memory", "12M"],
    disks: &["size=8M,name=data", "size=4M,name=swap"],
    ring: 1 << 20,
    is_long: true,
};

/// The same disks, and memory that suffices.
const WITH_DISKS: Stage = Stage { machine: &["tiny"], is_long: false, ..SHORT_OF_MEMORY };

/// All operations, as the guest's kernel lists them.
pub const WALKS: &[Walk] = &[
    Walk {
        name: "alloc-pages",
        about: "alloc_pages(GFP_KERNEL, 2) and __free_pages: zonelist, watermark, buddy lists, and the way back",
        events: "alloc,reclaim,explain",
        stage: None,
    },
    Walk {
        name: "get-zeroed-page",
        about: "get_zeroed_page(GFP_KERNEL) of fresh RAM, which is known to be zero, and of a frame that was in use",
        events: "alloc,reclaim,explain",
        stage: None,
    },
    Walk {
        name: "atomic-in-interrupt",
        about: "allocations in an interrupt handler: GFP_ATOMIC, GFP_KERNEL refused, and the reserve when memory is low",
        events: "alloc,reclaim,irq_handler,explain",
        stage: None,
    },
    Walk {
        name: "highuser",
        about: "alloc_pages(GFP_HIGHUSER, 0): the highest zone first, a window onto the frame, and down the zonelist",
        events: "alloc,reclaim,kmap*,kunmap*,explain",
        stage: None,
    },
    Walk {
        name: "buddy-split",
        about: "one frame when only blocks of 1,024 frames are free: expand splits ten times",
        events: "alloc,explain",
        stage: None,
    },
    Walk {
        name: "buddy-merge",
        about: "that frame given back: to the CPU's list, and when that is drained, ten merges with its buddies",
        events: "alloc,explain",
        stage: None,
    },
    Walk {
        name: "zone-fallback",
        about: "the preferred zone is at its watermark: the next zone of the list gives the frame",
        events: "alloc,reclaim,explain",
        stage: None,
    },
    Walk {
        name: "kmem-cache",
        about: "a cache of 64-byte objects: made, two objects taken and given back, unmade",
        events: "alloc,slab,explain",
        stage: None,
    },
    Walk {
        name: "kmalloc-vs-vmalloc",
        about: "100 bytes and 16 KiB by kmalloc, 16 KiB by vmalloc: frames, addresses, page tables, and the way back",
        events: "alloc,slab,vmalloc,explain",
        stage: None,
    },
    Walk {
        name: "slow-path",
        about: "alloc_pages(GFP_KERNEL, 2) below the min watermarks: kswapd, compaction, reclaim, retry; then the failure",
        events: "reclaim,compaction,alloc,explain,!__free*,!free_*,!mm_page_free*,!buddy_*,!mm_page_pcpu_drain,!shrink_node,!balance_pgdat",
        stage: None,
    },
    Walk {
        name: "first-touch",
        about: "malloc(4096): brk makes a VMA and no page; the first write faults, and a frame of zeroes is mapped",
        events: "fault,alloc_pages,mm_page_alloc,mm_page_free,explain",
        stage: None,
    },
    Walk {
        name: "cow",
        about: "a page that a child shares after fork: its write copies it, the parent's finds it alone",
        events: "fault,alloc_pages,mm_page_alloc,mm_page_free,explain",
        stage: None,
    },
    Walk {
        name: "fork",
        about: "dup_mmap: VMAs and entries are copied and lose the right to write, pages stay; the child ends",
        events: "fault,mm_page_alloc,mm_page_free,explain",
        stage: None,
    },
    Walk {
        name: "stack-growth",
        about: "a write below the stack moves its start down; one below RLIMIT_STACK is refused",
        events: "fault,mm_page_alloc,explain",
        stage: None,
    },
    Walk {
        name: "mmap",
        about: "two mappings side by side are one VMA; mprotect of one page splits it; munmap takes all",
        events: "fault,explain",
        stage: None,
    },
    Walk {
        name: "segv",
        about: "a read where nothing is mapped (SEGV_MAPERR), a write to read-only memory (SEGV_ACCERR)",
        events: "fault,explain",
        stage: None,
    },
    Walk {
        name: "load-program",
        about: "execve: segments of the file become VMAs, and pages come with the first instruction and the first use of the stack",
        events: "fault,mm_page_alloc,explain",
        stage: None,
    },
    Walk {
        name: "migrate-page",
        about: "migrate_pages of a page that two processes map: reverse mapping finds both entries, the page moves, both lead to the new frame",
        events: "compaction,mm_page_alloc,mm_page_free,fault,explain",
        stage: None,
    },
    Walk {
        name: "reclaim-then-oom",
        about: "100 MiB steps: kswapd, direct reclaim of the page cache, swapping, and when nothing is left the OOM killer",
        events: "reclaim,zone_watermark_ok,add_to_swap,explain",
        stage: Some(&SHORT_OF_MEMORY),
    },
    Walk {
        name: "slow-path-64m",
        about: "64 MiB steps until an allocation goes the slow path: rights, kswapd, retry, direct reclaim, and the page",
        events: "reclaim,compaction,zone_watermark_ok,explain",
        stage: Some(&SHORT_OF_MEMORY),
    },
    Walk {
        name: "kswapd",
        about: "a disk is read when memory is short: kswapd is woken below low, frees clean pages until high, and sleeps",
        events: "reclaim,explain",
        stage: Some(&SHORT_OF_MEMORY),
    },
    Walk {
        name: "swap-out-in",
        about: "MADV_PAGEOUT: slots, unmapping, writing, freeing; and back by faults, with a neighbour, and by a write",
        events: "fault,block_rq*,mm_page_alloc,mm_page_free,explain",
        stage: Some(&WITH_DISKS),
    },
    Walk {
        name: "writeback",
        about: "write makes pages of the cache dirty; fsync writes them; beyond the limits the flusher writes and writers wait",
        events: "file,explain",
        stage: Some(&WITH_DISKS),
    },
    Walk {
        name: "file-read",
        about: "read from a disk: the first page brings its neighbours, a marked page the next window, and then it is all memory",
        events: "file,copy_user,syscall,explain",
        stage: Some(&WITH_DISKS),
    },
    Walk {
        name: "mmap-vs-read",
        about: "8 pages of a file that is in memory by read and by mmap: copies and switches between the rings",
        events: "syscall,page_fault_user,handle_mm_fault,do_fault,set_pte_at,filemap_read,copy_user,mmap_region,explain",
        stage: Some(&WITH_DISKS),
    },
];

/// The operation of a name.
pub fn find(name: &str) -> Option<&'static Walk> {
    WALKS.iter().find(|walk| walk.name == name)
}
