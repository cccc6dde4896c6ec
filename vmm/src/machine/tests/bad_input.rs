//! Each mistake in a machine file or flag, and the line that answers it.

use super::super::*;

/// What a file called `m.toml` with `lines` is refused with.
fn refusal(lines: &[&str], overrides: &Overrides) -> String {
    let text = lines.join("\n");
    match MachineFile::from_text("m.toml", &text).and_then(|file| resolve(file, overrides)) {
        Ok(machine) => panic!("accepted: {machine:?}\n{text}"),
        Err(error) => error.to_string(),
    }
}

/// Lines of a file, and the message.
type Case = (&'static [&'static str], &'static str);

fn check(cases: &[Case]) {
    for (lines, message) in cases {
        assert_eq!(refusal(lines, &Overrides::default()), *message, "\n{}", lines.join("\n"));
    }
}

#[test]
fn syntax_unknown_keys_and_wrong_words_name_their_line() {
    check(&[
        (&["[machine"], r#"m.toml:1: unclosed table, expected `]`"#),
        (
            &["[machine]", r#"nmae = "x""#],
            r#"m.toml:2: unknown field `nmae`, expected one of `name`, `description`, `asymmetric`, `e820`, `backing`"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", "cpus = [1]"],
            r#"m.toml:4: key `cpus` is given twice"#,
        ),
        (&["[machine]", "[machine]"], r#"m.toml:2: key `machine` is given twice"#),
        (
            &["[[nodes]]", r#"memory = ["64M"]"#],
            r#"m.toml:1: unknown field `nodes`, expected one of `machine`, `node`, `e820`, `boot`, `hmat`, `disk`, `dma`"#,
        ),
        (
            &["[[node]]", r#"memory = ["64 apples"]"#, "cpus = [0]"],
            r#"m.toml:2: `64 apples` is not a size or address; write 4096, 0x1000, 4K, 128M, 2G or 1T"#,
        ),
        (
            &[
                "[[node]]",
                "memory = [",
                r#"  "64M","#,
                r#"  { at = "4G", sise = "64M" },"#,
                "]",
                "cpus = [0]",
            ],
            r#"m.toml:4: unknown field `sise`, expected `at` or `size`"#,
        ),
        (&["[[node]]", r#"memory = [{ at = "4G" }]"#, "cpus = [0]"], r#"m.toml:2: missing field `size`"#),
        (
            &["[[node]]", "memory = [-4096]", "cpus = [0]"],
            r#"m.toml:2: `-4096` is negative; sizes and addresses start at 0"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [-1]"],
            r#"m.toml:3: node[0].cpus[0]: `-1` is not the number of a CPU; CPUs are numbered 0 to 1023"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", "[boot]", "paging = 6"],
            r#"m.toml:5: `6` is not a paging depth: "auto", 4 or 5"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", "[boot]", r#"protocol = "bios""#],
            r#"m.toml:5: `bios` is not a boot protocol: "linux" or "pvh""#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "[[e820]]",
                "at = 0",
                "size = 0",
                r#"type = "ROM""#,
            ],
            r#"m.toml:7: `ROM` is not an E820 type; use "usable", "reserved", "acpi", "nvs", "unusable", "pmem", or a number below 2^32"#,
        ),
        (
            &["[machine]", r#"e820 = "override""#, "[[node]]", r#"memory = ["64M"]"#, "cpus = [0]"],
            r#"m.toml:2: unknown variant `override`, expected one of `append`, `prepend`, `replace`"#,
        ),
        (
            &["[machine]", r#"name = "../x""#, "[[node]]", r#"memory = ["64M"]"#, "cpus = [0]"],
            r#"m.toml:2: machine.name: `../x` is not a name; use 1 to 44 letters, digits, `.`, `_` and `-`, and begin with a letter or digit"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", "[boot]", r#"cmdline = "a\nb""#],
            r#"m.toml:5: boot.cmdline: a command line is one line of printable text; remove the control character '\n'"#,
        ),
    ]);
}

#[test]
fn memory_that_cannot_be_names_its_line() {
    check(&[
        (&[""], r#"m.toml:1: a machine needs at least one node: add `[[node]]` with `memory` and `cpus`"#),
        (
            &["[[node]]", "cpus = [0]"],
            r#"m.toml:1: the machine has no memory; give a node `memory = ["128M"]`"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", "", "[[node]]"],
            r#"m.toml:5: node[1]: this node has neither memory nor CPUs; give it one of them or remove it"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M", 0]"#, "cpus = [0]"],
            r#"m.toml:2: node[0].memory[1]: a range of 0 bytes; give it a size or remove it"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M", 5000]"#, "cpus = [0]"],
            r#"m.toml:2: node[0].memory[1]: 5000 B is not a multiple of 4 KiB; use 4 KiB or 8 KiB"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M", { at = "0x10000800", size = "4M" }]"#, "cpus = [0]"],
            r#"m.toml:2: node[0].memory[1]: 262146 KiB is not a multiple of 4 KiB; use 256 MiB or 262148 KiB"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = [{ at = 0, size = "64M" }]"#,
                "cpus = [0]",
                "",
                "[[node]]",
                r#"memory = [{ at = "48M", size = "64M" }]"#,
            ],
            r#"m.toml:6: node[1].memory[0]: 0x3000000..0x7000000 overlaps 0x0..0x4000000 of m.toml:2: node[0].memory[0] in 0x3000000..0x4000000; move or shrink one of them"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M","#, r#"  { at = "3G", size = "64M" }]"#, "cpus = [0]"],
            r#"m.toml:3: node[0].memory[1]: RAM at 0xc0000000..0xc4000000 lies in the MMIO hole 0xc0000000..0x100000000 (I/O APIC at 0xfec00000, local APIC at 0xfee00000); end it at 0xc0000000 and continue at 0x100000000"#,
        ),
        (
            &["[[node]]", r#"memory = [{ at = 0, size = "4G" }]"#, "cpus = [0]"],
            r#"m.toml:2: node[0].memory[0]: RAM at 0xc0000000..0x100000000 lies in the MMIO hole 0xc0000000..0x100000000 (I/O APIC at 0xfec00000, local APIC at 0xfee00000); end it at 0xc0000000 and continue at 0x100000000"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M", { at = "0x3ffffffff000", size = "8K" }]"#, "cpus = [0]"],
            r#"m.toml:2: node[0].memory[1]: RAM at 0x3ffffffff000..0x400000001000 is past 46 physical address bits; end it at 0x400000000000 or below, or ask for 5 levels, which reach 52 bits"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M", { at = "0x3ffffffff000", size = "16P" }]"#,
                "cpus = [0]",
                "[boot]",
                "paging = 5",
            ],
            r#"m.toml:2: node[0].memory[1]: RAM at 0x3ffffffff000..0x403ffffffff000 is past 52 physical address bits; end it at 0x10000000000000 or below"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M", { at = "0xfffffffffffff000", size = "8K" }]"#, "cpus = [0]"],
            r#"m.toml:2: node[0].memory[1]: 8 KiB from 0xfffffffffffff000 on go past 2^64; make it smaller"#,
        ),
        (
            &["[[node]]", r#"memory = [{ at = "1M", size = "64M" }]"#, "cpus = [0]"],
            r#"m.toml:2: node[0].memory[0]: 0x0..0x90000 below 1 MiB is not RAM; boot data and the start page of the application processors need all of 0x0..0x90000: give a node memory there, and keep other E820 types away from it"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = [{ at = 0, size = "0x90000" }, { at = "0xa0000", size = "0x40000" }]"#,
                "cpus = [0]",
            ],
            r#"m.toml:2: node[0].memory[1]: all of 0xa0000..0xe0000 lies in the legacy hole 0x9fc00..0x100000; begin at 0x100000"#,
        ),
    ]);
}

#[test]
fn e820_entries_that_cannot_be_name_their_line() {
    check(&[
        (
            &["[machine]", r#"e820 = "replace""#, "[[node]]", r#"memory = ["64M"]"#, "cpus = [0]"],
            r#"m.toml:2: machine.e820: `e820 = "replace"` without any `[[e820]]`; add entries or use "append""#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "[[e820]]",
                r#"at = "64M""#,
                r#"size = "1M""#,
                r#"type = "usable""#,
            ],
            r#"m.toml:4: e820[0]: RAM at 0x4000000..0x4100000 belongs to no node; add it to a node's memory, or make the entry another type"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "[[e820]]",
                r#"at = "0xfee00000""#,
                r#"size = "1M""#,
                r#"type = "usable""#,
            ],
            r#"m.toml:4: e820[0]: RAM at 0xfee01000..0xfef00000 lies in the MMIO hole 0xc0000000..0x100000000 (I/O APIC at 0xfec00000, local APIC at 0xfee00000); end it at 0xc0000000 and continue at 0x100000000"#,
        ),
        (
            &[
                "[machine]",
                r#"e820 = "replace""#,
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "[[e820]]",
                "at = 0",
                r#"size = "64M""#,
                r#"type = "usable""#,
            ],
            r#"m.toml:6: e820[0]: RAM at 0xe0000..0x100000 lies in the firmware area 0xe0000..0x100000, which holds the ACPI tables; end it at 0xe0000 or begin at 0x100000"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M", { at = "4G", size = "1M" }]"#,
                "cpus = [0]",
                "[[e820]]",
                r#"at = "4G""#,
                r#"size = "1M""#,
                r#"type = "nvs""#,
            ],
            r#"m.toml:2: node[0].memory[1]: the E820 map leaves none of this range as RAM; add an entry of type "usable" that covers it"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "[[e820]]",
                r#"at = "0x8000""#,
                r#"size = "4K""#,
                r#"type = "reserved""#,
            ],
            r#"m.toml:4: e820[0]: 0x8000..0x9000 below 1 MiB is not RAM; boot data and the start page of the application processors need all of 0x0..0x90000: give a node memory there, and keep other E820 types away from it"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "[[e820]]",
                r#"at = "5G""#,
                r#"size = "4K""#,
                r#"type = "reserved""#,
                "repeat = 20000",
            ],
            r#"m.toml:4: e820[0]: 20000 E820 entries; at most 16213 can be handed over"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "[[e820]]",
                r#"at = "5G""#,
                r#"size = "4K""#,
                r#"type = "reserved""#,
                "repeat = 0",
            ],
            r#"m.toml:4: e820[0]: `repeat = 0` is not a number of entries from 1 on"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "[[e820]]",
                r#"at = "5G""#,
                r#"size = "0x8000000000000000""#,
                r#"type = "reserved""#,
                "repeat = 3",
            ],
            r#"m.toml:4: e820[0]: 8192 PiB from 0x140000000 on go past 2^64; make it smaller"#,
        ),
    ]);
}

#[test]
fn cpus_belong_to_exactly_one_node() {
    check(&[
        (
            &["[[node]]", r#"memory = ["64M"]"#],
            r#"m.toml:1: a machine needs at least one CPU; write `cpus = [0]` in a node, or `--cpus 1`"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0, 1]",
                "[[node]]",
                "cpus = [",
                "  2,",
                "  1,",
                "]",
            ],
            r#"m.toml:7: node[1].cpus[1]: CPU 1 is already in node 0; a CPU belongs to one node"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0, 2]"],
            r#"m.toml:3: node[0].cpus[1]: CPU 1 is in no node, but CPU 2 is; number the CPUs from 0 without gaps"#,
        ),
    ]);
}

#[test]
fn distances_are_what_a_slit_can_say() {
    check(&[
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "distances = { 1 = 9 }",
                "[[node]]",
                "cpus = [1]",
            ],
            r#"m.toml:4: node[0].distances.1: distance 9 from node 0 to node 1; distances to other nodes are 11 to 254, or 255 for unreachable, and 10 is a node's own"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "distances = { 1 = 10 }",
                "[[node]]",
                "cpus = [1]",
            ],
            r#"m.toml:4: node[0].distances.1: distance 10 from node 0 to node 1; distances to other nodes are 11 to 254, or 255 for unreachable, and 10 is a node's own"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "distances = { 1 = 300 }",
                "[[node]]",
                "cpus = [1]",
            ],
            r#"m.toml:4: node[0].distances.1: distance 300 from node 0 to node 1; distances to other nodes are 11 to 254, or 255 for unreachable, and 10 is a node's own"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "distances = { 0 = 12 }",
                "[[node]]",
                "cpus = [1]",
            ],
            r#"m.toml:4: node[0].distances.0: distance 12 from node 0 to itself; it is always 10, leave it out"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "distances = { 7 = 12 }",
                "[[node]]",
                "cpus = [1]",
            ],
            r#"m.toml:4: node[0].distances.7: node 7 does not exist; the nodes are 0..=1"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "distances = { one = 12 }",
                "[[node]]",
                "cpus = [1]",
            ],
            r#"m.toml:4: node[0].distances.one: `one` is not the number of a node"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "distances = { 1 = 20 }",
                "[[node]]",
                "cpus = [1]",
                "distances = { 0 = 30 }",
            ],
            r#"m.toml:7: node[1].distances.0: distance 30 from node 1 to node 0, but 20 from node 0 to node 1; make them equal, or say `asymmetric = true` in [machine]"#,
        ),
    ]);
}

