//! Excerpts of real logs, contradictions, round trips, and garbage.

use std::fmt::Write;

use memvisor_inspect::FactE820;
use proptest::prelude::*;

use super::*;
use crate::machine::{acpi, e820, load, names};

const GIB: u64 = 1 << 30;

fn texts(sources: &[(&str, &str)]) -> Vec<Input> {
    sources.iter().map(|(name, text)| Input::Bytes((*name).to_owned(), (*text).into())).collect()
}

fn imported(sources: &[(&str, &str)]) -> Imported {
    import(&texts(sources), "m.toml").unwrap_or_else(|error| panic!("{error}: {:?}", error))
}

fn remarks(imported: &Imported) -> String {
    imported.remarks.iter().map(|remark| format!("{remark}\n")).collect()
}

fn entry(first: u64, last: u64, kind: u32) -> FactE820 {
    FactE820 { addr: first, size: last - first + 1, kind }
}

const SERVER: &str = "\
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009b3ff] usable
[    0.000000] BIOS-e820: [mem 0x000000000009b400-0x000000000009ffff] reserved
[    0.000000] BIOS-e820: [mem 0x00000000000e0000-0x00000000000fffff] reserved
[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x0000000079f9ffff] usable
[    0.000000] BIOS-e820: [mem 0x000000007ac50000-0x000000007b67ffff] ACPI NVS
[    0.000000] BIOS-e820: [mem 0x0000000100000000-0x000000107fffffff] usable
[    0.012248] SRAT: PXM 0 -> APIC 0x00 -> Node 0
[    0.012250] SRAT: PXM 1 -> APIC 0x40 -> Node 1
[    0.012251] SRAT: PXM 0 -> APIC 0x01 -> Node 0
[    0.012252] SRAT: PXM 1 -> APIC 0x41 -> Node 1
[    0.012347] ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x7fffffff]
[    0.012349] ACPI: SRAT: Node 0 PXM 0 [mem 0x100000000-0x87fffffff]
[    0.012350] ACPI: SRAT: Node 1 PXM 1 [mem 0x880000000-0x107fffffff]
[    0.012351] ACPI: SRAT: Node 1 PXM 1 [mem 0x2080000000-0x307fffffff] hotplug
";

#[test]
fn a_server_log_gives_its_map_nodes_and_cpus() {
    let imported = imported(&[("server.txt", SERVER)]);
    let machine = &imported.machine;
    assert_eq!(
        machine.e820,
        [
            entry(0, 0x9_b3ff, 1),
            entry(0x9_b400, 0x9_ffff, 2),
            entry(0xe_0000, 0xf_ffff, 2),
            entry(0x10_0000, 0x79f9_ffff, 1),
            entry(0x7ac5_0000, 0x7b67_ffff, 4),
            entry(0x1_0000_0000, 0x10_7fff_ffff, 1),
        ]
    );
    assert_eq!(machine.nodes.iter().map(|node| node.cpus.clone()).collect::<Vec<_>>(), [[0, 2], [1, 3]]);
    assert_eq!(machine.nodes[1].memory, [crate::machine::Range::new(0x8_8000_0000, 0x10_8000_0000)]);
    assert_eq!(machine.nodes[0].memory.last().map(|range| range.end()), Some(0x8_8000_0000));
    assert_eq!(remarks(&imported), "");
}

