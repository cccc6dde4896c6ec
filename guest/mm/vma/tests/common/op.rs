//! Calls that both sides carry out.

use proptest::prelude::*;

/// Where both sides work. Nothing else is free in either address space.
pub const WINDOW: u64 = 0x7000_0000_0000;
/// Pages of it: more than the guard gap of a stack.
pub const PAGES: u64 = 704;
/// Where the heap begins, in pages of the window.
pub const HEAP: u64 = 560;
pub const PAGE: u64 = 4096;
pub const MADV_FREE: u64 = 8;
const MPOL_MF_STRICT: u64 = 1;
/// RLIMIT_MEMLOCK on both sides, bytes.
pub const MEMLOCK: u64 = 24 * PAGE;
/// RLIMIT_STACK on both sides, bytes.
pub const STACK: u64 = 64 * PAGE;

/// A call. Addresses are in bytes from the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Mmap {
        addr: u64,
        len: u64,
        prot: u64,
        flags: u64,
    },
    Munmap {
        addr: u64,
        len: u64,
    },
    Mprotect {
        addr: u64,
        len: u64,
        prot: u64,
    },
    Brk {
        bytes: u64,
    },
    Mremap {
        addr: u64,
        old_len: u64,
        new_len: u64,
        flags: u64,
        new_addr: u64,
    },
    Madvise {
        addr: u64,
        len: u64,
        advice: u64,
    },
    Mlock {
        addr: u64,
        len: u64,
        flags: u64,
    },
    Munlock {
        addr: u64,
        len: u64,
    },
    Mlockall {
        flags: u64,
    },
    Munlockall,
    Mincore {
        addr: u64,
        pages: u64,
    },
    Msync {
        addr: u64,
        len: u64,
        flags: u64,
    },
    Mbind {
        addr: u64,
        len: u64,
        mode: u64,
        nodes: u64,
        flags: u64,
    },
    /// An instruction that reads the word there.
    Read {
        addr: u64,
    },
    /// An instruction that writes the number of the call there.
    Write {
        addr: u64,
    },
    /// A child process goes on with the calls; its parent waits.
    Fork,
}

impl Op {
    /// Whether the answer says which pages are mapped just now, which reclaim may change at any time, on Linux, too: a strict
    /// mbind refuses for mapped pages of other nodes, and looks at no others.
    pub fn tells_what_is_mapped(self) -> bool {
        matches!(self, Self::Mbind { flags, .. } if flags & MPOL_MF_STRICT != 0)
    }

    /// Whether the contents of pages depend on reclaim from here on: those that MADV_FREE gives away may be gone.
    pub fn gives_pages_away(self) -> bool {
        matches!(self, Self::Madvise { advice: MADV_FREE, .. })
    }
}

/// The address of an offset; 0 stays 0, so that hints can be left out.
pub fn address(offset: u64) -> u64 {
    if offset == 0 { 0 } else { WINDOW + offset }
}

/// The first page is never the target, so that 0 is no address.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 290..322_u64, 2 => HEAP - 2..HEAP + 8, 1 => 1..PAGES].prop_map(|page| page * PAGE)
}

fn misaligned(strategy: impl Strategy<Value = u64>) -> impl Strategy<Value = u64> {
    (strategy, prop_oneof![30 => Just(0_u64), 1 => 1..PAGE]).prop_map(|(value, off)| value + off)
}

fn len() -> impl Strategy<Value = u64> {
    prop_oneof![
        16 => (1..10_u64).prop_map(|pages| pages * PAGE),
        2 => 0..10 * PAGE,
        1 => (10..300_u64).prop_map(|pages| pages * PAGE),
        1 => prop_oneof![Just(u64::MAX), Just(u64::MAX - PAGE), Just(1 << 47), Just(0x7fff_ffff_f000)],
    ]
}

fn prot() -> impl Strategy<Value = u64> {
    prop_oneof![10 => Just(3_u64), 4 => Just(1), 2 => Just(0), 2 => 0..8_u64]
}

fn mprotect_prot() -> impl Strategy<Value = u64> {
    let odd =
        prop_oneof![Just(0x0100_0000_u64), Just(0x0100_0003), Just(0x0200_0001), Just(0x0300_0000), Just(16)];
    prop_oneof![30 => prot(), 1 => odd]
}

fn map_flags() -> impl Strategy<Value = u64> {
    let kind = prop_oneof![12 => Just(2_u64), 3 => Just(1), 1 => prop_oneof![Just(0_u64), Just(3), Just(4)]];
    let fixed = prop_oneof![6 => Just(0x10_u64), 3 => Just(0), 2 => Just(0x10_0000)];
    let more = prop_oneof![
        12 => Just(0_u64),
        1 => Just(0x100),    // GROWSDOWN
        1 => Just(0x2000),   // LOCKED
        1 => Just(0x4000),   // NORESERVE
        1 => Just(0x8000),   // POPULATE
        1 => Just(0x2_0000), // STACK
    ];
    (kind, fixed, more).prop_map(|(kind, fixed, more)| 0x20 | kind | fixed | more)
}

const END: u64 = PAGES * PAGE;

/// Nothing outside the window is touched: both sides need it, and it is not the same on both.
fn clamp(addr: u64, len: u64) -> u64 {
    // These fail for whoever looks at the end of the range.
    if len > u64::MAX / 2 { len } else { len.min(END - addr.min(END)) }
}

/// The same for calls that refuse ranges that end outside user space.
fn clamp_most(addr: u64, len: u64) -> u64 {
    if len >= 0x7fff_ffff_f000 { len } else { clamp(addr, len) }
}

