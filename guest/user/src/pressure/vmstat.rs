//! What /proc counts: events, watermarks, free blocks.

use core::ffi::CStr;

use super::at;
use crate::promises::put;
use crate::shared::{close, is_error, open};
use crate::sys::call;

/// Calls `f` with every line of a file that is not longer than 511 bytes, however long the file is. False if it cannot be read.
pub fn lines(path: &CStr, mut f: impl FnMut(&[u8])) -> bool {
    let fd = open(path, 0);
    let mut buffer = [0_u8; 1024];
    let mut len = 0;
    let whole = loop {
        let Some(room) = buffer.get_mut(len..) else { break false };
        let got = call(0, [fd, room.as_mut_ptr() as u64, room.len() as u64, 0, 0, 0]);
        if got == 0 {
            break true;
        }
        if is_error(got) {
            break false;
        }
        len += usize::try_from(got).unwrap_or(0);
        let text = buffer.get(..len).unwrap_or_default();
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        text.get(..end).unwrap_or_default().split(|byte| *byte == b'\n').for_each(&mut f);
        buffer.copy_within(end..len, 0);
        len -= end;
        if len == buffer.len() {
            break false;
        }
    };
    close(fd);
    whole
}

/// The numbers of a line.
pub fn numbers(line: &[u8]) -> impl Iterator<Item = u64> {
    let digits = |word: &&[u8]| !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    let words = line.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').filter(digits);
    words.map(|word| word.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

/// Names whose counts are kept; one that Linux divides by zones stands for all of them.
const NAMES: [&str; 19] = [
    "pgalloc",
    "allocstall",
    "pgscan_kswapd",
    "pgscan_direct",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "pageoutrun",
    "pswpin",
    "pswpout",
    "workingset_refault_anon",
    "workingset_refault_file",
    "slabs_scanned",
    "pglazyfree",
    "pglazyfreed",
    "pgmigrate_success",
    "oom_kill",
    "compact_stall",
    "compact_success",
    "kswapd_wake",
];
const ZONES: [&[u8]; 5] = [b"_dma", b"_dma32", b"_normal", b"_high", b"_movable"];

/// Counts of /proc/vmstat at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events([u64; NAMES.len()]);

impl Events {
    /// Reads them, with /proc mounted for that if it is not. Again if there is no memory for the text just now.
    pub fn now() -> Events {
        let made = call(83, [at(c"/proc"), 0o755, 0, 0, 0, 0]);
        let mounted = !super::is_there(c"/proc/vmstat")
            && call(165, [at(c"none"), at(c"/proc"), at(c"proc"), 0, 0, 0]) == 0;
        let _ = made;
        let mut events = Events::default();
        for _ in 0..10 {
            events = Events::default();
            if lines(c"/proc/vmstat", |line| events.add(line)) {
                break;
            }
            crate::sys::nanosleep(0, 10_000_000);
        }
        if mounted {
            call(166, [at(c"/proc"), 0, 0, 0, 0, 0]);
        }
        events
    }

    fn add(&mut self, line: &[u8]) {
        let Some(space) = line.iter().position(|byte| *byte == b' ') else { return };
        let (name, value) = line.split_at(space);
        for (count, known) in self.0.iter_mut().zip(NAMES) {
            let zone = name.strip_prefix(known.as_bytes());
            if zone.is_some_and(|zone| zone.is_empty() || ZONES.contains(&zone)) {
                *count += numbers(value).next().unwrap_or(0);
            }
        }
    }

    /// The count of a name, which is one of [`NAMES`]; 0 for another.
    pub fn of(&self, name: &str) -> u64 {
        NAMES.iter().zip(self.0).find(|(known, _)| **known == name).map_or(0, |(_, count)| count)
    }
}

/// Pages, sums over all zones (/proc/zoneinfo). The marks are without what fragmentation adds to them for a while.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks {
    pub free: u64,
    pub min: u64,
    pub low: u64,
    pub high: u64,
    /// What fragmentation adds to each of the marks.
    pub boost: u64,
    /// What zones keep for requests that may not go to higher ones, and pages of files and programs never take.
    pub reserve: u64,
    /// Nodes with memory.
    pub nodes: u64,
}

impl Marks {
    /// Those of one node, or of all.
    pub fn now(node: Option<u64>) -> Marks {
        let (mut marks, mut here) = (Marks::default(), false);
        // Of the lines, and of the last node that was counted.
        let (mut number, mut counted) = (None, None);
        lines(c"/proc/zoneinfo", |line| {
            if line.starts_with(b"Node ") {
                number = numbers(line).next();
                here = node.is_none() || number == node;
            }
            if !here {
                return;
            }
            let all: [(&[u8], &mut u64); 5] = [
                (b"  pages free     ", &mut marks.free),
                (b"        boost    ", &mut marks.boost),
                (b"        min      ", &mut marks.min),
                (b"        low      ", &mut marks.low),
                (b"        high     ", &mut marks.high),
            ];
            if line.starts_with(b"        protection: (") {
                marks.reserve += numbers(line).last().unwrap_or(0);
            }
            for (name, sum) in all {
                if line.starts_with(name) {
                    *sum += numbers(line).next().unwrap_or(0);
                }
            }
            if line.starts_with(b"        managed  ")
                && numbers(line).any(|pages| pages > 0)
                && number != counted
            {
                counted = number;
                marks.nodes += 1;
            }
        });
        for mark in [&mut marks.min, &mut marks.low, &mut marks.high] {
            *mark -= marks.boost.min(*mark);
        }
        marks
    }
}

/// Whether fragmentation raises the marks from now on, as far as it does by default. /proc is mounted.
pub fn set_boosts(on: bool) -> bool {
    let factor: &[u8] = if on { b"15000\n" } else { b"0\n" };
    put(c"/proc/sys/vm/watermark_boost_factor", factor) == factor.len() as u64
}

/// Free blocks of an order and above, in blocks of that order (/proc/buddyinfo).
pub fn free_blocks(order: usize) -> u64 {
    let mut blocks = 0;
    lines(c"/proc/buddyinfo", |line| {
        // The first number is the node's.
        for (number, at) in numbers(line).skip(1).zip(0_usize..) {
            if at >= order {
                blocks += number << (at - order);
            }
        }
    });
    blocks
}