/// The same facts in the words of a kernel of 2010, of one of 2026, quoted, and by way of syslog.
#[test]
fn logs_of_any_age_and_dressing_say_the_same() {
    let old = "\
BIOS-e820: 0000000000000000 - 000000000009fc00 (usable)
BIOS-e820: 000000000009fc00 - 00000000000a0000 (reserved)
BIOS-e820: 00000000000f0000 - 0000000000100000 (reserved)
BIOS-e820: 0000000000100000 - 0000000040000000 (usable)
SRAT: PXM 0 -> APIC 0 -> Node 0
SRAT: PXM 1 -> APIC 1 -> Node 1
SRAT: Node 0 PXM 0 0-a0000
SRAT: Node 0 PXM 0 100000-20000000
SRAT: Node 1 PXM 1 20000000-40000000
";
    let new = "\
> [    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff]  System RAM
> [    0.000000] BIOS-e820: [mem 0x000000000009fc00-0x000000000009ffff]  device reserved
> [    0.000000] BIOS-e820: [gap 0x00000000000a0000-0x00000000000effff]
> [    0.000000] BIOS-e820: [mem 0x00000000000f0000-0x00000000000fffff]  device reserved
> [    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff]  System RAM
> [    0.008842] ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x1fffffff]
> [    0.008842] ACPI: SRAT: Node 1 PXM 1 [mem 0x20000000-0x3fffffff]
> [    0.008900] .... node  #1, CPUs:      #1
> [    0.008950] smpboot: CPU 1 Converting physical 0 to logical package 2
> [    0.009000] smp: Brought up 2 nodes, 2 CPUs
";
    let syslog = old.lines().fold(String::new(), |mut text, line| {
        writeln!(text, "Dec 17 07:20:09 host kernel: [    0.000000] {line}").expect("a String");
        text
    });
    let old = imported(&[("old", old)]);
    let new = imported(&[("new", new)]);
    let syslog = imported(&[("syslog", &syslog)]);
    assert_eq!(old.machine.e820, new.machine.e820);
    assert_eq!(
        old.machine.nodes.iter().map(|node| &node.memory).collect::<Vec<_>>(),
        new.machine.nodes.iter().map(|node| &node.memory).collect::<Vec<_>>()
    );
    assert_eq!(old.machine.nodes, syslog.machine.nodes);
    assert_eq!(old.machine.nodes[1].cpus, [1]);
}

#[test]
fn only_the_last_boot_of_a_log_counts() {
    let text = format!("Linux version 5.1\nBIOS-e820: [mem 0x0-0xfffff] usable\nLinux version 5.2\n{SERVER}");
    let imported = imported(&[("two", &text)]);
    assert_eq!(imported.machine.e820.len(), 6);
    assert!(remarks(&imported).contains("2 boots"), "{}", remarks(&imported));
}

#[test]
fn cpus_come_up_over_torn_lines() {
    let text = format!(
        "{}.... node  #0, CPUs:      #1\n[    0.7] kvm-clock: cpu 1\n[    0.9]  #2\n[    0.9] smp: Brought up 1 node, 3 CPUs\n",
        SERVER.lines().take(6).fold(String::new(), |text, line| text + line + "\n")
    );
    assert_eq!(imported(&[("log", &text)]).machine.nodes[0].cpus, [0, 1, 2]);
}

#[test]
fn damaged_lines_are_named_and_left_out() {
    let imported = imported(&[("log", &format!("{SERVER}BIOS-e820: [mem 0x00000001\nSRAT: PXM x\n"))]);
    let remarks = remarks(&imported);
    assert!(remarks.contains("log:15") && remarks.contains("log:16"), "{remarks}");
}

#[test]
fn iomem_alone_makes_a_machine_and_hidden_addresses_are_refused() {
    let text = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
000a0000-000bffff : PCI Bus 0000:00
00100000-7fffffff : System RAM
  01000000-0220bb07 : Kernel code
fec00000-fec003ff : IOAPIC 0
";
    let machine = imported(&[("iomem", text)]);
    assert_eq!(machine.machine.ram_bytes(), 0x9_f000 + 0x7ff0_0000);
    assert!(
        remarks(&machine).contains("adapted: 0..0x90000 became RAM throughout, 0x0..0x1000 in it included")
    );
    let error =
        import(&texts(&[("iomem", "00000000-00000000 : System RAM\n")]), "m.toml").expect_err("hidden");
    assert_eq!(error.to_string(), "iomem:1: the addresses are hidden; read /proc/iomem as root");
}

