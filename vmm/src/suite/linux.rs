//! Cases that boot a stock Linux instead of memvisor's own kernel.
//!
//! `MEMVISOR_LINUX` names a folder with `bzImage`, `vmlinux` (the same, unpacked) and `initramfs.cpio`, whose
//! first process is scripts/linux/init; scripts/nested/run.sh makes it. What that process prints about this
//! Linux's memory, nodes, CPUs and distances must be what the machine file says.

mod live;
mod said;
mod zones;

use std::collections::BTreeMap;
use std::path::PathBuf;

use memvisor_abi::{E820Type, PAGE_SIZE};
use memvisor_inspect::{FactE820, Facts};

pub use live::examine as examine_live;
use said::Said;

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

    let list = |ranges: Vec<(u32, String)>| {
        ranges.iter().map(|(node, range)| format!("{range} on node {node}")).collect::<Vec<_>>().join(", ")
    };
    let built = node_ranges(&facts).iter().map(|(node, range)| (*node, linux_range(range))).collect();
    check("memory by node", list(built), list(said.ranges.clone()));

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

    problems.extend(compare_memory(machine, &node_ranges(&facts), said));
    problems.extend(zones::compare(&node_ranges(&facts), said));
    problems
}

/// Every node has the frames that were built, and what Linux does not manage of them is, to the KiB, what it says that
/// it reserved: `MemTotal` = present - reserved when the allocator took over + given back since (mm/page_alloc.c,
/// `mem_init_print_info`, `free_reserved_area`).
fn compare_memory(machine: &Machine, built: &[(u32, Range)], said: &Said) -> Vec<String> {
    const PAGE_KIB: u64 = PAGE_SIZE >> 10;
    let mut problems = Vec::new();
    let said_of = |map: &BTreeMap<u32, u64>, node: u32| map.get(&node).copied().unwrap_or(0);
    for node in &machine.nodes {
        let ranges = built.iter().filter(|(id, _)| *id == node.id);
        let built: u64 = ranges.map(|(_, range)| range.len / PAGE_SIZE).sum();
        let present = said_of(&said.present_pages, node.id);
        if present != built {
            problems.push(format!("node {}: built {built} pages, Linux has {present}", node.id));
        }
        let (total, managed) = (said_of(&said.managed, node.id), said_of(&said.managed_pages, node.id));
        if total != managed * PAGE_KIB || managed > present {
            problems.push(format!(
                "node {}: MemTotal {total} KiB, but {managed} of {present} pages are managed",
                node.id
            ));
        }
    }
    let present = said.present_pages.values().sum::<u64>() * PAGE_KIB;
    let total: u64 = said.managed.values().sum();
    match said.boot_kib {
        Some((all, reserved)) => {
            if all != present || (total + reserved).checked_sub(said.freed_kib) != Some(present) {
                problems.push(format!(
                    "memory: {present} KiB present; Linux says {all} at boot, {reserved} reserved, {} given back, \
                     and MemTotal {total}",
                    said.freed_kib
                ));
            }
        }
        None => problems.push("Linux's line \"Memory: ... available\" is missing".to_owned()),
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
fn node_ranges(facts: &Facts) -> Vec<(u32, Range)> {
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
}

fn linux_range(range: &Range) -> String {
    format!("{:#018x}-{:#018x}", range.base, range.end() - 1)
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
linux: memory 0 82292
linux: present 0 32670
linux: managed 0 20573
linux: distances 1 20 10
linux: cpus 1 1
linux: memory 1 91328
linux: present 1 32768
linux: managed 1 22832
linux: vm min_free_kbytes 1618
linux: vm watermark_scale_factor 10
linux: vm lowmem_reserve_ratio 256 256 32 0 0
linux: zone 0 DMA 1 4095 3998 3840 35 43 51         0 65 65 65 65
linux: zone 0 DMA32 4096 28672 28672 16733 155 193 231         0 0 0 0 0
linux: zone 1 DMA32 32768 1015808 16384 8192 76 95 114         0 0 57 57 57
linux: zone 1 Normal 1048576 16384 16384 14640 136 170 204         0 0 0 0 0
linux: cpu 0
linux: apicid 0
linux: cpu 1
linux: apicid 1
linux: boot-memory 261752 98120
linux: freed 36
linux: freed 9952
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
            memory_shadowed: None,
            keeps_machine: false,
            linux: Some("bzImage".into()),
            backing: None,
            scale: None,
            disks: Vec::new(),
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
            .replace("zone 0", "zone x")
            .replace("zone 1", "zone 0")
            .replace("zone x", "zone 1")
            .replace("present 0", "present x")
            .replace("present 1", "present 0")
            .replace("present x", "present 1")
            .replace("managed 0", "managed x")
            .replace("managed 1", "managed 0")
            .replace("managed x", "managed 1")
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
            ("managed 1 22832", "managed 1 22831", "node 1"),
            ("155 193 231", "155 193 232", "zone DMA32 of node 0"),
            ("1015808 16384", "1015809 16384", "zone DMA32 of node 1"),
            ("0 0 57 57", "0 0 57 58", "zone DMA32 of node 1"),
            ("scale_factor 10", "scale_factor 11", "vm.watermark_scale_factor"),
            ("freed 36", "freed 40", "given back"),
            ("boot-memory 261752", "boot-memory 261748", "at boot"),
            ("linux: boot-memory", "linux: other", "is missing"),
            ("linux: end", "", "did not come to its end"),
            ("distances 1", "distances one", "not understood"),
        ] {
            let found = problems(&DEFAULT.replace(from, to));
            assert!(found.len() == 1 && found[0].contains(what), "{what}: {found:?}");
        }
        let found = problems(&DEFAULT.replace("present 0 32670", "present 0 32671"));
        assert!(found[0].contains("node 0: built 32670 pages, Linux has 32671"), "{found:?}");
        assert!(problems("Kernel panic")[0].contains("first process"));
    }

    #[test]
    fn cpus_are_listed_as_in_sys() {
        assert_eq!(cpu_list(&[0, 1, 2, 5]), "0-2,5");
        assert_eq!(cpu_list(&[]), "");
    }
}
