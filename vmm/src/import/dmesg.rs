//! The kernel log of an x86 Linux, of any age from 2.6 on, and `numactl --hardware`, which bug reports put
//! beside it.
//!
//! Lines are found by what the kernel writes, not by what stands before it: time stamps, log levels, syslog
//! prefixes and quotation marks do not matter. A log of several boots counts from the last one on that
//! has a memory map.

use std::sync::Arc;

use memvisor_inspect::FactE820;

use super::claims::{
    At, Claim, Claims, LIST_LIMIT, MapClaim, MapSource, SratCpu, SratMemory, decimal, e820_kind, hex,
    inclusive,
};
use crate::machine::Range;

/// Whether only a kernel log, or `numactl`, has such a line.
pub(super) fn is_mark(line: &str) -> bool {
    ["BIOS-e820:", "SRAT: PXM ", "SRAT: Node ", "Linux version ", "smpboot: ", "Early memory node ranges"]
        .iter()
        .any(|mark| line.contains(mark))
        || line.trim() == "node distances:"
}

/// Whether the kernel stamped this line with seconds since its start, as in `[ 6062.319619] `: a log that may have lost its
/// beginning.
pub(super) fn is_stamped(line: &str) -> bool {
    let stamp =
        line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map(|(stamp, _)| stamp.trim_start());
    stamp.and_then(|stamp| stamp.split_once('.')).is_some_and(|(seconds, fraction)| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits(seconds) && digits(fraction) && fraction.len() == 6
    })
}

/// Lines by which a log is known again.
const LAST_LINES: usize = 64;

/// Takes all claims of a log.
pub(super) fn read(file: &Arc<str>, text: &str, claims: &mut Claims) {
    let mut log = Log::default();
    let mut earlier = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let at = At { file: file.clone(), line: number };
        if line.contains("Linux version ") && !log.map.is_empty() {
            earlier += 1;
            log = Log::default();
        }
        log.line(line, &at);
    }
    if log.map.is_empty() {
        let stamped = text.lines().rev().filter(|line| is_stamped(line)).take(LAST_LINES);
        log.claims.last_lines = stamped.map(str::to_owned).collect();
    }
    if earlier > 0 {
        log.claims.note(format!("{file} has the logs of {} boots; the last one counts", earlier + 1));
    }
    log.finish(claims);
}

#[derive(Default)]
struct Log {
    map: Vec<Claim<FactE820>>,
    claims: Claims,
    /// The block of lines that this line may be part of.
    block: Block,
}

#[derive(Default)]
enum Block {
    #[default]
    None,
    /// "Early memory node ranges".
    EarlyRanges,
    /// CPUs of that node are coming up, and their numbers may stand on lines of their own.
    Booting(u32),
    /// "node distances:" with its columns.
    Distances(Vec<u32>),
}

impl Log {
    fn line(&mut self, line: &str, at: &At) {
        if let Some((_, entry)) = line.split_once("BIOS-e820: ") {
            self.e820(entry, at);
        } else if let Some((_, rest)) = line.split_once("SRAT: PXM ") {
            self.srat_cpu(rest, at);
        } else if let Some((_, rest)) = line.split_once("SRAT: Node ") {
            self.srat_memory(rest, at);
        } else if line.contains("Early memory node ranges") {
            self.block = Block::EarlyRanges;
        } else if !self.in_block(line, at) {
            self.cpus(line, at);
            self.numactl(line, at);
        }
    }

    fn damaged(&mut self, at: &At, what: &str) {
        self.claims.note(format!("{at}: this line about {what} is damaged and was left out"));
    }

    /// `[mem 0x0-0x9fbff] usable`, or of old `0000000000000000 - 000000000009fc00 (usable)`.
    fn e820(&mut self, entry: &str, at: &At) {
        if entry.trim_start().starts_with("[gap ") {
            return;
        }
        let new = mem(entry).and_then(|(range, kind)| Some((range, e820_kind(kind)?)));
        let old = || {
            let (first, rest) = hex(entry.trim_start())?;
            let (end, rest) = hex(rest.trim_start().strip_prefix('-')?.trim_start())?;
            let kind = rest.trim().strip_prefix('(')?.strip_suffix(')')?;
            let range = Range { base: first, len: end.checked_sub(first)? };
            Some((range, e820_kind(kind)?))
        };
        match new.or_else(old) {
            Some((range, kind)) => {
                let value = FactE820 { addr: range.base, size: range.len, kind };
                self.map.push(Claim { value, at: at.clone() });
            }
            None => self.damaged(at, "the memory map"),
        }
    }

