//! Cases that boot a stock Linux instead of memvisor's own kernel.
//!
//! `MEMVISOR_LINUX` names a folder with `bzImage`, `vmlinux` (the same, unpacked) and `initramfs.cpio`, whose
//! first process is scripts/linux/init; scripts/linux/run.sh makes it. What that process prints about this
//! Linux's memory, nodes, CPUs and distances must be what the machine file says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use memvisor_abi::{E820Type, PAGE_SIZE};
use memvisor_inspect::{FactE820, Facts};

use super::case::KvmSetup;
use super::outcome::Outcome;
use crate::machine::{self, Machine, Overrides, Range};

/// Name of the comparison in reports.
pub const NAME: &str = "linux-equals-machine";
/// Variable that names the folder.
const FOLDER: &str = "MEMVISOR_LINUX";
/// Distance of a node to itself (ACPI 6.5, 5.2.17).
const LOCAL: u8 = 10;
/// Linux takes the first frame and the legacy hole for the BIOS (arch/x86/kernel/setup.c, `trim_bios_range`).
const BIOS: [Range; 2] = [Range { base: 0, len: PAGE_SIZE }, Range { base: 0xa_0000, len: 0x6_0000 }];
const LEGACY_HOLE: FactE820 = FactE820 { addr: 0xa_0000, size: 0x6_0000, kind: E820Type::Reserved as u32 };

/// The folder with kernel and initramfs; `None` if there is none.
pub fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from).filter(|folder| folder.join("initramfs.cpio").is_file())
}

/// Arguments of `memvisor run` that boot `image` of the folder.
pub fn arguments(image: &str) -> Vec<String> {
    let Some(folder) = folder() else { return Vec::new() };
    let path = |name: &str| folder.join(name).display().to_string();
    vec!["--kernel".into(), path(image), "--initrd".into(), path("initramfs.cpio")]
}

/// Compares what Linux printed with the machine of `setup`.
///
/// # Errors
/// If there is no such machine.
pub fn examine(setup: &KvmSetup, console: &str) -> anyhow::Result<Outcome> {
    let overrides = Overrides {
        memory: setup.memory.as_deref().map(str::parse).transpose()?,
        cpus: setup.cpus,
        ..Overrides::default()
    };
    let machine = machine::resolve(machine::load(&setup.machine)?, &overrides)?;
    let said = match Said::parse(console) {
        Ok(said) => said,
        Err(problem) => return Ok(Outcome::Failed(vec![problem])),
    };
    let adds_hole = setup.boot.as_deref() == Some("pvh");
    Ok(Outcome::from_problems(compare(&machine, adds_hole, &said)))
}

/// What Linux said about itself: lines "linux: WORD ...".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    /// The map as printed, e.g. "[mem 0x...-0x...] usable".
    e820: Vec<String>,
    /// Memory by node, "0x...-0x...", both ends included.
    ranges: Vec<(u32, String)>,
    /// KiB that each node's allocator manages.
    managed: BTreeMap<u32, u64>,
    distances: BTreeMap<u32, Vec<u8>>,
    cpus: BTreeMap<u32, String>,
    apic_ids: Vec<u32>,
    /// Machine's node by Linux's.
    domains: BTreeMap<u32, u32>,
}

impl Said {
    fn parse(console: &str) -> Result<Said, String> {
        let mut said = Said::default();
        let (mut begun, mut ended) = (false, false);
        let mut extended = Vec::new();
        for line in console.lines().filter_map(|line| line.trim_end().strip_prefix("linux: ")) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let fields = || rest.split_once(' ').unwrap_or((rest, ""));
            let bad = || format!("Linux's line is not understood: {line:?}");
            let node = || fields().0.parse::<u32>().map_err(|_| bad());
            match word {
                "begin" => begun = true,
                "end" => ended = true,
                "e820" => said.e820.push(rest.to_owned()),
                // More entries than the zero page holds: the whole map is printed a second time.
                "extended" => extended.push(rest.to_owned()),
                "range" => said.ranges.push((node()?, fields().1.to_owned())),
                "memory" => {
                    said.managed.insert(node()?, fields().1.parse().map_err(|_| bad())?);
                }
                "distances" => {
                    let row: Result<_, _> = fields().1.split_whitespace().map(str::parse).collect();
                    said.distances.insert(node()?, row.map_err(|_| bad())?);
                }
                "cpus" => {
                    said.cpus.insert(node()?, fields().1.to_owned());
                }
                "domain" => {
                    said.domains.insert(node()?, fields().1.parse().map_err(|_| bad())?);
                }
                "apicid" => said.apic_ids.push(rest.parse().map_err(|_| bad())?),
                _ => {}
            }
        }
        if !extended.is_empty() {
            said.e820 = extended;
        }
        match (begun, ended) {
            (true, true) => Ok(said.renumbered()),
            (true, false) => Err("Linux's first process did not come to its end".into()),
            _ => Err("Linux did not come to its first process".into()),
        }
    }
}

