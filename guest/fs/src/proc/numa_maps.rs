//! /proc/PID/numa_maps (Linux: fs/proc/task_mmu.c, `show_numa_map`; mm/mempolicy.c, `mpol_to_str`).

use core::fmt::{self, Write};

/// What a mapping is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NumaPlace<'a> {
    /// A file, with its path.
    File(&'a [u8]),
    /// The heap.
    Heap,
    /// The stack.
    Stack,
    /// Other anonymous memory.
    #[default]
    Anonymous,
}

/// A mapping, and on which nodes its pages lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NumaMap<'a> {
    /// First address.
    pub start: u64,
    /// Mode of the policy that holds there: `MPOL_`.
    pub mode: u32,
    /// Its nodes, as bits.
    pub policy_nodes: u64,
    /// What it is of.
    pub place: NumaPlace<'a>,
    /// Pages that it maps.
    pub pages: u64,
    /// Of them, anonymous.
    pub anon: u64,
    /// Written.
    pub dirty: u64,
    /// The most entries that map one of them.
    pub mapcount_max: u64,
    /// In the swap cache.
    pub swapcache: u64,
    /// On an active list, or locked.
    pub active: u64,
    /// On their way to a device.
    pub writeback: u64,
    /// By node.
    pub nodes: &'a [u64],
}

/// Names of modes, by number.
const MODES: [&str; 6] = ["default", "prefer", "bind", "interleave", "local", "prefer (many)"];
const PAGE_KIB: u64 = 4;

pub(super) fn show(map: &NumaMap<'_>, out: &mut dyn Write) -> fmt::Result {
    let mode = usize::try_from(map.mode).ok().and_then(|mode| MODES.get(mode)).unwrap_or(&"unknown");
    write!(out, "{:08x} {mode}", map.start)?;
    if map.policy_nodes != 0 {
        out.write_char(':')?;
        list(map.policy_nodes, out)?;
    }
    match map.place {
        NumaPlace::File(path) => {
            out.write_str(" file=")?;
            escaped(path, out)?;
        }
        NumaPlace::Heap => out.write_str(" heap")?,
        NumaPlace::Stack => out.write_str(" stack")?,
        NumaPlace::Anonymous => {}
    }
    if map.pages > 0 {
        pages(map, out)?;
    }
    out.write_char('\n')
}

fn pages(map: &NumaMap<'_>, out: &mut dyn Write) -> fmt::Result {
    let fields = [
        ("anon", map.anon, map.anon > 0),
        ("dirty", map.dirty, map.dirty > 0),
        ("mapped", map.pages, map.pages != map.anon && map.pages != map.dirty),
        ("mapmax", map.mapcount_max, map.mapcount_max > 1),
        ("swapcache", map.swapcache, map.swapcache > 0),
        ("active", map.active, map.active < map.pages),
        ("writeback", map.writeback, map.writeback > 0),
    ];
    for (name, value, _) in fields.iter().filter(|(_, _, shown)| *shown) {
        write!(out, " {name}={value}")?;
    }
    for (node, count) in map.nodes.iter().enumerate().filter(|(_, count)| **count > 0) {
        write!(out, " N{node}={count}")?;
    }
    write!(out, " kernelpagesize_kB={PAGE_KIB}")
}

/// Numbers and ranges of bits (Linux: `%*pbl`).
fn list(bits: u64, out: &mut dyn Write) -> fmt::Result {
    let (mut left, mut between) = (bits, "");
    while left != 0 {
        let first = left.trailing_zeros();
        let last = first + (left >> first).trailing_ones() - 1;
        match last == first {
            true => write!(out, "{between}{first}")?,
            false => write!(out, "{between}{first}-{last}")?,
        }
        between = ",";
        left &= u64::MAX.checked_shl(last + 1).unwrap_or(0);
    }
    Ok(())
}

/// Linux: `seq_file_path` with its set of characters.
fn escaped(path: &[u8], out: &mut dyn Write) -> fmt::Result {
    path.iter().try_for_each(|byte| match byte {
        b'\n' | b'\t' | b'=' | b' ' => write!(out, "\\{byte:03o}"),
        byte if byte.is_ascii() => out.write_char(char::from(*byte)),
        byte => write!(out, "\\{byte:03o}"),
    })
}
