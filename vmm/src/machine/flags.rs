//! `--memory-zone`, `--numa` and `--disk`, the first two spelled as Cloud Hypervisor spells them.
//!
//! `--memory-zone id=mem0,size=1G[,at=4G]` (`at` is ours), and
//! `--numa guest_numa_id=0,cpus=[0-1,4],distances=[1@20],memory_zones=[mem0,mem1]`, where the
//! brackets around one element may be left out.

use std::path::PathBuf;
use std::str::FromStr;

use super::disk::{DiskFaults, Sectors};
use super::error::Origin;
use super::{MachineError, Place, Problem, Size, layout};

const ZONE: &str = "--memory-zone";
const NUMA: &str = "--numa";

/// A `--memory-zone`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zone {
    pub id: String,
    pub at: Option<u64>,
    pub size: u64,
}

/// A `--numa`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numa {
    pub id: u32,
    pub cpus: Vec<u32>,
    pub distances: Vec<(u32, i64)>,
    /// Indices of zones.
    pub zones: Vec<usize>,
}

/// A `--disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskFlag {
    pub name: Option<String>,
    pub file: Option<PathBuf>,
    pub size: Option<u64>,
    pub read_only: bool,
    pub faults: DiskFaults,
}

/// Reads a `--disk`. `path` and `readonly` are Cloud Hypervisor's words, `file` and `ro` those of QEMU and mount(8); what is to go wrong has
/// the words of machine files.
pub(super) fn disk(text: &str) -> Result<DiskFlag, Problem> {
    let (mut name, mut file, mut size, mut read_only) = (None, None, None, None);
    let (mut read_errors, mut write_errors, mut delay_us, mut torn_writes) = (None, None, None, None);
    for part in outside_brackets(text) {
        if part == "ro" {
            set_once(&mut read_only, "readonly", true)?;
            continue;
        }
        let (key, value) = key_value(part)?;
        match key {
            "name" => set_once(&mut name, key, value.to_owned())?,
            "file" | "path" => set_once(&mut file, key, PathBuf::from(value))?,
            "size" => set_once(&mut size, key, parse_size(value)?)?,
            "readonly" => set_once(&mut read_only, key, parse_switch(value)?)?,
            "read_errors" => set_once(&mut read_errors, key, parse_sectors(value)?)?,
            "write_errors" => set_once(&mut write_errors, key, parse_sectors(value)?)?,
            "delay_us" => set_once(&mut delay_us, key, parse_number(value, "a number of microseconds")?)?,
            "torn_writes" => set_once(&mut torn_writes, key, parse_number(value, "the number of a write")?)?,
            _ => {
                let known =
                    "file, size, name, readonly, ro, read_errors, write_errors, delay_us, torn_writes";
                return Err(Problem::UnknownKey { key: key.to_owned(), known });
            }
        }
    }
    Ok(DiskFlag {
        name,
        file,
        size,
        read_only: read_only.unwrap_or(false),
        faults: DiskFaults {
            read_errors: read_errors.unwrap_or_default(),
            write_errors: write_errors.unwrap_or_default(),
            delay_us: delay_us.unwrap_or_default(),
            torn_writes,
        },
    })
}

/// Reads `64`, `64+8` and `[64,128+8]`: first sectors, and how many.
fn parse_sectors(text: &str) -> Result<Vec<Sectors>, Problem> {
    const WHAT: &str = "a sector like 64, or sectors like 64+8";
    elements(text)
        .map(|element| {
            let (sector, count) = element.split_once('+').unwrap_or((element, "1"));
            Ok(Sectors { sector: parse_number(sector, WHAT)?, count: parse_number(count, WHAT)? })
        })
        .collect()
}

fn parse_switch(text: &str) -> Result<bool, Problem> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(Problem::BadValue { text: text.to_owned(), what: "a switch: on or off" }),
    }
}

/// The place of a flag; `field` may be empty.
pub(super) fn origin(flag: &'static str, field: &str) -> Origin {
    Origin { place: Place::Flag(flag), field: field.to_owned() }
}

/// Reads all `--memory-zone` flags.
pub(super) fn zones(texts: &[String]) -> Result<Vec<Zone>, MachineError> {
    let mut zones: Vec<Zone> = Vec::new();
    for text in texts {
        let zone = parse_zone(text).map_err(|problem| MachineError::at(&origin(ZONE, text), problem))?;
        if zones.iter().any(|other| other.id == zone.id) {
            return Err(MachineError::at(&origin(ZONE, text), Problem::ZoneTwice(zone.id)));
        }
        zones.push(zone);
    }
    Ok(zones)
}

fn parse_zone(text: &str) -> Result<Zone, Problem> {
    let (mut id, mut at, mut size) = (None, None, None);
    for (key, value) in pairs(text)? {
        match key {
            "id" => set_once(&mut id, key, value.to_owned())?,
            "size" => set_once(&mut size, key, parse_size(value)?)?,
            "at" => set_once(&mut at, key, parse_size(value)?)?,
            _ => return Err(Problem::UnknownKey { key: key.to_owned(), known: "id, size, at" }),
        }
    }
    Ok(Zone {
        id: id.ok_or(Problem::MissingKey { key: "id", example: "id=mem0" })?,
        at,
        size: size.ok_or(Problem::MissingKey { key: "size", example: "size=128M" })?,
    })
}

