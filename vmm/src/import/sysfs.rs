//! /sys/firmware/memmap and /sys/devices/system/node, as directories or as `grep -r .` prints them.

use std::collections::BTreeMap;
use std::sync::Arc;

use memvisor_inspect::FactE820;

use super::ImportError;
use super::claims::{
    At, Claim, Claims, LIST_LIMIT, MapClaim, MapSource, decimal, e820_kind, hex, inclusive, number_list,
};

/// A line of a file of a directory.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// The directory's last component: `0`, `node1`.
    pub parent: String,
    /// The file's.
    pub name: String,
    pub value: String,
    pub at: At,
}

/// N of `nodeN`.
pub(super) fn node_number(name: &str) -> Option<u32> {
    decimal(name.strip_prefix("node")?).filter(|(_, rest)| rest.is_empty()).map(|(number, _)| number)
}

fn split(line: &str) -> Option<(&str, &str, &str)> {
    let (path, value) = line.split_once(':')?;
    let mut parts = path.rsplit('/');
    let name = parts.next()?;
    Some((parts.next()?, name, value))
}

/// Whether a line is of /sys/firmware/memmap.
pub(super) fn is_memmap(line: &str) -> bool {
    split(line).is_some_and(|(parent, name, _)| {
        matches!(name, "start" | "end" | "type") && parent.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Whether a line is of /sys/devices/system/node.
pub(super) fn is_node(line: &str) -> bool {
    split(line).is_some_and(|(parent, name, _)| {
        matches!(name, "cpulist" | "distance" | "meminfo") && node_number(parent).is_some()
    })
}

/// The lines of a grep.
pub(super) fn grepped(file: &Arc<str>, text: &str) -> Vec<Leaf> {
    let leaf = |(line, text)| {
        let (parent, name, value) = split(text)?;
        let at = At { file: file.clone(), line };
        Some(Leaf { parent: parent.to_owned(), name: name.to_owned(), value: value.to_owned(), at })
    };
    (1..).zip(text.lines()).filter_map(leaf).collect()
}

/// Takes all claims of `leaves`.
pub(super) fn read(leaves: &[Leaf], claims: &mut Claims) -> Result<(), ImportError> {
    let mut memmap: BTreeMap<u32, [Option<&Leaf>; 3]> = BTreeMap::new();
    let mut distances = Vec::new();
    for leaf in leaves {
        let value = leaf.value.trim();
        if let Some(node) = node_number(&leaf.parent) {
            match leaf.name.as_str() {
                "cpulist" => match number_list(value, LIST_LIMIT) {
                    Some(cpus) => claims.node_cpus.push(Claim { value: (node, cpus), at: leaf.at.clone() }),
                    None => return Err(bad(leaf, "a list of CPUs like 0-3,8")),
                },
                "distance" => {
                    let row: Option<Vec<u8>> =
                        value.split_whitespace().map(|cell| cell.parse().ok()).collect();
                    let row = row.ok_or_else(|| bad(leaf, "distances like 10 20"))?;
                    distances.push((node, row, leaf.at.clone()));
                }
                "meminfo" => {
                    let total = value.split_once("MemTotal:").map(|(_, total)| total.trim());
                    if let Some(total) = total {
                        let kib: Option<u64> =
                            total.strip_suffix("kB").and_then(|kib| kib.trim().parse().ok());
                        let bytes = kib.and_then(|kib| kib.checked_mul(1024));
                        let bytes = bytes.ok_or_else(|| bad(leaf, "a size like 8192 kB"))?;
                        claims.totals.push(Claim { value: (node, bytes), at: leaf.at.clone() });
                    }
                }
                _ => {}
            }
        } else if let Ok(number) = leaf.parent.parse() {
            let slot = match leaf.name.as_str() {
                "start" => 0,
                "end" => 1,
                "type" => 2,
                _ => continue,
            };
            if let Some(cell) = memmap.entry(number).or_default().get_mut(slot) {
                *cell = Some(leaf);
            }
        }
    }
    // Columns of a row are the nodes that are online, and those are the ones with a directory.
    let mut nodes: Vec<u32> = distances.iter().map(|(node, _, _)| *node).collect();
    nodes.sort_unstable();
    for (node, row, at) in distances {
        claims.distances.push(Claim { value: (node, nodes.clone(), row), at });
    }
    let mut entries = Vec::new();
    for fields in memmap.into_values() {
        let [Some(start), Some(end), Some(kind)] = fields else {
            let at = fields.into_iter().flatten().next().map(|leaf| leaf.at.clone());
            match at {
                Some(at) => {
                    return Err(ImportError::Unusable {
                        at,
                        problem: "the entry lacks one of start, end and type; copy the whole directory"
                            .to_owned(),
                    });
                }
                None => continue,
            }
        };
        let whole = |leaf: &Leaf| {
            hex(leaf.value.trim()).filter(|(_, rest)| rest.is_empty()).map(|(number, _)| number)
        };
        let first = whole(start).ok_or_else(|| bad(start, "an address like 0x100000"))?;
        let last = whole(end).ok_or_else(|| bad(end, "an address like 0xfffff"))?;
        let range =
            inclusive(first, last).ok_or_else(|| bad(end, "an address not below the entry's start"))?;
        let kind = e820_kind(&kind.value).ok_or_else(|| bad(kind, "a type like System RAM or Reserved"))?;
        let value = FactE820 { addr: range.base, size: range.len, kind };
        entries.push(Claim { value, at: start.at.clone() });
    }
    if !entries.is_empty() {
        claims.maps.push(MapClaim { source: MapSource::Firmware, entries });
    }
    Ok(())
}

fn bad(leaf: &Leaf, wanted: &str) -> ImportError {
    let problem = format!("`{}` is not {wanted}", leaf.value.trim());
    ImportError::Unusable { at: leaf.at.clone(), problem }
}