    /// `0 -> APIC 0x00 -> Node 0`.
    fn srat_cpu(&mut self, rest: &str, at: &At) {
        let parse = || {
            let (pxm, rest) = decimal(rest)?;
            let (apic_id, rest) = hex(rest.trim_start().strip_prefix("-> APIC ")?)?;
            let (node, _) = decimal(rest.trim_start().strip_prefix("-> Node ")?)?;
            Some(SratCpu { apic_id: u32::try_from(apic_id).ok()?, pxm, node: Some(node) })
        };
        match parse() {
            Some(value) => self.claims.srat_cpus.push(Claim { value, at: at.clone() }),
            None => self.damaged(at, "the node of a CPU"),
        }
    }

    /// `0 PXM 0 [mem 0x0-0x9ffff] hotplug`, or of old `0 PXM 0 0-a0000`.
    fn srat_memory(&mut self, rest: &str, at: &At) {
        let parse = || {
            let (node, rest) = decimal(rest)?;
            let (pxm, rest) = decimal(rest.trim_start().strip_prefix("PXM ")?)?;
            let range = mem(rest).map(|(range, _)| range).or_else(|| {
                let (first, rest) = hex(rest.trim_start())?;
                let (end, _) = hex(rest.strip_prefix('-')?)?;
                Some(Range { base: first, len: end.checked_sub(first)? })
            });
            // A range of all addresses says nothing; some firmware has it for devices.
            let all = rest.contains("-0xffffffffffffffff");
            range.or(all.then_some(Range { base: 0, len: 0 })).map(|range| SratMemory {
                pxm,
                node: Some(node),
                range,
            })
        };
        match parse() {
            Some(value) => self.claims.srat_memory.push(Claim { value, at: at.clone() }),
            None => self.damaged(at, "the node of memory"),
        }
    }

    /// Lines that mean something only after another one. True if `line` was one.
    fn in_block(&mut self, line: &str, at: &At) -> bool {
        match &self.block {
            Block::None => false,
            Block::EarlyRanges => {
                let parse = || {
                    let (_, rest) = line.split_once(" node ")?;
                    let (node, rest) = decimal(rest.trim_start())?;
                    Some((node, mem(rest.strip_prefix(':')?)?.0))
                };
                match parse() {
                    Some(value) => self.claims.early.push(Claim { value, at: at.clone() }),
                    None => self.block = Block::None,
                }
                matches!(self.block, Block::EarlyRanges)
            }
            Block::Booting(node) => {
                let node = *node;
                // Other CPUs' messages may come in between, until all are up.
                let numbers = line.rsplit_once(']').map_or(line, |(_, message)| message).trim();
                numbers.starts_with('#') && self.booting(node, numbers, at)
            }
            Block::Distances(columns) => {
                let columns = columns.clone();
                let message = line.trim();
                if let Some(ids) = message.strip_prefix("node ") {
                    let ids: Vec<u32> = ids.split_whitespace().filter_map(|id| id.parse().ok()).collect();
                    self.block = Block::Distances(ids);
                    return true;
                }
                let parse = || {
                    let (node, cells) = message.split_once(':')?;
                    let cells: Option<Vec<u8>> =
                        cells.split_whitespace().map(|cell| cell.parse().ok()).collect();
                    Some((node.trim().parse().ok()?, columns, cells?))
                };
                match parse() {
                    Some(value) => self.claims.distances.push(Claim { value, at: at.clone() }),
                    None => self.block = Block::None,
                }
                matches!(self.block, Block::Distances(_))
            }
        }
    }