/// Reads all `--numa` flags; the result is in order of ids, which count from 0. Every zone of
/// `zones` is in exactly one node.
pub(super) fn numa(texts: &[String], zones: &[Zone]) -> Result<Vec<Numa>, MachineError> {
    let mut nodes: Vec<Numa> = Vec::new();
    for text in texts {
        let at = origin(NUMA, text);
        let node = parse_numa(text, zones).map_err(|problem| MachineError::at(&at, problem))?;
        if nodes.iter().any(|other| other.id == node.id) {
            return Err(MachineError::at(&at, Problem::NodeTwice(node.id)));
        }
        let shared = |zone: &usize| {
            nodes.iter().find(|other| other.zones.contains(zone)).map(|other| (*zone, other.id))
        };
        if let Some((zone, other)) = node.zones.iter().find_map(shared) {
            let zone = zones.get(zone).map(|zone| zone.id.clone()).unwrap_or_default();
            return Err(MachineError::at(&at, Problem::ZoneInTwoNodes { zone, node: other }));
        }
        nodes.push(node);
    }
    nodes.sort_by_key(|node| node.id);
    if let Some((missing, _)) = (0..).zip(&nodes).find(|(index, node)| *index != node.id) {
        return Err(MachineError::at(&origin(NUMA, ""), Problem::NodeGap { missing }));
    }
    let used = |index: usize| nodes.iter().any(|node| node.zones.contains(&index));
    if let Some((_, zone)) = zones.iter().enumerate().find(|(index, _)| !used(*index)) {
        return Err(MachineError::at(&origin(ZONE, ""), Problem::ZoneUnused(zone.id.clone())));
    }
    Ok(nodes)
}

fn parse_numa(text: &str, zones: &[Zone]) -> Result<Numa, Problem> {
    let (mut id, mut cpus, mut distances, mut memory_zones) = (None, None, None, None);
    for (key, value) in pairs(text)? {
        match key {
            "guest_numa_id" => set_once(&mut id, key, parse_number(value, "the number of a node")?)?,
            "cpus" => set_once(&mut cpus, key, parse_cpus(value)?)?,
            "distances" => set_once(&mut distances, key, parse_distances(value)?)?,
            "memory_zones" => set_once(&mut memory_zones, key, parse_zones(value, zones)?)?,
            _ => {
                let known = "guest_numa_id, cpus, distances, memory_zones";
                return Err(Problem::UnknownKey { key: key.to_owned(), known });
            }
        }
    }
    Ok(Numa {
        id: id.ok_or(Problem::MissingKey { key: "guest_numa_id", example: "guest_numa_id=0" })?,
        cpus: cpus.unwrap_or_default(),
        distances: distances.unwrap_or_default(),
        zones: memory_zones.unwrap_or_default(),
    })
}

/// The pairs of `a=1,b=[2,3]`.
fn pairs(text: &str) -> Result<Vec<(&str, &str)>, Problem> {
    outside_brackets(text).map(key_value).collect()
}

/// Splits at the commas outside of lists, which begin with `=[`: a path may have brackets of its own.
fn outside_brackets(text: &str) -> impl Iterator<Item = &str> {
    let (mut is_list, mut last) = (false, ' ');
    text.split(move |letter| {
        match letter {
            '[' if last == '=' => is_list = true,
            ']' => is_list = false,
            _ => {}
        }
        last = letter;
        letter == ',' && !is_list
    })
}

fn key_value(part: &str) -> Result<(&str, &str), Problem> {
    part.split_once('=').ok_or_else(|| Problem::NotKeyValue(part.to_owned()))
}

/// The elements of `[a,b]` or of `a`.
fn elements(text: &str) -> impl Iterator<Item = &str> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    inner.split(',').filter(|element| !element.is_empty())
}

fn set_once<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), Problem> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Problem::DuplicateKey(key.to_owned())),
    }
}

fn parse_size(text: &str) -> Result<u64, Problem> {
    text.parse::<Size>().map(Size::bytes).map_err(|error| Problem::Syntax(error.to_string()))
}

fn parse_number<T: FromStr>(text: &str, what: &'static str) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::BadValue { text: text.to_owned(), what })
}