const SYSFS: &str = "\
/sys/devices/system/node/node0/cpulist:0-1
/sys/devices/system/node/node0/distance:10 21
/sys/devices/system/node/node0/meminfo:Node 0 MemTotal:       33000000 kB
/sys/devices/system/node/node1/cpulist:2,3
/sys/devices/system/node/node1/distance:21 10
";

#[test]
fn contradictions_name_both_claims_and_their_places() {
    let memmap = "\
/sys/firmware/memmap/0/end:0x9b3ff
/sys/firmware/memmap/0/start:0x0
/sys/firmware/memmap/0/type:System RAM
/sys/firmware/memmap/1/start:0x100000
/sys/firmware/memmap/1/end:0x79f9ffff
/sys/firmware/memmap/1/type:System RAM
/sys/firmware/memmap/2/start:0x100000000
/sys/firmware/memmap/2/end:0x107fffffff
/sys/firmware/memmap/2/type:Reserved
";
    let numactl = "node 0 cpus: 0 1 2 3\nnode distances:\nnode   0   1 \n  0:  10  31 \n  1:  31  10 \n";
    let all = imported(&[("log", SERVER), ("memmap", memmap), ("nodes", SYSFS), ("numactl", numactl)]);
    let remarks = remarks(&all);
    for line in [
        "contradiction: 0x100000000..0x1080000000: type 1 usable (log:6), but type 2 reserved (memmap:7); the first is used",
        "contradiction: 0xe0000..0x100000: type 2 reserved (log:3), but nothing is there (memmap:",
        "contradiction: node 0: has the CPUs [0, 1] (nodes:1), but has the CPUs [0, 1, 2, 3] (numactl:1); the first is used",
        "contradiction: the distance from node 0 to node 1: 21 (nodes:2), but 31 (numactl:4); the first is used",
    ] {
        assert!(remarks.contains(line), "{line}\n{remarks}");
    }
    assert_eq!(all.machine.distances, [[10, 21], [21, 10]]);
    assert_eq!(all.machine.nodes[1].cpus, [2, 3]);
    let swapped = imported(&[("log", &format!("{SERVER}SRAT: PXM 1 -> APIC 0x00 -> Node 1\n"))]);
    assert!(
        self::remarks(&swapped)
            .contains("the CPU with APIC id 0x0: is of node 0 (log:7), but is of node 1 (log:15)"),
        "{:?}",
        swapped.remarks
    );
}

#[test]
fn what_memvisor_cannot_build_is_bent_and_said() {
    let text = "\
BIOS-e820: [mem 0x0000000000000000-0x0000000000000fff] reserved
BIOS-e820: [mem 0x0000000000001000-0x0000000000057fff] usable
BIOS-e820: [mem 0x0000000000058000-0x00000000000fffff] reserved
BIOS-e820: [mem 0x0000000000100000-0x00000000cfffffff] usable
BIOS-e820: [mem 0x0000000100000000-0x000000012fffffff] usable
BIOS-e820: [mem 0x0000400000000000-0x000040000fffffff] usable
";
    let imported = imported(&[("log", text)]);
    let ram: Vec<FactE820> =
        imported.machine.effective_e820().into_iter().filter(|entry| entry.kind == e820::RAM).collect();
    assert_eq!(
        ram,
        [
            entry(0, 0x8_ffff, 1),
            entry(0x10_0000, 0xbfff_ffff, 1),
            entry(0x1_0000_0000, 0x1_2fff_ffff, 1),
            entry(1 << 46, (1 << 46) + 0xfff_ffff, 1)
        ]
    );
    assert_eq!(imported.machine.paging, crate::machine::Paging::Five);
    let remarks = remarks(&imported);
    assert!(remarks.contains("0x0..0x1000, 0x58000..0x90000 in it included"), "{remarks}");
    assert!(remarks.contains("256 MiB of RAM in 0xc0000000..0x100000000 became reserved"), "{remarks}");
    assert!(imported.text.contains("# adapted: 256 MiB"), "{}", imported.text);
}