    /// `#1 #2  #3 OK`. True if there were only such words.
    fn booting(&mut self, node: u32, numbers: &str, at: &At) -> bool {
        for word in numbers.split_whitespace() {
            match word.strip_prefix('#').map(str::parse) {
                Some(Ok(cpu)) => self.claims.booted.push(Claim { value: (node, cpu), at: at.clone() }),
                _ => return word == "OK",
            }
        }
        true
    }

    fn cpus(&mut self, line: &str, at: &At) {
        // ".... node  #0, CPUs:   #1 #2", of old "Booting Node   0, Processors  #1 #2 OK".
        let new = line.split_once(".... node ").and_then(|(_, rest)| {
            let (node, rest) = decimal(rest.trim_start().strip_prefix('#')?)?;
            Some((node, rest.split_once("CPUs:")?.1))
        });
        let old = || {
            let (_, rest) = line.split_once("Booting Node ")?;
            let (node, rest) = decimal(rest.trim_start())?;
            Some((node, rest.split_once("Processors")?.1))
        };
        if let Some((node, numbers)) = new.or_else(old) {
            self.block = Block::Booting(node);
            self.booting(node, numbers, at);
        }
        // "smp: Brought up 2 nodes, 88 CPUs", "x86: Booted up 1 node, 2 CPUs", "Brought up 8 CPUs".
        if let Some((_, rest)) = line.split_once("rought up ").or_else(|| line.split_once("ooted up ")) {
            let count = rest.split(", ").find_map(|part| {
                decimal(part.trim())
                    .filter(|(_, unit)| unit.trim_start().starts_with("CPU"))
                    .map(|(count, _)| count)
            });
            if let Some(value) = count {
                self.claims.online.push(Claim { value, at: at.clone() });
                self.block = Block::None;
            }
        }
        // "smpboot: Allowing 8 CPUs, 2 hotplug CPUs" counts both, "CPU topo: Allowing 8 present CPUs plus 2
        // hotplug CPUs" does not.
        if let Some((_, rest)) = line.split_once("Allowing ") {
            let parse = || {
                let (count, rest) = decimal(rest)?;
                if rest.starts_with(" present CPUs") {
                    return Some(count);
                }
                let (hotplug, _) = decimal(rest.strip_prefix(" CPUs, ")?)?;
                count.checked_sub(hotplug)
            };
            if let Some(value) = parse() {
                self.claims.present.push(Claim { value, at: at.clone() });
            }
        }
    }

    /// `node 0 cpus: 0 1 2` and the head of the distances.
    fn numactl(&mut self, line: &str, at: &At) {
        let message = line.trim();
        if message == "node distances:" {
            self.block = Block::Distances(Vec::new());
        }
        let parse = || {
            let (node, rest) = decimal(message.strip_prefix("node ")?)?;
            let cpus = rest.strip_prefix(" cpus:")?.split_whitespace().map(|cpu| cpu.parse().ok());
            Some((node, cpus.take(LIST_LIMIT).collect::<Option<Vec<u32>>>()?))
        };
        if let Some(value) = parse() {
            self.claims.node_cpus.push(Claim { value, at: at.clone() });
        }
    }

    fn finish(self, claims: &mut Claims) {
        let Log { map, claims: mut log, block: _ } = self;
        if !map.is_empty() {
            claims.maps.push(MapClaim { source: MapSource::Firmware, entries: map });
        }
        claims.srat_cpus.append(&mut log.srat_cpus);
        claims.srat_memory.append(&mut log.srat_memory);
        claims.early.append(&mut log.early);
        claims.node_cpus.append(&mut log.node_cpus);
        claims.booted.append(&mut log.booted);
        claims.online.append(&mut log.online);
        claims.present.append(&mut log.present);
        claims.distances.append(&mut log.distances);
        claims.last_lines.append(&mut log.last_lines);
        claims.remarks.append(&mut log.remarks);
    }
}

/// The range of `... [mem 0x0-0xfff] ...`, and what follows it.
fn mem(text: &str) -> Option<(Range, &str)> {
    let (_, rest) = text.split_once("[mem ")?;
    let (first, rest) = hex(rest)?;
    let (last, rest) = hex(rest.strip_prefix('-')?)?;
    Some((inclusive(first, last)?, rest.strip_prefix(']')?))
}