impl Said {
    /// With the machine's numbers for nodes. Linux counts nodes as it meets them in the SRAT, those with
    /// CPUs first (drivers/acpi/numa/srat.c, `acpi_map_pxm_to_node`).
    fn renumbered(self) -> Said {
        let id = |node: u32| self.domains.get(&node).copied().unwrap_or(node);
        let mut order: Vec<u32> = self.distances.keys().copied().collect();
        order.sort_by_key(|node| id(*node));
        let column = |node: &u32| self.distances.keys().position(|other| other == node);
        let row = |row: &Vec<u8>| order.iter().filter_map(|node| row.get(column(node)?).copied()).collect();
        let mut ranges: Vec<_> = self.ranges.iter().map(|(node, range)| (id(*node), range.clone())).collect();
        // All addresses have 16 digits.
        ranges.sort_by(|a, b| a.1.cmp(&b.1));
        Said {
            ranges,
            managed: self.managed.iter().map(|(node, kib)| (id(*node), *kib)).collect(),
            distances: self.distances.iter().map(|(node, list)| (id(*node), row(list))).collect(),
            cpus: self.cpus.iter().map(|(node, list)| (id(*node), list.clone())).collect(),
            ..self
        }
    }
}

/// `adds_hole`: by PVH, Linux itself adds the legacy hole to the map (arch/x86/platform/pvh/enlighten.c).
fn compare(machine: &Machine, adds_hole: bool, said: &Said) -> Vec<String> {
    let mut problems = Vec::new();
    let mut check = |what: &str, built: String, seen: String| {
        if built != seen {
            problems.push(format!("{what}: built {built}; Linux says {seen}"));
        }
    };
    let facts = machine.facts(0);
    check("E820", e820_lines(machine, adds_hole).join(", "), said.e820.join(", "));

    let ranges = |list: &[(u32, String)]| {
        list.iter().map(|(node, range)| format!("{range} on node {node}")).collect::<Vec<_>>().join(", ")
    };
    check("memory by node", ranges(&node_ranges(&facts)), ranges(&said.ranges));

    let ids: Vec<u32> = machine.nodes.iter().map(|node| node.id).collect();
    check("online nodes", format!("{ids:?}"), format!("{:?}", said.distances.keys().collect::<Vec<_>>()));
    let distances: Vec<Vec<u8>> = said.distances.values().cloned().collect();
    let built = if facts.distances.is_empty() { vec![vec![LOCAL]] } else { facts.distances.clone() };
    check("distances", format!("{built:?}"), format!("{distances:?}"));

    let built: BTreeMap<u32, String> =
        machine.nodes.iter().map(|node| (node.id, cpu_list(&node.cpus))).collect();
    check("CPUs by node", format!("{built:?}"), format!("{:?}", said.cpus));
    let built: Vec<u32> = facts.cpus.iter().map(|cpu| cpu.apic_id).collect();
    check("APIC ids", format!("{built:?}"), format!("{:?}", said.apic_ids));

    for node in &machine.nodes {
        // The kernel's own image and its page descriptors are not managed.
        let built: u64 = node.memory.iter().map(|range| range.whole_frames().len >> 10).sum();
        let managed = said.managed.get(&node.id).copied().unwrap_or(0);
        if managed > built || (managed == 0) != (built == 0) {
            problems.push(format!("node {}: built {built} KiB, Linux manages {managed} KiB", node.id));
        }
    }
    problems
}

/// The map as Linux prints it once it has sorted it out (arch/x86/kernel/e820.c, `e820__print_table`).
fn e820_lines(machine: &Machine, adds_hole: bool) -> Vec<String> {
    let mut machine = machine.clone();
    if adds_hole {
        machine.e820.push(LEGACY_HOLE);
    }
    let line = |entry: &FactE820| {
        let last = entry.addr.wrapping_add(entry.size).wrapping_sub(1);
        let kind = match E820Type::from_raw(entry.kind) {
            Some(E820Type::Ram) => "usable".to_owned(),
            Some(E820Type::Reserved) => "reserved".to_owned(),
            Some(E820Type::Acpi) => "ACPI data".to_owned(),
            Some(E820Type::Nvs) => "ACPI NVS".to_owned(),
            Some(E820Type::Unusable) => "unusable".to_owned(),
            Some(E820Type::Pmem) => format!("persistent (type {})", entry.kind),
            _ => format!("type {}", entry.kind),
        };
        format!("[mem {:#018x}-{last:#018x}] {kind}", entry.addr)
    };
    machine.effective_e820().iter().map(line).collect()
}