#[test]
fn nodes_without_ram_and_cpus_are_left_out_and_the_rest_renumbered() {
    let text = "\
BIOS-e820: [mem 0x0000000000000000-0x000000003fffffff] usable
SRAT: PXM 4 -> APIC 0x00 -> Node 0
SRAT: PXM 6 -> APIC 0x02 -> Node 2
SRAT: Node 0 PXM 4 [mem 0x0-0x3fffffff]
SRAT: Node 1 PXM 5 [mem 0x100000000-0x1ffffffff] hotplug
SRAT: Node 3 PXM 7 [mem 0x00000000-0xffffffffffffffff] hotplug
";
    let imported = imported(&[("log", text)]);
    assert_eq!(imported.machine.nodes.len(), 2);
    let remarks = remarks(&imported);
    assert!(remarks.contains("nodes {1, 3} have neither") && remarks.contains("nodes {0, 2}"), "{remarks}");
}

#[test]
fn unknown_and_empty_sources_are_refused_by_name() {
    for (text, wanted) in [
        ("hello\nworld\n", "x is nothing that can be imported"),
        ("[1] hello\n", "x is nothing that can be imported"),
        ("smpboot: x\n", "no source has a memory map"),
        ("[ 6062.319619] eth0: link up\n", "journalctl -kb"),
    ] {
        let error = import(&texts(&[("x", text)]), "m.toml").expect_err(text);
        assert!(error.to_string().contains(wanted), "{error}");
    }
}

/// What Linux's log would say of `machine`: the map without overlaps, the SRAT, the CPUs, and numactl.
fn log_of(machine: &Machine) -> String {
    let mut log = String::from("Linux version 6.12\n");
    let mut line =
        |arguments: std::fmt::Arguments<'_>| writeln!(log, "[    0.000000] {arguments}").expect("a String");
    for entry in machine.effective_e820() {
        let kind = match entry.kind {
            1 => "usable".to_owned(),
            2 => "reserved".to_owned(),
            3 => "ACPI data".to_owned(),
            4 => "ACPI NVS".to_owned(),
            5 => "unusable".to_owned(),
            7 => "persistent (type 7)".to_owned(),
            kind => format!("type {kind}"),
        };
        line(format_args!(
            "BIOS-e820: [mem {:#018x}-{:#018x}] {kind}",
            entry.addr,
            entry.addr + (entry.size - 1)
        ));
    }
    for cpu in &machine.cpus {
        line(format_args!("SRAT: PXM {} -> APIC {:#04x} -> Node {0}", cpu.node, cpu.apic_id));
    }
    for node in &machine.nodes {
        for range in &node.memory {
            line(format_args!(
                "ACPI: SRAT: Node {0} PXM {0} [mem {1:#x}-{2:#x}]",
                node.id,
                range.base,
                range.end() - 1
            ));
        }
    }
    line(format_args!("smp: Brought up {} nodes, {} CPUs", machine.nodes.len(), machine.cpus.len()));
    log.push_str("node distances:\nnode ");
    for node in &machine.nodes {
        write!(log, "{:>4}", node.id).expect("a String");
    }
    for (from, row) in machine.distances.iter().enumerate() {
        write!(log, "\n  {from}: ").expect("a String");
        for distance in row {
            write!(log, "{distance:>4}").expect("a String");
        }
    }
    log
}

/// What acpidump would print of `machine`.
fn dump_of(machine: &Machine) -> String {
    let mut dump = String::new();
    for table in acpi::build(machine).expect("builds").tables {
        let signature = String::from_utf8_lossy(&table.signature);
        writeln!(dump, "{signature} @ {:#018x}", table.gpa).expect("a String");
        for (row, bytes) in (0..).step_by(16).zip(table.bytes.chunks(16)) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02X} ")).collect();
            let plain = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' };
            writeln!(dump, "    {row:04X}: {hex:<48} {}", bytes.iter().map(plain).collect::<String>())
                .expect("a String");
        }
        dump.push('\n');
    }
    dump
}

fn machine(name: &str) -> Machine {
    resolve(load(name).expect(name), &Overrides::default()).expect(name)
}