#[test]
fn a_backing_is_one_of_four_and_its_pages_are_whole() {
    check(&[
        (
            &["[machine]", r#"backing = "2m""#, "[[node]]", r#"memory = ["64M"]"#, "cpus = [0]"],
            r#"m.toml:2: `2m` is not a backing: "4k", "thp", "hugetlb-2m" or "hugetlb-1g""#,
        ),
        (
            &["[[node]]", r#"memory = ["64M", "1M"]"#, "cpus = [0]", r#"backing = "hugetlb-2m""#],
            r#"m.toml:2: node[0].memory[1]: 0x4000000..0x4100000 is not made of whole pages of 2 MiB, which backing "hugetlb-2m" takes; make its start and its size multiples of 2 MiB, or choose another backing"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", r#"backing = "hugetlb-1g""#],
            r#"m.toml:2: node[0].memory[0]: 0x0..0x4000000 is not made of whole pages of 1 GiB, which backing "hugetlb-1g" takes; make its start and its size multiples of 1 GiB, or choose another backing"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M", { at = 0x140001000, size = "4M" }]"#,
                "cpus = [0]",
                r#"backing = "hugetlb-2m""#,
            ],
            r#"m.toml:2: node[0].memory[1]: 0x140001000..0x140401000 is not made of whole pages of 2 MiB, which backing "hugetlb-2m" takes; make its start and its size multiples of 2 MiB, or choose another backing"#,
        ),
    ]);
}

#[test]
fn hmat_figures_fit_their_matrix() {
    check(&[
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", "[hmat]"],
            r#"m.toml:4: hmat: no figures; give `latency_ns` or `bandwidth_mbps`, or remove [hmat]"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", "[hmat]", "latency_ns = [[1], [2]]"],
            r#"m.toml:5: hmat.latency_ns: 2 rows; one for each node with CPUs, [0], is 1"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", "[hmat]", "latency_ns = [[1, 2]]"],
            r#"m.toml:5: hmat.latency_ns: row 0 has 2 figures; one for each node with memory, [0], is 1"#,
        ),
        (
            &["[[node]]", r#"memory = ["64M"]"#, "cpus = [0]", "[hmat]", "bandwidth_mbps = [[0]]"],
            r#"m.toml:5: hmat.bandwidth_mbps: figure 0 of row 0; figures are 1 to 4294967294"#,
        ),
        (
            &[
                "[[node]]",
                r#"memory = ["64M"]"#,
                "cpus = [0]",
                "[[node]]",
                r#"memory = ["64M"]"#,
                "[hmat]",
                "bandwidth_mbps = [[65537, 70000]]",
            ],
            r#"m.toml:7: hmat.bandwidth_mbps: the figures have no common unit in which all fit in 16 bits; round them (their greatest common divisor is 1, the largest is 70000)"#,
        ),
    ]);
}

/// Flags on top of the bundled default machine, and the message.
#[test]
fn flags_that_cannot_be_are_named() {
    let size = |text: &str| Some(text.parse::<Size>().expect(text));
    let none = Overrides::default;
    let zones = |zones: &[&str], numa: &[&str]| Overrides {
        memory_zone: zones.iter().map(|text| (*text).to_owned()).collect(),
        numa: numa.iter().map(|text| (*text).to_owned()).collect(),
        ..Overrides::default()
    };
    let cases = [
        (
            Overrides { memory: size("5000"), ..none() },
            "--memory: 5000 B is not a multiple of 4 KiB; use 4 KiB or 8 KiB",
        ),
        (
            Overrides { memory: size("4K"), ..none() },
            "--memory: 4 KiB is too little for 3 ranges; give at least 12 KiB",
        ),
        (
            Overrides { memory: size("512K"), ..none() },
            "--memory: node[0].memory[0]: 0x60000..0x90000 below 1 MiB is not RAM",
        ),
        (
            Overrides { memory: size("256T"), ..none() },
            "--memory: node[1].memory[1]: RAM at 0x100000000..0x400100000000 is past 46 physical address bits",
        ),
        (Overrides { cpus: Some(0), ..none() }, "--cpus: a machine needs at least one CPU"),
        (Overrides { cpus: Some(5000), ..none() }, "--cpus: 5000 CPUs; at most 1024 are supported"),
        (Overrides { name: Some("a/b".to_owned()), ..none() }, "--name: `a/b` is not a name"),
        (
            Overrides { cmdline: Some("x".repeat(2048)), ..none() },
            "--cmdline: a command line of 2048 bytes; kernels take at most 2047",
        ),
        (
            Overrides { cmdline: Some("a\0b".to_owned()), ..none() },
            "--cmdline: a command line is one line of printable text",
        ),
        (
            Overrides { memory: size("64M"), ..zones(&["id=a,size=64M"], &[]) },
            "--memory: --memory cannot be used together",
        ),
        (
            zones(&["id=a,size=64M", "id=b,size=64M,at=32M"], &["guest_numa_id=0,cpus=0,memory_zones=[a,b]"]),
            // `a` steps aside, and both fit.
            "",
        ),
        (
            zones(
                &["id=a,size=64M,at=0", "id=b,size=64M,at=32M"],
                &["guest_numa_id=0,cpus=0,memory_zones=[a,b]"],
            ),
            "--memory-zone: b: 0x2000000..0x6000000 overlaps 0x0..0x4000000 of --memory-zone: a in 0x2000000..0x4000000",
        ),
        (
            zones(
                &["id=a,size=64M"],
                &[
                    "guest_numa_id=0,cpus=0,memory_zones=a,distances=1@20",
                    "guest_numa_id=1,cpus=1,distances=0@30",
                ],
            ),
            "--numa: guest_numa_id=1: distance 30 from node 1 to node 0, but 20 from node 0 to node 1; make them equal",
        ),
        (
            zones(&[], &["guest_numa_id=0,cpus=0"]),
            "images/machines/default.toml:1: the machine has no memory",
        ),
        (
            zones(&["id=a,size=64M"], &["guest_numa_id=0,memory_zones=a"]),
            "images/machines/default.toml:1: a machine needs at least one CPU",
        ),
    ];
    for (overrides, expected) in cases {
        let file = load("default").expect("bundled");
        match (resolve(file, &overrides), expected) {
            (Ok(_), "") => {}
            (Err(error), expected) if !expected.is_empty() => {
                let message = error.to_string();
                assert!(message.starts_with(expected), "{message}\n{expected}");
            }
            (result, expected) => panic!("{result:?}\n{expected}"),
        }
    }
}

#[test]
fn a_machine_that_does_not_exist_lists_those_that_do() {
    let message = load("defualt").expect_err("misspelt").to_string();
    assert_eq!(
        message,
        "no machine is named `defualt`; choose one of default, tiny, numa4, disks, dma, sparse, hostile, la57, la57-optional, real-laptop, real-cloud, real-server, real-chiplet, or give the path of a .toml file"
    );
    let message = load("./nowhere.toml").expect_err("missing").to_string();
    assert_eq!(message, "read machine file ./nowhere.toml");
}

#[test]
fn too_many_nodes_are_counted_at_the_first_one_too_many() {
    let mut lines = vec!["[[node]]", "memory = [\"64M\"]", "cpus = [0]"];
    for _ in 0..64 {
        lines.extend(["[[node]]", "memory = [\"4M\"]"]);
    }
    assert_eq!(
        refusal(&lines, &Overrides::default()),
        "m.toml:130: node[64]: 65 nodes; at most 64 are supported"
    );
}

#[test]
fn tables_that_outgrow_firmware_memory_are_refused_by_their_size() {
    let text = "[[node]]\nmemory = [\"256M\"]\ncpus = [0]\n[[e820]]\nat = \"16M\"\nsize = \"4K\"\ntype = 2\nrepeat = 2000\nstride = \"8K\"";
    let machine = resolve(MachineFile::from_text("m.toml", text).expect("reads"), &Overrides::default())
        .expect("resolves");
    let message = acpi::build(&machine).expect_err("2000 SRAT entries").to_string();
    assert!(
        message.starts_with("the ACPI tables of machine m end 15")
            && message.ends_with("bytes past their room of 64 KiB at 0xe0000; use fewer CPUs, nodes, memory ranges or [hmat] figures"),
        "{message}"
    );
}