/// Memory by node as Linux uses it: whole frames, without what it leaves to the BIOS; neighbours are one.
fn node_ranges(facts: &Facts) -> Vec<(u32, String)> {
    let mut parts: Vec<(u32, Range)> = Vec::new();
    for memory in &facts.node_memory {
        let mut pieces = vec![Range { base: memory.base, len: memory.len }.whole_frames()];
        for hole in BIOS {
            pieces = pieces
                .iter()
                .flat_map(|piece| {
                    [
                        Range::new(piece.base, piece.end().min(hole.base)),
                        Range::new(piece.base.max(hole.end()), piece.end()),
                    ]
                })
                .filter(|piece| !piece.is_empty())
                .collect();
        }
        for piece in pieces {
            match parts.last_mut() {
                Some((node, last)) if *node == memory.node && last.end() == piece.base => {
                    *last = Range::new(last.base, piece.end());
                }
                _ => parts.push((memory.node, piece)),
            }
        }
    }
    parts
        .iter()
        .map(|(node, range)| (*node, format!("{:#018x}-{:#018x}", range.base, range.end() - 1)))
        .collect()
}

/// "0-2,5", as in /sys.
fn cpu_list(cpus: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let word = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(word).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.1 printed on the machine `default`.
    const DEFAULT: &str = "\
[   18.0] Run /init as init process
linux: begin
linux: e820 [mem 0x0000000000000000-0x000000000009fbff] usable
linux: e820 [mem 0x000000000009fc00-0x000000000009ffff] reserved
linux: e820 [mem 0x00000000000e0000-0x00000000000effff] ACPI data
linux: e820 [mem 0x00000000000f0000-0x00000000000fffff] reserved
linux: e820 [mem 0x0000000000100000-0x000000000bffffff] usable
linux: e820 [mem 0x00000000fec00000-0x00000000fec00fff] reserved
linux: e820 [mem 0x00000000fee00000-0x00000000fee00fff] reserved
linux: e820 [mem 0x0000000100000000-0x0000000103ffffff] usable
linux: distances 0 10 20
linux: cpus 0 0
linux: memory 0 82296
linux: distances 1 20 10
linux: cpus 1 1
linux: memory 1 93344
linux: cpu 0
linux: apicid 0
linux: cpu 1
linux: apicid 1
linux: range 0 0x0000000000001000-0x000000000009efff
linux: range 0 0x0000000000100000-0x0000000007ffffff
linux: range 1 0x0000000008000000-0x000000000bffffff
linux: range 1 0x0000000100000000-0x0000000103ffffff
linux: end
";

    fn setup() -> KvmSetup {
        KvmSetup {
            machine: "default".into(),
            boot: None,
            paging: None,
            cpus: None,
            memory: None,
            linux: Some("bzImage".into()),
            backing: None,
            scale: None,
            needs: Vec::new(),
            nested: true,
        }
    }

    fn problems(console: &str) -> Vec<String> {
        match examine(&setup(), console).expect("bundled machine") {
            Outcome::Failed(problems) => problems,
            _ => Vec::new(),
        }
    }

    #[test]
    fn linux_on_the_default_machine_agrees() {
        assert_eq!(problems(DEFAULT), Vec::<String>::new());
    }

    #[test]
    fn nodes_have_the_machines_numbers_whatever_linux_calls_them() {
        let swapped = DEFAULT
            .replace("range 0", "range x")
            .replace("range 1", "range 0")
            .replace("range x", "range 1")
            .replace("cpus 0 0", "cpus 1 0")
            .replace("cpus 1 1", "cpus 0 1")
            .replace("memory 0", "memory x")
            .replace("memory 1", "memory 0")
            .replace("memory x", "memory 1")
            .replace("linux: end", "linux: domain 0 1\nlinux: domain 1 0\nlinux: end");
        assert!(!problems(&swapped.replace("domain", "ignored")).is_empty());
        assert_eq!(problems(&swapped), Vec::<String>::new());
    }

    #[test]
    fn by_pvh_linux_adds_the_legacy_hole() {
        let merged = DEFAULT.replace("0x000000000009ffff] reserved", "0x00000000000dffff] reserved");
        assert!(problems(&merged)[0].starts_with("E820: built"));
        let pvh = KvmSetup { boot: Some("pvh".into()), ..setup() };
        assert!(matches!(examine(&pvh, &merged).expect("bundled machine"), Outcome::Passed));
    }

    #[test]
    fn every_difference_is_named() {
        for (from, to, what) in [
            ("bffffff] usable", "affffff] usable", "E820"),
            ("range 1 0x0000000008", "range 0 0x0000000008", "memory by node"),
            ("distances 1 20 10", "distances 1 21 10", "distances"),
            ("cpus 1 1", "cpus 1 0", "CPUs by node"),
            ("apicid 1", "apicid 3", "APIC ids"),
            ("memory 1 93344", "memory 1 193344", "node 1"),
            ("linux: end", "", "did not come to its end"),
            ("distances 1", "distances one", "not understood"),
        ] {
            let found = problems(&DEFAULT.replace(from, to));
            assert!(found.len() == 1 && found[0].contains(what), "{what}: {found:?}");
        }
        assert!(problems("Kernel panic")[0].contains("first process"));
    }

    #[test]
    fn cpus_are_listed_as_in_sys() {
        assert_eq!(cpu_list(&[0, 1, 2, 5]), "0-2,5");
        assert_eq!(cpu_list(&[]), "");
    }
}