#[test]
fn every_machine_comes_back_from_its_own_log() {
    for (name, _) in names() {
        let machine = machine(name);
        let back = imported(&[("log", &log_of(&machine))]);
        assert_eq!(back.machine.effective_e820(), machine.effective_e820(), "{name}");
        assert_eq!(back.machine.nodes, machine.nodes, "{name}");
        assert_eq!(back.machine.cpus, machine.cpus, "{name}");
        assert_eq!(back.machine.distances, machine.distances, "{name}");
        assert_eq!(remarks(&back), "", "{name}");
    }
}

#[test]
fn every_machine_comes_back_from_its_own_tables() {
    for (name, _) in names() {
        let machine = machine(name);
        let map: String = log_of(&machine)
            .lines()
            .filter(|line| line.contains("e820"))
            .fold(String::new(), |map, line| map + line + "\n");
        let back = imported(&[("log", &map), ("acpidump", &dump_of(&machine))]);
        // Linux numbers the nodes that have CPUs first.
        let mut order: Vec<usize> = (0..machine.nodes.len()).collect();
        order.sort_by_key(|index| machine.nodes[*index].cpus.is_empty());
        let facts = |node: &crate::machine::Node| (node.memory.clone(), node.cpus.clone());
        let nodes: Vec<_> = order.iter().map(|index| facts(&machine.nodes[*index])).collect();
        assert_eq!(back.machine.nodes.iter().map(facts).collect::<Vec<_>>(), nodes, "{name}");
        let row = |from: &usize| order.iter().map(|to| machine.distances[*from][*to]).collect::<Vec<_>>();
        assert_eq!(back.machine.distances, order.iter().map(row).collect::<Vec<_>>(), "{name}");
        let figures = |machine: &Machine| machine.hmat.clone().map(|hmat| hmat.matrices);
        assert_eq!(figures(&back.machine), figures(&machine), "{name}");
        assert_eq!(remarks(&back), "", "{name}");
    }
}

#[test]
fn damaged_tables_are_refused() {
    let dump = dump_of(&machine("numa4"));
    let at = dump.find("SRAT @").expect("a SRAT");
    let broken = format!("{}{}", &dump[..at], dump[at..].replacen("    0030: 0", "    0030: F", 1));
    let error = import(&texts(&[("dump", &broken)]), "m.toml").expect_err("checksum");
    assert!(error.to_string().starts_with("dump:") && error.to_string().contains("sum up to"), "{error}");
    let short: String = dump[at..].lines().take(4).fold(String::new(), |text, line| text + line + "\n");
    let error = import(&texts(&[("dump", &short)]), "m.toml").expect_err("too short");
    assert!(error.to_string().contains("dump:1: the ACPI table has 48 bytes"), "{error}");
}