fn parse_cpus(text: &str) -> Result<Vec<u32>, Problem> {
    const WHAT: &str = "a CPU like 2 or a range of CPUs like 0-3";
    let mut cpus = Vec::new();
    for element in elements(text) {
        let (first, last) = element.split_once('-').unwrap_or((element, element));
        let (first, last): (u32, u32) = (parse_number(first, WHAT)?, parse_number(last, WHAT)?);
        if last < first {
            return Err(Problem::BadValue { text: element.to_owned(), what: WHAT });
        }
        if last >= layout::MAX_CPUS {
            return Err(Problem::TooManyCpus { count: u64::from(last) + 1 });
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

fn parse_distances(text: &str) -> Result<Vec<(u32, i64)>, Problem> {
    const WHAT: &str = "a distance like 1@20 (node@distance)";
    let parse = |element: &str| {
        let (to, distance) = element.split_once('@')?;
        Some((to.parse().ok()?, distance.parse().ok()?))
    };
    elements(text)
        .map(|element| {
            parse(element).ok_or_else(|| Problem::BadValue { text: element.to_owned(), what: WHAT })
        })
        .collect()
}

fn parse_zones(text: &str, zones: &[Zone]) -> Result<Vec<usize>, Problem> {
    let mut indices = Vec::new();
    for element in elements(text) {
        let Some(index) = zones.iter().position(|zone| zone.id == element) else {
            let known = match zones {
                [] => "none: add --memory-zone".to_owned(),
                zones => zones.iter().map(|zone| zone.id.as_str()).collect::<Vec<_>>().join(", "),
            };
            return Err(Problem::NoSuchZone { zone: element.to_owned(), known });
        };
        if indices.contains(&index) {
            return Err(Problem::ZoneTwice(element.to_owned()));
        }
        indices.push(index);
    }
    Ok(indices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn what_goes_wrong_with_a_disk_has_the_words_of_machine_files() {
        let sectors = |sector, count| Sectors { sector, count };
        let flag =
            disk("size=1M,read_errors=[64,128+8],write_errors=3,delay_us=20,torn_writes=2,ro").unwrap();
        let faults = DiskFaults {
            read_errors: vec![sectors(64, 1), sectors(128, 8)],
            write_errors: vec![sectors(3, 1)],
            delay_us: 20,
            torn_writes: Some(2),
        };
        assert_eq!((flag.faults, flag.size, flag.read_only), (faults, Some(1 << 20), true));
        assert_eq!(disk("file=a[1,name=b").unwrap().file, Some(PathBuf::from("a[1")));
        for wrong in ["read_errors=x", "read_errors=[1,2+]", "read_errors=-1", "write_errors=8-9"] {
            let text = format!("size=1M,{wrong}");
            assert!(
                matches!(disk(&text), Err(Problem::BadValue { what, .. }) if what.contains("64+8")),
                "{wrong}"
            );
        }
    }

    #[test]
    fn brackets_protect_commas_and_may_be_left_out() {
        let zones = zones(&texts(&["id=a,size=64M", "id=b,size=0x1000,at=4G"])).unwrap();
        assert_eq!(zones[1], Zone { id: "b".to_owned(), at: Some(4 << 30), size: 0x1000 });
        let nodes = numa(
            &texts(&[
                "guest_numa_id=1,memory_zones=b",
                "guest_numa_id=0,cpus=[0-1,4],distances=[1@20],memory_zones=[a]",
            ]),
            &zones,
        )
        .unwrap();
        assert_eq!(nodes[0], Numa { id: 0, cpus: vec![0, 1, 4], distances: vec![(1, 20)], zones: vec![0] });
        assert_eq!(nodes[1], Numa { id: 1, cpus: vec![], distances: vec![], zones: vec![1] });
    }

    #[test]
    fn each_mistake_in_a_flag_says_what_would_be_right() {
        let zone = |text: &str| zones(&texts(&[text])).unwrap_err().to_string();
        assert_eq!(zone("id=a,size"), "--memory-zone: id=a,size: `size` is not KEY=VALUE");
        assert_eq!(zone("size=1M"), "--memory-zone: size=1M: key `id` is missing; write id=mem0");
        assert_eq!(
            zone("id=a,file=x"),
            "--memory-zone: id=a,file=x: unknown key `file`; the keys are id, size, at"
        );
        assert_eq!(zone("id=a,id=b"), "--memory-zone: id=a,id=b: key `id` is given twice");
        let known = zones(&texts(&["id=a,size=64M"])).unwrap();
        let node = |list: &[&str]| numa(&texts(list), &known).unwrap_err().to_string();
        assert_eq!(
            node(&["guest_numa_id=0,cpus=[3-1]"]),
            "--numa: guest_numa_id=0,cpus=[3-1]: `3-1` is not a CPU like 2 or a range of CPUs like 0-3"
        );
        assert_eq!(
            node(&["guest_numa_id=0,memory_zones=[z]"]),
            "--numa: guest_numa_id=0,memory_zones=[z]: no memory zone has the id `z`; the zones are a"
        );
        assert_eq!(
            node(&["guest_numa_id=0,memory_zones=[a]", "guest_numa_id=1,memory_zones=[a]"]),
            "--numa: guest_numa_id=1,memory_zones=[a]: memory zone `a` is already in node 0"
        );
        assert_eq!(
            node(&["guest_numa_id=0,memory_zones=[a]", "guest_numa_id=2"]),
            "--numa: node 1 is missing; guest_numa_id counts from 0 without gaps"
        );
        assert_eq!(
            node(&["guest_numa_id=0"]),
            "--memory-zone: memory zone `a` is in no node; name it in the memory_zones of a --numa"
        );
    }
}
