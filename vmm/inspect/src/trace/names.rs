//! Names of what arguments of events stand for.

use memvisor_abi::ALLOC_FLAG_NAMES;

/// Bits of `gfp_t`, lowest first (Linux 6.1: include/linux/gfp_types.h).
const GFP_BITS: [&str; 23] = [
    "__GFP_DMA",
    "__GFP_HIGHMEM",
    "__GFP_DMA32",
    "__GFP_MOVABLE",
    "__GFP_RECLAIMABLE",
    "__GFP_HIGH",
    "__GFP_IO",
    "__GFP_FS",
    "__GFP_ZERO",
    "__GFP_ATOMIC",
    "__GFP_DIRECT_RECLAIM",
    "__GFP_KSWAPD_RECLAIM",
    "__GFP_WRITE",
    "__GFP_NOWARN",
    "__GFP_RETRY_MAYFAIL",
    "__GFP_NOFAIL",
    "__GFP_NORETRY",
    "__GFP_MEMALLOC",
    "__GFP_COMP",
    "__GFP_NOMEMALLOC",
    "__GFP_HARDWALL",
    "__GFP_THISNODE",
    "__GFP_ACCOUNT",
];

/// Compound types, the one with more bits first, so that what is left over is least.
const GFP_TYPES: [(&str, u32); 9] = [
    ("GFP_HIGHUSER_MOVABLE", 0x10_0cca),
    ("GFP_HIGHUSER", 0x10_0cc2),
    ("GFP_USER", 0x10_0cc0),
    ("GFP_KERNEL_ACCOUNT", 0x40_0cc0),
    ("GFP_KERNEL", 0xcc0),
    ("GFP_NOFS", 0xc40),
    ("GFP_NOIO", 0xc00),
    ("GFP_ATOMIC", 0xa20),
    ("GFP_NOWAIT", 0x800),
];

/// `gfp_t` as Linux's `%pGg` writes it.
///
/// ```
/// use memvisor_inspect::trace::gfp;
/// assert_eq!(gfp(0xcc0), "GFP_KERNEL");
/// assert_eq!(gfp(0xdc0), "GFP_KERNEL|__GFP_ZERO");
/// assert_eq!(gfp(0), "0");
/// ```
pub fn gfp(bits: u32) -> String {
    let mut words = Vec::new();
    let mut rest = bits;
    if let Some((name, value)) = GFP_TYPES.iter().find(|(_, value)| bits & value == *value) {
        words.push((*name).to_owned());
        rest &= !value;
    }
    join(words, rest, &GFP_BITS, "")
}

/// Rights of an allocation attempt.
pub fn alloc_flags(bits: u32) -> String {
    join(Vec::new(), bits, &ALLOC_FLAG_NAMES, "ALLOC_")
}

fn join(mut words: Vec<String>, bits: u32, names: &[&str], prefix: &str) -> String {
    let mut rest = bits;
    for (bit, name) in names.iter().enumerate() {
        if rest >> bit & 1 == 1 {
            words.push(format!("{prefix}{name}"));
            rest &= !(1 << bit);
        }
    }
    if rest != 0 || words.is_empty() {
        words.push(if rest == 0 { "0".to_owned() } else { format!("{rest:#x}") });
    }
    words.join("|")
}

/// Linux's name of a migratetype.
pub const fn migratetype(raw: u8) -> Option<&'static str> {
    Some(match raw {
        0 => "Unmovable",
        1 => "Movable",
        2 => "Reclaimable",
        3 => "HighAtomic",
        4 => "CMA",
        5 => "Isolate",
        _ => return None,
    })
}

/// Linux's name of a result of compaction (`enum compact_result`).
pub const fn compact_result(raw: u8) -> Option<&'static str> {
    Some(match raw {
        0 => "not suitable zone",
        1 => "skipped",
        2 => "deferred",
        3 => "no suitable page",
        4 => "continue",
        5 => "complete",
        6 => "partial skipped",
        7 => "contended",
        8 => "success",
        _ => return None,
    })
}