fn clamped(op: Op) -> Op {
    match op {
        Op::Mmap { addr, len, prot, flags } => Op::Mmap { addr, len: clamp_most(addr, len), prot, flags },
        Op::Munmap { addr, len } => Op::Munmap { addr, len: clamp_most(addr, len) },
        Op::Mprotect { addr, len, prot } => Op::Mprotect { addr, len: clamp(addr, len), prot },
        Op::Mremap { addr, old_len, new_len, flags, new_addr } => Op::Mremap {
            addr,
            old_len: clamp_most(addr, old_len),
            new_len: clamp_most(new_addr.max(addr), new_len),
            flags,
            new_addr,
        },
        Op::Madvise { addr, len, advice } => Op::Madvise { addr, len: clamp(addr, len), advice },
        Op::Mlock { addr, len, flags } => Op::Mlock { addr, len: clamp(addr, len), flags },
        Op::Munlock { addr, len } => Op::Munlock { addr, len: clamp(addr, len) },
        Op::Mincore { addr, pages } => Op::Mincore { addr, pages: pages.min((END - addr.min(END)) / PAGE) },
        Op::Msync { addr, len, flags } => Op::Msync { addr, len: clamp(addr, len), flags },
        Op::Mbind { addr, len, mode, nodes, flags } => {
            Op::Mbind { addr, len: clamp(addr, len), mode, nodes, flags }
        }
        other => other,
    }
}

fn place() -> impl Strategy<Value = u64> {
    misaligned(page())
}

fn mremap() -> impl Strategy<Value = Op> {
    let flags =
        prop_oneof![8 => Just(1_u64), 3 => Just(0), 8 => Just(3), 3 => Just(5), 2 => Just(7), 1 => 0..9_u64];
    let lens = prop_oneof![
        6 => (len(), len()),
        5 => len().prop_map(|len| (len, len)),
        1 => len().prop_map(|len| (0, len)),
    ];
    (place(), lens, flags, place()).prop_map(|(addr, (old_len, new_len), flags, new_addr)| Op::Mremap {
        addr,
        old_len,
        new_len,
        flags,
        new_addr,
    })
}

fn madvise() -> impl Strategy<Value = Op> {
    let advice = prop_oneof![
        6 => Just(4_u64),                      // DONTNEED
        2 => Just(MADV_FREE),
        2 => Just(22),                         // POPULATE_READ
        2 => Just(23),                         // POPULATE_WRITE
        2 => 14..16_u64,                       // HUGEPAGE, NOHUGEPAGE
        4 => 0..4_u64,
        3 => 10..12_u64,                       // DONTFORK, DOFORK
        2 => 16..20_u64,                       // dumps, wiping
        1 => prop_oneof![Just(20_u64), Just(24), Just(5), Just(99)],
    ];
    (place(), len(), advice).prop_map(|(addr, len, advice)| Op::Madvise { addr, len, advice })
}

/// The machine has one node: what does not move pages is the same on both sides.
fn mbind() -> impl Strategy<Value = Op> {
    let policy = prop_oneof![
        6 => Just((2_u64, 1_u64)),             // BIND
        3 => Just((3, 1)),                     // INTERLEAVE
        3 => Just((4, 0)),                     // LOCAL
        4 => Just((0, 0)),                     // DEFAULT
        2 => Just((1, 1)),                     // PREFERRED
        // 6 came with 6.9.
        2 => (prop_oneof![0..6_u64, 7..10_u64], 0..4_u64),
    ];
    let flags = prop_oneof![6 => Just(0_u64), 3 => Just(MPOL_MF_STRICT), 1 => Just(8)];
    (place(), len(), policy, flags).prop_map(|(addr, len, (mode, nodes), flags)| Op::Mbind {
        addr,
        len,
        mode,
        nodes,
        flags,
    })
}

/// Calls that change what is mapped.
pub fn mapping_op() -> impl Strategy<Value = Op> {
    let target = prop_oneof![12 => place().boxed(), 1 => Just(0_u64).boxed()];
    prop_oneof![
        10 => (target, len(), prot(), map_flags())
            .prop_map(|(addr, len, prot, flags)| Op::Mmap { addr, len, prot, flags }),
        4 => (place(), len()).prop_map(|(addr, len)| Op::Munmap { addr, len }),
        6 => (place(), len(), mprotect_prot()).prop_map(|(addr, len, prot)| Op::Mprotect { addr, len, prot }),
        1 => (0..12 * PAGE).prop_map(|bytes| Op::Brk { bytes }),
        4 => mbind(),
    ]
    .prop_map(clamped)
}

/// Any call.
pub fn op() -> impl Strategy<Value = Op> {
    let lock = prop_oneof![6 => Just(0_u64), 2 => Just(1), 1 => Just(2)];
    prop_oneof![
        20 => mapping_op(),
        6 => mremap(),
        5 => madvise(),
        2 => (place(), len(), lock).prop_map(|(addr, len, flags)| Op::Mlock { addr, len, flags }),
        1 => (place(), len()).prop_map(|(addr, len)| Op::Munlock { addr, len }),
        // CURRENT would lock what is around the window.
        1 => prop_oneof![Just(2_u64), Just(6), Just(4), Just(0), Just(8)].prop_map(|flags| Op::Mlockall { flags }),
        1 => Just(Op::Munlockall),
        2 => (place(), 1..16_u64).prop_map(|(addr, pages)| Op::Mincore { addr, pages }),
        1 => (place(), len(), 0..9_u64).prop_map(|(addr, len, flags)| Op::Msync { addr, len, flags }),
        6 => page().prop_map(|addr| Op::Read { addr }),
        9 => page().prop_map(|addr| Op::Write { addr }),
        1 => Just(Op::Fork),
    ]
    .prop_map(clamped)
}