#[test]
fn scaling_keeps_the_shape_of_every_machine() {
    for (name, _) in names() {
        let machine = machine(name);
        for divisor in ["1/1", "1/2", "1/64", "1/1048576"] {
            let by: Scale = divisor.parse().expect("a scale");
            let file = scale(&machine, by).unwrap_or_else(|error| panic!("{name} {divisor}: {error}"));
            let scaled = resolve(file, &Overrides::default())
                .unwrap_or_else(|error| panic!("{name} {divisor}: {error}"));
            let kinds = |machine: &Machine| {
                machine.effective_e820().iter().map(|entry| entry.kind).collect::<Vec<_>>()
            };
            if name != "hostile" || divisor == "1/1" {
                // Half frames of the hostile map merge with their neighbours.
                assert_eq!(kinds(&scaled), kinds(&machine), "{name} {divisor}");
            }
            assert_eq!(scaled.e820.len(), machine.e820.len(), "{name} {divisor}");
            assert_eq!(scaled.cpus, machine.cpus);
            assert_eq!(scaled.distances, machine.distances);
            assert_eq!(scaled.name, machine.name);
            assert!(scaled.ram_bytes() <= machine.ram_bytes() + 256 * 4096, "{name} {divisor}");
            if divisor == "1/1" {
                assert_eq!(
                    (scaled.e820, scaled.nodes),
                    (machine.e820.clone(), machine.nodes.clone()),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn scaled_nodes_keep_their_proportions_and_low_memory() {
    let imported = imported(&[("server.txt", SERVER)]);
    let scaled = rescale(imported, "1/64".parse().expect("a scale"), "m.toml").expect("scales");
    let ram = |node: usize| scaled.machine.nodes[node].memory.iter().map(|range| range.len).sum::<u64>();
    assert_eq!(ram(1), 32 * GIB / 64);
    assert!(
        (ram(0)..ram(0) + (64 << 20)).contains(&(ram(1) - (32 << 20))) || ram(0).abs_diff(ram(1)) < 64 << 20
    );
    let low = scaled.machine.effective_e820();
    assert!(low.iter().any(|entry| entry.kind == 1 && entry.addr == 1 << 20 && entry.size > 31 << 20));
    assert!(scaled.machine.description.ends_with("RAM scaled by 1/64"), "{}", scaled.machine.description);
}

/// Pieces of all formats, whole and torn.
fn piece() -> impl Strategy<Value = String> {
    let pool: Vec<String> = SERVER
        .lines()
        .chain(SYSFS.lines())
        .map(str::to_owned)
        .chain([
            "00100000-bfffffff : System RAM".to_owned(),
            "SRAT @ 0x00000000C9EA3D58".to_owned(),
            "    0000: 53 52 41 54 30 00 00 00 03 9F 41 4D 44 20 20 20  SRAT0.....AMD   ".to_owned(),
            "/sys/firmware/memmap/0/start:0x0".to_owned(),
            "node distances:".to_owned(),
            "node   0   1".to_owned(),
            "  0:  10  21".to_owned(),
            ".... node  #0, CPUs:  #1 #2".to_owned(),
            "Brought up 3 CPUs".to_owned(),
            "Early memory node ranges".to_owned(),
            "  node   0: [mem 0x0000000000001000-0xffffffffffffffff]".to_owned(),
            "BIOS-e820: [mem 0x0000000000000000-0xffffffffffffffff] usable".to_owned(),
            "BIOS-e820: [mem 0xfffffffffffff000-0xffffffffffffffff] type 4294967295".to_owned(),
            "smpboot: Allowing 4294967295 CPUs, 1 hotplug CPUs".to_owned(),
        ])
        .collect();
    (prop::sample::select(pool), any::<prop::sample::Index>(), "[ -~]{0,3}", prop::bool::weighted(0.6))
        .prop_map(|(line, at, noise, whole)| match whole {
            true => line,
            false => {
                let at = at.index(line.len() + 1);
                format!("{}{noise}{}", &line[..at], &line[(at + 1).min(line.len())..])
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is read, there is an error or a machine that resolves; `import` itself reads it back.
    #[test]
    fn torn_sources_never_panic(
        files in prop::collection::vec(prop::collection::vec(piece(), 0..24), 1..3),
        divisor in 1_u64..1000,
    ) {
        let inputs: Vec<Input> =
            files.iter().map(|lines| Input::Bytes("x".to_owned(), lines.join("\n").into_bytes())).collect();
        if let Ok(imported) = import(&inputs, "m.toml") {
            // May be refused, must not panic.
            let _ = rescale(imported, format!("1/{divisor}").parse().expect("a scale"), "m.toml");
        }
    }

    #[test]
    fn random_bytes_never_panic(
        signature in prop::sample::select(vec!["", "SRAT", "SLIT", "APIC", "HMAT"]),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = Vec::from(signature);
        bytes.extend(u32::try_from(4 + 4 + body.len()).expect("small").to_le_bytes());
        bytes.extend(body);
        // A right checksum, so that the structures are looked at.
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        if let Some(last) = bytes.last_mut() {
            *last = last.wrapping_sub(sum);
        }
        let _ = source::read_bytes("x", &bytes, &mut claims::Claims::default());
    }
}
